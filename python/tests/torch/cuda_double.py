"""A double of what Maypole asks of `torch.cuda`, over the driver's functions: for machines without
a GPU, where the driver is the emulated one.

`install` puts streams, events, the current stream and futures in the place of PyTorch's, and
`tensor` makes tensors that say they lie on a CUDA device. Their memory is the emulated device's.
What is computed with them is queued on the current stream (as a host function that does it with
CPU tensors on the same memory), and memory that is let go of is scribbled over in the order of the
stream that it was made on, as PyTorch's allocator has others use it. The current stream is the
legacy default stream, handle 0, until another is chosen.
"""

import collections
import contextlib
import ctypes
import itertools
import threading
import types
import weakref
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

import torch

_driver = None
_primary = c_void_p()
_thread = threading.local()
DEVICE = torch.device("cuda", 0)
LEGACY_DEFAULT = 0
NON_BLOCKING, NO_TIMING = 1, 2


def call(name, *arguments, expected=(0,)):
    """A function of the driver's, with the device's context current on this thread, as the runtime
    sees to."""
    if not getattr(_thread, "has_context", False):
        assert _driver.cuCtxSetCurrent(_primary) == 0
        _thread.has_context = True
    while _let_go:
        _scribble(*_let_go.popleft())
    status = getattr(_driver, name)(*arguments)
    assert status in expected, (name, status)
    return status


class Event:
    """As `torch.cuda.Event`: made when it is first recorded; before that it counts as passed."""

    _NOT_READY = 600

    def __init__(self):
        self._event = None

    def record(self, stream=None):
        if self._event is None:
            self._event = c_void_p()
            call("cuEventCreate", byref(self._event), c_uint(NO_TIMING))
        call("cuEventRecord", self._event, (stream or current_stream())._handle)

    def query(self):
        if self._event is None:
            return True
        return call("cuEventQuery", self._event, expected=(0, self._NOT_READY)) == 0

    def __del__(self):
        if self._event is not None:
            call("cuEventDestroy_v2", self._event)


class Stream:
    """As `torch.cuda.Stream`: one of its own, which does not wait for the legacy default stream."""

    device, device_index = DEVICE, 0

    def __init__(self, device=None, priority=0):
        self._handle = c_void_p()
        flags = c_uint(NON_BLOCKING)
        call("cuStreamCreateWithPriority", byref(self._handle), flags, c_int(priority))

    @property
    def cuda_stream(self):
        return self._handle.value or 0

    def __eq__(self, other):
        return isinstance(other, Stream) and self.cuda_stream == other.cuda_stream

    def __hash__(self):
        return hash(self.cuda_stream)

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        if event._event is not None:
            call("cuStreamWaitEvent", self._handle, event._event, c_uint(0))

    def wait_stream(self, stream):
        self.wait_event(stream.record_event())

    def synchronize(self):
        call("cuStreamSynchronize", self._handle)


class ExternalStream(Stream):
    """As `torch.cuda.ExternalStream`."""

    def __init__(self, handle, device=None):
        self._handle = c_void_p(handle)


def current_stream(device=None):
    return getattr(_thread, "stream", None) or ExternalStream(LEGACY_DEFAULT)


@contextlib.contextmanager
def stream(chosen):
    """As `torch.cuda.stream`."""
    before = current_stream()
    _thread.stream = chosen
    try:
        # Functions of torch.distributed turn it off, and what they call computes with tensors, too.
        with torch._C._EnableTorchFunction():
            yield
    finally:
        _thread.stream = before


def is_current_stream_capturing():
    status = c_uint()
    call("cuStreamIsCapturing", current_stream()._handle, byref(status))
    return status.value != 0


class Future:
    """As `torch.futures.Future` with devices, of those that are complete when they are made."""

    def __init__(self, devices):
        assert list(devices) == [DEVICE]

    def set_result(self, value):
        self._value, self._event = value, current_stream().record_event()

    def done(self):
        return True

    def wait(self):
        current_stream().wait_event(self._event)
        return self._value


_futures = torch.futures.Future


def _future(*, devices=None):
    return _futures() if devices is None else Future(devices)


