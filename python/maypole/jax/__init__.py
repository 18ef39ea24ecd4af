"""Collectives inside programs that JAX compiles, on CPU.

    import jax, maypole, maypole.jax
    comm = maypole.init()

    @jax.jit
    def step(weights, images, labels):
        gradient = jax.grad(loss)(weights, images, labels)      # of this rank's share of the batch
        gradient = maypole.jax.all_reduce(gradient, comm, "avg")
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient)

Each rank is a process of its own with one CPU device: ``python -m maypole run -n 4 script.py``.

**Order.** All ranks must make the same calls in the same order, and within a process the calls run in the order in
which they were traced, on whatever communicators, whether or not one needs another's result, and from one compiled
program to the next. So ranks that run the same Python are in step. Where the order of tracing differs (a Python ``if``
on the rank around a call; a dictionary with other keys) or the path taken (``jax.lax.cond`` on a value that ranks do
not share), all ranks get `maypole.MismatchError` or a deadline's. JAX returns before a program has run: call
``jax.effects_barrier()`` before using the same communicator outside JAX. The order is kept for each Python thread; make
the calls from one.

**Derivatives.** Reverse mode gives every rank the gradient of the *sum of all ranks' outputs* with respect to its own
inputs, and every rank must take it. So the derivative of a sum over ranks is a sum over ranks: with the loss of each
rank already an average over all of them, its gradient is ``size`` times that of the average. The usual data-parallel
step does not meet this: it differentiates this rank's own loss, and reduces the gradient.

**Mapping.** ``jax.vmap`` makes one call with a longer operand.

**Errors.** Wrong arguments raise `maypole.ArgumentError` or ``TypeError`` when the function is traced. What fails while
it runs raises ``jax.errors.JaxRuntimeError`` with the verdict's text; within ``with maypole.jax.checked():`` it is
`maypole.FailedError` or another of Maypole's exceptions.

**Ctrl-C** while a call waits for other ranks aborts its communicator, on all ranks, and raises ``KeyboardInterrupt``,
as with Maypole's calls outside JAX; from older releases of JAX the failed call's error may come first. With a handler
of your own for SIGINT nothing is aborted, unless the handler does it, or raises while a call waits on Python's main
thread, where JAX runs small programs.

**Not here**: operations of your own (`maypole.Op`), since a program calls no Python; calls with counts of their own (``all_gather_v`` and so on), since the shape of a result must not depend
on values: pad to the longest, or call them outside the program. Ranks that are threads (``maypole.threads``): refused.
"""

try:
    import jax as _jax
    import jaxlib as _jaxlib
except ImportError as error:
    raise ImportError("maypole.jax needs JAX: pip install 'maypole[jax]'") from error

from .. import _maypole

if tuple(int(part) for part in _jaxlib.__version__.split(".")[:2]) < (0, 5):
    # Earlier ones end the process when a call has a token.
    raise ImportError(f"maypole.jax needs jaxlib 0.5.0 or later, found {_jaxlib.__version__}")

for _name, _capsule in _maypole._jax_targets():
    _jax.ffi.register_ffi_target(_name, _capsule, platform="cpu")
_maypole._jax_watch_interrupts()

from ._calls import (
    all_gather,
    all_reduce,
    all_reduce_pairs,
    all_to_all,
    barrier,
    broadcast,
    recv,
    reduce,
    reduce_scatter,
    send,
    send_recv,
    shift,
)
from ._errors import checked

__all__ = [
    "all_gather",
    "all_reduce",
    "all_reduce_pairs",
    "all_to_all",
    "barrier",
    "broadcast",
    "checked",
    "recv",
    "reduce",
    "reduce_scatter",
    "send",
    "send_recv",
    "shift",
]
