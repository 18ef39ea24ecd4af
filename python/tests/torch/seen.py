"""What profilers, modes, hooks and classes of tensors see of a group: one rank of a world of
two. Run by `test_backend.py`.

With the argument `environment`: what the environment asks for. Only newer releases let a group's
methods be passed by, so the others skip all of it and say so.
"""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

import maypole.torch


def all_calls(rank, size):
    """One call of each kind, with its result checked."""
    tensor = torch.full((3, 5), float(rank + 1))
    dist.all_reduce(tensor)
    assert tensor[0, 0] == 3
    work = dist.all_reduce(tensor, async_op=True)
    work.wait()
    assert work.is_completed() and work.is_success() and work.exception() is None and tensor[0, 0] == 6
    dist.broadcast(tensor, 0)
    dist.reduce(tensor, 1)
    ones = torch.ones(4)
    outputs = [torch.zeros(4) for _ in range(size)]
    dist.all_gather(outputs, ones * rank)
    assert [o[0].item() for o in outputs] == [0, 1]
    whole = torch.empty(4 * size)
    dist.all_gather_into_tensor(whole, ones * rank)
    assert whole[-1] == 1
    dist.reduce_scatter_tensor(ones, whole)
    assert ones[0] == 2 * rank
    dist.reduce_scatter(ones, [torch.ones(4) for _ in range(size)])
    dist.all_to_all_single(torch.empty(4), torch.ones(4))
    if size == 2:
        uneven = torch.empty(3)
        dist.all_to_all_single(uneven, torch.full((3,), float(rank)), [1, 2] if rank == 0 else [2, 1], [1, 2] if rank == 0 else [2, 1])
        assert uneven.tolist() == ([0, 1, 1] if rank == 0 else [0, 0, 1])
    dist.all_to_all(outputs, [torch.full((4,), float(rank)) for _ in range(size)])
    dist.gather(ones, outputs if rank == 0 else None)
    dist.scatter(ones, outputs if rank == 0 else None)
    if hasattr(dist.group.WORLD, "gather_single"):
        dist.group.WORLD.gather_single(whole, torch.full((4,), rank + 5.0), c10d.GatherOptions()).wait()
        assert rank != 0 or whole[-1] == 6
    dist.all_reduce_coalesced([torch.ones(2), torch.ones(3)])
    dist.barrier()
    taken = torch.zeros(4)
    if rank == 0:
        dist.send(torch.arange(4.0), 1)
        assert dist.recv(taken) == 1 and taken[3] == 3
    else:
        dist.recv(taken, 0)
        dist.isend(taken, 0).wait()
    if len(sys.argv) > 1 and sys.argv[1] == "environment":
        return  # PyTorch checks no sparse tensors for NaN, and says so by an error.
    sparse = torch.sparse_coo_tensor([[rank]], [1.0], (3,))
    dist.all_reduce(sparse)
    assert sparse.to_dense().tolist() == [1, 1, 0]


SEEN = """allreduce_ broadcast_ reduce_ allgather_ _allgather_base_ _reduce_scatter_base_ reduce_scatter_ alltoall_base_ alltoall_
    gather_ scatter_ allreduce_coalesced_ barrier send recv_ recv_any_source_""".split()


def profiled(rank, size):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        all_calls(rank, size)
        module = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
        profile.step()
        module(torch.ones(2, 4)).sum().backward()
    events = [event for event in profile.events() if event.name.startswith("c10d::")]
    names = {event.name.removeprefix("c10d::") for event in events}
    one_way = {"recv_"} if rank == 0 else {"recv_any_source_"}
    assert names >= set(SEEN) - one_way, set(SEEN) - names
    # What DDP calls from C++ as well.
    assert sum(event.name == "c10d::allreduce_" for event in events) >= 4
    # Of lists of tensors PyTorch records no shapes.
    assert [[8], [4]] in [event.input_shapes[:2] for event in events], "no shapes"


def modes_see(rank, size):
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = set()

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(str(function).removesuffix(".default"))
            return function(*args, **(kwargs or {}))

    with Mode():
        all_calls(rank, size)
    one_way = {"recv_"} if rank == 0 else {"recv_any_source_"}
    missing = {f"c10d.{name}" for name in set(SEEN) - one_way} - seen
    assert not missing, (missing, seen)


