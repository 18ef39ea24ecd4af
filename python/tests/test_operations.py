"""Operations with operands of several elements, those that do not commute, and pairs with minloc and maxloc."""

import numpy as np
import pytest
from conftest import in_threads

import maypole

PAIRS = [("f4", "i4"), ("f8", "i4"), ("i8", "i4"), ("i4", "i4"), ("i2", "i4"), ("f8", "i8"), ("i8", "i8")]


def matrices(rank, count):
    """2x2 matrices of small numbers, row by row."""
    return (np.arange(4 * count, dtype="i8") * 7 + rank * 13 + 1).reshape(count, 4) % 97


def product(a, b):
    assert a.shape == b.shape and a.shape[1:] == (4,), (a.shape, b.shape)
    return (np.matmul(a.reshape(-1, 2, 2), b.reshape(-1, 2, 2)) % 97).reshape(-1, 4)


def folded(ranks, count, first=0):
    all_of_them = [matrices(r, first + count)[first:] for r in range(ranks)]
    result = all_of_them[0]
    for each in all_of_them[1:]:
        result = product(result, each)
    return result


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_operands_of_several_elements_in_the_order_of_the_ranks(n, transport):
    op = maypole.Op(product, width=4, commutes=False)
    assert (op.width, op.commutes) == (4, False)

    def rank(comm):
        r, n = comm.rank, comm.size
        for count in (1, 6, 5000):
            mine = matrices(r, count * n)
            own, want = mine[:count], folded(n, count)
            out = np.zeros_like(own)
            assert (comm.all_reduce(own, op, out) == want).all()
            for root in range(n):
                comm.reduce(own, op, root, out)
                assert r != root or (out == want).all()
            assert (comm.reduce_scatter(mine, op, out) == folded(n, count, r * count)).all()
            counts = [4 * count] * n
            assert (comm.reduce_scatter_v(mine, counts, op, out) == folded(n, count, r * count)).all()
            assert (comm.scan(own, op, out) == folded(r + 1, count)).all()
            before = comm.exclusive_scan(own, op, out)
            assert before is None if r == 0 else (before == folded(r, count)).all()
            request = comm.start.all_reduce(own, op, out)
            assert (request.wait() == want).all()
            kept = comm.persistent.all_reduce(own, op, out)
            for _ in range(2):
                out.fill(0)
                assert (kept.run() == want).all()
            with comm.group() as group:
                several = [own.copy(), own[:1].copy(), own[:1].copy()]
                for each in several:
                    group.all_reduce(each, op)
            assert all((each == want[: len(each)]).all() for each in several)

    in_threads(n, rank, transport=transport)


def test_operands_that_are_cut_or_differ():
    def rank(comm):
        op = maypole.Op(product, width=4)
        with pytest.raises(maypole.ArgumentError, match="block of 6 elements of i64.*4 at a time"):
            comm.all_reduce(np.zeros(6, "i8"), op)
        with pytest.raises(maypole.MismatchError, match="width or order"):
            comm.all_reduce(np.zeros(8), maypole.Op(np.add, "sums", width=2 - comm.rank))

    in_threads(2, rank)

    def odd(comm):
        with pytest.raises(maypole.AbortedError, match=r"shape \(1, 2\) for operands of shape \(3, 2\)"):
            comm.all_reduce(np.zeros(6), maypole.Op(lambda a, b: a[:1], "odd", width=2))

    in_threads(2, odd)
    for width in (0, -1, 65536):
        with pytest.raises(maypole.ArgumentError, match=f"width: is {width}, but an operand has 1 to 65535"):
            maypole.Op(np.add, width=width)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("members", PAIRS, ids=str)
