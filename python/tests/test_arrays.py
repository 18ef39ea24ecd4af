"""What arrays may be: the buffer protocol, DLPack, small floats, registered memory; and what is refused, by name."""

import array
import ctypes

import ml_dtypes
import numpy as np
import pytest
from conftest import in_threads

import maypole


def alone(f):
    return in_threads(1, f)[0]


def test_anything_with_the_buffer_protocol():
    def rank(comm):
        for x in (array.array("d", [1, 2]), np.array([1.0, 2.0]), (ctypes.c_double * 2)(1, 2)):
            assert comm.all_reduce(x) is x and list(x) == [2, 4]
        x = bytearray([1, 2])
        comm.all_reduce(memoryview(x), "max")
        y = bytearray(4)
        assert comm.all_gather(bytes([comm.rank, 7]), y) is y and list(y) == [0, 7, 1, 7]

    in_threads(2, rank)


class Lender:
    """An object that speaks nothing but DLPack."""

    def __init__(self, owner, versioned=True):
        self.owner, self.versioned = owner, versioned

    def __dlpack__(self, **keywords):
        if not self.versioned and "max_version" in keywords:
            raise TypeError("what is max_version?")
        return self.owner.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.owner.__dlpack_device__()


@pytest.mark.parametrize("versioned", [True, False])
def test_dlpack(versioned):
    def rank(comm):
        x = np.full((2, 3), comm.rank + 1, "f4")
        lender = Lender(x, versioned)
        assert comm.all_reduce(lender) is lender and (x == 3).all()
        with pytest.raises(maypole.ArgumentError, match="x: .*C's order"):
            comm.all_reduce(Lender(x.T, versioned))

    in_threads(2, rank)


def test_torch_tensors():
    # Not "torch": the folder of that name beside this file would do.
    pytest.importorskip("torch._C", reason="torch is not installed here")
    import torch

    def rank(comm):
        for dtype in (torch.float32, torch.bfloat16, torch.float8_e5m2, torch.int64):
            x = torch.ones(5).to(dtype)
            assert comm.all_reduce(x) is x and (x.float() == 2).all()
        x = torch.ones(3, requires_grad=True)
        with pytest.raises(maypole.ArgumentError, match="x: its Tensor does not lend its memory: .*grad"):
            comm.all_reduce(x)

    in_threads(2, rank)