def comm_debug_mode_counts(rank, size):
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as mode:
        dist.all_reduce(torch.ones(3))
        dist.all_reduce(torch.ones(3))
        dist.broadcast(torch.ones(3), 0)
    assert mode.get_total_counts() == 3, mode.get_comm_counts()


def hooks_fire(rank, size):
    group, before, after = dist.group.WORLD, [], []
    group.register_pre_hook(1, lambda call: before.append((str(call.name), call.op_id)))
    group.register_post_hook(2, lambda call: after.append((str(call.name), call.op_id)))
    dist.all_reduce(torch.ones(3))
    dist.barrier()
    group.unregister_pre_hook(1)
    dist.broadcast(torch.ones(3), 0)
    group.unregister_post_hook(2)
    dist.all_reduce(torch.ones(3))
    names = [name.rpartition(".")[2] for name, _ in after]
    assert len(before) == 2 and names == ["ALLREDUCE", "BARRIER", "BROADCAST"], (before, after)


def tensors_that_are_classes(rank, size):
    import torch.distributed._functional_collectives as functional

    given = functional.all_reduce(torch.ones(4), "sum", dist.group.WORLD)
    dist.all_reduce(given)
    assert given.tolist() == [size * size] * 4
    # On one rank only: the others must not be told that this one refuses.
    given = functional.all_reduce(torch.ones(4), "sum", dist.group.WORLD)
    dist.broadcast(given if rank == 0 else torch.ones(4), 0)
    # Classes that are tensors in all that matters here.
    parameter = torch.nn.Parameter(torch.ones(4), requires_grad=False)
    dist.all_reduce(parameter)
    assert parameter.tolist() == [size] * 4


def fake_tensors(rank, size):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(4)
        dist.all_reduce(fake)
        dist.all_gather_into_tensor(torch.empty(4 * size), fake)
        dist.broadcast(fake, 0, async_op=True).wait()
    assert type(fake) is not torch.Tensor
    dist.all_reduce(fake)


def works_under_way_are_registered(rank, size):
    import torch.distributed._functional_collectives as functional

    if not hasattr(functional, "allow_inflight_collective_as_graph_input_ctx"):
        return
    tensor, before = torch.full((1000,), float(rank)), c10d._get_work_registry_size()
    with functional.allow_inflight_collective_as_graph_input_ctx():
        work = dist.all_reduce(tensor, async_op=True)
        assert c10d._get_work_registry_size() == before + 1
        # As a compiled function does, which has only the tensor.
        torch.ops._c10d_functional.wait_tensor(tensor)
        assert tensor[0].item() == 1
        assert c10d._get_work_registry_size() == before
        work.wait()


def nothing_is_seen_otherwise(rank, size):
    assert not dist.group.WORLD._is_watched([torch.ones(1)])
    all_calls(rank, size)


def environment(rank, size):
    import pickle

    dist.all_reduce(torch.ones(3))
    trace = pickle.loads(c10d._dump_fr_trace(backend="maypole"))
    names = [entry["profiling_name"] for entry in trace["entries"]]
    assert any("all_reduce" in name or "allreduce" in name for name in names), names
    try:
        dist.all_reduce(torch.full((3,), float("nan")))
    except RuntimeError as error:
        assert "nan" in str(error).lower(), error
    else:
        raise AssertionError("NaN passes")
    all_calls(rank, size)


CHECKS = [
    profiled, modes_see, comm_debug_mode_counts, hooks_fire, tensors_that_are_classes, fake_tensors,
    works_under_way_are_registered, nothing_is_seen_otherwise,
]  # fmt: skip


def main():
    if not maypole.torch.releases.NEW_NAMES:
        print("skipped: this release of PyTorch calls back into methods that call what they override")
        return
    torch.set_num_threads(1)
    dist.init_process_group("maypole", timeout=timedelta(seconds=60))
    for check in [environment] if sys.argv[1:] == ["environment"] else CHECKS:
        check(dist.get_rank(), dist.get_world_size())
        print("ok:", check.__name__, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
