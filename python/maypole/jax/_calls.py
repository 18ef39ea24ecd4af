"""The public functions: arguments checked, at the time of tracing, and handed to the primitives."""

from typing import Any, Optional

import jax
import jax.numpy as jnp
import numpy as np

from .._maypole import ArgumentError, Communicator
from . import _primitives as p
from ._handle import Handle

_NUMBERS = "int8 uint8 int32 uint32 int64 uint64 float16 bfloat16 float32 float64 float8_e4m3fn float8_e5m2".split()
_COMPLEX = ("complex64", "complex128")
_PLAIN = ("bool", "int16", "uint16", *_COMPLEX, *_NUMBERS)
# What the library calls pairs of these.
_PAIRS = {
    ("float32", "int32"): "f32, i32",
    ("int32", "int32"): "i32, i32",
    ("float64", "int64"): "f64, i64",
    ("int64", "int64"): "i64, i64",
}
_ARITHMETIC, _BITWISE = ("sum", "prod", "min", "max", "avg"), ("and", "or", "xor")


def all_reduce(x: Any, comm: Communicator, op: str = "sum") -> Any:
    """The reduction of all ranks' ``x``, on every rank, with the same bits on each.

    ``x``: an array, or a tree of arrays, each reduced by a call of its own. ``op``: sum, avg, prod, min, max; for
    integers also and, or, xor; for booleans min, max, and, or, xor; for complex numbers sum and avg.
    Derivative (sum, avg): ``all_reduce`` of the cotangents with the same ``op``.
    """
    name, comm = "all_reduce", Handle(comm)
    return _each(name, x, lambda a, at: p.all_reduce_p.bind(_reducible(name, at, a, op), comm=comm, op=op))


def all_reduce_pairs(values: Any, indices: Any, comm: Communicator, op: str = "maxloc") -> Any:
    """Of all ranks' pairs of a value and its index, at each place the one with the greatest value, as two arrays.

    ``op``: maxloc, or minloc for the least value; of equal values the lowest index counts. ``values`` and ``indices``:
    arrays of one shape, float32 or int32 with indices of int32, or float64 or int64 with int64. It has no derivative.
    """
    name, comm = "all_reduce_pairs", Handle(comm)
    values, indices = _array(name, "values", values), _array(name, "indices", indices)
    members = _PAIRS.get((values.dtype.name, indices.dtype.name))
    if members is None:
        known = ", ".join(f"{value} with {index}" for value, index in _PAIRS)
        raise ArgumentError(f"{name}: {values.dtype} values with {indices.dtype} indices are no pairs; expected {known}")
    if values.shape != indices.shape:
        raise ArgumentError(f"{name}: values have the shape {values.shape}, but indices {indices.shape}")
    if op not in ("maxloc", "minloc"):
        raise ArgumentError(f"{name}: op is {op!r}; expected maxloc or minloc")
    word = jnp.uint32 if indices.dtype.itemsize == 4 else jnp.uint64
    words = [jax.lax.bitcast_convert_type(member, word) for member in (values, indices)]
    found = p.all_reduce_p.bind(jnp.stack(words, -1), comm=comm, op=f"{op} of ({members})")
    return tuple(
        jax.lax.bitcast_convert_type(found[..., place], member.dtype) for place, member in enumerate((values, indices))
    )


def reduce(x: Any, comm: Communicator, root: int = 0, op: str = "sum") -> Any:
    """The reduction of all ranks' ``x`` on rank ``root``, and zeros on the others.

    Arguments as for `all_reduce`. Derivative (sum, avg): the root's cotangent, by `broadcast`; with avg divided by the
    number of ranks.
    """
    name, comm = "reduce", Handle(comm)
    root = _rank(name, "root", root, comm)
    return _each(name, x, lambda a, at: p.reduce_p.bind(_reducible(name, at, a, op), comm=comm, root=root, op=op))


def broadcast(x: Any, comm: Communicator, root: int = 0) -> Any:
    """Rank ``root``'s ``x``, on every rank; of the others' only shapes and types matter, which must be the same.

    ``x``: an array or a tree of arrays. Derivative: the sum of all ranks' cotangents on the root, zeros on the others.
    """
    name, comm = "broadcast", Handle(comm)
    root = _rank(name, "root", root, comm)
    return _each(name, x, lambda a, at: p.broadcast_p.bind(_plain(name, at, a), comm=comm, root=root))