def test_the_least_and_the_greatest_of_pairs(members, transport):
    dtype = np.dtype([("value", members[0]), ("index", members[1])], align=True)

    def pairs(rank, count):
        x = np.zeros(count, dtype)
        x["value"] = (np.arange(count) * 5 + rank * 3) % 7 - 3
        x["index"] = 20 - rank
        return x

    def rank(comm):
        for count in (1, 3000):
            everybody = np.stack([pairs(r, count) for r in range(comm.size)])
            values = everybody["value"].astype("f8")
            for op, least in (("minloc", values.min(0)), ("maxloc", values.max(0))):
                # The lower index is the higher rank's.
                which = comm.size - 1 - np.argmax((values == least)[::-1], axis=0)
                got = comm.all_reduce(pairs(comm.rank, count), op)
                assert (got["value"] == least).all() and (got["index"] == 20 - which).all()
                request = comm.start.all_reduce(pairs(comm.rank, count), op)
                assert (request.wait() == got).all()
            # What is only moved is moved as pairs too.
            out = np.zeros(count * comm.size, dtype)
            comm.all_gather_v(pairs(comm.rank, count), [count] * comm.size, out)
            assert (out == everybody.reshape(-1)).all()
        with pytest.raises(maypole.ArgumentError, match="x: sum is not defined on elements of pairs"):
            comm.all_reduce(pairs(0, 3))

    in_threads(3, rank, transport=transport)


def test_what_is_not_a_number_is_the_least_and_the_greatest():
    dtype = np.dtype([("value", "f4"), ("index", "i4")])

    def rank(comm):
        for op in ("minloc", "maxloc"):
            x = np.array([(np.nan if comm.rank else -1.0, comm.rank), (np.nan, 9 - comm.rank)], dtype)
            comm.all_reduce(x, op)
            assert np.isnan(x["value"]).all() and x["index"].tolist() == [1, 7]

    in_threads(3, rank)


def test_operations_on_structured_arrays():
    point = np.dtype([("weight", "f4"), ("at", "f8", 3), ("names", "u1")])

    def mean(a, b):
        assert a.dtype == b.dtype == point
        both = np.empty_like(a)
        both["weight"] = a["weight"] + b["weight"]
        both["at"] = a["at"] + b["at"]
        both["names"] = a["names"] | b["names"]
        return both

    def rank(comm):
        op = maypole.Op(mean, dtype=point)
        for count in (1, 3000):
            x = np.zeros(count, point)
            x["weight"], x["names"] = comm.rank + 1, 1 << comm.rank
            x["at"] = np.arange(3 * count).reshape(-1, 3) * (comm.rank + 1)
            comm.all_reduce(x, op)
            assert (x["weight"] == 6).all() and (x["names"] == 7).all()
            assert (x["at"] == 6 * np.arange(3 * count).reshape(-1, 3)).all()
            x["weight"] = comm.rank + 1
            scanned = comm.start.scan(x, op, np.zeros_like(x)).wait()
            assert (scanned["weight"] == [1, 3, 6][comm.rank]).all()
        two = maypole.Op(lambda a, b: a if a["i"][0, 0] > b["i"][0, 0] else b, "two", width=2, dtype=[("i", "i2")])
        x = np.array([(comm.rank,), (7 - comm.rank,)], [("i", "i2")])
        assert comm.all_reduce(x, two)["i"].tolist() == [2, 5]
        with pytest.raises(maypole.ArgumentError, match='x: operation .*mean" is for elements of 29 bytes'):
            comm.all_reduce(np.zeros(3), op)
        with pytest.raises(maypole.ArgumentError, match="x: .*maypole.Op\\(.., dtype=x.dtype\\)"):
            comm.all_reduce(np.zeros(3, point), maypole.Op(mean))

    in_threads(3, rank)
    with pytest.raises(maypole.ArgumentError, match="dtype: object has elements that are Python objects"):
        maypole.Op(mean, dtype="O")
    with pytest.raises(maypole.ArgumentError, match="dtype: 300 x .*an operand has 1 to 65535 bytes"):
        maypole.Op(mean, width=300, dtype="S1000")


def test_pairs_that_are_none():
    def rank(comm):
        packed = np.zeros(3, [("value", "f8"), ("index", "i4")])
        for x in (packed, np.zeros(3, "f4"), np.zeros(3, [("a", "f4"), ("b", "i4"), ("c", "i4")])):
            with pytest.raises(maypole.ArgumentError, match="x: minloc needs pairs .* align=True"):
                comm.all_reduce(x, "minloc")

    in_threads(1, rank)
