"""What every collective goes through: its tensors checked and made contiguous, its call made now or queued.

A collective of contiguous tensors in host memory is one call to the extension (`_direct`). What needs more is a *body*,
a function without arguments that makes the calls and copies what must be copied before and after (`_issue`). Where
nothing is queued and nobody asked for an asynchronous call, either is run on the caller's thread. Otherwise it is queued
on the group's lane; the lane's thread needs the interpreter for bodies only. On CUDA tensors a body runs at once in any
case: all it does is to queue work on the group's own stream (`cuda`).
"""

import contextlib
import datetime
import sys
from threading import get_ident

import torch
from torch._C import _distributed_c10d as c10d
from torch.distributed import distributed_c10d

from .._maypole import ArgumentError, TorchJob
from . import kinds
from .cuda import CudaWork
from .work import Done, Together, Work

DONE = Done()
# What torch passes where the caller gave no timeout.
UNSET = datetime.timedelta(milliseconds=-1)

_set_grad = torch._C._set_grad_enabled

if hasattr(c10d.AllreduceOptions, "asyncOp"):

    def _is_blocking(opts):
        """Whether whoever made this call waits for it at once. Options of calls that C++ makes may not say."""
        return not getattr(opts, "asyncOp", True)

else:

    def _is_blocking(opts, _functions=vars(distributed_c10d)):
        """The same in releases whose options never say. The frame of the function of torch.distributed does.

        It is that of a collective's method, two up from here, or the one before, if `group._kept` is between them.
        """
        frame = sys._getframe(3)
        if frame.f_globals is not _functions:
            frame = frame.f_back
            if frame is None or frame.f_globals is not _functions:
                return False
        return frame.f_locals.get("async_op") is False