def all_gather(x: Any, comm: Communicator, tiled: bool = False) -> Any:
    """Every rank's ``x``, on every rank: shape ``(size, *x.shape)``, or, ``tiled``, joined along the first dimension.

    ``x``: an array or a tree of arrays. Derivative: `reduce_scatter` of the cotangents with sum.
    """
    name, comm = "all_gather", Handle(comm)

    def call(a, at):
        a = _plain(name, at, a)
        if tiled and a.ndim == 0:
            raise ArgumentError(f"{name}: {at} has no dimension to join along; leave out tiled, or reshape it to (1,)")
        gathered = p.all_gather_p.bind(a, comm=comm)
        return gathered.reshape(comm.size * a.shape[0], *a.shape[1:]) if tiled else gathered

    return _each(name, x, call)


def reduce_scatter(x: Any, comm: Communicator, op: str = "sum", tiled: bool = False) -> Any:
    """The reduction of all ranks' block ``r``, on rank ``r``.

    ``x``: an array whose first dimension is the ranks, so that ``x[r]`` is block ``r``; or, ``tiled``, one that is cut
    into ``size`` blocks along its first dimension; or a tree of such arrays. ``op`` as for `all_reduce`.
    Derivative (sum, avg): `all_gather` of the cotangents; with avg divided by the number of ranks.
    """
    name, comm = "reduce_scatter", Handle(comm)

    def call(a, at):
        blocks = _blocks(name, at, _reducible(name, at, a, op), comm, tiled)
        block = p.reduce_scatter_p.bind(blocks, comm=comm, op=op)
        return block

    return _each(name, x, call)


def all_to_all(x: Any, comm: Communicator, tiled: bool = False) -> Any:
    """Block ``r`` of the result is rank ``r``'s block for this rank.

    ``x``: an array whose first dimension is the ranks, so that ``x[r]`` goes to rank ``r``; or, ``tiled``, one that is
    cut into ``size`` blocks along its first dimension; or a tree of such arrays. The result has the shape of ``x``.
    Derivative: `all_to_all` of the cotangents.
    """
    name, comm = "all_to_all", Handle(comm)

    def call(a, at):
        a = _plain(name, at, a)
        return p.all_to_all_p.bind(_blocks(name, at, a, comm, tiled), comm=comm).reshape(a.shape)

    return _each(name, x, call)


def barrier(comm: Communicator) -> None:
    """No rank goes on to its next call before every rank has come to this one."""
    p.barrier_p.bind(comm=Handle(comm))


def send(x: Any, comm: Communicator, to: int, tag: int = 0) -> None:
    """Send ``x`` to rank ``to``, which must `recv` it. An array, not a tree.

    Done when ``x`` may be reused; a long message waits for its receiver. Two ranks that both send first and then
    receive wait for each other: use `send_recv`. It has no derivative, and says so: use `send_recv` for that, too.
    """
    name, comm = "send", Handle(comm)
    to, tag = _rank(name, "to", to, comm), _tag(name, tag)
    if to == comm.rank:
        raise ArgumentError(f"{name}: to is this rank ({to}), which does not receive meanwhile; use send_recv")
    p.send_p.bind(_plain(name, "x", x), comm=comm, to=to, tag=tag)


def recv(like: Any, comm: Communicator, source: int, tag: int = 0) -> jax.Array:
    """What rank ``source`` sends: an array with the shape and type of ``like``.

    ``like``: an array, whose elements do not matter, or a ``jax.ShapeDtypeStruct``. The result counts as a constant in
    derivatives.
    """
    name, comm = "recv", Handle(comm)
    source, tag = _rank(name, "source", source, comm), _tag(name, tag)
    if source == comm.rank:
        raise ArgumentError(f"{name}: source is this rank ({source}), which does not send meanwhile; use send_recv")
    if isinstance(like, jax.ShapeDtypeStruct):
        like = jnp.zeros(like.shape, like.dtype)
    return p.recv_p.bind(_plain(name, "like", like), comm=comm, source=source, tag=tag)


