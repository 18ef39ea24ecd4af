"""The all-reduce of sparse tensors.

Ranks have different elements, so there is nothing to add up in place: every rank gets everybody's indices and values,
and adds up what belongs to the same index, in the order of the ranks. The result is the same on all of them.
"""

import zlib

import torch

from .._maypole import ArgumentError
from . import kinds
from .calls import check, contiguous
from .kinds import ALL_GATHER


def allreduce(group, tensor, opts):
    """Every rank's `tensor`, sparse in the COO layout, becomes the sum of all."""
    if tensor.layout is not torch.sparse_coo:
        raise ArgumentError(f"all_reduce: tensor: of sparse layouts only COO is supported, not {tensor.layout}")
    if not kinds.is_plain_sum(opts.reduceOp):
        raise ArgumentError("all_reduce: op: sparse tensors can only be summed (SUM)")
    caller = torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None
    return group._issue("all_reduce", opts, lambda: _sum(group, tensor, caller), [tensor], tensor.device)


def _sum(group, tensor, caller):
    own = tensor.coalesce()
    shape = zlib.crc32(repr((tuple(own.shape), own.dtype, own.sparse_dim())).encode())
    facts = torch.tensor([own._nnz(), shape])
    everyone = torch.empty(group._size, 2, dtype=torch.int64)
    group._call(ALL_GATHER | kinds.I64 << 8, 0, 2, facts, everyone)
    differing = [rank for rank in range(group._size) if everyone[rank, 1] != shape]
    if differing:
        # Every rank finds this, so none goes on.
        raise ArgumentError(
            f"all_reduce: tensor: here it has shape {tuple(own.shape)}, of which {own.sparse_dim()} dimensions are "
            f"sparse, and {own.dtype}, but rank {differing[0]} has another"
        )
    counts = everyone[:, 0].tolist()
    # One row for each element, so that the rows of the ranks can follow each other.
    indices = _gather(group, own.indices().t(), counts)
    values = _gather(group, own.values(), counts)
    total = torch.sparse_coo_tensor(indices.t(), values, own.shape).coalesce()
    tensor.copy_(total)
    if caller is not None:
        # Its elements lie in new memory, of the group's stream, and are used on the caller's.
        tensor._indices().record_stream(caller)
        tensor._values().record_stream(caller)


def _gather(group, rows, counts):
    rows = contiguous(rows)
    check("all_reduce", "tensor", rows)
    everyone = rows.new_empty([sum(counts), *rows.shape[1:]])
    kind, width = kinds.moved(rows.dtype)
    row = width
    for length in rows.shape[1:]:
        row *= length
    lengths = [count * row for count in counts]
    group._call_v(ALL_GATHER | kind, 0, rows, [rows.shape[0] * row], everyone, lengths)
    return everyone
