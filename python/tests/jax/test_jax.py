"""maypole.jax: programs in `programs/`, started as ranks. Each does many checks, and prints a line for each passed."""

import ctypes
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


class Extension(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("kind", ctypes.c_int), ("next", ctypes.c_void_p)]


class Version(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("extensions", ctypes.c_void_p), ("major", ctypes.c_int), ("minor", ctypes.c_int)
    ]  # fmt: skip


class Metadata(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("version", Version), ("traits", ctypes.c_uint32)]


class MetadataQuery(ctypes.Structure):
    _fields_ = [("base", Extension), ("metadata", ctypes.POINTER(Metadata))]


class Frame(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("extensions", ctypes.c_void_p), ("api", ctypes.c_void_p), ("rest", ctypes.c_char * 512)
    ]  # fmt: skip


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_question_for_the_version_is_found_behind_others(before):
    """And is answered, in place of a call with nothing in it."""
    from maypole import _maypole

    metadata = Metadata(version=Version(major=-1, minor=-1), traits=7)
    query = MetadataQuery(Extension(ctypes.sizeof(MetadataQuery), 1, None), ctypes.pointer(metadata))
    chain = [query]
    for kind in range(before):
        chain.append(Extension(ctypes.sizeof(Extension), 1000 + kind, ctypes.addressof(chain[-1])))
    functions = ctypes.create_string_buffer(256)
    frame = Frame(ctypes.sizeof(Frame), ctypes.addressof(chain[-1]), ctypes.addressof(functions))
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    for name, capsule in _maypole._jax_targets():
        metadata.version.major = -1
        handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(address(capsule, b"xla._CUSTOM_CALL_TARGET"))
        assert handler(ctypes.addressof(frame)) is None
        assert metadata.version.major >= 0 and metadata.version.minor >= 0 and metadata.traits == 0, name


def test_jax_names_what_is_ordered():
    from maypole.jax._internals import ORDERED_CALLS

    assert repr(ORDERED_CALLS) == "OrderedMaypoleCalls"


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
