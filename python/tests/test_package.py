"""The package itself: its types say what there is, and everything public is documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import maypole
from maypole import _maypole

STUB = Path(maypole.__file__).with_name("_maypole.pyi")


def described():
    """What the stub declares: classes with their members, and functions with their parameters."""
    stub_only = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef):
            members = {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}
            for base in node.bases:
                if isinstance(base, ast.Subscript):
                    members.update(stub_only.get(base.value.id, {}))
            if node.name.startswith("_"):
                stub_only[node.name] = members
            else:
                yield node.name, members
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node


def parameters(node):
    a = node.args
    assert not a.posonlyargs and not a.kwonlyargs
    names = [arg.arg for arg in a.args] + ([f"**{a.kwarg.arg}"] if a.kwarg else [])
    defaults = [ast.literal_eval(d) for d in a.defaults]
    return names, defaults


def of_signature(function):
    signature = inspect.signature(function).parameters.values()
    kwarg = inspect.Parameter.VAR_KEYWORD
    names = [f"**{p.name}" if p.kind == kwarg else p.name for p in signature]
    return names, [p.default for p in signature if p.default is not p.empty]


def test_stub_and_module_agree():
    stub = dict(described())
    assert set(maypole.__all__) <= {*stub, "__version__"}  # maypole.torch and maypole.jax have theirs
    for name, declared in stub.items():
        actual = getattr(_maypole, name)
        if not isinstance(declared, dict):
            assert of_signature(actual) == parameters(declared), name
            continue
        public = {m for m in vars(actual) if not m.startswith("_")}
        errors = {"rank", "host", "operation", "kind", "verdict"} if issubclass(actual, Exception) else set()
        assert public - errors == {m for m in declared if not m.startswith("_")}, name
        for member, node in declared.items():
            attribute = inspect.getattr_static(actual, member)
            if node.decorator_list:
                assert inspect.isdatadescriptor(attribute), f"{name}.{member}"
            elif not member.startswith("__"):
                assert of_signature(attribute) == parameters(node), f"{name}.{member}"


def test_everything_is_documented():
    for name in maypole.__all__:
        public = getattr(maypole, name)
        if inspect.isclass(public):
            assert public.__doc__ and public.__module__ == "maypole", name
            for member, value in vars(public).items():
                if not member.startswith("_") and not issubclass(public, Exception):
                    assert value.__doc__, f"{name}.{member}"
        elif callable(public):
            assert public.__doc__, name


def test_mypy_agrees(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed here")
    path = tmp_path / "user.py"
    path.write_text(
        "import maypole\n"
        "comm: maypole.Communicator = maypole.init(timeout=3)\n"
        "request: maypole.Request = comm.start.all_reduce([1], op='max')\n"
        "half = comm.split(None)\n"
        "async def f() -> None:\n    await request\n"
        "half.rank  # it may be None\n"
        "comm.all_reduce(1, op='mean')  # no such operation\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "--no-error-summary", str(path)]
    done = subprocess.run(mypy, capture_output=True, text=True, timeout=120)
    errors = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert errors == ["7", "8"], done.stdout + done.stderr
