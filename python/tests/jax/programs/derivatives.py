"""Derivatives and vmap, held against the same collectives as one function of all ranks' data in this process.

The model: a world is one array whose first dimension is the ranks, a collective a function from such an array to
another. Then JAX's own derivatives of the model are what every rank must find at its place.
"""

import functools

import jax
import jax.numpy as jnp
import maypole
import maypole.jax as mj
import numpy as np
import running

jax.config.update("jax_enable_x64", True)
comm = maypole.init()
rank, size = comm.rank, comm.size
root = size - 1
AT_ROOT = (np.arange(size) == root)[:, None, None] * 1.0

# name: (shape of a rank's operand, the call, its model)
LINEAR = {
    "all_reduce sum": ((2, 3), lambda x: mj.all_reduce(x, comm), lambda w: jnp.broadcast_to(w.sum(0), w.shape)),
    "all_reduce avg": ((2, 3), lambda x: mj.all_reduce(x, comm, "avg"), lambda w: jnp.broadcast_to(w.mean(0), w.shape)),
    "reduce sum": ((2, 3), lambda x: mj.reduce(x, comm, root), lambda w: w.sum(0) * AT_ROOT),
    "reduce avg": ((2, 3), lambda x: mj.reduce(x, comm, root, "avg"), lambda w: w.mean(0) * AT_ROOT),
    "broadcast": ((2, 3), lambda x: mj.broadcast(x, comm, root), lambda w: jnp.broadcast_to(w[root], w.shape)),
    "all_gather": ((2, 3), lambda x: mj.all_gather(x, comm), lambda w: jnp.broadcast_to(w, (size, *w.shape))),
    "reduce_scatter sum": ((size, 3), lambda x: mj.reduce_scatter(x, comm), lambda w: w.sum(0)),
    "reduce_scatter avg": ((size, 3), lambda x: mj.reduce_scatter(x, comm, "avg"), lambda w: w.mean(0)),
    "all_to_all": ((size, 3), lambda x: mj.all_to_all(x, comm), lambda w: jnp.swapaxes(w, 0, 1)),
    "shift": ((2, 3), lambda x: mj.shift(x, comm), lambda w: jnp.roll(w, 1, axis=0)),
}


def worlds(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(size, *shape)))


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def all_of_them(of):
    """`of(name, call)` for every call: in one program, since compiling many takes its time."""
    return {name: of(name, call) for name, (_, call, _) in LINEAR.items()}


def check_derivatives():
    x = {name: worlds(shape, 1) for name, (shape, _, _) in LINEAR.items()}
    dx = {name: worlds(shape, 2) for name, (shape, _, _) in LINEAR.items()}
    mine, dmine = {name: w[rank] for name, w in x.items()}, {name: w[rank] for name, w in dx.items()}

    def loss(call):  # not linear, so that cotangents depend on what was received
        return lambda a: jnp.sum(jnp.sin(call(a * a)))

    @jax.jit
    def program(a, da):
        def derivatives(name, call):
            point, direction = (a[name],), (da[name],)
            gradient = jax.grad(loss(call))
            return {
                "gradient": gradient(*point),
                "recomputed": jax.grad(jax.checkpoint(loss(call)))(*point),
                "forward": jax.jvp(call, point, direction),
                "second": jax.jvp(gradient, point, direction)[1],
            }

        return all_of_them(derivatives)

    @jax.jit
    def models(w, dw):
        def derivatives(name, model):
            gradient = jax.grad(lambda v: jnp.sum(jnp.sin(model(v * v))))
            return {
                "gradient": gradient(w[name]),
                "recomputed": gradient(w[name]),
                "forward": (model(w[name]), model(dw[name])),
                "second": jax.jvp(gradient, (w[name],), (dw[name],))[1],
            }

        return {name: derivatives(name, model) for name, (_, _, model) in LINEAR.items()}

    expected = jax.tree.map(lambda w: w[rank], models(x, dx))
    jax.tree.map(close, program(mine, dmine), expected)
    # Outside jit the same.
    name, call = "all_reduce avg", LINEAR["all_reduce avg"][1]
    close(jax.grad(loss(call))(mine[name]), expected[name]["gradient"])


