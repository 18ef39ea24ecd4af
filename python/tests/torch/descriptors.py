"""File descriptors of groups, and what happens without any: one rank of a world of three. Run by
`test_backend.py`."""

import os
import resource
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

import maypole
import maypole.torch  # noqa: F401: registers the backend

GROUPS = 6


def main():
    torch.set_num_threads(1)
    dist.init_process_group("maypole", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    tensor = torch.ones(2)
    dist.all_reduce(tensor)
    before = len(os.listdir("/proc/self/fd"))
    groups = [dist.new_group(timeout=timedelta(seconds=60)) for _ in range(GROUPS)]
    for group in groups:
        dist.all_reduce(tensor, group=group)
    each = (len(os.listdir("/proc/self/fd")) - before) / GROUPS
    print(f"{each:.1f} descriptors per group on rank {rank}")
    assert each <= 6, each
    # One rank runs out: every rank is told, long before any deadline.
    begun, taken = time.monotonic(), []
    if rank == 1:
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 2
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
    try:
        dist.new_group(timeout=timedelta(seconds=60))
        raise AssertionError("nothing was raised")
    except maypole.Error as error:
        print(f"after {time.monotonic() - begun:.1f} s: {error}")
        assert "descriptor" in str(error) and time.monotonic() - begun < 45, error
    for descriptor in taken:
        os.close(descriptor)
    # What was there goes on.
    for group in [None, *groups[:GROUPS]]:
        tensor.fill_(1)
        dist.all_reduce(tensor, group=group)
        assert tensor[0] == size
    print("ok")


if __name__ == "__main__":
    sys.exit(main())
