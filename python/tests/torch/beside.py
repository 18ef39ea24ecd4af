"""Groups with a backend for each device: one rank of a world that has them. Run by `test_backend.py`."""

import sys
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

import maypole.torch


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
    group = dist.new_group([0, 1])
    dist.all_reduce(tensor, group=group)
    doubled = dist.all_reduce(tensor, async_op=True).get_future().then(lambda done: done.value()[0] * 2)
    assert doubled.wait().shape == (4,)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
