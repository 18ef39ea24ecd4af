"""Messages that nobody keeps: one rank of a world of two in which they go on. Run by
`test_backend.py`."""

import gc
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

import maypole.torch  # noqa: F401: registers the backend

SIZE = 1 << 20


def sent(rank):
    # Rank 1 receives only after a collective: whoever waits for the message in the deallocator
    # never comes there.
    if rank == 0:
        dist.isend(torch.full((SIZE,), 7.0), 1)
        gc.collect()
        # Memory that is free takes what comes next.
        others = [torch.full((SIZE,), float(n)) for n in range(4)]
        dist.barrier()
        del others
    else:
        dist.barrier()
        taken = torch.zeros(SIZE)
        dist.recv(taken, 0)
        assert taken.unique().tolist() == [7.0]


def received(rank):
    if rank == 0:
        taken = torch.zeros(SIZE)
        dist.irecv(taken, 1)
        dist.irecv(torch.zeros(SIZE), 1, tag=1)
        dist.barrier()
        until = time.monotonic() + 30
        while taken[-1] != 3.0 and time.monotonic() < until:
            time.sleep(0.001)
        dist.barrier()
        assert taken.unique().tolist() == [3.0]
    else:
        dist.barrier()
        dist.send(torch.full((SIZE,), 3.0), 0)
        dist.send(torch.full((SIZE,), 4.0), 0, tag=1)
        dist.barrier()


def others_run(rank):
    # The interpreter's lock is not kept while a message is let go of.
    longest, ended, before = 0.0, threading.Event(), time.monotonic()

    def look():
        nonlocal longest, before
        while not ended.wait(0.001):
            now = time.monotonic()
            longest, before = max(longest, now - before), now

    looking = threading.Thread(target=look)
    looking.start()
    if rank == 0:
        for _ in range(10):
            dist.isend(torch.full((SIZE,), 7.0), 1, tag=2)
    dist.barrier()
    for _ in range(10 if rank == 1 else 0):
        dist.recv(torch.empty(SIZE), 0, tag=2)
    dist.barrier()
    ended.set()
    looking.join()
    assert longest < 15, f"no other thread ran for {longest} s"


def main():
    torch.set_num_threads(1)
    dist.init_process_group("maypole", timeout=timedelta(seconds=20))
    for check in (sent, received, others_run):
        check(dist.get_rank())
        print("ok:", check.__name__, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
