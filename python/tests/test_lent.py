"""What arrays lend: DLPack of every version, elements that share bytes, and what must not leave the process."""

import ctypes
import mmap
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p

import ml_dtypes
import numpy as np
import pytest
from conftest import in_threads

import maypole


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("deleter", c_void_p), ("flags", c_uint64),
        ("data", c_void_p), ("device", c_int32), ("number", c_int32), ("dimensions", c_int32), ("code", c_uint8),
        ("bits", c_uint8), ("lanes", c_uint16), ("shape", c_void_p), ("strides", c_void_p), ("offset", c_uint64),
    ]  # fmt: skip


class Producer:
    """Lends memory of NumPy's as what a test says; keeps what it was asked."""

    def __init__(self, memory, code=2, bits=32, lanes=1, shape=None, flags=0, version=(1, 1), knows=()):
        self.memory, self.asked, self.knows = memory, [], knows
        self.shape = (c_int64 * 8)(*(shape or memory.shape))
        dimensions, at = len(shape or memory.shape), ctypes.cast(self.shape, c_void_p).value
        self.tensor = Versioned(*version, None, None, flags, memory.ctypes.data, 1, 0, dimensions, code, bits, lanes, at, None, 0)

    def __dlpack__(self, **asked):
        self.asked.append(asked)
        for name in asked:
            if name not in self.knows:
                raise TypeError(f"what is {name}?")
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [c_void_p, ctypes.c_char_p, c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor_versioned", None)

    def __dlpack_device__(self):
        return (1, 0)


def test_elements_that_share_a_byte_are_counted_by_bits():
    """A pair of four bits is a byte. Counted by values, twice as much memory would be read and written."""

    def rank(comm):
        memory = np.full(16, comm.rank, "u1")
        comm.broadcast(Producer(memory, code=17, bits=4, lanes=2, shape=(8,)))
        assert memory.tolist() == [0] * 8 + [comm.rank] * 8, "the memory behind is nobody's"
        everything = np.zeros(32, "u1")
        sent = Producer(memory, code=17, bits=4, lanes=2, shape=(2, 4))
        comm.all_gather(sent, Producer(everything, code=17, bits=4, lanes=2, shape=(16,)))
        assert everything.tolist() == [0] * 32
        # A value to a byte, if the producer says so.
        memory[:] = comm.rank
        comm.broadcast(Producer(memory, code=16, bits=6, shape=(8,), flags=4))
        assert memory.tolist() == [0] * 8 + [comm.rank] * 8
        for code, bits, lanes in [(0, 4, 1), (17, 4, 1), (16, 6, 3), (0, 1, 4), (0, 0, 1), (17, 4, 0)]:
            with pytest.raises(maypole.ArgumentError, match="x: has elements that are no whole number of bytes"):
                comm.broadcast(Producer(memory, code=code, bits=bits, lanes=lanes, shape=(8,)))
        # Four numbers to an element.
        numbers = np.full(8, comm.rank + 1, "f4")
        comm.all_reduce(Producer(numbers, lanes=4, shape=(2,)))
        assert numbers.tolist() == [3] * 8

    in_threads(2, rank)


def test_torch_s_packed_type():
    pytest.importorskip("torch._C", reason="torch is not installed here")
    import torch

    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip(f"torch {torch.__version__} has no float4_e2m1fn_x2")

    def rank(comm):
        memory = torch.full((16,), comm.rank, dtype=torch.uint8)
        try:
            memory[:8].view(torch.float4_e2m1fn_x2).__dlpack__()
        except Exception as error:
            pytest.skip(f"torch {torch.__version__} does not lend it: {error}")
        comm.broadcast(memory[:8].view(torch.float4_e2m1fn_x2))
        assert memory.tolist() == [0] * 8 + [comm.rank] * 8

    in_threads(2, rank)


def test_producers_are_asked_for_no_copy():
    def rank(comm):
        for knows, asked in [
            (("max_version", "copy"), 1),
            (("max_version",), 2),
            ((), 3),
        ]:
            x = np.ones(2, "f4")
            producer = Producer(x, knows=knows)
            comm.all_reduce(producer)
            assert x.tolist() == [2, 2]
            assert producer.asked[0]["copy"] is False and producer.asked[0]["max_version"][0] == 1
            assert len(producer.asked) == asked and set(producer.asked[-1]) == set(knows)

    in_threads(2, rank)


def test_what_flags_say():
    def rank(comm):
        x, everything = np.full(1, comm.rank, "f4"), np.zeros(2, "f4")
        with pytest.raises(maypole.ArgumentError, match="x: lends a copy of its memory"):
            comm.all_reduce(Producer(x, flags=2))
        with pytest.raises(maypole.ArgumentError, match="x: is read-only, but all_reduce writes there"):
            comm.all_reduce(Producer(x, flags=1))
        comm.all_gather(Producer(x, flags=1, version=(1, 7)), everything)
        assert everything.tolist() == [0, 1]
        with pytest.raises(maypole.ArgumentError, match="x: speaks version 2 of DLPack"):
            comm.all_reduce(Producer(x, version=(2, 0)))
        with pytest.raises(maypole.ArgumentError, match="x: has elements that are handles"):
            comm.all_reduce(Producer(x, code=3, bits=64))
        for shape in [(1 << 62, 1 << 62), (-1,), (1 << 61, 4)]:
            with pytest.raises(maypole.ArgumentError, match="x: has a shape that no memory holds"):
                comm.all_reduce(Producer(x, shape=shape))
        comm.all_reduce(Producer(x, shape=(0, 1 << 62, 1 << 62)))

    in_threads(2, rank)


def test_registered_memory_is_lent_where_it_lies_or_not_at_all():
    def rank(comm):
        memory = comm.alloc(4)
        assert np.from_dlpack(memory).ctypes.data == np.asarray(memory).ctypes.data
        memory.__dlpack__(max_version=(1, 0), dl_device=(1, 0), copy=False)
        with pytest.raises(BufferError, match="copy what you get"):
            memory.__dlpack__(copy=True)
        with pytest.raises(BufferError, match="on no other device"):
            memory.__dlpack__(dl_device=(2, 0))

    in_threads(1, rank)


class Pair(ctypes.Structure):
    _fields_ = [("next", ctypes.POINTER(ctypes.c_int)), ("value", ctypes.c_int)]


class Either(ctypes.Union):
    _fields_ = [("next", ctypes.POINTER(ctypes.c_int)), ("value", ctypes.c_long)]


class Packed(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("value", ctypes.c_byte), ("next", c_void_p)]


class Inherits(Packed):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("more", ctypes.c_short)]


