"""Ctrl-C on rank 0 while a program there waits for rank 1, which does not come; wherever the main thread is."""

import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import maypole
import maypole.jax as mj
import numpy as np

how = sys.argv[1]
comm = maypole.init()
REASON = "rank 0 aborted the communicator: KeyboardInterrupt in a compiled program"


@jax.jit
def short(x):
    """JAX runs this one on the thread that calls it."""
    return mj.all_reduce(x, comm)


@jax.jit
def long(x):
    """And this one on a thread of XLA's."""
    for _ in range(6):
        x = jnp.tanh(x @ x)
    return mj.all_reduce(x.ravel()[:3], comm)


@jax.jit
def slow(x):
    """This one computes for a while before it comes to its call."""
    x = jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), x)
    return mj.all_reduce(x.ravel()[:3], comm)


class Enough(Exception):
    pass


def once(*_):
    noticed.append("once")


def enough(*_):
    raise Enough


def press(after=0.5):
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()


def wait():
    if how == "short":
        short(small).block_until_ready()
    elif how == "numpy":
        np.asarray(long(large))
    elif how == "elsewhere":
        result = long(large)
        time.sleep(20)
        result.block_until_ready()
    elif how == "checked":
        with mj.checked():
            short(small)
    elif how == "before the call":
        slow(huge).block_until_ready()
    elif how == "set again":
        # Python puts its own handler back in place of the one that counts.
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
        long(large).block_until_ready()
    else:
        long(large).block_until_ready()


noticed = []
small, large = np.ones(3, np.float32), np.eye(500, dtype=np.float32)
huge = np.eye(1000, dtype=np.float32)
for program, x in ((short, small), (long, large), (slow, huge))[: 3 if how == "before the call" else 2]:
    program(x).block_until_ready()
comm.barrier()

if comm.rank:
    if how == "own handler":
        time.sleep(1.5)
        long(large).block_until_ready()
        comm.barrier()
    else:
        try:
            comm.recv(np.ones(1), 0)
        except maypole.AbortedError as error:
            assert error.rank == 0 and (how == "raising" or REASON in str(error)), error
            assert how != "raising" or "Enough in a compiled program" in str(error), error
    print(f"rank 1 passed {how}", flush=True)
    sys.exit()

if how == "own handler":
    signal.signal(signal.SIGINT, once)
elif how == "raising":
    signal.signal(signal.SIGINT, enough)
began = time.monotonic()
press(0.1 if how == "before the call" else 0.5)
try:
    if how == "raising":
        with mj.checked():
            short(small)
    else:
        try:
            wait()
        except jax.errors.JaxRuntimeError as error:
            # Where JAX does not look after signals while it waits, its error is the first that Python sees.
            assert REASON in str(error), error
            time.sleep(1)
except (KeyboardInterrupt, Enough) as error:
    # Half a second after it was pressed, on a machine that is not busy; the deadline is a minute.
    assert time.monotonic() - began < 30 and type(error) is (Enough if how == "raising" else KeyboardInterrupt)
    if how in ("at exit", "before the call"):
        print("rank 0 ends by itself", flush=True)
        raise
    # The main thread may be back before the call has ended.
    while comm.verdict is None and time.monotonic() - began < 30:
        time.sleep(0.01)
    assert comm.verdict, "the call goes on"
else:
    assert how == "own handler" and noticed == ["once"] and comm.verdict is None, (how, noticed)
    comm.barrier()
print(f"rank 0 passed {how}", flush=True)
