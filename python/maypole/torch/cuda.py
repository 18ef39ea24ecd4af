"""CUDA tensors: calls are queued on the current stream, and nothing waits for them here.

The caching allocator gives a tensor's memory to others once the tensor is gone, after what was queued on the stream
that it was made on. So a tensor that another stream uses is recorded on that one. This part has been written by the
allocator's rules but never run: no GPU was at hand.
"""

import contextlib

import torch
from torch._C import _distributed_c10d as c10d


def queue(link, what, root, count, input, output, factor):
    """Queue one call on the current stream of its tensors' device."""
    with _stream_of(input, output) as (stream, read, written):
        link.queue(what, root, count, read, written, factor, stream)


def queue_v(link, what, root, input, sent, output, received):
    """The same, on blocks with counts of their own, in elements of what is called."""
    with _stream_of(input, output) as (stream, read, written):
        link.queue_v(what, root, read, sent, written, received, stream)


@contextlib.contextmanager
def _stream_of(input, output):
    """The current stream of two tensors' device, of which one may be None, as a handle; and where they lie."""
    device = (output if output is not None else input).device
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device)
        for used in (input, output):
            if used is not None:
                used.record_stream(stream)
        read = 0 if input is None else input.data_ptr()
        written = 0 if output is None else output.data_ptr()
        yield stream.cuda_stream, read, written


class CudaWork(c10d.Work):
    """Calls that have been queued on a stream."""

    was_used = True

    def __init__(self, name, result, device):
        super().__init__()
        self._name, self._result, self._device = name, result, device
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(device))

    def wait(self, timeout=None):
        """Have the current stream wait for it. This thread does not."""
        torch.cuda.current_stream(self._device).wait_event(self._event)
        return True

    def synchronize(self):
        self.wait()

    def is_completed(self):
        return self._event.query()

    def is_success(self):
        return self.is_completed()

    def exception(self):
        return None

    def result(self):
        return self._result

    def get_future(self):
        self.wait()
        future = torch.futures.Future(devices=[self._device])
        # The future notes where the current stream is, and whoever waits for it waits for that.
        future.set_result(self._result)
        return future
