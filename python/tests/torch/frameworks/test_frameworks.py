"""Starts the programs of checks in this folder, once for each number of ranks, and reports check by check.

    pytest python/tests/torch/frameworks                       # needs torch, and g++ for what torch.compile generates
    pytest python/tests/torch/frameworks -k "ddp and 2"
    torchrun --nproc-per-node 2 ddp.py unused_parameters       # one check, by hand
"""

import ast
import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
PROGRAMS = {"ddp": (2, 3), "sharded": (2, 4), "compiled": (2,)}


def installed(package):
    """Whether a package with code is found; the folder of tests called `torch`, where pytest looks too, is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


pytestmark = [
    pytest.mark.skipif(not installed("torch"), reason="torch is not installed"),
    pytest.mark.skipif(not installed("maypole"), reason="maypole is not installed"),
]


def launch(ranks, program, *arguments, seconds=400):
    """Runs a program under torchrun; its exit status, standard output and standard error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        [*command, str(program), *arguments], env=environment, capture_output=True, text=True, timeout=seconds
    )
    return done.returncode, done.stdout, done.stderr


def checks_of(program):
    """(name, the world size that it asks for) of each check, read without importing torch."""
    for function in ast.parse((HERE / f"{program}.py").read_text()).body:
        for mark in getattr(function, "decorator_list", ()):
            call = mark if isinstance(mark, ast.Call) else None
            if getattr(call.func if call else mark, "id", None) == "check":
                ranks = [word.value.value for word in call.keywords if word.arg == "ranks"] if call else []
                yield function.name, ranks[0] if ranks else None


CASES = [
    (program, ranks, name)
    for program, sizes in PROGRAMS.items()
    for ranks in sizes
    for name, needed in checks_of(program)
    if needed in (None, ranks)
]


@functools.cache
def outcomes(program, ranks):
    """What each check of a program said; a program is started once, by the first test that asks."""
    status, output, errors = launch(ranks, HERE / f"{program}.py")
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"check"')]
    return {line["check"]: line for line in lines}, f"exit status {status}\n{errors[-3000:]}"


@pytest.mark.parametrize("program, ranks, name", CASES, ids=[f"{p}-{r}-{n}" for p, r, n in CASES])
def test_check(program, ranks, name):
    if program == "compiled" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++")
    release = tuple(map(int, importlib.metadata.version("torch").split(".")[:2]))
    if program == "sharded" and release < (2, 6):
        pytest.skip("torch.distributed.fsdp has fully_shard from torch 2.6 on")
    if program == "sharded" and release < (2, 7):
        pytest.skip("fully_shard of torch 2.6 fails on CPU under gloo, with which results are compared")
    if program == "sharded" and release < (2, 9):
        pytest.skip("gloo of torch 2.7 and 2.8, with which results are compared, sums in reduce_scatter, whatever is asked for")
    told, ending = outcomes(program, ranks)
    assert name in told, f"the program ended before this check: {ending}"
    assert not told[name]["failures"], "\n".join(told[name]["failures"])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ddp_digits(ranks, tmp_path):
    """The example learns to read, and its weights are gloo's: to the bit with two ranks, nearly with four."""
    program, weights, results = ROOT / "examples" / "ddp_digits.py", tmp_path / "weights.pt", {}
    for backend, file in (("gloo", "--save"), ("maypole", "--compare")):
        arguments = ("--backend", backend, "--json", file, str(weights))
        status, output, errors = launch(ranks, program, *arguments)
        for _ in range(3):
            # On a busy machine gloo now and then ends a process while its group is destroyed.
            if backend == "gloo" and "terminate called without an active exception" in errors:
                status, output, errors = launch(ranks, program, *arguments)
        assert status == 0, f"{backend}: exit status {status}\n{output}\n{errors[-3000:]}"
        results[backend] = json.loads(output.splitlines()[-1])
    ours, theirs = results["maypole"], results["gloo"]
    assert ours["accuracy"] >= 0.95 and ours["ranks_agreeing"] == ranks
    if ranks == 2:
        assert ours["digest"] == theirs["digest"]
    assert ours["difference"] <= 2e-3, "weights of the order of 0.1, after 330 steps from the same start"
    assert abs(ours["accuracy"] - theirs["accuracy"]) <= 0.01


def test_ddp_digits_under_our_launcher():
    """`python -m maypole run` tells torch all that torchrun would."""
    program = ROOT / "examples" / "ddp_digits.py"
    command = [sys.executable, "-m", "maypole", "run", "-n", "2", sys.executable, str(program), "--json"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if '"digest"' in line)
    assert json.loads(line[line.index("{") :])["ranks_agreeing"] == 2
