"""Device memory by DLPack, on a CUDA stream: with the emulated driver, which ``cargo test`` builds."""

from pathlib import Path

import pytest

TARGET = Path(__file__).parents[2] / "target" / "debug"
EMULATORS = [TARGET / "deps" / "libmaypole_cuda_emulator.so", TARGET / "libmaypole_cuda_emulator.so"]

PROGRAM = '''
import ctypes, maypole, numpy as np
from ctypes import byref, c_int, c_int64, c_size_t, c_uint8, c_uint16, c_uint64, c_void_p

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
    """An array of float32 in device memory that lends itself by DLPack."""
    def __init__(self, values, device=2):
        values = np.asarray(values, "f4")
        self.count, self.address, self.asked = len(values), c_uint64(), []
        call("cuMemAlloc_v2", byref(self.address), c_size_t(values.nbytes))
        call("cuMemcpyHtoD_v2", self.address, c_void_p(values.ctypes.data), c_size_t(values.nbytes))
        self.shape = (c_int64 * 1)(self.count)
        shape = ctypes.cast(self.shape, c_void_p).value
        self.tensor = Tensor(self.address.value, device, 0, 1, 2, 32, 1, shape, None, 0, None, None)

    def __dlpack__(self, stream=None, max_version=None):
        self.asked.append(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [c_void_p, ctypes.c_char_p, c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)

    def read(self):
        values = np.zeros(self.count, "f4")
        call("cuMemcpyDtoH_v2", c_void_p(values.ctypes.data), self.address, c_size_t(values.nbytes))
        return list(values)

call("cuInit", 0)
device, context, stream = c_int(), c_void_p(), c_void_p()
call("cuDeviceGet", byref(device), 0)
call("cuDevicePrimaryCtxRetain", byref(context), device)
call("cuCtxSetCurrent", context)
call("cuStreamCreate", byref(stream), 1)

comm = maypole.init()
x, out = OnDevice([comm.rank, 1, 2]), OnDevice([0, 0, 0])
queued = comm.on(stream.value)
assert queued.all_reduce(x, "sum", out) is out
assert queued.all_reduce(x) is x
call("cuStreamSynchronize", stream)
assert x.read() == out.read() == [1, 2, 4], (x.read(), out.read())
assert x.asked == [stream.value] * 2
gathered = OnDevice([0] * 6)
class Framework:
    cuda_stream = stream.value
comm.on(Framework()).all_gather(x, gathered)
call("cuStreamSynchronize", stream)
assert gathered.read() == [1, 2, 4] * 2

on_host = np.full(3, comm.rank, "f4")
assert queued.all_reduce(on_host) is on_host and on_host[0] == 1, "host memory is worked on at once"

for refused, text in [
    (lambda: comm.all_reduce(x), "lies in the memory of CUDA device 0; say on which stream"),
    (lambda: queued.all_reduce(x, out=np.zeros(3, "f4")), "out: lies elsewhere than x"),
    (lambda: queued.all_gather_v(x, [3, 3], gathered), "only collectives with equal blocks take that"),
    (lambda: comm.send(x, 1), "only collectives with equal blocks take that"),
    (lambda: queued.send(on_host, 1), "only collectives with equal blocks can be put on a CUDA stream"),
    (lambda: comm.all_reduce(OnDevice([1], device=8)), "lies on a device of DLPack type 8"),
]:
    try:
        refused()
    except maypole.ArgumentError as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)
comm.barrier()
print("fine")
'''


@pytest.fixture
def driver(tmp_path):
    """A folder with the emulated driver under its real name."""
    found = [path for path in EMULATORS if path.exists()]
    if not found:
        pytest.skip(f"there is no {EMULATORS[0]}; `cargo build -p maypole-cuda-emulator` makes it")
    (tmp_path / "cuda").mkdir()
    for name in ("libcuda.so", "libcuda.so.1"):
        (tmp_path / "cuda" / name).symlink_to(max(found, key=lambda path: path.stat().st_mtime))
    return tmp_path / "cuda"


def test_collectives_on_device_memory(launch, driver):
    done = launch(2, PROGRAM, LD_LIBRARY_PATH=str(driver))
    assert done.returncode == 0 and done.stdout.count("fine") == 2, done.stdout + done.stderr