def test_bools_complex_numbers_and_what_is_only_moved():
    def rank(comm):
        x = np.array([True, comm.rank == 0])
        assert list(comm.all_reduce(x.copy(), "and")) == [True, False]
        assert list(comm.all_reduce(x.copy(), "xor")) == [False, True]
        assert (comm.all_reduce(np.array([1 + 2j, comm.rank]), "avg") == [1 + 2j, 0.5]).all()
        assert (comm.all_gather(np.array([comm.rank, 5], "i2"), np.zeros(4, "i2")) == [0, 5, 1, 5]).all()
        dates = np.array(["2026-11-22"], "M8[D]").view("i8")
        assert (comm.broadcast(dates) == dates).all()
        records = np.zeros(2, [("a", "i4"), ("b", "f8")])
        records["a"][comm.rank] = 7
        assert list(comm.all_gather(records[comm.rank : comm.rank + 1].copy(), records.copy())["a"]) == [7, 7]
        big = np.array([1, 2], ">f4")
        comm.broadcast(big)
        for x, op, text in [
            (np.ones(2, bool), "sum", "sum is not defined on elements of bool"),
            (np.ones(2, complex), "max", "max is not defined on elements of complex float64"),
            (np.ones(2, "i2"), "sum", 'elements of format "h"'),
            (big, "sum", 'elements of format ">f"'),
            (np.ones(2), "and", "bitwise operations need an integer type"),
        ]:
            with pytest.raises(maypole.ArgumentError, match=text):
                comm.all_reduce(x, op)

    in_threads(2, rank)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda c, x: c.all_reduce(x[::2]), "x: its elements do not lie one after the other"),
        (lambda c, x: c.all_reduce(x.reshape(2, 2).T), "x: its elements do not lie one after the other"),
        (lambda c, x: c.all_reduce(x.view(ml_dtypes.bfloat16)[::2]), "x: its elements do not lie"),
        (lambda c, x: c.all_reduce(b"1234"), "x: is read-only, but all_reduce writes there"),
        (lambda c, x: c.all_reduce(x, out=b"1234"), "out: is read-only"),
        (lambda c, x: c.all_reduce([1, 2]), "x: a list is no array; pass anything with the buffer protocol or DLPack"),
        (lambda c, x: c.all_reduce(None), "x: a NoneType is no array"),
        (lambda c, x: c.all_reduce(x, "mean"), "op: 'mean' is none of sum, prod"),
        (lambda c, x: c.all_reduce(x, out=np.zeros(4, "f8")), "out: has elements of float64, but x has elements of float32"),
        (lambda c, x: c.all_reduce(x, out=x[:3]), "out: has 3 elements, but all_reduce of 2 ranks with 4"),
        (lambda c, x: c.all_gather(x[:3]), "x: has 3 elements, but all_gather of 2 ranks takes 2 equal blocks"),
        (lambda c, x: c.all_gather(x[:3], x[1:].copy()), "out: has 3 elements, but all_gather .* gives 6"),
        (lambda c, x: c.broadcast(x, root=2), "root: is 2, but the ranks are 0 to 1"),
        (lambda c, x: c.broadcast(x, root=-1), "root: is -1"),
        (lambda c, x: c.send(x, 2), "to: is 2, but"),
        (lambda c, x: c.recv(x, 0, tag=-1), "tag: is -1, but tags are 0 to"),
        (lambda c, x: c.recv(b"1234", 1 - c.rank), "x: is read-only, but a message is received there"),
        (lambda c, x: c.all_gather_v(x, [2, -2]), "counts: has a number that is negative"),
        (lambda c, x: c.all_gather_v(x, [2, "a"]), "counts: is no sequence of whole numbers"),
        (lambda c, x: c.all_gather_v(x, [2, 1]), "x: has 4 elements, but its blocks are together 3"),
        (lambda c, x: c.all_gather_v(x, [2, 2], displacements=[0, 3]), "x: has 4 elements, but its blocks reach to 5"),
        (lambda c, x: c.all_gather_v(x, [4]), "rank . of 2 has 2 blocks there, but 1 counts were passed"),
        (lambda c, x: c.all_reduce(x[:3], out=x[1:]), "overlap"),
        (lambda c, x: c.alloc(4, "int7"), "dtype: int7 is none of int8, uint8"),
        (lambda c, x: c.split(-1), "color: is -1"),
        (lambda c, x: c.subset([0, 5]), "ranks: is 5"),
        (lambda c, x: c.set_timeout(0), "seconds: 0 is no length of time"),
        (lambda c, x: c.persistent.send(x, 1), "messages between two ranks have no persistent form"),
        (lambda c, x: c.on("stream"), "stream: is no CUDA stream"),
    ],
    ids=lambda p: p[:40] if isinstance(p, str) else "",
)
def test_refused_by_name(call, text):
    """On every rank alike, and the communicator stays usable."""

    def rank(comm):
        x = np.ones(4, "f4")
        with pytest.raises(maypole.ArgumentError, match=text) as caught:
            call(comm, x)
        assert isinstance(caught.value, ValueError)
        assert (x == 1).all() and (comm.all_reduce(x) == 2).all()

    in_threads(2, rank)


def test_registered_memory():
    def rank(comm):
        memory = comm.alloc(1000, "float32")
        assert memory.is_shared and len(memory) == 1000 and memory.dtype == "float32"
        x = np.asarray(memory)
        assert x.dtype == "f4" and not x.any()
        x[:] = comm.rank
        assert comm.all_reduce(memory) is memory and (x == 1).all()
        assert np.from_dlpack(memory).ctypes.data == x.ctypes.data
        small = comm.alloc(8, ml_dtypes.bfloat16)
        y = small.array()
        assert y.dtype == ml_dtypes.bfloat16
        del memory, small  # the arrays keep them
        y[:] = 2
        assert (comm.all_reduce(y).astype("f4") == 4).all() and (x == 1).all()

    in_threads(2, rank)


def test_empty_arrays():
    def rank(comm):
        assert comm.all_reduce(np.zeros(0)).shape == (0,)
        assert comm.all_gather(np.zeros(0), np.zeros(0)).shape == (0,)
        assert comm.all_gather_v(np.zeros(comm.rank), [0, 1], np.ones(1))[0] == 0

    in_threads(2, rank)


def test_memory_is_given_back():
    """No view of an argument is left when a call is over, refused or not."""

    def rank(comm):
        x = bytearray(8)
        comm.all_reduce(x)
        with pytest.raises(maypole.ArgumentError):
            comm.all_reduce(x, "what")
        comm.start.all_reduce(x).wait()
        comm.persistent.all_reduce(x).run()
        with comm.group() as group:
            group.all_reduce(x)
        del group
        x.append(1)  # which a lent bytearray refuses

    in_threads(2, rank)
