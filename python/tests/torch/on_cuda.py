"""Collectives on CUDA tensors: one rank of a world of two. Run by `test_cuda.py`.

The argument is the name of what is tested. It runs on a GPU with PyTorch's own tensors, or, with
MAYPOLE_TEST_DOUBLE, on the double of `torch.cuda` and the emulated driver.
"""

import gc
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

import maypole
import maypole.torch

DOUBLE = os.environ.get("MAYPOLE_TEST_DOUBLE") == "1"
if DOUBLE:
    import cuda_double as device
else:

    class device:  # noqa: N801: in the place of the module
        """The same of PyTorch's own."""

        @staticmethod
        def empty(shape, dtype):
            return torch.empty(shape, dtype=dtype, device="cuda")

        @staticmethod
        def tensor(values, dtype=torch.float32):
            return torch.tensor(values, dtype=dtype, device="cuda")


N = 100_000


def store():
    return dist.distributed_c10d._get_default_store()


def say(word):
    store().set(word, "said")


def hear(word):
    store().wait([word])


def started(rank):
    """All that the first call does once has been done."""
    x = device.tensor([1.0])
    dist.all_reduce(x)
    assert x.tolist() == [2.0]


def done(call, what, seconds=60):
    """Wait until `call()` is true."""
    until = time.monotonic() + seconds
    while not call():
        assert time.monotonic() < until, f"{what} does not happen"
        time.sleep(0.001)


def overlap(rank):
    """What computes goes on while the other rank is late, on whichever stream."""
    streams = [torch.cuda.current_stream(), torch.cuda.Stream()]
    for turn, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            x, y = device.tensor([1.0 + rank] * N), device.tensor([0.0] * N)
            if rank == 0:
                work = dist.all_reduce(x, async_op=True)
                for _ in range(10):
                    y.add_(1)
                stream.synchronize()  # it would last until the other has come
                assert not work.is_completed() and not work.is_success()
                say(f"computed {turn}")
            else:
                hear(f"computed {turn}")
                work = dist.all_reduce(x, async_op=True)
            assert work.wait() is True
            y.add_(x)
            assert y.tolist() == [3.0 + 10 * (rank == 0)] * N
            assert work.is_completed() and work.is_success() and work.exception() is None
            assert work.result()[0] is x


def order(rank):
    """A call waits for what the current stream was given before, and what comes after waits for
    it."""
    for turn in range(20):
        x, y = device.tensor([0.0] * N), device.tensor([0.0] * N)
        for _ in range(5):
            x.add_(1 + rank)
        dist.all_reduce(x)
        y.copy_(x)
        x.mul_(0)
        z = device.tensor([float(turn)] * N)
        gathered = device.empty([2 * N], torch.float32)
        dist.all_gather_into_tensor(gathered, z)
        y.add_(gathered[N:])
        assert y.tolist() == [15.0 + turn] * N, turn


def everything(rank):
    """Each collective, with lists, gaps and types that are copied on the way."""
    x = device.tensor(list(range(6)))
    strided = device.tensor([[1.0, 2.0], [3.0, 4.0]]).t()
    dist.all_reduce(strided)
    assert strided.tolist() == [[2.0, 6.0], [4.0, 8.0]]
    words = device.tensor([3, 4], torch.int16)
    dist.all_reduce(words, op=dist.ReduceOp.MAX)
    assert words.tolist() == [3, 4]
    outputs = [device.tensor([9.0] * 6) for _ in range(2)]
    dist.all_gather(outputs, x)
    assert [output.tolist() for output in outputs] == [[0, 1, 2, 3, 4, 5]] * 2
    out = device.tensor([0.0] * 3)
    dist.reduce_scatter_tensor(out, x)
    assert out.tolist() == [[0, 2, 4], [6, 8, 10]][rank]
    y = device.tensor([float(rank)] * 4)
    dist.broadcast(y, 1)
    assert y.tolist() == [1.0] * 4
    parts = device.tensor([0.0] * 4)
    dist.all_to_all_single(parts, device.tensor([10.0 * rank] * 2 + [10.0 * rank + 1] * 2))
    assert parts.tolist() == [rank, rank, 10 + rank, 10 + rank]
    uneven = device.tensor([0.0] * (2 + rank))
    dist.all_to_all_single(uneven, device.tensor([1.0] * (2 + rank)), [1, 1 + rank], [1, 1 + rank])
    assert uneven.tolist() == [1.0] * (2 + rank)
    dist.barrier()


