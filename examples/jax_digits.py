"""Data-parallel training in JAX: every rank holds the whole network, works on its share of each batch, and all-reduces
the gradients inside the compiled program, so that all ranks take the same step.

    python -m maypole run -n 4 examples/jax_digits.py

trains a small network on 1,797 handwritten digits (their authors and licence: examples/data/README.md). At the end it
checks that the network reads digits, that all ranks hold the same weights to the bit, and that one rank alone, given
the same batches, ends at nearly the same weights. It exits with 1 if any of these fails.

Read `epoch` first: it is the training. It needs `pip install '.[jax]'`.
"""

import argparse
import functools
import gzip
import hashlib
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import maypole
import maypole.jax
import numpy as np
from jax.flatten_util import ravel_pytree

REQUIRED_ACCURACY = 0.95
# How far a weight may end from where one rank alone takes it. Not zero, because floating-point sums depend on their
# order: one rank adds up a batch in one order, four ranks in another. The weights themselves are of the order of 0.1.
TOLERANCE = 1e-5

IMAGES, PIXELS, HIDDEN, CLASSES = 1797, 64, 64, 10
MOMENTUM = 0.9


def load_digits():
    """The training and the test set, each as pixels from 0.0 to 1.0 and labels: every fifth image is for the test."""
    packed = pathlib.Path(__file__).parent / "data" / "digits.gz"
    data = np.frombuffer(gzip.decompress(packed.read_bytes()), np.uint8)
    pixels = data[: IMAGES * PIXELS].reshape(IMAGES, PIXELS).astype(np.float32) / 16
    labels = data[IMAGES * PIXELS :].astype(np.int32)
    test = np.arange(IMAGES) % 5 == 0
    return (pixels[~test], labels[~test]), (pixels[test], labels[test])


def initial_weights(seed):
    random = np.random.default_rng(seed)

    def layer(inputs, outputs):
        bound = inputs**-0.5
        return {
            "matrix": random.uniform(-bound, bound, (inputs, outputs)).astype(np.float32),
            "bias": random.uniform(-bound, bound, outputs).astype(np.float32),
        }

    return [layer(PIXELS, HIDDEN), layer(HIDDEN, CLASSES)]


def scores(weights, pixels):
    hidden, output = weights
    # Not relu: its slope jumps at zero, so that a rounding difference there becomes a real one and two runs that should
    # match drift apart.
    return jnp.tanh(pixels @ hidden["matrix"] + hidden["bias"]) @ output["matrix"] + output["bias"]


def loss_sum(weights, pixels, labels, counts):
    """The loss, added up over the images that count."""
    log_probabilities = jax.nn.log_softmax(scores(weights, pixels))
    return -jnp.sum(counts * jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0])


@functools.partial(jax.jit, static_argnames=("comm", "rate"))
def epoch(weights, velocity, images, batches, comm, rate):
    """One pass over this rank's share of the batches; returns weights, velocity and the loss of all ranks' images.

    `images` are pixels and labels. `batches` are this rank's images of each batch, as numbers and as how much each
    counts (1, or 0 to fill up: compiled shapes are fixed), and the length of each batch over all ranks.
    """
    pixels, labels = images

    def step(state, batch):
        weights, velocity = state
        chosen, counts, length = batch
        loss, gradient = jax.value_and_grad(loss_sum)(weights, pixels[chosen], labels[chosen], counts)
        # The one call that makes this training data-parallel: gradient and loss in one vector, since one long call is
        # cheaper than several short ones. Every rank gets the same bits back.
        vector, unravel = ravel_pytree((gradient, loss))
        gradient, loss = unravel(maypole.jax.all_reduce(vector, comm))
        # Sums and one division by the batch's own length, and not a mean of means: right for shares of any length.
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g / length, velocity, gradient)
        weights = jax.tree.map(lambda w, v: w - rate * v, weights, velocity)
        return (weights, velocity), loss

    (weights, velocity), losses = jax.lax.scan(step, (weights, velocity), batches)
    return weights, velocity, losses.sum()


def shares(order, batch, comm):
    """This rank's part of each batch of `order`, filled up to one length."""
    longest = -(-batch // comm.size)
    rows = []
    for start in range(0, len(order), batch):
        whole = order[start : start + batch]
        mine = whole[comm.rank * len(whole) // comm.size : (comm.rank + 1) * len(whole) // comm.size]
        counts = np.zeros(longest, np.float32)
        counts[: len(mine)] = 1
        rows.append((np.resize(mine, longest) if len(mine) else np.zeros(longest, int), counts, np.float32(len(whole))))
    return tuple(np.stack(column) for column in zip(*rows))


def train(comm, options, images, report=lambda *_: None):
    weights = initial_weights(options.seed)
    # Each rank has drawn the same from the seed; weights from elsewhere would need this.
    weights = maypole.jax.broadcast(weights, comm, root=0)
    velocity = jax.tree.map(jnp.zeros_like, weights)
    # Seeded alike everywhere: all ranks see the same batches, and so does a run with another number of ranks.
    random = np.random.default_rng(options.seed)
    for number in range(1, options.epochs + 1):
        batches = shares(random.permutation(len(images[1])), options.batch, comm)
        weights, velocity, loss = epoch(weights, velocity, images, batches, comm, options.rate)
        report(number, float(loss) / len(images[1]))
    return weights


def main():
    parser = argparse.ArgumentParser(description="Trains a small network on handwritten digits, data-parallel.")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch, over all ranks")
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate")
    parser.add_argument("--seed", type=int, default=1, help="decides the initial weights and the order of the images")
    options = parser.parse_args()

    comm = maypole.init()
    training, test = load_digits()
    # All ranks compute the same results; one of them prints.
    say = functools.partial(print, flush=True) if comm.rank == 0 else lambda *_: None
    say(f"ranks {comm.size}, global batch {options.batch}")
    say(f"{len(training[1])} training images, {len(test[1])} test images")

    begin = time.perf_counter()
    weights = train(comm, options, training, lambda number, loss: say(f"epoch {number:>3}  loss {loss:.4f}"))
    say(f"trained in {time.perf_counter() - begin:.2f} s, compiling included")

    passed = True

    def check(holds, text):
        nonlocal passed
        passed &= bool(holds)
        say(f"{'ok' if holds else 'FAILED'}: {text}")

    accuracy = float(jnp.mean(jnp.argmax(scores(weights, test[0]), axis=1) == test[1]))
    check(accuracy >= REQUIRED_ACCURACY, f"test accuracy {accuracy:.1%}, required {REQUIRED_ACCURACY:.0%}")

    flat = np.asarray(ravel_pytree(weights)[0])
    digest = np.frombuffer(hashlib.sha256(flat.tobytes()).digest(), np.uint8)
    agreeing = int((np.asarray(maypole.jax.all_gather(digest, comm)) == digest).all(axis=1).sum())
    sha256 = digest.tobytes().hex()
    check(agreeing == comm.size, f"weights bit-identical on {agreeing} of {comm.size} ranks, sha256 {sha256}")

    if comm.rank == 0:  # The others need not wait for it: the launcher reports the failure of any rank.
        alone = np.asarray(ravel_pytree(train(maypole.threads(1)[0], options, training))[0])
        difference = float(np.max(np.abs(flat - alone)))
        check(
            difference <= TOLERANCE,
            f"weights differ from a one-rank run's on the same batches by {difference:.1e}, tolerance {TOLERANCE:.0e}",
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
