"""Wrong arguments: refused when the function is traced, on this rank, by name, with nothing started."""

import gc

import jax
import jax.numpy as jnp
import maypole
import maypole.jax as mj
import ml_dtypes
import numpy as np
import running

comm = maypole.init()
rank, size = comm.rank, comm.size
ONES = np.ones((3, 2), np.float32)


def refused(error, call, *words):
    for run in (call, jax.jit(call)):
        try:
            run()
        except error as caught:
            for word in words:
                assert word in str(caught), (word, str(caught))
        else:
            raise AssertionError(f"expected {error.__name__} with {words}")


def check_arguments():
    wrong = maypole.ArgumentError
    assert issubclass(wrong, ValueError)
    refused(TypeError, lambda: mj.all_reduce(ONES, "world"), "comm", "str")
    refused(wrong, lambda: mj.all_reduce(ONES, comm, "mean"), "all_reduce", "op", "'mean'", "avg")
    refused(wrong, lambda: mj.all_reduce(ONES, comm, "xor"), "op", "xor", "float32")
    refused(wrong, lambda: mj.all_reduce(ONES > 0, comm), "op", "sum", "bool", "or")
    refused(wrong, lambda: mj.all_reduce(ONES * 1j, comm, "max"), "op", "max", "complex64")
    refused(wrong, lambda: mj.all_reduce(ONES.astype(np.int16), comm), "x", "int16", "int32")
    refused(wrong, lambda: mj.all_gather(jnp.ones(2, ml_dtypes.int4), comm), "x", "int4")
    refused(wrong, lambda: mj.all_reduce({"a": [ONES, "text"]}, comm), "x['a'][1]")
    refused(wrong, lambda: mj.all_gather(np.float32(1), comm, tiled=True), "x", "tiled")
    refused(wrong, lambda: mj.reduce_scatter(np.ones(size + 1), comm), "x", str((size + 1,)), str(size))
    refused(wrong, lambda: mj.all_to_all(np.ones((2 * size + 1, 2)), comm, tiled=True), "x", "tiled")
    refused(wrong, lambda: mj.broadcast(ONES, comm, root=size), "root", str(size))
    refused(wrong, lambda: mj.reduce(ONES, comm, root=-1), "root", "-1")
    refused(TypeError, lambda: mj.broadcast(ONES, comm, root=0.5), "root", "0.5")
    refused(wrong, lambda: mj.send(ONES, comm, to=size), "to")
    refused(wrong, lambda: mj.send(ONES, comm, to=rank), "to", "send_recv")
    refused(wrong, lambda: mj.recv(ONES, comm, source=rank), "source", "send_recv")
    refused(wrong, lambda: mj.recv(ONES, comm, source=(rank + 1) % size, tag=-1), "tag")
    refused(wrong, lambda: mj.send_recv(ONES, comm, to=rank, source=None), "source")
    traced = jax.jit(lambda root: mj.broadcast(ONES, comm, root=root))
    try:
        traced(0)
    except TypeError as error:
        assert "root" in str(error) and "traced" in str(error), error
    else:
        raise AssertionError("a root that is only known when the program runs")


def check_that_it_still_works():
    np.testing.assert_array_equal(mj.all_reduce(ONES, comm), ONES * size)


def check_mismatch():
    """Ranks that disagree: the same verdict on all. Outside `checked` it is JAX's exception with its text."""
    other = comm.duplicate()
    count = 5 if rank == size - 1 else 4
    program = jax.jit(lambda x: mj.all_reduce(x, other))
    try:
        with mj.checked():
            program(np.ones(count, np.float32))
    except maypole.MismatchError as error:
        assert error.kind == "mismatch" and "4 x f32" in str(error) and "5 x f32" in str(error), error
        assert isinstance(error.__cause__, jax.errors.JaxRuntimeError)
    else:
        raise AssertionError("expected a mismatch")
    try:
        jax.block_until_ready(program(np.ones(count, np.float32)))
    except jax.errors.JaxRuntimeError as error:
        assert "ranks disagree" in str(error), error
    else:
        raise AssertionError("a communicator that has failed works again")


def check_others_after_a_failure():
    """Another communicator, and JAX, are none the worse."""
    np.testing.assert_array_equal(jax.jit(lambda x: mj.all_reduce(x, comm))(ONES), ONES * size)


def check_errors_of_what_still_runs():
    """A program that JAX has only started when it returns: the error comes at the end of the block."""
    other = comm.duplicate()
    counts = (2, 3) if rank == 0 else (3, 2)

    @jax.jit
    def program(x):
        for _ in range(8):
            x = jnp.tanh(x @ x)
        return [mj.all_reduce(jnp.zeros(n) + x[0, 0], other) for n in counts]

    try:
        with mj.checked():
            program(jnp.eye(200))
    except maypole.MismatchError:
        pass
    else:
        raise AssertionError("expected a mismatch")
    check_others_after_a_failure()


def check_closed():
    other = comm.duplicate()
    program = jax.jit(lambda x: mj.all_reduce(x, other))
    np.testing.assert_array_equal(program(ONES), ONES * size)
    other.close()
    try:
        jax.block_until_ready(program(ONES))
    except jax.errors.JaxRuntimeError as error:
        assert "closed" in str(error), error
    else:
        raise AssertionError("a closed communicator works")


def check_threads():
    """Ranks that are threads would wait for each other on XLA's threads, of which there may be too few."""
    world = maypole.threads(2)
    refused(maypole.ArgumentError, lambda: mj.all_reduce(ONES, world[0]), "threads of one process", "maypole run")
    (alone,) = maypole.threads(1)
    np.testing.assert_array_equal(mj.all_reduce(ONES, alone), ONES)


def check_kept_open():
    """A compiled program holds on to its communicator, when nobody else does."""

    def compiled():
        other = comm.duplicate()
        return jax.jit(lambda x: mj.all_reduce(x, other)).lower(ONES).compile()

    program = compiled()
    jax.clear_caches()
    gc.collect()
    np.testing.assert_array_equal(program(ONES), ONES * size)


if __name__ == "__main__":
    running.all_checks(globals(), comm)