class Holds(ctypes.Structure):
    _fields_ = [("value", ctypes.c_int), ("either", Either * 2)]


class Keeps(ctypes.Union):
    _fields_ = [("what", ctypes.py_object), ("value", ctypes.c_long)]


FIVE = ctypes.c_int(5)

REFERENCES = {
    "objects": (np.array([object()], dtype=object), "Python objects"),
    "an object in a record": (np.zeros(1, [("a", "i4"), ("b", "O")]), "Python objects"),
    "an object in a record of a record": (np.zeros(1, [("a", [("b", "f4"), ("c", "O", 2)])]), "Python objects"),
    "objects of ctypes": ((ctypes.py_object * 1)("x"), "Python objects"),
    "pointers": ((ctypes.POINTER(ctypes.c_int) * 1)(ctypes.pointer(FIVE)), "pointers"),
    "void pointers": ((c_void_p * 1)(7), "pointers"),
    "texts": ((ctypes.c_char_p * 1)(b"x"), "pointers"),
    "wide texts": ((ctypes.c_wchar_p * 1)("x"), "pointers"),
    "functions": ((ctypes.CFUNCTYPE(None) * 1)(), "pointers"),
    "a pointer in a struct": ((Pair * 2)(), "pointers"),
    "a pointer in a union": ((Either * 2)(), "pointers"),
    "a pointer in a packed struct": ((Packed * 2)(), "pointers"),
    "a pointer that a struct inherits": ((Inherits * 2)(), "pointers"),
    "pointers in unions in a struct": (((Holds * 2) * 2)(), "pointers"),
    "a view of unions": (memoryview(memoryview((Either * 2)())), "pointers"),
    "an object in a union": ((Keeps * 2)(), "Python objects"),
}


@pytest.mark.parametrize("what", REFERENCES)
def test_references_stay_in_the_process(what):
    """Moved as bytes they would be wild pointers."""
    array, text = REFERENCES[what]

    def rank(comm):
        with pytest.raises(maypole.ArgumentError, match=f"x: has elements that are {text}"):
            comm.broadcast(array)
        with pytest.raises(maypole.ArgumentError, match=f"x: has elements that are {text}"):
            comm.all_gather(array, array)

    in_threads(2, rank)


@pytest.mark.parametrize("dtype", ["U4", "S3", "V8", ">f4", "c8", "g", "G", [("O", "i4"), ("&P", "u1"), ("Z", "S1")]])
def test_bytes_that_look_like_references_go(dtype):
    def rank(comm):
        x = np.zeros(2, dtype)
        x.view("u1")[:] = comm.rank + 1
        comm.broadcast(x)
        assert (x.view("u1") == 1).all()

    in_threads(2, rank)


class Plain(ctypes.Union):
    _fields_ = [("number", ctypes.c_double), ("bytes", c_uint8 * 8)]


class Tight(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("kind", ctypes.c_byte), ("plain", Plain), ("bits", ctypes.c_uint, 3)]


@pytest.mark.parametrize("kind", [Plain, Tight])
def test_unions_and_packed_structs_of_numbers_go(kind):
    def rank(comm):
        x = (kind * 3)()
        ctypes.memset(x, comm.rank + 1, ctypes.sizeof(x))
        comm.broadcast(x)
        assert bytes(x) == bytes([1]) * ctypes.sizeof(x)

    in_threads(2, rank)


class LikeNumpy(mmap.mmap):
    """Has NumPy's words and a buffer that it does not show, but its views are copies."""

    dtype = np.dtype(ml_dtypes.bfloat16)

    def view(self, dtype):
        return np.ones(2, dtype)


def test_views_are_asked_of_numpy_only():
    def rank(comm):
        x = LikeNumpy(-1, 4096)
        x.close()
        with pytest.raises(maypole.ArgumentError, match="x: .*mmap closed or invalid"):
            comm.all_reduce(x)
        y = np.ones(2, ml_dtypes.bfloat16)
        assert (comm.all_reduce(y) == 2).all()

    in_threads(2, rank)


def test_jax_s_arrays_are_read_where_they_lie_and_never_written():
    jax = pytest.importorskip("jax", reason="jax is not installed here")

    def rank(comm):
        for dtype in ("float32", "bfloat16"):
            x, out = jax.numpy.full(2, comm.rank + 1, dtype), np.zeros(2, dtype)
            assert (comm.all_reduce(x, out=out) == 3).all()
            with pytest.raises(maypole.ArgumentError, match="x: is read-only"):
                comm.all_reduce(x)
            assert (np.asarray(x) == comm.rank + 1).all()

    in_threads(2, rank)