def install():
    """Put all that in PyTorch's place."""
    global _driver
    _driver = ctypes.CDLL("libcuda.so.1")
    device = c_int()
    assert _driver.cuInit(0) == 0
    assert _driver.cuDeviceGet(byref(device), 0) == 0
    assert _driver.cuDevicePrimaryCtxRetain(byref(_primary), device) == 0
    doubles = Event, Stream, ExternalStream, current_stream, stream, is_current_stream_capturing
    for double in doubles:
        setattr(torch.cuda, double.__name__, double)
    torch.cuda.current_device = lambda: 0
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: (8, 0)
    # Not in the module itself, which uses its class by this name.
    torch.futures = types.SimpleNamespace(**{**vars(torch.futures), "Future": _future})


def capture():
    """What begins to capture the current stream, and what ends that."""
    graph = c_void_p()
    in_global_mode = c_uint(0)
    return (
        lambda: call("cuStreamBeginCapture_v2", current_stream()._handle, in_global_mode),
        lambda: call("cuStreamEndCapture", current_stream()._handle, byref(graph)),
    )


# Host functions that have not run.
_functions = {}
_numbers = itertools.count()


@ctypes.CFUNCTYPE(None, c_void_p)
def _run(number):
    _thread.is_in_host_function = True
    with torch.no_grad():
        _functions.pop(number or 0)()


def queue(function):
    """Have the current stream call a function, which must not call CUDA."""
    number = next(_numbers)
    _functions[number] = function
    call("cuLaunchHostFunc", current_stream()._handle, _run, c_void_p(number))


def _allocate(bytes):
    """Memory of the device, which belongs to others when it is let go of."""
    address = c_uint64()
    call("cuMemAlloc_v2", byref(address), c_size_t(max(bytes, 1)))
    memory = (ctypes.c_char * max(bytes, 1)).from_address(address.value)
    made_on = current_stream()._handle
    # Never given back to the driver, which would wait for all streams.
    weakref.finalize(memory, _scribble, address, bytes, made_on).atexit = False
    return memory


# What was let go of where CUDA must not be called.
_let_go = collections.deque()


def _scribble(address, bytes, made_on):
    if getattr(_thread, "is_in_host_function", False):
        _let_go.append((address, bytes, made_on))
    else:
        call("cuMemsetD8Async", address, ctypes.c_ubyte(0xFF), c_size_t(bytes), made_on)


def _in_place(name):
    function = getattr(torch.Tensor, name)

    def method(self, *arguments, **named):
        plain = _plain((self, *arguments))
        queue(lambda: function(*plain, **named))
        return self

    return method


def _out_of_place(name):
    function = getattr(torch.Tensor, name)
    return lambda self, *arguments, **named: _made(function, (self, *arguments), named)


class Tensor(torch.Tensor):
    """A tensor on the device."""

    is_cuda, is_cpu, device = True, False, DEVICE
    copy_, add_, mul_ = map(_in_place, ("copy_", "add_", "mul_"))
    clone, to, new_empty = map(_out_of_place, ("clone", "to", "new_empty"))
    _contiguous = _out_of_place("contiguous")

    def contiguous(self):
        return self if self.is_contiguous() else self._contiguous()

    def cpu(self):
        current_stream().synchronize()
        return _plain(self).clone()

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        if function in (torch.cat, torch.empty_like):
            return _made(function, arguments, named or {})
        return super().__torch_function__(function, types, arguments, named)


def _plain(argument):
    if isinstance(argument, (list, tuple)):
        return type(argument)(_plain(each) for each in argument)
    if isinstance(argument, Tensor):
        with torch._C.DisableTorchFunctionSubclass():
            return argument.as_subclass(torch.Tensor)
    return argument


def _made(function, arguments, named):
    """The result of a function, in new memory and when the current stream comes to it."""
    plain = _plain(arguments)
    # What it looks like, from whatever is in the memory now.
    like = function(*plain, **named)
    result = empty(like.shape, like.dtype)
    if function.__name__ not in ("new_empty", "empty_like"):
        into = _plain(result)
        queue(lambda: into.copy_(function(*plain, **named)))
    return result


def empty(shape, dtype):
    size = torch.Size(shape)
    memory = _allocate(size.numel() * dtype.itemsize)
    count = size.numel()
    flat = torch.empty(0, dtype=dtype)
    if count:
        flat = torch.frombuffer(memory, dtype=dtype, count=count)
    return flat.view(size).as_subclass(Tensor)


def tensor(values, dtype=torch.float32):
    """Values on the device, once the current stream comes to it."""
    values = torch.as_tensor(values, dtype=dtype)
    result = empty(values.shape, dtype)
    result.copy_(values)
    return result
