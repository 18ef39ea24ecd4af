"""Which of Maypole's types and operations stand for PyTorch's.

A call is one number to the extension, ``collective | type << 8 | operation << 16``, so that the common case is one look
into a dictionary. The numbers are those of ``python/src/torch.rs``.
"""

import torch
import torch.distributed as dist

from .._maypole import ArgumentError

(ALL_REDUCE, REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, GATHER, SCATTER, BARRIER) = range(9)

# Element types.
I8, U8, I32, U32, I64, U64, F16, BF16, F32, F64, F8E4M3, F8E5M2 = range(12)

# Operations: by what a ReduceOp hashes to, which is its kind.
SUM, PRODUCT, MIN, MAX, AVG, AND, OR, XOR, PREMUL_SUM = range(9)
_OPERATIONS = {
    hash(getattr(dist.ReduceOp, name)): number
    for number, name in enumerate(["SUM", "PRODUCT", "MIN", "MAX", "AVG", "BAND", "BOR", "BXOR", "PREMUL_SUM"])
}
_NAMES = ["SUM", "PRODUCT", "MIN", "MAX", "AVG", "BAND", "BOR", "BXOR", "PREMUL_SUM"]
_BITWISE = {AND, OR, XOR}


def _types(**names):
    return {getattr(torch, name): kind for name, kind in names.items() if hasattr(torch, name)}


# Types that Maypole has itself.
_OWN = _types(
    int8=I8, uint8=U8, int32=I32, uint32=U32, int64=I64, uint64=U64, float16=F16, bfloat16=BF16, float32=F32,
    float64=F64, float8_e4m3fn=F8E4M3, float8_e5m2=F8E5M2,
)  # fmt: skip
# Complex numbers are pairs of these.
_PAIRS = _types(complex32=F16, complex64=F32, complex128=F64)
# Types that are reduced as a wider one. A sum of 16-bit integers in 32 bits has the right lower half.
WIDER = _types(int16=torch.int32, uint16=torch.int32, float8_e4m3fnuz=torch.float32, float8_e5m2fnuz=torch.float32)
# On truth values sums and maxima are "or", products and minima "and"; bytes that are 0 or 1 stay so.
_TRUTH = {SUM: MAX, MAX: MAX, PRODUCT: MIN, MIN: MIN, AND: AND, OR: OR, XOR: XOR}

_SIGNED = {I8, I32, I64}
_INTEGERS = {I8, U8, I32, U32, I64, U64}


def _plain():
    """The types and operations that are one call on the tensor's own memory: what to call, by type and operation."""
    table = {}
    for key, operation in _OPERATIONS.items():
        for dtype, kind in _OWN.items():
            if operation != PREMUL_SUM and (operation not in _BITWISE or kind in _INTEGERS):
                table[dtype, key] = kind << 8 | operation << 16
        if operation in _TRUTH:
            table[torch.bool, key] = U8 << 8 | _TRUTH[operation] << 16
    return table


PLAIN = _plain()


class Reduction:
    """How elements of a type are reduced by an operation: as `width` elements each of another type or of their own."""

    __slots__ = ("factor", "what", "wider", "width")

    def __init__(self, name, dtype, op):
        self.factor, self.width, self.wider = 1.0, 1, WIDER.get(dtype)
        operation = _OPERATIONS.get(hash(op))
        if operation is None:
            raise ArgumentError(f"{name}: op: {op} is none of {', '.join(_NAMES)}")
        if operation == PREMUL_SUM:
            self.factor = _factor(name, op)
        if dtype in _PAIRS:
            kind, self.width = _PAIRS[dtype], 2
            if operation not in (SUM, AVG, PREMUL_SUM):
                raise ArgumentError(f"{name}: op: {_NAMES[operation]} is not defined for complex numbers ({dtype})")
        elif dtype is torch.bool:
            if operation not in _TRUTH:
                raise ArgumentError(f"{name}: op: {_NAMES[operation]} is not defined for torch.bool")
            kind, operation = U8, _TRUTH[operation]
        else:
            kind = _OWN.get(self.wider or dtype)
            if kind is None:
                raise ArgumentError(f"{name}: tensors of {dtype} cannot be reduced")
            if operation in _BITWISE and kind not in _INTEGERS:
                raise ArgumentError(f"{name}: op: {_NAMES[operation]} needs integers or truth values, not {dtype}")
        self.what = kind << 8 | operation << 16

    def scaled(self, tensor):
        """The tensor times the factor, and what to call on that: for calls that take no factor."""
        if self.what >> 16 != PREMUL_SUM:
            return tensor, self.what
        return (tensor * self.factor).to(tensor.dtype), self.what & 0xFFFF | SUM << 16


def _factor(name, op):
    factor = op.__getstate__()[1]
    if isinstance(factor, torch.Tensor):
        if factor.numel() != 1:
            raise ArgumentError(f"{name}: op: the factor of PREMUL_SUM has {factor.numel()} elements, 1 was expected")
        factor = factor.item()
    return float(factor)


def is_plain_sum(op):
    """Whether `op` is SUM."""
    return _OPERATIONS.get(hash(op)) == SUM


_moved = {}


def moved(dtype):
    """How elements are moved: the number of a type, and how many of it one element is.

    As their own type where Maypole has it, so that ranks with different ones are told; otherwise as bytes.
    """
    known = _moved.get(dtype)
    if known is None:
        if dtype in _OWN:
            known = _OWN[dtype] << 8, 1
        elif dtype in _PAIRS:
            known = _PAIRS[dtype] << 8, 2
        else:
            known = U8 << 8, torch.empty(0, dtype=dtype).element_size()
        _moved[dtype] = known
    return known