def memory(rank):
    """Tensors that nobody has any more stay until the call has ended, and not longer."""
    x = device.tensor([1.0 + rank] * N)
    if rank == 0:
        dist.all_reduce(x, async_op=True)  # and nobody waits
        # Others have its memory, in the order of the stream that computes, as far as PyTorch knows.
        del x
        gc.collect()
        for _ in range(3):
            device.tensor([1e9] * N)
        torch.cuda.current_stream().synchronize()
        say("let go")
    else:
        hear("let go")
        dist.all_reduce(x)
        assert x.tolist() == [3.0] * N
    (streams,) = dist.group.WORLD._streams._mine.values()
    done(streams.forget, "letting go of the tensors")
    # Who waits on the stream that made the call holds them no longer than that.
    y = device.tensor([1.0])
    work = dist.all_reduce(y, async_op=True)
    held = work._kept[0]
    assert held.what is not None
    with torch.cuda.stream(torch.cuda.Stream()):
        work.wait()
        assert held.what is not None, "memory of another stream's"
    work.wait()
    assert held.what is None
    assert y.tolist() == [2.0]


def futures(rank):
    """A future is waited for on the device, by whoever waits; making it holds nothing up."""
    x, y = device.tensor([1.0 + rank] * N), device.tensor([0.0] * N)
    if rank == 0:
        work = dist.all_reduce(x, async_op=True)
        work.get_future()
        y.add_(1)
        torch.cuda.current_stream().synchronize()
        later = dist.all_reduce(y, async_op=True)
        say("computed")
        # Whenever it is asked for, the first call's end is what it waits for, not the second's.
        assert work.get_future().wait()[0] is x
        assert x.tolist() == [3.0] * N
        say("got it")
        later.wait()
    else:
        hear("computed")
        dist.all_reduce(x)
        hear("got it")
        dist.all_reduce(y)
    assert y.tolist() == [1.0] * N


def coalescing(rank):
    """Calls that are taken as one have one work; messages in a batch go both ways."""
    tensors = [device.tensor([float(rank + i)] * 10) for i in range(4)]
    with dist._coalescing_manager(device=torch.device("cuda", 0), async_ops=True) as manager:
        for tensor in tensors[:2]:
            dist.all_reduce(tensor)
    manager.wait()
    assert [tensor.tolist() for tensor in tensors[:2]] == [[1.0] * 10, [3.0] * 10]
    group = dist.group.WORLD
    group._start_coalescing(torch.device("cuda", 0))
    for tensor in tensors[2:]:
        dist.broadcast(tensor, 1, async_op=True)
    work = group._end_coalescing(torch.device("cuda", 0))
    assert type(work).__name__ == "CudaWork" and len(work.result()) == 2
    (result,) = [work.get_future().wait()]
    assert [tensor.tolist() for tensor in result] == [[3.0] * 10, [4.0] * 10]
    sent, got = device.tensor([float(rank)] * N), device.tensor([9.0] * N)
    other = 1 - rank
    batch = [dist.P2POp(dist.irecv, got, other), dist.P2POp(dist.isend, sent, other)]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    assert got.tolist() == [float(other)] * N


