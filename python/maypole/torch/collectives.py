"""The collectives, by the names and with the arguments of c10d."""

import torch
from torch._C import _distributed_c10d as c10d

from .._maypole import ArgumentError
from . import kinds, releases, sparse
from .calls import (
    UNSET,
    Calls,
    adjacent,
    check,
    contiguous,
    flatten,
    one,
    overlap,
    same,
    several,
    unflatten,
)
from .kinds import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    BARRIER,
    BROADCAST,
    GATHER,
    PLAIN,
    REDUCE,
    REDUCE_SCATTER,
    SCATTER,
    Reduction,
)
from .seen import own

_strided = torch.strided


def _options(kind, opts, timeout=None, **fields):
    """Options of a class: those given, or new ones from what the shorter forms of c10d's methods take.

    A shorter form has, in the place of options, what the first field is for; or passes it by the field's name.
    """
    if isinstance(opts, kind):
        return opts
    options = kind()
    if opts is not None and fields:
        fields[next(iter(fields))] = opts
    for name, value in fields.items():
        if value is not None:
            setattr(options, name, value)
    if timeout is not None:
        options.timeout = timeout
    return options


def _lists(tensors):
    """A list of lists of tensors whose outer list has one element; c10d keeps one for each device of a rank."""
    if not tensors:
        return []
    if isinstance(tensors[0], torch.Tensor):
        return tensors
    if len(tensors) != 1:
        raise ArgumentError(f"a list of one list of tensors was expected, not of {len(tensors)}")
    return tensors[0]


def _list(tensors):
    """A list of tensors, of which the shorter forms of c10d's methods have only one."""
    return [tensors] if isinstance(tensors, torch.Tensor) else tensors


