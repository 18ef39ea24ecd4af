"""The same calls under gloo and under maypole: one rank of a world that compares their results.

Run by `test_parity.py`, or by hand: ``torchrun --nproc-per-node 3 parity.py``. The world is gloo's, and a group of all
its ranks is maypole's. Every collective is made with every type and every operation that gloo has, on the same numbers;
what gloo refuses is counted, and what maypole refuses of the rest is a failure. Results are compared bit by bit, but for
sums and products of floating-point numbers of three and more ranks: there gloo adds in an order that depends on the rank,
and they are compared to a few units of the last place.
"""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist

import maypole.torch  # noqa: F401: registers the backend

TYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip
OPERATIONS = ["SUM", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR", "AVG"]
# Every second one is enough for what reduces.
SHAPES = [(3, 5), (7,), (), (1,), (0,), (2, 0, 3), (1000,), (200,), (70001,)]
# Calls of this release's gloo that sum, whatever they are asked for.
SUMS = set()


def numbers(dtype, shape, rank, seed=0):
    """The same numbers wherever they are made, small enough for products of four in eight bits."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    whole = torch.randint(1, 4, shape, generator=generator)
    if dtype is torch.bool:
        return whole % 2 == 0
    if dtype.is_complex:
        return torch.complex(whole.double(), whole.double() / 3).to(dtype)
    if dtype.is_floating_point:
        return (whole.double() / 3).to(dtype)
    return whole.to(dtype)


def reductions(rank, size, group, shape, dtype, op):
    """Calls that reduce, as name and function that returns the tensors to compare."""
    op = getattr(dist.ReduceOp, op)

    def all_reduce():
        tensor = numbers(dtype, shape, rank)
        dist.all_reduce(tensor, op, group=group)
        return [tensor]

    def asynchronous():
        tensor = numbers(dtype, shape, rank)
        work = dist.all_reduce(tensor, op, group=group, async_op=True)
        work.wait()
        assert work.is_completed()
        return [tensor]

    def reduce():
        tensor = numbers(dtype, shape, rank)
        dist.reduce(tensor, size - 1, op, group=group)
        return [tensor] if rank == size - 1 else []

    def reduce_scatter():
        output = numbers(dtype, shape, 99)
        dist.reduce_scatter(output, [numbers(dtype, shape, rank, r) for r in range(size)], op, group=group)
        return [output]

    def reduce_scatter_tensor():
        output = numbers(dtype, (4, *shape), 99)
        dist.reduce_scatter_tensor(output, numbers(dtype, (4 * size, *shape), rank), op, group=group)
        return [output]

    def coalesced():
        tensors = [numbers(dtype, shape, rank, seed) for seed in range(3)]
        dist.all_reduce_coalesced(tensors, op, group=group)
        return tensors

    calls = [all_reduce, asynchronous, reduce, reduce_scatter, reduce_scatter_tensor, coalesced]
    return [call for call in calls if op == dist.ReduceOp.SUM or call.__name__ not in SUMS]


def movements(rank, size, group, shape, dtype):
    """The same for calls that only move."""

    def broadcast():
        tensor = numbers(dtype, shape, rank)
        dist.broadcast(tensor, size - 1, group=group)
        return [tensor]

    def all_gather():
        outputs = [numbers(dtype, shape, 99) for _ in range(size)]
        dist.all_gather(outputs, numbers(dtype, shape, rank), group=group)
        return outputs

    def all_gather_into_tensor():
        output = numbers(dtype, (2 * size, *shape), 99)
        dist.all_gather_into_tensor(output, numbers(dtype, (2, *shape), rank), group=group)
        return [output]

    def gather():
        outputs = [numbers(dtype, shape, 99) for _ in range(size)] if rank == 0 else None
        dist.gather(numbers(dtype, shape, rank), outputs, 0, group=group)
        return outputs or []

    def scatter():
        inputs = [numbers(dtype, shape, r) for r in range(size)] if rank == size - 1 else None
        output = numbers(dtype, shape, 99)
        dist.scatter(output, inputs, size - 1, group=group)
        return [output]

    def all_to_all_single():
        output = numbers(dtype, (2 * size, *shape), 99)
        dist.all_to_all_single(output, numbers(dtype, (2 * size, *shape), rank), group=group)
        return [output]

    def splits():
        # Rank i sends i + j rows to rank j.
        counts = [rank + other for other in range(size)]
        output = numbers(dtype, (sum(counts), *shape), 99)
        given = numbers(dtype, (sum(counts), *shape), rank)
        dist.all_to_all_single(output, given, counts, counts, group=group)
        return [output]

    def strided():
        # Dense; of a tensor with gaps gloo takes the wrong elements.
        turned = numbers(dtype, (*shape, 6), rank).transpose(0, -1)
        dist.broadcast(turned, 0, group=group)
        return [turned]

    def messages():
        received = [numbers(dtype, shape, 99) for _ in range(size)]
        works = []
        for other in range(size):
            if other != rank:
                works.append(dist.irecv(received[other], other, group=group, tag=other + 1))
                works.append(dist.isend(numbers(dtype, shape, rank), other, group=group, tag=rank + 1))
        for work in works:
            work.wait()
        return received

    return [broadcast, all_gather, all_gather_into_tensor, gather, scatter, all_to_all_single, splits, strided, messages]


def objects(rank, size, group):
    """The object collectives, whose results are compared as they are."""
    gathered, broadcast, scattered = [None] * size, [{"rank": rank}, rank] if rank == 0 else [None, None], [None]
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * rank * 100}, group=group)
    dist.broadcast_object_list(broadcast, 0, group=group)
    dist.scatter_object_list(scattered, list(range(size)) if rank == 0 else None, 0, group=group)
    at_root = [None] * size if rank == 0 else None
    dist.gather_object((rank, "gathered"), at_root, 0, group=group)
    return gathered, broadcast, scattered, at_root


def sparse(rank, size, group):
    """An all-reduce of sparse tensors that overlap in part."""
    indices = torch.tensor([[rank, rank + 1, 7], [0, 2, 1]])
    tensor = torch.sparse_coo_tensor(indices, torch.tensor([1.0, 2.0, rank + 3.0]), (10, 4))
    dist.all_reduce(tensor, group=group)
    return [tensor.to_dense()]


def close(ours, theirs, exact):
    """Whether two results are the same."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    if exact or not (ours.dtype.is_floating_point or ours.dtype.is_complex):
        return torch.equal(ours, theirs)
    step = torch.finfo(ours.dtype).eps
    return torch.allclose(ours, theirs, rtol=4 * step, atol=4 * step)


def outcome(call):
    """What a call returned, or the error that it raised."""
    try:
        return call(), None
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        return None, error


def sums_whatever_is_asked(gloo, size):
    """The names of what belongs into SUMS."""
    output, ones = torch.zeros(1), torch.ones(size)
    calls = {
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(output, ones, dist.ReduceOp.MAX, group=gloo),
        "reduce_scatter": lambda: dist.reduce_scatter(output, list(ones.split(1)), dist.ReduceOp.MAX, group=gloo),
    }
    for name, call in calls.items():
        _, error = outcome(call)
        if error is None and output.item() != 1:
            yield name


def compare(gloo, maypole_group, rank, size):
    """Make every call under both: how many were compared, and how many gloo refused."""
    compared, refused = 0, {}
    refusals = torch.zeros(1, dtype=torch.int64)
    cases = [(movements, (shape, dtype), True) for dtype in TYPES for shape in SHAPES]
    for op in OPERATIONS:
        for dtype in TYPES:
            floats = dtype.is_floating_point or dtype.is_complex
            exact = size == 2 or not floats or op in ("MIN", "MAX")
            cases += [(reductions, (shape, dtype, op), exact) for shape in SHAPES[::2]]
    for kind, arguments, exact in cases:
        calls = zip(kind(rank, size, gloo, *arguments), kind(rank, size, maypole_group, *arguments))
        for theirs, ours in calls:
            expected, error = outcome(theirs)
            refusals[0] = error is not None
            dist.all_reduce(refusals, group=gloo)
            assert refusals.item() in (0, size), f"gloo refuses {theirs.__name__} {arguments} on some ranks: {error}"
            if error is not None:
                refused.setdefault((theirs.__name__, *map(str, arguments[1:])), str(error).splitlines()[0])
                continue
            got = ours()
            what = f"rank {rank}: {ours.__name__} {arguments}"
            assert len(got) == len(expected), what
            for mine, other in zip(got, expected):
                assert close(mine, other, exact), f"{what}: {mine} instead of {other}"
            compared += 1
    assert objects(rank, size, gloo) == objects(rank, size, maypole_group)
    ours, theirs = sparse(rank, size, maypole_group), sparse(rank, size, gloo)
    assert close(ours[0], theirs[0], size == 2), "sparse all_reduce"
    return compared + 5, refused


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    ours = dist.new_group(backend="maypole", timeout=timedelta(seconds=60))
    SUMS.update(sums_whatever_is_asked(dist.group.WORLD, size))
    compared, refused = compare(dist.group.WORLD, ours, rank, size)
    if rank == 0:
        for what, why in sorted(refused.items()):
            print("gloo refuses", *what, "-", why)
        print(f"{compared} results are equal on {size} ranks; gloo refused {len(refused)} kinds of call")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
