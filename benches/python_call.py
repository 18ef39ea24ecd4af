#!/usr/bin/env python3
"""What a call costs from Python above the same call from Rust: all_reduce of 8 bytes, 2 ranks of one host.

    pip install . numpy          # '.[jax]' for --jax
    benches/python_call.py       # --jax: also from within a program that JAX compiled

Both run from the installed package (``python -m maypole perf`` is the Rust side), in turns, so that whatever else the
machine does meets both. A figure is the lowest mean of 2000 calls in a round, over the rounds: what a call costs where
nothing comes between. ``alone`` is a world of one rank, where all that is left of a call is what Python adds, or XLA.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time

CALLS = 2000


def rank(with_jax):
    import numpy

    import maypole

    with maypole.init() as comm:
        x = numpy.zeros(2, "f4")
        step = comm.persistent.all_reduce(x)
        timed(comm, "all_reduce", lambda: [comm.all_reduce(x) for _ in range(CALLS)])
        timed(comm, "persistent", lambda: [step.run() for _ in range(CALLS)])
        if with_jax:
            jax_rank(comm, x)


def jax_rank(comm, x):
    import jax

    import maypole.jax as mj

    @jax.jit
    def many(x):
        return jax.lax.fori_loop(0, CALLS, lambda _, x: mj.all_reduce(x, comm), x)

    one, none = jax.jit(lambda x: mj.all_reduce(x, comm)), jax.jit(lambda x: x + 1)

    def started(program):
        for _ in range(CALLS // 10):
            program(x).block_until_ready()

    timed(comm, "in jit", lambda: many(x).block_until_ready())
    timed(comm, "program of 1", lambda: started(one), CALLS // 10)
    timed(comm, "program of 0", lambda: started(none), CALLS // 10)
    jax.effects_barrier()


def timed(comm, name, calls, count=CALLS):
    """Print the best of ten rounds of ``calls``, which makes ``count`` of them, in microseconds a call."""
    best = float("inf")
    calls()
    for _ in range(10):
        began = time.perf_counter()
        calls()
        best = min(best, time.perf_counter() - began)
    if comm.rank == 0:
        print(f"{name}: {best / count * 1e6:.3f}")


def python(ranks, *more):
    done = run("run", "-n", str(ranks), "--no-prefix", "--", sys.executable, __file__, "--rank", *more)
    return {name: float(time) for name, time in (line.split(": ") for line in done.splitlines())}


def rust():
    flags = ["-b", "8", "-e", "8", "-n", str(CALLS), "-w", "200", "-c", "0", "-N", "10"]
    rows = run("perf", "all_reduce", "--ranks", "2", *flags)
    return min(float(time) for time in re.findall(r"^\s+8\s+2\s+\S+\s+sum\s+\S+\s+(\S+)", rows, re.MULTILINE))


def run(*arguments):
    command = [sys.executable, "-m", "maypole", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jax", action="store_true", help="also from within a program that JAX compiled")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        return rank(arguments.jax)
    more = ["--jax"] if arguments.jax else []
    rounds = [(rust(), python(2, *more), python(1, *more)) for _ in range(arguments.rounds)]
    middle = lambda values: statistics.median(values)
    base = middle(r for r, _, _ in rounds)
    print(f"{'Rust':16} 2 ranks {base:8.2f} us")
    for name in rounds[0][1]:
        both, alone = middle(p[name] for _, p, _ in rounds), middle(a[name] for _, _, a in rounds)
        print(f"{name:16} 2 ranks {both:8.2f} us, {both - base:+8.2f} above Rust; alone {alone:8.2f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
