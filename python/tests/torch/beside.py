"""Groups with a backend for each device: one rank of a world that has them. Run by `test_backend.py`."""

import sys
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

import maypole.torch


def works_are_ours(rank, size):
    # What C++ makes of a Python backend's Work is never completed, and has no source.
    if maypole.torch.MaypoleBackend is None:
        return
    tensor = torch.ones(3)
    for work in (dist.all_reduce(tensor, async_op=True), dist.barrier(async_op=True)):
        end = time.monotonic() + 60
        while not work.is_completed():
            assert time.monotonic() < end
            time.sleep(0.001)
        assert work.is_success() and work.exception() is None
        work.wait()
    assert tensor[0].item() == size
    if rank == 0:
        dist.send(torch.arange(4), 1)
    elif rank == 1:
        received = torch.zeros(4, dtype=torch.int64)
        assert dist.recv(received) == 0 and received[3] == 3
        assert dist.get_backend() == "maypole" or "maypole" in str(dist.get_backend_config())
    if hasattr(dist, "gather_single") or hasattr(dist.ProcessGroup, "gather_single"):
        output = torch.empty(2 * size) if rank == 0 else torch.empty(0)
        dist.group.WORLD.gather_single(output, torch.full((2,), float(rank)), c10d.GatherOptions()).wait()
        assert rank != 0 or output.tolist() == [float(r) for r in range(size) for _ in range(2)]


def failures_show(rank):
    if maypole.torch.MaypoleBackend is None:
        return
    work = dist.all_reduce(torch.ones(100 + rank), async_op=True)
    try:
        work.wait()
        raise AssertionError("nothing was raised")
    except RuntimeError as error:
        assert "100" in str(error), error
    assert work.is_completed() and not work.is_success()
    assert "100" in str(work.exception()), work.exception()


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("cpu:maypole,cuda:gloo", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    tensor = torch.full((4,), float(rank))
    dist.all_reduce(tensor)
    assert tensor.tolist() == [size * (size - 1) / 2] * 4
    if maypole.torch.MaypoleBackend is not None:
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
        assert isinstance(backend, maypole.torch.MaypoleBackend), backend
    outputs = [torch.empty(2) for _ in range(size)]
    dist.all_gather(outputs, torch.full((2,), float(rank)), async_op=True).wait()
    assert [o[0].item() for o in outputs] == list(range(size))
    gathered = [None] * size
    dist.all_gather_object(gathered, rank)
    assert gathered == list(range(size))
    dist.barrier()
    if rank == 0:
        dist.send(torch.arange(5), 1)
    elif rank == 1:
        received = torch.zeros(5, dtype=torch.int64)
        dist.recv(received, 0)
        assert received.tolist() == [0, 1, 2, 3, 4]
    works_are_ours(rank, size)
    group = dist.new_group([0, 1])
    dist.all_reduce(tensor, group=group)
    doubled = dist.all_reduce(tensor, async_op=True).get_future().then(lambda done: done.value()[0] * 2)
    assert doubled.wait().shape == (4,)
    failures_show(rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
