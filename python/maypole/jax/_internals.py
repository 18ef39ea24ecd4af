"""What ``maypole.jax`` needs of JAX that JAX does not publish: ordered effects. Nothing private is used elsewhere.

XLA runs a program's calls in whatever order the data allows, on several threads, and a flag that a call has side
effects does not change that: compiled alone, eight independent calls were seen to run last to first. Collectives must
run in the same order on every rank. So each of them consumes a token and makes the next one's, and JAX carries the last
token from one compiled program to the next. In JAX's terms they have an *ordered effect*, the one defined here.
"""

import dataclasses

import jax.ffi
from jax._src import core as _core
from jax._src import dispatch as _dispatch
from jax._src import effects as _effects
from jax.interpreters import mlir


class OrderedCalls(_effects.Effect):
    """The order of a process's collectives and messages, whatever communicator they are on."""

    def __str__(self):
        return "OrderedMaypoleCalls"

    # JAX shows it to whoever has several devices in a process, where calls cannot be ordered.
    __repr__ = __str__


ORDERED_CALLS = OrderedCalls()

for _allowed in (
    _effects.ordered_effects,
    _effects.lowerable_effects,
    _effects.control_flow_allowed_effects,
    _effects.custom_derivatives_allowed_effects,
    _effects.remat_allowed_effects,
):
    _allowed.add_type(OrderedCalls)


def ordered_lowering(target, attributes, *, passes_operands=True):
    """A lowering rule: the FFI call ``target`` between two tokens.

    ``attributes`` takes the primitive's parameters and gives the call's attributes. The parameter ``comm`` lives as
    long as the compiled program.
    """

    def lower(ctx, *operands, **params):
        ctx.module_context.add_keepalive(params["comm"])
        avals_in = ctx.avals_in if passes_operands else []
        with_token = dataclasses.replace(
            ctx, avals_in=[_core.abstract_token, *avals_in], avals_out=[_core.abstract_token, *ctx.avals_out]
        )
        rule = jax.ffi.ffi_lowering(
            target,
            has_side_effect=True,
            operand_layouts=[(), *map(_row_major, avals_in)],
            result_layouts=[(), *map(_row_major, ctx.avals_out)],
        )
        token = ctx.tokens_in.get(ORDERED_CALLS)
        token, *results = rule(with_token, token, *operands[: len(avals_in)], **attributes(**params))
        ctx.set_tokens_out(mlir.TokenSet({ORDERED_CALLS: token}))
        return results

    return lower


def forget_failed_calls():
    """After a call has failed, let those that follow it run: JAX would hand its error on with the token."""
    _dispatch.runtime_tokens.current_tokens.pop(ORDERED_CALLS, None)
    _dispatch.runtime_tokens.output_runtime_tokens.clear()


def _row_major(aval):
    return tuple(reversed(range(len(aval.shape))))
