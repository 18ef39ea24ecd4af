"""A program that tries again when its group cannot be made, and one of whose ranks is late: one
rank of it.

Run by `test_backend.py`. The late rank comes when the others have given up already, and is never
with them if each of its attempts lasts as long as theirs. Each scenario has its own place in the
store; `apart`: so has each attempt.
"""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

import maypole
import maypole.torch  # noqa: F401: registers the backend

PATIENCE, LATE, ATTEMPTS = 2.0, 3.3, 8


def main():
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), size, rank == 0)
    for late, apart in ((1, True), (0, True), (1, False)):
        scenario, begun = f"rank {late} late, {'apart' if apart else 'in one place'}", time.monotonic()
        if rank == late:
            time.sleep(LATE)
        for attempt in range(ATTEMPTS):
            place = dist.PrefixStore(f"{late}/{apart}/{attempt if apart else ''}", store)
            try:
                dist.init_process_group(
                    "maypole", store=place, rank=rank, world_size=size, timeout=timedelta(seconds=PATIENCE)
                )
                break
            except maypole.Error as error:
                print(f"{scenario}: attempt {attempt}, {time.monotonic() - begun:.1f} s: {error}", flush=True)
        else:
            sys.exit(f"{scenario}: rank {rank} has not met the others")
        dist.group.WORLD.set_timeout(timedelta(seconds=60))
        tensor = torch.ones(4)
        dist.all_reduce(tensor)
        assert tensor[0] == size
        print(f"ok: {scenario}: attempt {attempt}, {time.monotonic() - begun:.1f} s", flush=True)
        dist.destroy_process_group()
        store.set(f"{scenario}/{rank}", "done")
        store.wait([f"{scenario}/{other}" for other in range(size)])
    # The store is rank 0's: it stays until the others have had their answers.
    store.set(f"left/{rank}", "yes")
    if rank == 0:
        store.wait([f"left/{other}" for other in range(size)])


if __name__ == "__main__":
    sys.exit(main())