def send_recv(x: Any, comm: Communicator, to: Optional[int], source: Optional[int], tag: int = 0) -> Any:
    """Send ``x`` to rank ``to`` and return what rank ``source`` sends, at the same time: rings do not deadlock.

    ``x``: an array or a tree of arrays; what is received has the same shapes and types. Where ``to`` is None nothing is
    sent, and where ``source`` is None the result is zeros: the ends of a chain.
    Derivative: the cotangents go the other way.
    """
    name, comm = "send_recv", Handle(comm)
    to, source = (-1 if r is None else _rank(name, n, r, comm) for n, r in (("to", to), ("source", source)))
    tag = _tag(name, tag)
    if (to == comm.rank) != (source == comm.rank):
        raise ArgumentError(f"{name}: one of to ({to}) and source ({source}) is this rank; then both must be")
    return _each(
        name, x, lambda a, at: p.send_recv_p.bind(_plain(name, at, a), comm=comm, to=to, source=source, tag=tag)
    )


def shift(x: Any, comm: Communicator, offset: int = 1, tag: int = 0) -> Any:
    """Rank ``r``'s ``x`` on rank ``r + offset``, round the ring of ranks. Derivative: the shift back.

    ``x``: an array or a tree of arrays, of the same shapes on all ranks.
    """
    rank, size, offset = Handle(comm).rank, comm.size, _integer("shift", "offset", offset)
    return send_recv(x, comm, to=(rank + offset) % size, source=(rank - offset) % size, tag=tag)


def _each(name, tree, call):
    """``call`` on each array of a tree, with a name for it in errors, in the order that all ranks' JAX has."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    results = [call(leaf, "x" + jax.tree_util.keystr(path)) for path, leaf in leaves]
    return jax.tree_util.tree_unflatten(structure, results)


def _array(name, at, a):
    try:
        return jnp.asarray(a)
    except TypeError as error:
        raise ArgumentError(f"{name}: {at} is no array: {error}") from None


def _plain(name, at, a):
    a = _array(name, at, a)
    if a.dtype.name not in _PLAIN:
        raise ArgumentError(f"{name}: {at} has elements of type {a.dtype.name}; supported are {', '.join(_PLAIN)}")
    return a


def _reducible(name, at, a, op):
    a = _array(name, at, a)
    kind = a.dtype.name
    if op not in (*_ARITHMETIC, *_BITWISE):
        raise ArgumentError(f"{name}: op is {op!r}; expected one of {', '.join((*_ARITHMETIC, *_BITWISE))}")
    if kind == "bool":
        allowed = ("min", "max", *_BITWISE)
    elif kind in _COMPLEX:
        allowed = ("sum", "avg")
    elif kind not in _NUMBERS:
        raise ArgumentError(
            f"{name}: {at} has elements of type {kind}, which cannot be combined; convert it to one of "
            f"{', '.join(_NUMBERS)}"
        )
    else:
        allowed = (*_ARITHMETIC, *_BITWISE) if jnp.issubdtype(a.dtype, jnp.integer) else _ARITHMETIC
    if op not in allowed:
        raise ArgumentError(
            f"{name}: op is {op!r}, but {at} has elements of type {kind}: expected {', '.join(allowed)}"
        )
    return a


def _blocks(name, at, a, comm, tiled):
    """``a`` with the ranks as its first dimension."""
    size = comm.size
    if not tiled:
        if a.ndim == 0 or a.shape[0] != size:
            raise ArgumentError(
                f"{name}: {at} has the shape {a.shape}; expected {size} as its first dimension, a block for each rank "
                f"(or tiled=True and a multiple of it)"
            )
        return a
    if a.ndim == 0 or a.shape[0] % size:
        raise ArgumentError(
            f"{name}: {at} has the shape {a.shape}; tiled expects a first dimension that {size} ranks divide"
        )
    return a.reshape(size, a.shape[0] // size, *a.shape[1:])


def _integer(name, argument, value):
    try:
        return int(np.asarray(value).__index__())
    except TypeError:
        raise TypeError(
            f"{name}: {argument} must be an integer known when the program is traced, got {value!r}"
        ) from None


def _rank(name, argument, value, comm):
    value = _integer(name, argument, value)
    if not 0 <= value < comm.size:
        raise ArgumentError(f"{name}: {argument} is {value}, but the ranks are 0 to {comm.size - 1}")
    return value


def _tag(name, value):
    value = _integer(name, "tag", value)
    if not 0 <= value < 2**32:
        raise ArgumentError(f"{name}: tag is {value}; expected 0 to {2**32 - 1}")
    return value