def check_loops():
    """Through scan, and an unrolled chain of different calls: backward, every rank makes them in the reverse order."""

    def net(x, reduce, rotate):
        x, _ = jax.lax.scan(lambda a, _: (jnp.sin(reduce(a)) + rotate(a), None), x, None, length=3)
        return jnp.sum(jnp.cos(rotate(x) * reduce(x)))

    x = worlds((4,), 3)
    calls = functools.partial(mj.all_reduce, comm=comm), functools.partial(mj.shift, comm=comm)
    models = (lambda w: jnp.broadcast_to(w.sum(0), w.shape)), (lambda w: jnp.roll(w, 1, axis=0))
    close(jax.jit(jax.grad(lambda a: net(a, *calls)))(x[rank]), jax.grad(lambda w: net(w, *models))(x)[rank])


def check_own_derivative():
    """The usual data-parallel step as a function with a derivative of its own: nothing forward, a mean backward."""

    @jax.custom_vjp
    def shared(weights):
        return weights

    shared.defvjp(lambda w: (w, None), lambda _, g: (mj.all_reduce(g, comm, "avg"),))
    weights, x = jnp.arange(3.0), worlds((3,), 4)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(shared(w) * x[rank]))))(weights)
    close(gradient, jax.grad(lambda w: jnp.mean(jnp.sum(jnp.sin(w * x), axis=1)))(weights))


def check_none():
    """What has no derivative says so, and what does not need one is left alone."""
    x = jnp.ones(3)
    maximum = lambda a: mj.all_reduce(a, comm, "max").sum()  # noqa: E731
    product = lambda a: mj.reduce_scatter(a, comm, "prod", True).sum()  # noqa: E731
    for call in (maximum, product):
        try:
            jax.grad(call)(jnp.ones(size))
        except NotImplementedError as error:
            assert "has no derivative" in str(error), error
        else:
            raise AssertionError("a derivative of max or prod")
    top = jax.grad(lambda a: jnp.sum(a * mj.all_reduce(jax.lax.stop_gradient(a), comm, "max")))(x * rank)
    close(top, x * (size - 1))
    counted = jax.grad(lambda a: jnp.sum(a * mj.all_reduce(jnp.int32(1), comm)))(x)
    close(counted, x * size)
    if size > 1:
        try:
            jax.grad(lambda a: (mj.send(a, comm, to=(rank + 1) % size), a.sum())[1])(x)
        except NotImplementedError as error:
            assert "send_recv" in str(error), error
        else:
            raise AssertionError("a derivative of send")


def check_vmap():
    x = {name: worlds((*shape, 5), 5) for name, (shape, _, _) in LINEAR.items()}
    mine = {name: w[rank] for name, w in x.items()}

    @jax.jit
    def program(a):
        def mapped(name, call):
            per_sample = jax.grad(lambda v: jnp.sum(jnp.sin(call(v))))
            last = a[name].ndim - 1
            return {
                "last": jax.vmap(call, in_axes=last)(a[name]),
                "out": jax.vmap(call, in_axes=last, out_axes=1)(a[name]),
                "nested": jax.vmap(jax.vmap(call, in_axes=last), in_axes=0)(jnp.stack([a[name], 2 * a[name]])),
                "per sample": jax.vmap(per_sample, in_axes=last)(a[name]),
            }

        return all_of_them(mapped)

    @jax.jit
    def models(w):
        def mapped(name, model):
            gradient = jax.grad(lambda v: jnp.sum(jnp.sin(model(v))))
            every = jnp.stack([model(w[name][..., i]) for i in range(5)])
            return {
                "last": every[:, rank],
                "out": jnp.moveaxis(every[:, rank], 0, 1),
                "nested": jnp.stack([every[:, rank], 2 * every[:, rank]]),
                "per sample": jnp.stack([gradient(w[name][..., i])[rank] for i in range(5)]),
            }

        return {name: mapped(name, model) for name, (_, _, model) in LINEAR.items()}

    jax.tree.map(close, program(mine), models(x))


def check_vmap_of_messages():
    """A mapped message is one message, and its receiver maps alike."""
    x = worlds((5, 2), 7)
    if size > 1 and rank == 0:
        jax.vmap(lambda a: mj.send(a, comm, to=1))(x[0])
    elif size > 1 and rank == 1:
        close(jax.jit(jax.vmap(lambda a: mj.recv(a, comm, source=0)))(x[1]), x[0])


if __name__ == "__main__":
    running.all_checks(globals(), comm)
