"""A rank that raises while calls of its own are queued: one rank of a world of two. Run by `test_backend.py`.

A rank starts an all-reduce that the other does not come to, and raises. The arguments say how it
leaves, what the other does meanwhile, and which rank raises; the other says how soon it knew. The
deadline is two minutes.
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import maypole
import maypole.torch

# A busy machine may take some time to end a process that has PyTorch in it.
SOON = 40


def has_ended(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def main():
    torch.set_num_threads(1)
    how, raises = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("maypole", timeout=timedelta(seconds=120))
    rank, other = dist.get_rank(), dist.new_group(timeout=timedelta(seconds=120))
    processes = [None, None]
    dist.all_gather_object(processes, os.getpid())
    dist.barrier()
    begun = time.monotonic()
    if rank == raises:
        tensors = [torch.ones(4) for _ in range(3)]
        try:
            works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            time.sleep(0.2)
            raise ValueError("bad batch")
        finally:
            if how == "finally":
                dist.destroy_process_group()
                del works
    if how == "elsewhere":
        # Not in any call: the process is to end all the same.
        while not has_ended(processes[raises]):
            assert time.monotonic() - begun < SOON, "its process goes on"
            time.sleep(0.01)
    else:
        try:
            dist.all_reduce(torch.ones(2), group=other)
            raise AssertionError("nothing was raised")
        except maypole.Error as error:
            assert isinstance(error, dist.DistBackendError), type(error).__mro__
            assert f"rank {raises}" in str(error), error
        if how == "finally":
            try:
                for _ in range(2 * len(processes) + 2):
                    dist.all_reduce(torch.ones(4))
                raise AssertionError("nothing was raised")
            except maypole.Error as error:
                assert "bad batch" in str(error) or "it left" in str(error), error
    assert time.monotonic() - begun < SOON, f"told after {time.monotonic() - begun} s"
    print(f"ok: told after {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
