"""Every collective and message, in and outside of jit, held against NumPy; every type and operation."""

import jax
import jax.numpy as jnp
import maypole
import maypole.jax as mj
import ml_dtypes
import numpy as np
import running

jax.config.update("jax_enable_x64", True)
comm = maypole.init()
rank, size = comm.rank, comm.size

INTEGERS = [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64]
FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
MOVED = [np.bool_, np.int16, np.uint16, np.complex64, np.complex128]


def world(dtype, shape):
    """What the ranks bring, stacked: small integers, so that every type holds the results exactly."""
    values = np.stack([np.random.default_rng(r + 1).integers(0, 3, shape) for r in range(size)])
    return values.astype(dtype) * dtype(1 + 2j) if np.issubdtype(dtype, np.complexfloating) else values.astype(dtype)


def same(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(got, expected)


def check_reductions():
    """All types and operations in one program: a hundred calls that do not need each other."""
    folds = {"sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum}
    bits = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    expected = {}
    for dtype in INTEGERS + FLOATS:
        wide = world(dtype, (3, 5)).astype(np.int64 if dtype in INTEGERS else np.float64)
        results = {op: fold.reduce(wide) for op, fold in (folds | bits if dtype in INTEGERS else folds).items()}
        results["avg"] = wide.sum(0) // size if dtype in INTEGERS else wide.sum(0) / size
        expected[dtype] = {op: result.astype(dtype) for op, result in results.items()}
    flags = world(np.bool_, (3, 5))
    every, some, odd = flags.all(0), flags.any(0), flags.sum(0) % 2 == 1
    expected[np.bool_] = {"min": every, "and": every, "max": some, "or": some, "xor": odd}
    for dtype in (np.complex64, np.complex128):
        total = world(dtype, (3, 5)).sum(0)
        # Both parts divided alone: NumPy's division of complex numbers rounds more than once.
        parts = total.view(total.real.dtype)
        expected[dtype] = {"sum": total, "avg": (parts / parts.dtype.type(size)).view(dtype)}

    @jax.jit
    def program(mine):
        return [[mj.all_reduce(x, comm, op) for op in expected[dtype]] for dtype, x in zip(expected, mine)]

    reduced = program([world(dtype, (3, 5))[rank] for dtype in expected])
    for results, of_type in zip(reduced, expected.values()):
        for result, value in zip(results, of_type.values()):
            same(result, value)


def check_pairs():
    """The greatest and the least values, and where they are."""
    for value, index in ((np.float32, np.int32), (np.int32, np.int32), (np.float64, np.int64), (np.int64, np.int64)):
        values = world(value, (3, 5)) - value(1)
        indices = (np.arange(15).reshape(3, 5) * size + np.arange(size)[::-1, None, None]).astype(index)

        @jax.jit
        def program(x, i):
            return [mj.all_reduce_pairs(x, i, comm, op) for op in ("maxloc", "minloc")]

        for (got, where), best in zip(program(values[rank], indices[rank]), (values.max(0), values.min(0))):
            same(got, best)
            same(where, np.where(values == best, indices, np.iinfo(index).max).min(0))
        # Mapped, and outside of jit.
        mapped = jax.vmap(lambda x, i: mj.all_reduce_pairs(x, i, comm), in_axes=1, out_axes=1)
        same(mapped(values[rank], indices[rank])[0], values.max(0))
    for arguments, words in (
        ((np.zeros(3, np.float32), np.zeros(3, np.int64)), "float32 values with int64 indices are no pairs"),
        ((np.zeros(3), np.zeros(4, np.int64)), "values have the shape (3,), but indices (4,)"),
        ((np.zeros(3), np.zeros(3, np.int64), "max"), "op is 'max'; expected maxloc or minloc"),
    ):
        try:
            mj.all_reduce_pairs(*arguments[:2], comm, *arguments[2:])
        except maypole.ArgumentError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


def check_movement():
    root = size - 1

    def moved(mine):
        return (
            mj.all_gather(mine, comm),
            mj.all_gather(mine, comm, tiled=True),
            mj.all_to_all(mine, comm),
            mj.broadcast(mine, comm, root=root),
            mj.shift(mine, comm),
            mj.shift(mine, comm, offset=-1),
        )

    everyone = [world(dtype, (size, 2, 3)) for dtype in INTEGERS + FLOATS + MOVED]
    results = jax.jit(lambda operands: [moved(x) for x in operands])([x[rank] for x in everyone])
    for x, (gathered, joined, exchanged, from_root, from_left, from_right) in zip(everyone, results):
        same(gathered, x)
        same(joined, x.reshape(size * size, 2, 3))
        same(exchanged, x[:, rank])
        same(from_root, x[root])
        same(from_left, x[rank - 1])
        same(from_right, x[(rank + 1) % size])


def check_scattering():
    for dtype in (np.int32, np.float32, ml_dtypes.bfloat16):
        x = world(dtype, (size, 4))
        same(mj.reduce_scatter(x[rank], comm), x.astype(np.float64).sum(0)[rank].astype(dtype))
        tiled = jax.jit(lambda a: mj.reduce_scatter(a, comm, "max", tiled=True))(x[rank].reshape(size * 4))
        same(tiled, x.max(0)[rank])
        reduced = mj.reduce(x[rank], comm, root=0)
        same(reduced, x.astype(np.float64).sum(0).astype(dtype) if rank == 0 else np.zeros_like(x[rank]))
        flat = jax.jit(lambda a: mj.all_to_all(a, comm, tiled=True))(x[rank].reshape(size * 4))
        same(flat, x[:, rank].reshape(size * 4))


def check_sizes():
    """Nothing, one element, and more than a link takes at once."""
    for shape in ((0,), (), (3, 0, 2), (1 << 20,)):
        x = np.full(shape, rank + 1, np.float32)
        same(jax.jit(lambda a: mj.all_reduce(a, comm))(x), np.full(shape, size * (size + 1) / 2, np.float32))
        same(mj.all_gather(x, comm), np.stack([np.full(shape, r + 1, np.float32) for r in range(size)]))
        same(mj.shift(x, comm), np.full(shape, (rank - 1) % size + 1, np.float32))


def check_trees():
    tree = {"b": np.float32(rank), "a": [np.full(3, rank, np.int32), np.full((2, 2), rank, np.float64)]}
    total = size * (size - 1) // 2
    reduced = jax.jit(lambda t: mj.all_reduce(t, comm))(tree)
    assert jax.tree.structure(reduced) == jax.tree.structure(tree)
    for got, mine in zip(jax.tree.leaves(reduced), jax.tree.leaves(tree)):
        same(got, np.full(np.shape(mine), total, mine.dtype))


def check_messages():
    if size == 1:
        same(mj.send_recv(np.arange(3.0), comm, to=0, source=0), np.arange(3.0))
        same(mj.send_recv(np.arange(3.0), comm, to=None, source=None), np.zeros(3))
        return

    @jax.jit
    def chain(x):
        """Rank 0 sends to 1, which adds its own and sends to 2, and so on; the last has the sum."""
        if rank > 0:
            x = x + mj.recv(x, comm, source=rank - 1, tag=3)
        if rank < size - 1:
            mj.send(x, comm, to=rank + 1, tag=3)
        return x

    same(chain(np.full(5, rank + 1.0)), np.full(5, (rank + 1) * (rank + 2) / 2))
    # Without a ring: the ends have nobody, and get zeros.
    to, source = (rank + 1 if rank < size - 1 else None), (rank - 1 if rank else None)
    same(jax.jit(lambda x: mj.send_recv(x, comm, to, source))(np.full(4, rank + 1.0)), np.full(4, float(rank)))
    # By shape only, of a type that is not combined; the later tag is taken first.
    if rank == 0:
        mj.send(np.full((2, 2), 7, np.int16), comm, to=1, tag=1)
        mj.send(np.full(3, 8, np.int16), comm, to=1, tag=2)
    if rank == 1:
        late = mj.recv(jax.ShapeDtypeStruct((3,), np.int16), comm, source=0, tag=2)
        early = mj.recv(jax.ShapeDtypeStruct((2, 2), np.int16), comm, source=0, tag=1)
        same(late, np.full(3, 8, np.int16))
        same(early, np.full((2, 2), 7, np.int16))


def check_control_flow():
    @jax.jit
    def program(x):
        summed = jax.lax.fori_loop(0, 5, lambda i, a: mj.all_reduce(a, comm, "avg") + i, x)
        _, steps = jax.lax.scan(lambda a, i: (mj.shift(a, comm), mj.all_reduce(a * i, comm)), x, jnp.arange(3.0))
        doubled = jax.lax.while_loop(lambda a: a[0] < 100, lambda a: mj.all_reduce(a, comm, "max") * 2, x)
        chosen = jax.lax.cond(summed[0] > 0, lambda a: mj.all_reduce(a, comm), lambda a: a, x)
        return summed, steps, doubled, chosen

    summed, steps, doubled, chosen = program(np.full(2, rank + 1.0))
    total = size * (size + 1) / 2
    np.testing.assert_allclose(summed, np.full(2, total / size + 10), rtol=1e-12)
    same(steps, np.arange(3.0)[:, None] * np.full((3, 2), total))
    top = size if size * 1.0 >= 100 else size * 2.0 ** np.ceil(np.log2(100 / size))
    same(doubled, np.full(2, top))
    same(chosen, np.full(2, total))


def check_several_communicators():
    """A second one in the same program: the order holds over both."""
    other = comm.duplicate()

    @jax.jit
    def program(x):
        return mj.all_reduce(x, comm), mj.all_reduce(x + 1, other), mj.all_reduce(x + 2, comm)

    total = size * (size - 1) / 2
    for got, extra in zip(program(np.full(3, float(rank))), range(3)):
        same(got, np.full(3, total + extra * size))


if __name__ == "__main__":
    running.all_checks(globals(), comm)
