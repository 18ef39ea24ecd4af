"""What the tests share: ranks as threads, ranks as processes, and a line for everything that is skipped."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import maypole

#: Nothing here takes longer, unless it hangs.
PATIENCE = 60

# Whoever runs the tests (nohup, a shell's background) may ignore signals that they are about, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def in_threads(n, rank, **settings):
    """Run ``rank(comm)`` on ``n`` ranks that are threads; what each returned. The first exception, by rank, is raised."""
    settings.setdefault("timeout", 20)
    settings.setdefault("late", 0)
    results, errors = [None] * n, [None] * n

    def run(r, comm):
        try:
            results[r] = rank(comm)
        except BaseException as error:
            errors[r] = error
            if not comm.closed:
                comm.abort(f"the test failed on rank {r}")

    world = maypole.threads(n, **settings)
    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a rank hangs"
    # The cause, rather than those who were told to give up.
    errors = [error for error in errors if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, maypole.AbortedError)):
        raise error
    return results


def environment(**more):
    """This process's environment without what a launcher or the caller's settings would add."""
    unwanted = ("MAYPOLE_", "OMPI_", "PMI", "SLURM_", "TORCHELASTIC_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(unwanted) and k not in names}
    return {**kept, "MAYPOLE_TIMEOUT": "20", "MAYPOLE_LATE": "0", **more}


TARGET = Path(__file__).parents[2] / "target" / "debug"
EMULATORS = [TARGET / "deps" / "libmaypole_cuda_emulator.so", TARGET / "libmaypole_cuda_emulator.so"]


@pytest.fixture
def driver(tmp_path):
    """A folder with the emulated driver, which ``cargo test`` builds, under its real name."""
    found = [path for path in EMULATORS if path.exists()]
    if not found:
        pytest.skip(f"there is no {EMULATORS[0]}; `cargo build -p maypole-cuda-emulator` makes it")
    (tmp_path / "cuda").mkdir()
    for name in ("libcuda.so", "libcuda.so.1"):
        (tmp_path / "cuda" / name).symlink_to(max(found, key=lambda path: path.stat().st_mtime))
    return tmp_path / "cuda"


@pytest.fixture
def script(tmp_path):
    """Write a script: the path."""

    def write(text, name="script.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def launch(script):
    """Run a script on ``n`` ranks that are processes, by ``python -m maypole run``: the finished process."""

    def run(n, text, *options, **env):
        command = [sys.executable, "-m", "maypole", "run", "-n", str(n), *options, script(text)]
        return subprocess.run(command, env=environment(**env), capture_output=True, text=True, timeout=PATIENCE)

    return run


def pytest_terminal_summary(terminalreporter):
    """``skipped: python/tests/...: why`` lines, which scripts/test collects."""
    for report in terminalreporter.stats.get("skipped", []):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"skipped: {report.nodeid}: {why.removeprefix('Skipped: ')}")
