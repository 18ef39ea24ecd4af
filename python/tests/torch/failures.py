"""What happens when something goes wrong: one rank of a world in which it does. Run by `test_backend.py`.

The argument is the name of what goes wrong. A rank that was told what it should be told ends with status 0.
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

import maypole
import maypole.torch


def told(call, *words):
    """Whether `call` raises an error of Maypole's with these words."""
    try:
        call()
    except maypole.Error as error:
        assert isinstance(error, RuntimeError) and isinstance(error, dist.DistBackendError)
        for word in words:
            assert word in str(error), f"{word!r} is not in: {error}"
        return
    raise AssertionError("nothing was raised")


def shapes(rank, size):
    told(lambda: dist.all_reduce(torch.ones(100 + rank)), "rank 0", "rank 1", "100")


def types(rank, size):
    tensor = torch.ones(4, dtype=torch.float32 if rank == 0 else torch.float64)
    told(lambda: dist.all_reduce(tensor, async_op=True).wait(), "f32", "f64")


def collectives(rank, size):
    told(lambda: dist.barrier() if rank == 0 else dist.broadcast(torch.ones(3), 0), "barrier", "broadcast")


def deadline(rank, size):
    # Rank 1 does not come; the others are told who is missing within the group's timeout.
    dist.group.WORLD.set_timeout(timedelta(seconds=2))
    if rank != 1:
        begin = time.monotonic()
        assert error_of_backend(dist.group.WORLD) in ("SUCCESS", None)
        told(lambda: dist.all_reduce(torch.ones(3)), "rank 1")
        assert error_of_backend(dist.group.WORLD) in ("TIMEOUT", None)
        assert 1.5 < time.monotonic() - begin < 15
    else:
        time.sleep(4)


def error_of_backend(group):
    backend = group._get_backend(torch.device("cpu"))
    return str(backend.get_error()).rpartition(".")[2] if maypole.torch.MaypoleBackend is not None else None


def a_timeout_of_one_call(rank, size):
    # It is that call's: who waits for a message meanwhile has the group's.
    store, seconds = dist.distributed_c10d._get_default_store(), 4
    got, outcome = torch.zeros(3), []
    work = dist.irecv(got, 1) if rank == 0 else None

    def receive():
        time.sleep(0.3)
        store.set("waits", "1")
        try:
            outcome.append(work.wait())
        except maypole.Error as error:
            outcome.append(error)

    thread = threading.Thread(target=receive)
    if rank == 0:
        thread.start()
    else:
        store.wait(["waits"], timedelta(seconds=60))
        time.sleep(0.3)
    options = torch._C._distributed_c10d.BarrierOptions()
    options.timeout = timedelta(seconds=seconds)
    dist.group.WORLD.barrier(options).wait()
    if rank == 1:
        time.sleep(seconds + 0.5)
        dist.send(torch.ones(3), 0)
    else:
        thread.join()
        assert outcome == [True] and got.tolist() == [1.0] * 3, outcome
    dist.barrier()


def slow_to_leave(rank, size):
    # Who waits for asynchronous calls before a group ends says so after a while.
    maypole.torch.leaving._SAY_AFTER = 0.5
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        _work = dist.all_reduce(torch.ones(3), async_op=True)
        timer = threading.Timer(1.5, store.set, ["waited", "1"])
        timer.start()
    else:
        store.wait(["waited"], timedelta(seconds=60))
        dist.all_reduce(torch.ones(3))
    dist.destroy_process_group()


def interrupted(rank, size):
    # Ctrl-C ends the wait for a call as Ctrl-C, whichever call in front of it was at work: no
    # `except maypole.Error` takes it for a failure.
    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["over"], timedelta(seconds=60))
        return
    # The group's thread, which the first call starts, comes too late for it, so that its waiter
    # runs it: this thread does not give way on the one processor that both have.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        print("skipped: interrupted: only root can have the thread come late; who runs the call is left to chance")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    first, second = (dist.all_reduce(torch.ones(3), async_op=True) for _ in range(2))
    try:
        second.wait()
    except KeyboardInterrupt:
        if first.is_completed():
            told(first.wait, "KeyboardInterrupt in a blocking call")
        dist.group.WORLD.abort()
    else:
        raise AssertionError("nothing was raised")
    finally:
        store.set("over", "1")


def death(rank, size):
    if rank == 1:
        os._exit(0)
    told(lambda: [dist.all_reduce(torch.ones(3)) for _ in range(2)], "rank 1")
    assert error_of_backend(dist.group.WORLD) in ("REMOTE_ERROR", None)


def raised(rank, size):
    # A rank that ends by an exception of its own leaves; nobody waits for the deadline.
    begin = time.monotonic()
    if rank == 1:
        sys.exit(0)
    told(lambda: [dist.all_reduce(torch.ones(3)) for _ in range(2)], "rank 1")
    assert time.monotonic() - begin < 30


def aborted(rank, size):
    if rank == 1:
        dist.group.WORLD.abort()
    told(lambda: [dist.all_reduce(torch.ones(3)) for _ in range(2)], "rank 1")
    told(lambda: dist.barrier(), "rank 1")


def future(rank, size):
    # The error of an asynchronous call comes by its future, too.
    future = dist.all_reduce(torch.ones(100 + rank), async_op=True).get_future()
    try:
        future.wait()
    except RuntimeError as error:
        assert "100" in str(error)
    else:
        raise AssertionError("nothing was raised")


def backward(rank, size):
    # DDP's reducer waits in C++. What it raises is Maypole's error all the same, whatever it calls.
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    hooks = [None, default_hooks.fp16_compress_hook]
    groups = [dist.new_group(timeout=timedelta(seconds=60)) for _ in hooks]
    models = []
    for hook, group in zip(hooks, groups):
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4), process_group=group)
        if hook is not None:
            model.register_comm_hook(group, hook)
        model(torch.ones(2, 4)).sum().backward()
        models.append(model)
    dist.barrier()
    if rank == 1:
        os._exit(0)
    for model in models:
        told(lambda: [model(torch.ones(2, 4)).sum().backward() for _ in range(2)], "rank 1")


def main():
    torch.set_num_threads(1)
    name = sys.argv[1]
    if name == "absent":
        # One rank fewer than the world has comes. A store in a file does not wait for ranks itself.
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = dist.FileStore(sys.argv[2], size + 1)
        world = {"store": store, "rank": rank, "world_size": size + 1, "timeout": timedelta(seconds=15)}
        told(lambda: dist.init_process_group("maypole", **world), f"rank {size}")
        return
    if name == "keys":
        os.environ["MAYPOLE_KEY"] = f"the secret of rank {os.environ['RANK']}, of more than sixteen bytes"
        told(lambda: dist.init_process_group("maypole", timeout=timedelta(seconds=8)), "another key", "MAYPOLE_KEY")
        return
    if name == "keyless":
        # Others can read the store.
        os.environ["MAYPOLE_REQUIRE_KEY"] = "1"
        meet = lambda: dist.init_process_group("maypole", timeout=timedelta(seconds=8))  # noqa: E731
        told(meet, "MAYPOLE_REQUIRE_KEY=1", "MAYPOLE_KEY is not set")
        return
    dist.init_process_group("maypole", timeout=timedelta(seconds=60))
    globals()[name](dist.get_rank(), dist.get_world_size())


if __name__ == "__main__":
    sys.exit(main())