class Collectives(Calls):
    """The collectives of a group. What each does if somebody looks: see `seen`."""

    def allreduce(self, tensors, opts=None, timeout=None, *, op=None):
        if type(opts) is not c10d.AllreduceOptions:
            opts = _options(c10d.AllreduceOptions, opts, timeout, reduceOp=op)
        if self._is_watched(tensors):
            return own(c10d.ProcessGroup.allreduce(self, _list(tensors), opts))
        if type(tensors) is list and len(tensors) == 1:
            tensor = tensors[0]
            if tensor.layout is _strided:
                what = PLAIN.get((tensor.dtype, hash(opts.reduceOp)))
                # As `_is_direct`, but for complex numbers, which are not in this table.
                if (
                    what is not None
                    and tensor.is_cpu
                    and tensor.is_contiguous()
                    and not tensor.is_neg()
                    and opts.timeout == UNSET
                ):
                    return self._direct("all_reduce", opts, what, 0, tensor.numel(), tensor, tensor, [tensor])
            elif tensor.layout is torch.sparse_coo:
                return sparse.allreduce(self, tensor, opts)
        tensor = one("all_reduce", "tensor", tensors)
        reduction = Reduction("all_reduce", tensor.dtype, opts.reduceOp)
        return self._issue("all_reduce", opts, lambda: self._all_reduce(tensor, reduction), [tensor], tensor.device)

    def _all_reduce(self, tensor, reduction):
        whole = contiguous(tensor if reduction.wider is None else tensor.to(reduction.wider))
        self._call(ALL_REDUCE | reduction.what, 0, whole.numel() * reduction.width, whole, whole, reduction.factor)
        if whole is not tensor:
            tensor.copy_(whole)

    def allreduce_coalesced(self, tensors, opts=None):
        opts = _options(c10d.AllreduceCoalescedOptions, opts)
        if self._is_watched(tensors):
            return own(c10d.ProcessGroup.allreduce_coalesced(self, tensors, opts))
        name, reductions = "all_reduce_coalesced", []
        for place, tensor in enumerate(tensors):
            check(name, f"tensors[{place}]", tensor)
            reductions.append(Reduction(name, tensor.dtype, opts.reduceOp))

        # A tensor that the list has twice is reduced once.
        calls = {id(tensor): (tensor, reduction) for tensor, reduction in zip(tensors, reductions)}

        def body():
            for tensor, reduction in calls.values():
                self._all_reduce(tensor, reduction)

        return self._issue(name, opts, body, list(tensors), tensors[0].device if tensors else None)

    def allreduce_sparse(self, tensors, opts=None):
        return sparse.allreduce(self, tensors[0], _options(c10d.AllreduceOptions, opts))

    def broadcast(self, tensors, opts=None, timeout=None, *, root=None):
        opts = _options(c10d.BroadcastOptions, opts, timeout, rootRank=root)
        if self._is_watched(tensors):
            return own(c10d.ProcessGroup.broadcast(self, _list(tensors), opts))
        tensor, root = one("broadcast", "tensor", tensors), self._root("broadcast", opts.rootRank)
        what, width = self._move(BROADCAST, tensor.dtype)
        if self._is_direct(opts, tensor):
            return self._direct("broadcast", opts, what, root, tensor.numel() * width, tensor, tensor, [tensor])

        def body():
            whole = contiguous(tensor)
            self._call(what, root, whole.numel() * width, whole, whole)
            if whole is not tensor and self._rank != root:
                tensor.copy_(whole)

        return self._issue("broadcast", opts, body, [tensor], tensor.device)

    def reduce(self, tensors, opts=None, op=None, timeout=None, *, root=None):
        opts = _options(c10d.ReduceOptions, opts, timeout, rootRank=root, reduceOp=op)
        if self._is_watched(tensors):
            return own(c10d.ProcessGroup.reduce(self, _list(tensors), opts))
        tensor, root = one("reduce", "tensor", tensors), self._root("reduce", opts.rootRank)
        what = PLAIN.get((tensor.dtype, hash(opts.reduceOp)))
        if what is not None and self._is_direct(opts, tensor):
            output = tensor if self._rank == root else None
            return self._direct("reduce", opts, REDUCE | what, root, tensor.numel(), tensor, output, [tensor])
        reduction = Reduction("reduce", tensor.dtype, opts.reduceOp)

        def body():
            whole = contiguous(tensor if reduction.wider is None else tensor.to(reduction.wider))
            output = whole if self._rank == root else None
            self._call(REDUCE | reduction.what, root, whole.numel() * reduction.width, whole, output, reduction.factor)
            if output is not None and whole is not tensor:
                tensor.copy_(whole)

        return self._issue("reduce", opts, body, [tensor], tensor.device)

    def allgather(self, output_tensors, input_tensors, opts=None, timeout=None):
        opts = _options(c10d.AllgatherOptions, opts, timeout)
        outputs = _lists(output_tensors)
        if self._is_watched(outputs, input_tensors):
            return own(c10d.ProcessGroup.allgather(self, [outputs], _list(input_tensors), opts))
        tensor = one("all_gather", "tensor", input_tensors)
        several("all_gather", "tensor_list", outputs, self._size, tensor)
        if outputs[self._rank].numel() != tensor.numel():
            raise ArgumentError(
                f"all_gather: tensor_list[{self._rank}]: it has {outputs[self._rank].numel()} elements, "
                f"but this rank's tensor has {tensor.numel()}"
            )
        body = lambda: self._all_gather(outputs, tensor)  # noqa: E731
        return self._issue("all_gather", opts, body, list(outputs), tensor.device)

    def _all_gather(self, outputs, tensor):
        what, width = self._move(ALL_GATHER, tensor.dtype)
        counts = [output.numel() for output in outputs]
        direct = adjacent(outputs)
        flat = outputs[0] if direct else tensor.new_empty(sum(counts))
        whole = self._apart(contiguous(tensor), flat, outputs if direct else ())
        if min(counts) == max(counts):
            self._call(what, 0, counts[0] * width, whole, flat)
        else:
            self._call_v(what, 0, whole, [whole.numel() * width], flat, [count * width for count in counts])
        if not direct:
            unflatten(flat, outputs)

    def _apart(self, tensor, flat, outputs=()):
        """The input, or a copy of it where it lies in the output at another place than this rank's."""
        last = outputs[-1] if outputs else flat
        start, end = flat.data_ptr(), last.data_ptr() + last.numel() * last.element_size()
        at, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        if at + size <= start or end <= at or at == start + self._rank * size:
            return tensor
        return tensor.clone()

    def all_gather_single(self, output, input, opts=None):
        name = "all_gather_into_tensor"
        opts = _options(c10d.AllgatherOptions, opts)
        if self._is_watched((output, input)):
            return own(c10d.ProcessGroup.all_gather_single(self, output, input, opts))
        self._blocks(name, output, "output_tensor", input, "input_tensor")
        if self._is_direct(opts, input, output):
            what, width = self._move(ALL_GATHER, input.dtype)
            given = self._apart(input, output)
            return self._direct(name, opts, what, 0, input.numel() * width, given, output, [output])
        body = lambda: self._all_gather_single(output, input)  # noqa: E731
        return self._issue(name, opts, body, [output], input.device)

    def _all_gather_single(self, output, input):
        what, width = self._move(ALL_GATHER, input.dtype)
        whole = contiguous(output)
        self._call(what, 0, input.numel() * width, self._apart(contiguous(input), whole), whole)
        if whole is not output:
            output.copy_(whole)

    def _blocks(self, name, many, many_name, few, few_name):
        check(name, few_name, few)
        check(name, many_name, many)
        same(name, many_name, many, few)
        if many.numel() != few.numel() * self._size:
            raise ArgumentError(
                f"{name}: {many_name}: it has {many.numel()} elements, but {self._size} ranks x {few.numel()} elements "
                f"of {few_name} are {few.numel() * self._size}"
            )

    def all_gather_single_coalesced(self, outputs, inputs, opts=None):
        name = "all_gather_into_tensor_coalesced"
        opts = _options(c10d.AllgatherOptions, opts)
        if self._is_watched(outputs, inputs):
            return own(c10d.ProcessGroup.all_gather_single_coalesced(self, outputs, inputs, opts))
        self._as_many(name, outputs, inputs)
        for place, (output, input) in enumerate(zip(outputs, inputs)):
            self._blocks(name, output, f"outputs[{place}]", input, f"inputs[{place}]")

        def body():
            for output, input in zip(outputs, inputs):
                self._all_gather_single(output, input)

        return self._issue(name, opts, body, list(outputs), inputs[0].device if inputs else None)

    @staticmethod
    def _as_many(name, outputs, inputs):
        if len(outputs) != len(inputs):
            raise ArgumentError(f"{name}: outputs: {len(inputs)} tensors were expected, as many as inputs, "
                                f"not {len(outputs)}")  # fmt: skip

    def allgather_coalesced(self, output_lists, input_list, opts=None):
        name = "all_gather_coalesced"
        opts = _options(c10d.AllgatherOptions, opts)
        if self._is_watched(input_list, [output for outputs in output_lists for output in outputs]):
            return own(c10d.ProcessGroup.allgather_coalesced(self, output_lists, input_list, opts))
        if len(output_lists) != self._size:
            raise ArgumentError(f"{name}: output_tensor_lists: {self._size} lists were expected, one for each rank, "
                                f"not {len(output_lists)}")  # fmt: skip
        gathers = []
        for place, tensor in enumerate(input_list):
            check(name, f"input_tensor_list[{place}]", tensor)
            if any(len(outputs) != len(input_list) for outputs in output_lists):
                raise ArgumentError(f"{name}: output_tensor_lists: each must have {len(input_list)} tensors")
            outputs = [outputs[place] for outputs in output_lists]
            several(name, f"output_tensor_lists[..][{place}]", outputs, self._size, tensor)
            gathers.append((outputs, tensor))

        def body():
            for outputs, tensor in gathers:
                self._all_gather(outputs, tensor)

        result = [tensor for outputs in output_lists for tensor in outputs]
        return self._issue(name, opts, body, result, input_list[0].device if input_list else None)

    def reduce_scatter(self, output_tensors, input_tensors, opts=None, timeout=None, *, op=None):
        opts = _options(c10d.ReduceScatterOptions, opts, timeout, reduceOp=op)
        name, inputs = "reduce_scatter", _lists(input_tensors)
        if self._is_watched(output_tensors, inputs):
            return own(c10d.ProcessGroup.reduce_scatter(self, _list(output_tensors), [inputs], opts))
        output = one(name, "output", output_tensors)
        several(name, "input_list", inputs, self._size, output)
        if inputs[self._rank].numel() != output.numel():
            raise ArgumentError(
                f"{name}: input_list[{self._rank}]: it has {inputs[self._rank].numel()} elements, but output has "
                f"{output.numel()}"
            )
        reduction = Reduction(name, output.dtype, opts.reduceOp)

        def body():
            counts = [input.numel() for input in inputs]
            if min(counts) == max(counts):
                direct = adjacent(inputs) and reduction.wider is None
                flat = inputs[0] if direct else flatten(inputs)
                self._reduce_scatter(output, flat, reduction)
            else:
                self._reduce_scatter_v(output, flatten(inputs), counts, reduction)

        return self._issue(name, opts, body, [output], output.device)

    def _reduce_scatter(self, output, flat, reduction):
        if reduction.wider is not None:
            flat = flat.to(reduction.wider)
        whole = contiguous(output)
        if reduction.wider is not None or overlap(whole, flat):
            whole = torch.empty_like(whole, dtype=flat.dtype)
        self._call(REDUCE_SCATTER | reduction.what, 0, whole.numel() * reduction.width, flat, whole, reduction.factor)
        if whole is not output:
            output.copy_(whole)

    def _reduce_scatter_v(self, output, flat, counts, reduction):
        flat, what = reduction.scaled(flat if reduction.wider is None else flat.to(reduction.wider))
        whole = torch.empty_like(contiguous(output), dtype=flat.dtype)
        counts = [count * reduction.width for count in counts]
        self._call_v(REDUCE_SCATTER | what, 0, flat, counts, whole, [counts[self._rank]])
        output.copy_(whole)

    def reduce_scatter_single(self, output, input, opts=None):
        name = "reduce_scatter_tensor"
        opts = _options(c10d.ReduceScatterOptions, opts)
        if self._is_watched((output, input)):
            return own(c10d.ProcessGroup.reduce_scatter_single(self, output, input, opts))
        self._blocks(name, input, "input", output, "output")
        what = PLAIN.get((output.dtype, hash(opts.reduceOp)))
        if what is not None and self._is_direct(opts, input, output) and not overlap(output, input):
            return self._direct(name, opts, REDUCE_SCATTER | what, 0, output.numel(), input, output, [output])
        reduction = Reduction(name, output.dtype, opts.reduceOp)
        body = lambda: self._reduce_scatter(output, contiguous(input), reduction)  # noqa: E731
        return self._issue(name, opts, body, [output], output.device)

    def reduce_scatter_single_coalesced(self, outputs, inputs, opts=None):
        name = "reduce_scatter_tensor_coalesced"
        opts = _options(c10d.ReduceScatterOptions, opts)
        if self._is_watched(outputs, inputs):
            return own(c10d.ProcessGroup.reduce_scatter_single_coalesced(self, outputs, inputs, opts))
        self._as_many(name, outputs, inputs)
        calls = []
        for place, (output, input) in enumerate(zip(outputs, inputs)):
            self._blocks(name, input, f"inputs[{place}]", output, f"outputs[{place}]")
            calls.append((output, input, Reduction(name, output.dtype, opts.reduceOp)))

        def body():
            for output, input, reduction in calls:
                self._reduce_scatter(output, contiguous(input), reduction)

        return self._issue(name, opts, body, list(outputs), inputs[0].device if inputs else None)

    def gather(self, output_tensors, input_tensors, opts=None, timeout=None, *, root=None):
        opts = _options(c10d.GatherOptions, opts, timeout, rootRank=root)
        outputs = _lists(output_tensors)
        if self._is_watched(outputs, input_tensors):
            outputs = [outputs] if outputs else []
            return own(c10d.ProcessGroup.gather(self, outputs, _list(input_tensors), opts))
        tensor, root = one("gather", "tensor", input_tensors), self._root("gather", opts.rootRank)
        if self._rank == root:
            several("gather", "gather_list", outputs, self._size, tensor)
            for place, output in enumerate(outputs):
                if output.numel() != tensor.numel():
                    raise ArgumentError(f"gather: gather_list[{place}]: it has {output.numel()} elements, but this "
                                        f"rank's tensor has {tensor.numel()}")  # fmt: skip
        elif outputs:
            raise ArgumentError(f"gather: gather_list: only rank {root}, the destination, passes one")
        what, width = self._move(GATHER, tensor.dtype)

        def body():
            whole, flat = contiguous(tensor), None
            if outputs:
                flat = tensor.new_empty(tensor.numel() * self._size)
            self._call(what, root, whole.numel() * width, whole, flat)
            if outputs:
                unflatten(flat, outputs)

        return self._issue("gather", opts, body, list(outputs), tensor.device)

    def gather_single(self, output, input, opts=None):
        opts = _options(c10d.GatherOptions, opts)
        root = self._root("gather_into_tensor", opts.rootRank)
        # C++ asks no Python backend for this one.
        if self._rank == root and self._is_watched((output, input)) or self._is_watched((input,)):
            return self.gather([list(output.chunk(self._size))] if self._rank == root else [], [input], opts)
        check("gather_into_tensor", "input", input)
        if self._rank == root:
            self._blocks("gather_into_tensor", output, "output", input, "input")
        what, width = self._move(GATHER, input.dtype)

        def body():
            whole = contiguous(output) if self._rank == root else None
            given = contiguous(input)
            self._call(what, root, input.numel() * width, given if whole is None else self._apart(given, whole), whole)
            if whole is not None and whole is not output:
                output.copy_(whole)

        return self._issue("gather_into_tensor", opts, body, [output], input.device)

    def scatter(self, output_tensors, input_tensors, opts=None, timeout=None, *, root=None):
        opts = _options(c10d.ScatterOptions, opts, timeout, rootRank=root)
        inputs = _lists(input_tensors)
        if self._is_watched(output_tensors, inputs):
            inputs = [inputs] if inputs else []
            return own(c10d.ProcessGroup.scatter(self, _list(output_tensors), inputs, opts))
        output, root = one("scatter", "tensor", output_tensors), self._root("scatter", opts.rootRank)
        if self._rank == root:
            several("scatter", "scatter_list", inputs, self._size, output)
            for place, input in enumerate(inputs):
                if input.numel() != output.numel():
                    raise ArgumentError(f"scatter: scatter_list[{place}]: it has {input.numel()} elements, but this "
                                        f"rank's tensor has {output.numel()}")  # fmt: skip
        elif inputs:
            raise ArgumentError(f"scatter: scatter_list: only rank {root}, the source, passes one")
        what, width = self._move(SCATTER, output.dtype)

        def body():
            whole = output if output.is_contiguous() and not inputs else torch.empty_like(contiguous(output))
            self._call(what, root, whole.numel() * width, flatten(inputs) if inputs else None, whole)
            if whole is not output:
                output.copy_(whole)

        return self._issue("scatter", opts, body, [output], output.device)

    def all_to_all_single(self, output, input, output_split_sizes=(), input_split_sizes=(), opts=None):
        name = "all_to_all_single"
        opts = _options(c10d.AllToAllOptions, opts)
        if self._is_watched((output, input)):
            splits = list(output_split_sizes or ()), list(input_split_sizes or ())
            return own(c10d.ProcessGroup.all_to_all_single(self, output, input, *splits, opts))
        check(name, "input", input)
        check(name, "output", output)
        same(name, "output", output, input)
        sent = self._splits(name, "input", input, input_split_sizes)
        received = self._splits(name, "output", output, output_split_sizes)
        even = not input_split_sizes and not output_split_sizes
        if even and output.numel() != input.numel():
            raise ArgumentError(f"{name}: output: it has {output.numel()} elements, but input has {input.numel()}")
        what, width = self._move(ALL_TO_ALL, input.dtype)
        if even and self._is_direct(opts, input, output) and not overlap(input, output):
            return self._direct(name, opts, what, 0, sent[0] * width, input, output, [output])

        def body():
            given, whole = contiguous(input), contiguous(output)
            if overlap(given, whole):
                given = given.clone()
            if even:
                self._call(what, 0, sent[0] * width, given, whole)
            else:
                counts = [[count * width for count in counts] for counts in (sent, received)]
                self._call_v(what, 0, given, counts[0], whole, counts[1])
            if whole is not output:
                output.copy_(whole)

        return self._issue(name, opts, body, [output], input.device)

    def _splits(self, name, argument, tensor, splits):
        """Elements for each rank."""
        rows = tensor.shape[0] if tensor.dim() > 0 else tensor.numel()
        if not splits:
            if rows % self._size != 0:
                raise ArgumentError(f"{name}: {argument}: its first dimension, {rows}, is no multiple of the "
                                    f"{self._size} ranks; pass {argument}_split_sizes")  # fmt: skip
            splits = [rows // self._size] * self._size
        if len(splits) != self._size or any(split < 0 for split in splits):
            raise ArgumentError(f"{name}: {argument}_split_sizes: one size for each of {self._size} ranks was "
                                f"expected, not {list(splits)}")  # fmt: skip
        if sum(splits) != rows:
            raise ArgumentError(f"{name}: {argument}_split_sizes: they add up to {sum(splits)}, but the first dimension "
                                f"is {rows}")  # fmt: skip
        row = tensor.numel() // rows if rows else 0
        return [split * row for split in splits]

    def alltoall(self, output_tensors, input_tensors, opts=None, timeout=None):
        opts = _options(c10d.AllToAllOptions, opts, timeout)
        name = "all_to_all"
        if self._is_watched(output_tensors, input_tensors):
            return own(c10d.ProcessGroup.alltoall(self, output_tensors, input_tensors, opts))
        if not input_tensors or not output_tensors:
            raise ArgumentError(f"{name}: {self._size} tensors were expected on both sides, one for each rank")
        check(name, "input_tensor_list[0]", input_tensors[0])
        several(name, "input_tensor_list", input_tensors, self._size, input_tensors[0])
        several(name, "output_tensor_list", output_tensors, self._size, input_tensors[0])
        what, width = self._move(ALL_TO_ALL, input_tensors[0].dtype)

        def body():
            given = flatten(input_tensors)
            sent, received = ([t.numel() * width for t in tensors] for tensors in (input_tensors, output_tensors))
            flat = given.new_empty(sum(received) // width)
            self._call_v(what, 0, given, sent, flat, received)
            unflatten(flat, output_tensors)

        return self._issue(name, opts, body, list(output_tensors), input_tensors[0].device)

    def barrier(self, opts=None, timeout=None):
        opts = _options(c10d.BarrierOptions, opts, timeout)
        if self._is_watched():
            return own(c10d.ProcessGroup.barrier(self, opts))
        device = getattr(opts, "device", None)
        if device is not None and device.type == "cuda":
            # As in the other backends, it is a point in the streams' order: what is queued there is awaited first.
            torch.cuda.current_stream(device).synchronize()
            self._streams.drain()
        if self._is_direct(opts):
            return self._direct("barrier", opts, BARRIER, 0, 0, None, None, [])
        body = lambda: self._link.run(BARRIER, 0, 0, 0, 0, 1.0)  # noqa: E731
        return self._issue("barrier", opts, body, [])

    def _root(self, name, root):
        if not 0 <= root < self._size:
            raise ArgumentError(f"{name}: root: it is {root}, but the ranks are 0 to {self._size - 1}")
        return root

    # The names that these had before, by which some callers ask for them.
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    gather_into_tensor = gather_single
    if not releases.NEW_NAMES:
        # Otherwise C++ has these itself, and would come back by them to methods that call what they override.
        allgather_into_tensor_coalesced = all_gather_single_coalesced
        reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
        alltoall_base = all_to_all_single
