"""Ranks that are children of multiprocessing's. One ends without destroying its group, which is not to die."""

import multiprocessing
import os
import sys
import time


def rank(rank, port, said):
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    import torch
    import torch.distributed as dist

    import maypole.torch  # noqa: F401: registers the backend

    dist.init_process_group("maypole")
    tensor = torch.ones(4)
    dist.all_reduce(tensor)
    if rank == 1:
        return
    # By then rank 1's process has ended.
    time.sleep(0.5)
    try:
        dist.all_reduce(tensor)
        said.put("nothing was raised")
    except Exception as error:
        said.put(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    said = context.Queue()
    ranks = [context.Process(target=rank, args=(number, os.environ["MASTER_PORT"], said)) for number in range(3)]
    for process in ranks:
        process.start()
    for _ in range(2):
        text = said.get(timeout=60)
        assert "rank 1 on host" in text and "it left the communicator" in text, text
    for process in ranks:
        process.join()
    print("ok")
