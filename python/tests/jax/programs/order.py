"""Calls run in the order in which they were traced, whatever order the data would allow.

Rank 0 makes them in one compiled program in which none needs another's result. The other ranks make the same calls one
by one, outside JAX. Each has a length of its own, so one that came early or late would be a mismatch.
"""

import jax
import jax.numpy as jnp
import maypole
import maypole.jax as mj
import numpy as np

comm = maypole.init()
rank, size = comm.rank, comm.size
CALLS, WIDTH = 8, 200


def by_hand(count):
    return [comm.all_reduce(np.full(10 + i, rank + 1.0, np.float32)) for i in range(count)]


def all_right(results):
    for i, result in enumerate(results):
        np.testing.assert_array_equal(np.asarray(result), np.full(10 + i, size * (size + 1) / 2, np.float32))


def check_independent_calls():
    """The later a call is, the sooner its operand is there: XLA on its own runs the last first."""

    @jax.jit
    def program(x):
        results = []
        for i in range(CALLS):
            y = x
            for _ in range(2 * (CALLS - i)):
                y = jnp.tanh(y @ x)
            results.append(mj.all_reduce(jnp.full(10 + i, rank + 1.0, jnp.float32) + 0 * y[0, 0], comm))
        return results

    for _ in range(3):
        all_right(program(jnp.eye(WIDTH)) if rank == 0 else by_hand(CALLS))


def check_two_unused_results():
    """Calls whose results nobody uses are made all the same, by every rank."""

    @jax.jit
    def program(x):
        mj.all_reduce(x[:10], comm)
        mj.all_reduce(x[:11], comm)
        return x.sum()

    if rank == 0:
        program(jnp.full(11, 1, jnp.float32))
        jax.effects_barrier()
    else:
        by_hand(2)


def check_equal_calls():
    """Two calls with the same arguments stay two."""
    program = jax.jit(lambda x: (mj.all_reduce(x, comm), mj.all_reduce(x, comm)))
    if rank == 0:
        all_right(program(jnp.full(10, 1, jnp.float32))[:1])
    else:
        comm.all_reduce(np.full(10, rank + 1, np.float32))
        comm.all_reduce(np.full(10, rank + 1, np.float32))


def check_programs():
    """From one program to the next, though JAX starts them before the ones before have ended."""
    busy = jax.jit(lambda x, n: mj.all_reduce(n + 0 * jnp.linalg.matrix_power(x, 50)[0, 0], comm))
    quick = jax.jit(lambda n: mj.all_reduce(n, comm))
    if rank == 0:
        numbers = [jnp.full(10 + i, 1, jnp.float32) for i in range(6)]
        all_right([busy(jnp.eye(WIDTH), n) if i % 2 == 0 else quick(n) for i, n in enumerate(numbers)])
    else:
        all_right(by_hand(6))


if __name__ == "__main__":
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            check()
            jax.effects_barrier()
            comm.barrier()
            print(f"passed {name} on rank {rank}", flush=True)
