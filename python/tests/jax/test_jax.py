"""maypole.jax: programs in `programs/`, started as ranks. Each does many checks, and prints a line for each passed."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed; pip install 'maypole[jax]'")

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]


def launch(ranks, program, *arguments, status=0, timeout=300):
    """Run a program as `ranks` ranks and return what they printed."""
    command = [sys.executable, "-m", "maypole", "run", "-n", str(ranks), str(program), *arguments]
    # A call that all ranks should make, and do not, is to fail here long before the tests' own deadline.
    environment = {"MAYPOLE_TIMEOUT": "60", "MAYPOLE_LATE": "0", **os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    printed = done.stdout + done.stderr
    assert done.returncode == status, f"status {done.returncode}, expected {status}\n{printed}"
    return printed


def checks(program):
    return re.findall(r"^def (check_\w+)", program.read_text(), re.MULTILINE)


# Few launches: what is compiled is compiled by every rank, and takes longer than what is tested.
@pytest.mark.parametrize(
    ("name", "ranks"),
    [("collectives", n) for n in (1, 2, 3, 4)]
    + [("derivatives", 3), ("order", 2), ("order", 4), ("errors", 2), ("errors", 3)],
)
def test_program(name, ranks):
    program = HERE / "programs" / f"{name}.py"
    printed = launch(ranks, program)
    for check in checks(program):
        for rank in range(ranks):
            assert f"passed {check} on rank {rank}" in printed, f"{check} did not end on rank {rank}\n{printed}"


@pytest.mark.parametrize("how", ["died", "stalled", "aborted"])
def test_failure(how):
    printed = launch(3, HERE / "programs" / "failures.py", how)
    for rank in (0, 1):
        assert f"rank {rank} passed {how}" in printed, printed


@pytest.mark.parametrize(
    "how", ["short", "long", "numpy", "elsewhere", "checked", "set again", "own handler", "raising"]
)
def test_ctrl_c(how):
    printed = launch(2, HERE / "programs" / "interrupted.py", how)
    for rank in (0, 1):
        assert f"rank {rank} passed {how}" in printed, printed


@pytest.mark.parametrize("how", ["at exit", "before the call"])
def test_ctrl_c_ends_the_process(how):
    """A call that still waits, or comes to wait, does not hold up the exit; 130 is how a shell says SIGINT."""
    printed = launch(2, HERE / "programs" / "interrupted.py", how, status=130)
    assert "rank 0 ends by itself" in printed and f"rank 1 passed {how}" in printed, printed
    assert "at exit, after a call" not in printed, printed


@pytest.mark.parametrize("ranks", [1, 3])
def test_digits(ranks):
    printed = launch(ranks, ROOT / "examples" / "jax_digits.py")
    assert printed.count("ok: ") == 3, printed


def test_layout(tmp_path):
    """Our structures against jaxlib's header: the compiler compares every offset and every number."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    from maypole._maypole import _jax_layout

    lines = ['#include "xla/ffi/api/c_api.h"']
    lines += [f'_Static_assert({expression} == {value}, "{expression}");' for expression, value in _jax_layout()]
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines) + "\n")
    command = [compiler, "-std=c11", "-fsyntax-only", "-I", jax.ffi.include_dir(), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
