"""The calls as JAX primitives: what they give, and how they are compiled, differentiated and mapped.

Shapes here are the plain ones: where an operand or a result has a block for each rank, the ranks are its first
dimension. ``_calls`` makes the public functions of these.

Derivatives follow from one rule: taken over all ranks together, a call is a linear map of one long vector, and its
derivatives are that map's: forward the same map, backward its transpose, which is again one call on every rank.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ._internals import ORDERED_CALLS, ordered_lowering


def _primitive(name, abstract, attributes, target, *, has_result=True, passes_operands=True):
    """A primitive with the effect of being ordered.

    ``abstract`` takes operands and parameters and gives the shape and element type of the result, if ``has_result``;
    ``attributes`` takes the parameters and gives what the compiled call is told.
    """
    primitive = Primitive("maypole_" + name)
    primitive.multiple_results = not has_result

    @primitive.def_effectful_abstract_eval
    def abstract_eval(*operands, **params):
        result = ShapedArray(*abstract(*operands, **params)) if has_result else ()
        return result, {ORDERED_CALLS}

    @functools.lru_cache(maxsize=256)
    def compiled(**params):
        return jax.jit(lambda *operands: primitive.bind(*operands, **params))

    @primitive.def_impl
    def outside_jit(*operands, **params):
        return compiled(**params)(*operands)

    lower = ordered_lowering(target, attributes, passes_operands=passes_operands)
    mlir.register_lowering(primitive, lower, platform="cpu")
    return primitive


def _collective(name, shape):
    def abstract(x, **params):
        return shape(x.shape, params["comm"].size), x.dtype

    def attributes(comm, op="sum", root=0):
        return dict(collective=name, op=op, root=np.int64(root), **comm.attributes)

    return _primitive(name, abstract, attributes, "maypole_collective")


all_reduce_p = _collective("all_reduce", lambda shape, size: shape)
reduce_p = _collective("reduce", lambda shape, size: shape)
broadcast_p = _collective("broadcast", lambda shape, size: shape)
all_gather_p = _collective("all_gather", lambda shape, size: (size, *shape))
reduce_scatter_p = _collective("reduce_scatter", lambda shape, size: shape[1:])
all_to_all_p = _collective("all_to_all", lambda shape, size: shape)

barrier_p = _primitive(
    "barrier",
    lambda comm: None,
    lambda comm: dict(collective="barrier", op="", root=np.int64(0), **comm.attributes),
    "maypole_collective",
    has_result=False,
)


def _message_attributes(comm, to=-1, source=-1, tag=0, **_):
    return dict(to=np.int64(to), source=np.int64(source), tag=np.int64(tag), **comm.attributes)


send_p = _primitive("send", lambda x, **_: None, _message_attributes, "maypole_message", has_result=False)
# Its operand is not sent: it says what to receive, and to `vmap` how many of them.
recv_p = _primitive(
    "recv",
    lambda like, **_: (like.shape, like.dtype),
    _message_attributes,
    "maypole_message",
    passes_operands=False,
)
send_recv_p = _primitive("send_recv", lambda x, **_: (x.shape, x.dtype), _message_attributes, "maypole_message")


# Derivatives. What is not linear, or not a function of this rank's operands alone, has none and says so.


def _linear(primitive, transpose):
    """``transpose`` takes the result's cotangent and the parameters, and gives the operand's."""

    def forward(primals, tangents, **params):
        (x,), (dx,) = primals, tangents
        result = primitive.bind(x, **params)
        if type(dx) is ad.Zero:
            return result, ad.Zero.from_primal_value(result)
        if params.get("op", "sum") not in ("sum", "avg"):
            raise NotImplementedError(
                f"maypole.jax: {primitive.name[len('maypole_') :]} with op {params['op']!r} has no derivative here; "
                f"sum and avg do. Use jax.lax.stop_gradient on what goes in, if none is wanted"
            )
        return result, primitive.bind(dx, **params)

    def backward(cotangent, x, **params):
        if type(cotangent) is ad.Zero:
            return (ad.Zero(x.aval),)
        return (transpose(cotangent, x.aval, **params),)

    ad.primitive_jvps[primitive] = forward
    ad.primitive_transposes[primitive] = backward


def _averaged(x, comm, op):
    return x / comm.size if op == "avg" else x


_linear(all_reduce_p, lambda ct, x, **params: all_reduce_p.bind(ct, **params))
_linear(
    reduce_p,
    lambda ct, x, comm, op, root: _averaged(broadcast_p.bind(ct, comm=comm, root=root), comm, op).astype(x.dtype),
)
_linear(broadcast_p, lambda ct, x, comm, root: reduce_p.bind(ct, comm=comm, op="sum", root=root))
_linear(all_gather_p, lambda ct, x, comm: reduce_scatter_p.bind(ct, comm=comm, op="sum"))
_linear(
    reduce_scatter_p,
    lambda ct, x, comm, op: _averaged(all_gather_p.bind(ct, comm=comm), comm, op).astype(x.dtype),
)
_linear(all_to_all_p, lambda ct, x, comm: all_to_all_p.bind(ct, comm=comm))
_linear(
    send_recv_p,
    lambda ct, x, to, source, **params: send_recv_p.bind(ct, to=source, source=to, **params),
)


def _send_forward(primals, tangents, **params):
    if type(tangents[0]) is not ad.Zero:
        raise NotImplementedError(
            "maypole.jax: send has no derivative: nothing here depends on what it sends. Use send_recv, on both ranks, "
            "or jax.lax.stop_gradient on what is sent"
        )
    send_p.bind(*primals, **params)
    return (), ()


def _recv_forward(primals, tangents, **params):
    received = recv_p.bind(*primals, **params)
    return received, ad.Zero.from_primal_value(received)


ad.primitive_jvps[send_p] = _send_forward
ad.primitive_jvps[recv_p] = _recv_forward


# `vmap`: one call with a longer operand, so all ranks must map alike.


def _mapped(primitive, dimension):
    """The mapped dimension goes to place ``dimension`` of the operand; returns where it is in the result."""
    operand_at, result_at = dimension

    def batch(operands, dims, **params):
        (x,), (dim,) = operands, dims
        x = jnp.moveaxis(x, dim, operand_at)
        result = primitive.bind(x, **params)
        return result, (() if primitive.multiple_results else result_at)

    batching.primitive_batchers[primitive] = batch


for _primitive_of_like_shapes in (all_reduce_p, reduce_p, broadcast_p, send_p, recv_p, send_recv_p):
    _mapped(_primitive_of_like_shapes, (0, 0))
_mapped(all_gather_p, (0, 1))
_mapped(reduce_scatter_p, (1, 0))
_mapped(all_to_all_p, (1, 1))