def check(name, argument, tensor):
    """Refuse what is no dense tensor in host memory or on a CUDA device."""
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentError(f"{name}: {argument}: a tensor was expected, not {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise ArgumentError(f"{name}: {argument}: it is {tensor.layout}, but only dense tensors are supported here")
    if tensor.is_meta:
        raise ArgumentError(
            f"{name}: {argument}: it is on the device meta, where tensors have shapes but no elements to send; make it "
            "on a CPU or CUDA device, with to_empty, say"
        )
    if not (tensor.is_cpu or tensor.is_cuda):
        raise ArgumentError(f"{name}: {argument}: it is on {tensor.device}, but it must be on a CPU or CUDA device")
    if tensor.is_quantized:
        raise ArgumentError(f"{name}: {argument}: quantized tensors ({tensor.dtype}) are not supported")


def one(name, argument, tensors):
    """The only tensor of a list."""
    tensor = tensors
    if not isinstance(tensors, torch.Tensor):
        if len(tensors) != 1:
            raise ArgumentError(f"{name}: {argument}: one tensor was expected, not {len(tensors)}")
        tensor = tensors[0]
    check(name, argument, tensor)
    return tensor


def several(name, argument, tensors, count, like):
    """A list of `count` tensors of the type and device of `like`."""
    if len(tensors) != count:
        raise ArgumentError(f"{name}: {argument}: {count} tensors were expected, one for each rank, not {len(tensors)}")
    for place, tensor in enumerate(tensors):
        check(name, f"{argument}[{place}]", tensor)
        same(name, f"{argument}[{place}]", tensor, like)


def same(name, argument, tensor, like):
    """Refuse a tensor of another type or on another device than `like`."""
    if tensor.dtype != like.dtype:
        raise ArgumentError(f"{name}: {argument}: it is of {tensor.dtype}, but {like.dtype} was expected")
    if tensor.device != like.device:
        raise ArgumentError(f"{name}: {argument}: it is on {tensor.device}, but {like.device} was expected")


def contiguous(tensor):
    """The tensor itself, or a copy of it that is contiguous and has nothing left to be negated or conjugated."""
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor.contiguous()


def flatten(tensors):
    """Tensors one after the other in one new one-dimensional tensor."""
    return torch.cat([contiguous(tensor).reshape(-1) for tensor in tensors])


def unflatten(flat, tensors):
    """Copy consecutive pieces of a one-dimensional tensor into tensors."""
    at = 0
    for tensor in tensors:
        count = tensor.numel()
        tensor.copy_(flat[at : at + count].view(tensor.shape))
        at += count


def adjacent(tensors):
    """Whether tensors are contiguous and follow each other in memory, so that the first's address is that of all."""
    at = tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != at or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            return False
        at += tensor.numel() * tensor.element_size()
    return True


def overlap(one, other):
    """Whether two contiguous tensors share memory."""
    start, begin = one.data_ptr(), other.data_ptr()
    end, stop = start + one.numel() * one.element_size(), begin + other.numel() * other.element_size()
    return start < stop and begin < end


class Calls:
    """The part of a group that all its collectives use. `_link`, `_lane`, `_streams`, `_rank`,
    `_size`, `_timeout`: see `group`."""

    def _is_watched(self, tensors=(), others=()):
        """Whether a call has to go through PyTorch's dispatcher: see `seen`."""
        return False

    def _call(self, what, root, count, input, output, factor=1.0):
        """One call. Contiguous tensors, or None where this rank has none on that side."""
        tensor = output if output is not None else input
        read = 0 if input is None else input.data_ptr()
        written = 0 if output is None else output.data_ptr()
        if tensor is not None and not tensor.is_cpu:
            stream = self._streams.on(self._link, tensor.device).own
            self._link.queue(what, root, count, read, written, factor, stream)
            return
        self._link.run(what, root, count, read, written, factor)

    def _call_v(self, what, root, input, sent, output, received):
        """One call on blocks with counts of their own, in elements of what is called."""
        tensor = output if output is not None else input
        read = 0 if input is None else input.data_ptr()
        written = 0 if output is None else output.data_ptr()
        if tensor is not None and not tensor.is_cpu:
            stream = self._streams.on(self._link, tensor.device).own
            self._link.queue_v(what, root, read, sent, written, received, stream)
            return
        self._link.run_v(what, root, read, sent, written, received)

    def _issue(self, name, opts, body, result, device=None):
        """Run the body of a collective, or queue it. `result`: the tensors that it fills."""
        body = self._dressed(body, opts)
        blocking = _is_blocking(opts)
        if device is not None and device.type == "cuda":
            stream = self._streams.on(self._link, device)
            return self._collected(stream.issue(self._link, name, body, result, not blocking))
        if blocking and not self._is_collecting():
            if self._lane.is_idle():
                body()
            else:
                job = TorchJob(body)
                self._lane.submit(job)
                self._lane.wait(job)
            return DONE
        job = TorchJob(body)
        self._lane.submit(job)
        return self._collected(Work(self._lane, name, job, result))

    def _is_direct(self, opts, *tensors):
        """Whether a collective of these is one call on their memory, with the group's timeout."""
        if opts.timeout != UNSET:
            return False
        for tensor in tensors:
            if not tensor.is_cpu or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
                return False
        return True

    def _direct(self, name, opts, what, root, count, input, output, result, factor=1.0):
        """A collective that is one call. `input` and `output`: tensors, or None where this rank has none."""
        read = 0 if input is None else input.data_ptr()
        written = read if output is input else 0 if output is None else output.data_ptr()
        if _is_blocking(opts) and self._lane.is_idle() and not (self._coalescing and self._is_collecting()):
            self._link.run(what, root, count, read, written, factor)
            return DONE
        job = self._link.start(self._lane, what, root, count, read, written, factor, (input, output))
        return self._collected(Work(self._lane, name, job, result))

    def _dressed(self, body, opts):
        timeout = getattr(opts, "timeout", UNSET)
        timeout = None if timeout is None or timeout <= datetime.timedelta(0) or timeout == self._timeout else timeout
        # Modes belong to a thread, and the body may run on another one.
        inference = torch.is_inference_mode_enabled()

        def timed():
            if timeout is None:
                body()
            else:
                with self._deadline(timeout):
                    body()

        def dressed():
            if inference:
                with torch.inference_mode():
                    timed()
                return
            # `torch.no_grad` does the same, in 2.6 us.
            had_grad = torch.is_grad_enabled()
            _set_grad(False)
            try:
                timed()
            finally:
                _set_grad(had_grad)

        return dressed

    @contextlib.contextmanager
    def _deadline(self, timeout):
        """A deadline of their own for the collectives made meanwhile."""
        link = self._link
        link.set_timeout_of_collectives(timeout.total_seconds())
        try:
            yield
        finally:
            link.set_timeout_of_collectives(self._timeout.total_seconds())

    def _start_coalescing(self, device=None):
        """Take what this thread calls until `_end_coalescing` as one."""
        self._coalescing[get_ident()] = []

    def _end_coalescing(self, device=None):
        """The work of all this thread's calls since `_start_coalescing`."""
        works = self._coalescing.pop(get_ident(), [])
        return works[0] if len(works) == 1 else CudaWork.together(works) or Together(works)

    def _is_collecting(self):
        """Whether this thread's calls are taken as one. `_coalescing`: the works of each thread that has begun so."""
        return self._coalescing and get_ident() in self._coalescing

    def _collected(self, work):
        """The work, which is kept if this thread's calls are taken as one."""
        if self._is_collecting():
            self._coalescing[get_ident()].append(work)
        return work

    # By these names C++ asks for them.
    def start_coalescing(self, device=None):
        self._start_coalescing(device)

    def end_coalescing(self, device=None):
        return self._end_coalescing(device)

    def _move(self, collective, dtype):
        """What to call to move elements of a type, and how many of its elements one is."""
        kind, width = kinds.moved(dtype)
        return collective | kind, width