def death(rank):
    """A rank that dies fails the calls of the others: `wait` raises it, and people are told."""
    x = device.tensor([1.0] * N)
    dist.barrier()
    if rank == 1:
        hear("called")
        sys.stdout.flush()
        os._exit(0)
    works = [dist.all_reduce(x, async_op=True) for _ in range(3)]
    future = works[2].get_future()
    works[0].wait()  # nothing has happened yet
    say("called")
    # The streams go on, and whoever looks is told.
    torch.cuda.synchronize() if not DOUBLE else torch.cuda.current_stream().synchronize()
    future.wait()
    for work in works:
        for call in (work.wait, lambda: dist.all_reduce(x), lambda: work.get_future().wait()):
            try:
                call()
            except (maypole.DiedError, RuntimeError) as error:
                assert "rank 1" in str(error), error
            else:
                raise AssertionError("nothing was raised")
        assert work.is_completed() and not work.is_success()
        assert isinstance(work.exception(), maypole.DiedError)


def ends(rank):
    """With MAYPOLE_DEVICE_ABORT a rank whose calls fail ends before anything goes on."""
    x = device.tensor([1.0] * N)
    dist.barrier()
    if rank == 1:
        hear("called")
        os._exit(0)
    work = dist.all_reduce(x, async_op=True)
    say("called")
    try:
        work.wait()
    except maypole.Error:
        pass  # it was quick
    torch.cuda.current_stream().synchronize()
    print("went on", flush=True)


def leaving(rank):
    """A group that is destroyed has its calls end before, and leaves its stream to the next."""
    group = dist.new_group([0, 1])
    x = device.tensor([0.5] * N)
    dist.all_reduce(x, group=group)  # the first call waits until all have come
    if rank == 0:
        dist.all_reduce(x, async_op=True, group=group)
        say("called")
    else:
        hear("called")
        dist.all_reduce(x, async_op=True, group=group)
    (stream,) = group._streams._mine.values()
    dist.destroy_process_group(group)
    assert stream.forget() and x.tolist() == [2.0] * N
    again = dist.new_group([0, 1])
    dist.all_reduce(x, group=again)
    assert again._streams._mine[0] is stream
    assert x.tolist() == [4.0] * N
    y = device.tensor([1.0])
    work = dist.all_reduce(y, async_op=True)
    dist.barrier()
    work.wait()
    assert y.tolist() == [2.0]


def capture(rank):
    """A call in a capture is refused, and spoils neither the capture nor the group."""
    x = device.tensor([1.0] * 4)
    torch.cuda.current_stream().synchronize()
    if DOUBLE:
        begin, end = device.capture()
    else:
        graph = torch.cuda.CUDAGraph()
        begin, end = graph.capture_begin, graph.capture_end
    with torch.cuda.stream(torch.cuda.Stream()):
        begin()
        try:
            dist.all_reduce(x, async_op=True)
        except maypole.ArgumentError as error:
            assert "captured into a CUDA graph" in str(error), error
        else:
            raise AssertionError("it was not refused")
        end()
    dist.all_reduce(x)
    assert x.tolist() == [2.0] * 4


def ddp(rank):
    """DDP comes to the gradients that one process alone comes to."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(256, 256) for _ in range(8)]
    model = torch.nn.Sequential(*layers).to("cuda")
    alone = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(8)]).to("cuda")
    alone.load_state_dict(model.state_dict())
    wrapped = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.3)
    inputs = torch.randn(2, 32, 256, device="cuda")
    for _ in range(3):
        wrapped(inputs[rank]).square().mean().backward()
        alone(inputs.flatten(0, 1)).square().mean().backward()
    for mine, theirs in zip(model.parameters(), alone.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def main():
    if DOUBLE:
        device.install()
    rank = int(os.environ["RANK"])
    if not DOUBLE:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group("maypole", timeout=timedelta(seconds=30))
    started(rank)
    globals()[sys.argv[1]](rank)
    print("ok", flush=True)
    if sys.argv[1] == "death":
        os._exit(0)
    dist.destroy_process_group()


main()
