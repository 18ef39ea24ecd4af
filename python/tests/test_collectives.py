"""Every collective, against NumPy, on ranks that are threads."""

import ml_dtypes
import numpy as np
import pytest
from conftest import in_threads

import maypole

DTYPES = ["i1", "u1", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]
SMALL = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
SIZES = [1, 2, 3, 4]


def data(rank, count, dtype="f4"):
    """Small whole numbers, different on each rank, that every type has and whose sums are exact."""
    return ((np.arange(count) + rank) % 3).astype(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, *SMALL], ids=lambda d: np.dtype(d).name)
def test_all_reduce_of_every_type(dtype):
    def rank(comm):
        x = data(comm.rank, 21, dtype)
        out = np.zeros_like(x)
        assert comm.all_reduce(x, "sum", out) is out
        assert (x == data(comm.rank, 21, dtype)).all(), "the input was changed"
        assert comm.all_reduce(x) is x, "in place"
        want = sum(data(r, 21, "f8") for r in range(comm.size))
        assert (out.astype("f8") == want).all() and (x.astype("f8") == want).all()

    in_threads(3, rank)


@pytest.mark.parametrize(
    ("op", "combine"),
    [
        ("sum", lambda a: a.sum(0)),
        ("prod", lambda a: a.prod(0)),
        ("min", lambda a: a.min(0)),
        ("max", lambda a: a.max(0)),
        ("avg", lambda a: a.sum(0) // len(a)),
        ("and", np.bitwise_and.reduce),
        ("or", np.bitwise_or.reduce),
        ("xor", np.bitwise_xor.reduce),
        (maypole.premulsum(2), lambda a: 2 * a.sum(0)),
        (maypole.Op(np.maximum, "highest"), lambda a: a.max(0)),
    ],
    ids=str,
)
def test_every_operation(op, combine):
    def rank(comm):
        everybody = np.stack([data(r, 9, "i4") + 1 for r in range(comm.size)])
        x = everybody[comm.rank].copy()
        assert (comm.all_reduce(x, op) == combine(everybody)).all()

    in_threads(3, rank)


@pytest.mark.parametrize("n", SIZES)
def test_blocks(n):
    """all_gather, reduce_scatter, all_to_all, gather, scatter: apart and in place."""

    def rank(comm):
        r, root = comm.rank, n - 1
        mine = np.stack([data(10 * r + s, 4) for s in range(n)])  # what this rank has for each other
        of = lambda s: np.stack([data(10 * s + t, 4) for t in range(n)])

        out = np.zeros((n, 4), "f4")
        assert (comm.all_gather(mine[0].copy(), out) == np.stack([of(s)[0] for s in range(n)])).all()
        whole = np.zeros((n, 4), "f4")
        whole[r] = mine[0]
        assert (comm.all_gather(whole) == out).all()

        part = np.zeros(4, "f4")
        want = sum(of(s)[r] for s in range(n))
        assert (comm.reduce_scatter(mine, "sum", part) == want).all()
        x = mine.copy()
        comm.reduce_scatter(x, "sum")
        assert (x[r] == want).all()

        want = np.stack([of(s)[r] for s in range(n)])
        assert (comm.all_to_all(mine, np.zeros_like(mine)) == want).all()
        assert (comm.all_to_all(mine.copy()) == want).all()

        gathered = comm.gather(mine[0].copy(), root, np.zeros((n, 4), "f4") if r == root else None)
        assert (gathered == out).all() if r == root else gathered is None
        x = whole.copy() if r == root else mine[0].copy()
        x[...] = np.where(x == out, x, 0) if r == root else x
        gathered = comm.gather(x, root)
        assert (gathered == out).all() if r == root else gathered is None

        scattered = comm.scatter(mine if r == root else None, root, np.zeros(4, "f4"))
        assert (scattered == of(root)[r]).all()
        x = mine.copy() if r == root else np.zeros(4, "f4")
        scattered = comm.scatter(x, root)
        assert (scattered.reshape(-1, 4)[r if r == root else 0] == of(root)[r]).all()

    in_threads(n, rank)


@pytest.mark.parametrize("n", SIZES)
def test_roots_and_scans(n):
    def rank(comm):
        r = comm.rank
        for root in range(n):
            x = data(r, 5)
            assert (comm.broadcast(x, root) == data(root, 5)).all()
            out = np.full(5, -1, "f4")
            got = comm.reduce(data(r, 5), "sum", root, out)
            assert (got is out and (out == sum(data(s, 5) for s in range(n))).all()) if r == root else got is None
            assert r == root or (out == -1).all()
        assert (comm.scan(data(r, 5)) == sum(data(s, 5) for s in range(r + 1))).all()
        before = comm.exclusive_scan(data(r, 5))
        assert before is None if r == 0 else (before == sum(data(s, 5) for s in range(r))).all()
        assert comm.barrier() is None

    in_threads(n, rank)


@pytest.mark.parametrize("n", [1, 3])
def test_blocks_with_counts(n):
    def rank(comm):
        r, root = comm.rank, 0
        counts = [s + 1 for s in range(n)]
        total = sum(counts)
        apart = [2 * sum(counts[:s]) for s in range(n)]  # with gaps
        mine = np.full(counts[r], r, "i4")
        want = np.concatenate([np.full(c, s, "i4") for s, c in enumerate(counts)])

        assert (comm.all_gather_v(mine, counts, np.zeros(total, "i4")) == want).all()
        whole = np.where(want == r, want, -1).astype("i4")
        assert (comm.all_gather_v(whole, np.array(counts)) == want).all()
        gaps = comm.all_gather_v(mine, counts, np.full(2 * total, -1, "i4"), displacements=apart)
        assert all((gaps[d : d + c] == s).all() for s, (d, c) in enumerate(zip(apart, counts)))
        assert (gaps == -1).sum() == total

        part = comm.reduce_scatter_v(want, counts, "sum", np.zeros(counts[r], "i4"))
        assert (part == n * r).all()
        x = want.copy()
        comm.reduce_scatter_v(x, counts)
        assert (x[want == r] == n * r).all()

        gathered = comm.gather_v(mine, counts if r == root else None, root, np.zeros(total, "i4") if r == root else None)
        assert (gathered == want).all() if r == root else gathered is None
        scattered = comm.scatter_v(want if r == root else None, counts if r == root else None, root, np.zeros_like(mine))
        assert (scattered == r).all()

        # In place, with this rank's block where it belongs.
        x = want.copy() if r == root else np.full(counts[r], r, "i4")
        gathered = comm.gather_v(np.where(x == r, x, -1).astype("i4"), counts, root)
        assert (gathered == want).all() if r == root else gathered is None
        x = np.full(2 * total, -1, "i4")
        x[apart[r] : apart[r] + counts[r]] = r
        comm.all_gather_v(x, counts, displacements=apart)
        assert (x == gaps).all()
        scattered = comm.scatter_v(want.copy() if r == root else np.zeros_like(mine), counts, root)
        assert ((scattered[want == r] if r == root else scattered) == r).all()

        # Rank r sends r + s elements to rank s.
        sent, received = [r + s for s in range(n)], [s + r for s in range(n)]
        x = np.concatenate([np.full(c, 10 * r + s, "i4") for s, c in enumerate(sent)])
        out = comm.all_to_all_v(x, sent, np.zeros(sum(received), "i4"), received)
        assert (out == np.concatenate([np.full(c, 10 * s + r, "i4") for s, c in enumerate(received)])).all()
        x = np.repeat(np.arange(n, dtype="i4") + 10 * r, 2)
        assert (comm.all_to_all_v(x, [2] * n) == np.repeat(10 * np.arange(n) + r, 2)).all()

    in_threads(n, rank)


def test_messages():
    def rank(comm):
        r, n = comm.rank, comm.size
        x, y = np.full(3, r), np.zeros(3, int)
        assert comm.send_recv(x, (r + 1) % n, y, (r - 1) % n) is y and (y == (r - 1) % n).all()
        if r == 0:
            comm.send(np.array([1.0]), 1, tag=7)
            comm.send(np.array([2.0]), to=1, tag=8)
        elif r == 1:
            a, b = np.zeros(1), np.zeros(1)
            comm.recv(b, 0, tag=8)
            comm.recv(a, source=0, tag=7)
            assert (a[0], b[0]) == (1, 2)

    in_threads(3, rank)


def test_messages_from_anyone():
    def rank(comm):
        r, n = comm.rank, comm.size
        if r > 0:
            comm.barrier()
            comm.send(np.array([r, 1]), 0, tag=4)
            comm.send(np.array([r, 2]), 0, tag=4)
            return
        arrays = np.zeros((2 * (n - 1), 2), int)
        requests = [comm.start.recv_any(x, tag=4) for x in arrays[1:]]
        comm.barrier()
        first, sources = requests[0].wait(), [r.wait() for r in requests[1:]]
        last = comm.recv_any(arrays[0], tag=4)
        assert [last, first, *sources] == arrays[:, 0].tolist()
        assert sorted(map(tuple, arrays)) == [(r, k) for r in range(1, n) for k in (1, 2)]
        with pytest.raises(maypole.ArgumentError, match="x: is read-only"):
            comm.recv_any(b"12")
        with pytest.raises(maypole.ArgumentError, match="tag: is -1"):
            comm.recv_any(arrays, tag=-1)
        with pytest.raises(maypole.ArgumentError, match="on a stream"):
            comm.start_on(maypole.Stream()).recv_any(arrays)

    in_threads(3, rank)


def test_children():
    def rank(comm):
        r, n = comm.rank, comm.size
        half = comm.split(r % 2, key=-r)
        assert half.size == 2 and half.rank == (1 if r < 2 else 0), "ordered by falling rank"
        alone = comm.split(None if r else 3)
        assert alone is None if r else alone.size == 1
        twin = comm.duplicate()
        assert (twin.rank, twin.size) == (r, n)
        if r in (1, 3):
            pair = comm.subset([3, 1])
            assert pair.rank == (0 if r == 3 else 1)
            assert pair.all_reduce(np.array([r]))[0] == 4
        assert len(comm.hosts) == n and repr(comm) == f"<maypole.Communicator: rank {r} of {n}>"

    in_threads(4, rank)


def test_canonical_order_and_settings():
    def rank(comm):
        comm.set_order("canonical")
        x = np.array([[1e8, 1.0, -1e8][comm.rank]] * 3, "f4")
        comm.all_reduce(x)
        assert (x == np.float32(np.float32(1e8 + 1.0) - np.float32(1e8))).all()

    in_threads(3, rank, transport="tcp", connections=2)
