"""Device memory by hand, for the programs beside this: CUDA's driver by ctypes, and arrays that lend themselves."""

import ctypes
from ctypes import byref, c_int, c_int64, c_size_t, c_uint8, c_uint16, c_uint64, c_void_p

import maypole
import numpy as np

cuda = ctypes.CDLL("libcuda.so.1")


def call(name, *arguments):
    status = getattr(cuda, name)(*arguments)
    assert status == 0, (name, status)


class Tensor(ctypes.Structure):
    """DLManagedTensor."""
    _fields_ = [
        ("data", c_void_p), ("device", c_int), ("number", c_int), ("dimensions", c_int), ("code", c_uint8),
        ("bits", c_uint8), ("lanes", c_uint16), ("shape", c_void_p), ("strides", c_void_p), ("offset", c_uint64),
        ("context", c_void_p), ("deleter", c_void_p),
    ]


class OnDevice:
    """An array of float32 in device memory that lends itself by DLPack. ``device``: DLPack's number of its kind."""

    def __init__(self, values, device=2):
        values = np.asarray(values, "f4")
        self.count, self.address, self.asked = len(values), c_uint64(), []
        if self.count:  # without elements it has no address, as a tensor of torch's
            call("cuMemAlloc_v2", byref(self.address), c_size_t(values.nbytes))
            call("cuMemcpyHtoD_v2", self.address, c_void_p(values.ctypes.data), c_size_t(values.nbytes))
            # The copy may be under way still, and the programs' stream does not wait for it.
            call("cuStreamSynchronize", None)
        self.shape = (c_int64 * 1)(self.count)
        shape = ctypes.cast(self.shape, c_void_p).value
        self.tensor = Tensor(self.address.value, device, 0, 1, 2, 32, 1, shape, None, 0, None, None)

    @classmethod
    def at(cls, address, count):
        """One on memory of others."""
        array = cls.__new__(cls)
        array.count, array.address = count, c_uint64(address)
        return array

    def __dlpack__(self, stream=None, max_version=None):
        self.asked.append(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [c_void_p, ctypes.c_char_p, c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)

    def read(self):
        values = np.zeros(self.count, "f4")
        if self.count:
            call("cuMemcpyDtoH_v2", c_void_p(values.ctypes.data), self.address, c_size_t(values.nbytes))
        return values


call("cuInit", 0)
device, context, stream = c_int(), c_void_p(), c_void_p()
call("cuDeviceGet", byref(device), 0)
call("cuDevicePrimaryCtxRetain", byref(context), device)
call("cuCtxSetCurrent", context)
call("cuStreamCreate", byref(stream), 1)


def done():
    """Wait for the stream, as a program that knows nothing of Maypole."""
    call("cuStreamSynchronize", stream)


def refused(text, call, error=maypole.ArgumentError):
    """``call`` raises, with this text."""
    try:
        call()
    except error as caught:
        assert text in str(caught), caught
    else:
        raise AssertionError(f"not refused: {text}")

