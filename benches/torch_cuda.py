#!/usr/bin/env python3
"""PyTorch's CUDA tensors over Maypole: are results right and in order with streams, do DDP's
gradients agree, how long does a call take, and how much of it hides behind matrix products?

    maypole run -n 2 -- python3 benches/torch_cuda.py                 # a GPU each, or one together
    maypole run -n 2 -- python3 benches/torch_cuda.py --device cpu    # shows that it works

scripts/gpu-check carries it to machines with GPUs. Exit status 0 if everything was right.
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def check(what, holds):
    """End this rank if something is wrong; the others learn of it by its death."""
    if not holds:
        raise SystemExit(f"rank {dist.get_rank()}: WRONG: {what}")


class Device:
    """Where tensors are, and how to wait for it."""

    def __init__(self, kind):
        self.cuda = kind == "cuda"
        self.name = "cpu"
        if self.cuda:
            number = dist.get_rank() % torch.cuda.device_count()
            torch.cuda.set_device(number)
            self.name = f"cuda:{number}"

    def tensor(self, count, value, dtype):
        return torch.full((count,), value, dtype=dtype, device=self.name)

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()


def collectives(device, rank, size):
    """Every collective that training uses, blocking and not."""
    everyone = size * (size + 1) // 2
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        for count in (1, 1000, 1 << 18):
            for asynchronous in (False, True):
                def done(work):
                    if asynchronous:
                        work.wait()

                what = f"{count} of {dtype}"
                mine = device.tensor(count, rank + 1, dtype)
                done(dist.all_reduce(mine, async_op=asynchronous))
                check(f"all_reduce, {what}", bool((mine == everyone).all()))
                mine = device.tensor(count, rank + 1, dtype)
                done(dist.broadcast(mine, src=size - 1, async_op=asynchronous))
                check(f"broadcast, {what}", bool((mine == size).all()))
                mine = device.tensor(count, rank + 1, dtype)
                gathered = device.tensor(count * size, 0, dtype)
                done(dist.all_gather_into_tensor(gathered, mine, async_op=asynchronous))
                blocks = gathered.view(size, count)
                check(f"all_gather, {what}", all_equal(blocks, range(1, size + 1)))
                own = device.tensor(count, 0, dtype)
                done(dist.reduce_scatter_tensor(own, blocks.reshape(-1), async_op=asynchronous))
                check(f"reduce_scatter, {what}", bool((own == size * (rank + 1)).all()))
                exchanged = device.tensor(count * size, 0, dtype)
                done(dist.all_to_all_single(exchanged, blocks.reshape(-1), async_op=asynchronous))
                check(f"all_to_all, {what}", bool((exchanged == rank + 1).all()))


def all_equal(blocks, values):
    return all(bool((block == value).all()) for block, value in zip(blocks, values))


def streams(device, size):
    """What is queued before a call is in it, and what is queued after it sees it; nobody waits."""
    if not device.cuda:
        return
    side = torch.cuda.Stream()
    matrix = torch.ones(2048, 2048, device=device.name)
    for turn in range(20):
        with torch.cuda.stream(side):
            late = (matrix @ matrix).fill_(turn).view(-1)
            dist.all_reduce(late)
            seen = late + 1
        torch.cuda.current_stream().wait_stream(side)
        check(f"the order on a stream, turn {turn}", bool((seen == turn * size + 1).all()))


def ddp(device, rank, size):
    """The gradients are the mean over ranks of what each would have alone."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    model.to(device.name)
    whole = DistributedDataParallel(model, device_ids=[device.name] if device.cuda else None)
    inputs = torch.randn(size, 16, 64, generator=torch.Generator().manual_seed(2)).to(device.name)
    wanted = []
    for batch in inputs:
        model.zero_grad()
        model(batch).square().mean().backward()
        wanted.append([p.grad.clone() for p in model.parameters()])
    for turn in range(3):
        model.zero_grad()
        whole(inputs[rank]).square().mean().backward()
        for number, parameter in enumerate(model.parameters()):
            mean = sum(grads[number] for grads in wanted) / size
            close = torch.allclose(parameter.grad, mean, rtol=1e-4, atol=1e-6)
            check(f"DDP's gradient {number}, turn {turn}", close)


def timed(device, calls, call):
    """Microseconds a call, of many in a row."""
    call()
    device.wait()
    dist.barrier()
    begun = time.perf_counter()
    for _ in range(calls):
        call()
    device.wait()
    return (time.perf_counter() - begun) / calls * 1e6


def speed(device, rank):
    """How long all-reduces take, and how much of that hides behind matrix products."""
    for count in (2, 1 << 14, 1 << 24) if device.cuda else (2, 1 << 14):
        data = device.tensor(count, 0.0, torch.float32)
        each = timed(device, 50, lambda: dist.all_reduce(data))
        if rank == 0:
            print(f"all_reduce of {4 * count} bytes: {each:.1f} us", flush=True)
    side = 4096 if device.cuda else 256
    matrix = torch.zeros(side, side, device=device.name)

    def products():
        for _ in range(10):
            matrix @ matrix

    def both():
        work = [dist.all_reduce(data, async_op=True) for _ in range(4)]
        products()
        for one in work:
            one.wait()

    alone = timed(device, 5, products)
    reduces = timed(device, 5, lambda: [dist.all_reduce(data) for _ in range(4)])
    together = timed(device, 5, both)
    if rank == 0:
        hidden = (alone + reduces - together) / min(alone, reduces)
        print(f"products {alone:.0f} us, all-reduces {reduces:.0f} us, both {together:.0f} us: "
              f"{max(0.0, min(1.0, hidden)) * 100:.0f}% of the shorter is hidden", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device here")
    import maypole.torch  # noqa: F401  (the backend's name is known by it)

    dist.init_process_group("maypole")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = Device(options.device)
    parts = [lambda: collectives(device, rank, size), lambda: streams(device, size),
             lambda: ddp(device, rank, size), lambda: speed(device, rank)]
    for part in parts:
        part()
        device.wait()
        dist.barrier()
    if rank == 0:
        print(f"all right on {size} ranks, {device.name}, PyTorch {torch.__version__}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
