"""Runs checks under gloo and under Maypole in the same processes, and compares what they return.

A program of checks (`ddp.py` and its neighbours) is started once per number of ranks, since importing torch takes
longer than most checks. Each check is a function without arguments that uses the default process group and returns
numbers and tensors, in lists and dictionaries as it likes. It runs in a new process group of gloo, then in one of
Maypole; the results must be equal. Two ranks leave no choice in the order of a sum, so there they must be equal to
the bit; with more, to the tolerance that the check states.

Rank 0 prints one line of JSON for each check: its name, and the texts of the ranks that failed.
"""

import json
import os
import sys
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

import maypole.torch  # noqa: F401  registers the backend

CHECKS = {}
# Groups of gloo, kept for good: a callback may hold one a little longer than its caller, and gloo ends the process when
# a thread of its own drops the last reference.
KEPT = []
TIMEOUT = timedelta(seconds=100)


def gloo_averages():
    """Whether this release's gloo, with which results are compared, has AVG."""
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.AVG
    try:
        dist.ProcessGroupGloo(dist.HashStore(), 0, 1, TIMEOUT).allreduce([torch.ones(1)], options).wait()
    except RuntimeError:
        return False
    return True


def check(function=None, *, ranks=None, tolerance=1e-5, exact_with_two=True):
    """Makes a function a check. `ranks`: the world size it needs. `tolerance`: relative, and absolute near 0."""
    if function is None:
        return lambda function: check(function, ranks=ranks, tolerance=tolerance, exact_with_two=exact_with_two)
    CHECKS[function.__name__] = (function, ranks, tolerance, exact_with_two)
    return function


def differences(ours, theirs, tolerance, path="result"):
    """Where two results differ, as texts. A tolerance of 0 asks for the same bits."""
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [f"{path}: keys {sorted(ours)} and {sorted(theirs)}"]
        return [text for key in ours for text in differences(ours[key], theirs[key], tolerance, f"{path}[{key!r}]")]
    if isinstance(ours, (list, tuple)):
        if len(ours) != len(theirs):
            return [f"{path}: {len(ours)} and {len(theirs)} elements"]
        pairs = enumerate(zip(ours, theirs))
        return [text for i, (a, b) in pairs for text in differences(a, b, tolerance, f"{path}[{i}]")]
    if isinstance(ours, torch.Tensor):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            return [f"{path}: {ours.dtype}{list(ours.shape)} and {theirs.dtype}{list(theirs.shape)}"]
        exact = tolerance == 0 or not ours.is_floating_point()
        close = torch.equal(ours, theirs) if exact else torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
        if close:
            return []
        return [f"{path}: differs by up to {(ours.double() - theirs.double()).abs().max().item():.3g}"]
    if isinstance(ours, float) and tolerance:
        return [] if abs(ours - theirs) <= tolerance * max(1.0, abs(theirs)) else [f"{path}: {ours} and {theirs}"]
    return [] if ours == theirs else [f"{path}: {ours!r} and {theirs!r}"]


def run_under(backend, name, function, store):
    """What the check returns in a new process group, on tensors of its own."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.PrefixStore(f"{name}/{backend}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        if dist.get_backend() != backend:
            raise AssertionError(f"the process group's backend is {dist.get_backend()}, not {backend}")
        if backend == "gloo":
            KEPT.append(dist.group.WORLD)
        torch.manual_seed(1)
        return torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.detach().clone(), function())
    finally:
        dist.destroy_process_group()


def main():
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # Under torchrun its agent keeps the store at this address; under other launchers rank 0 does.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(address, port, size, is_master=rank == 0 and not agent, timeout=TIMEOUT)
    failed = False
    for name, (function, ranks, tolerance, exact_with_two) in CHECKS.items():
        if (ranks is not None and size != ranks) or (len(sys.argv) > 1 and name not in sys.argv[1:]):
            continue
        texts, began = [], time.monotonic()
        try:
            theirs = run_under("gloo", name, function, store)
            ours = run_under("maypole", name, function, store)
            texts = differences(ours, theirs, 0 if size == 2 and exact_with_two else tolerance)
        except Exception:
            texts = [traceback.format_exc()]
        store.set(f"outcome/{name}/{rank}", json.dumps(texts))
        # Everybody waits for everybody, so that a rank that failed early does not meet the others in the next check.
        outcomes = [json.loads(store.get(f"outcome/{name}/{other}")) for other in range(size)]
        failed |= any(outcomes)
        if rank == 0:
            seconds = round(time.monotonic() - began, 1)
            told = [f"rank {other}: {text}" for other, texts in enumerate(outcomes) for text in texts]
            print(json.dumps({"check": name, "seconds": seconds, "failures": told}), flush=True)
    store.set(f"left/{rank}", "1")
    if rank == 0:
        store.wait([f"left/{other}" for other in range(size)])
    sys.exit(1 if failed else 0)
