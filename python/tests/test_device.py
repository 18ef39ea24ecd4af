"""Device memory, on a CUDA stream: with the emulated driver."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, environment

PROGRAMS = Path(__file__).parent / "device_programs"


@pytest.fixture
def run(driver):
    """Run one of ``device_programs`` on ``n`` ranks, of which ``fine`` get to its end (all, if not said)."""

    def run(name, n, *arguments, fine=None):
        command = [sys.executable, "-m", "maypole", "run", "-n", str(n), str(PROGRAMS / f"{name}.py"), *arguments]
        settings = environment(LD_LIBRARY_PATH=str(driver))
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=PATIENCE)
        printed = done.stdout + done.stderr
        assert done.returncode == 0 and done.stdout.count("fine") == (n if fine is None else fine), printed

    return run


@pytest.mark.parametrize("name", ["capture", "equal"])
def test_two_ranks(run, name):
    run(name, 2)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["counts", "fresh_threads", "messages", "registered", "torch_link"])
def test_program(run, name, n):
    run(name, n)


@pytest.mark.parametrize("how", ["differs", "dies", "aborts", "stalls"])
def test_failure(run, how):
    run("failures", 3, how, fine=2 if how == "dies" else 3)
