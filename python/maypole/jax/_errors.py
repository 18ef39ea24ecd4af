"""Errors of compiled programs as Maypole's own exceptions."""

import atexit
import contextlib
import sys

import jax

from .. import _maypole
from ._internals import forget_failed_calls


@contextlib.contextmanager
def checked():
    """Wait for the block's calls to end, and raise what went wrong in them as the exception that it is.

        with maypole.jax.checked():
            loss = step(weights)              # a jitted function that calls Maypole
        # here all ranks' calls are done, or maypole.DiedError, StalledError, ... was raised

    Otherwise an error comes from JAX, as ``jax.errors.JaxRuntimeError`` with the same text but without attributes, and
    comes when a result is looked at.
    """
    try:
        yield
        jax.effects_barrier()
    except jax.errors.JaxRuntimeError as error:
        forget_failed_calls()
        try:
            _maypole._jax_raise()
        except BaseException as own:  # also what a handler of a signal raised
            raise own from error
        raise


@atexit.register
def _finish():
    """Calls that are under way end before the communicators are left, which is the next thing to happen at exit."""
    # What Python has just printed, and ends with. At an interactive prompt it may be anything that was printed before.
    cause = None if hasattr(sys, "ps1") else getattr(sys, "last_type", None)
    interrupted = cause is not None and issubclass(cause, KeyboardInterrupt)
    if interrupted:
        _maypole._jax_give_up()
    try:
        jax.effects_barrier()
    except jax.errors.JaxRuntimeError as error:
        forget_failed_calls()
        if not interrupted:
            print(f"maypole.jax: at exit, after a call that nobody waited for: {error}", file=sys.stderr, flush=True)
