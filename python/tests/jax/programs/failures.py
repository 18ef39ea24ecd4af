"""The last of the ranks does not come to a call inside a compiled program: it died, it stalls, it gave up."""

import os
import sys
import time

import jax
import maypole
import maypole.jax as mj
import numpy as np

how = sys.argv[1]
comm = maypole.init()
last = comm.size - 1
program = jax.jit(lambda x: mj.all_reduce(x * 2, comm))
program(np.ones(3, np.float32)).block_until_ready()
token = np.zeros(1, np.uint8)
if how == "stalled":
    comm.set_timeout(1)

if comm.rank == last:
    for other in range(last):
        comm.recv(token, other)  # it has its result of the call above
    if how == "died":
        os._exit(0)
    if how == "aborted":
        comm.abort("has had enough")
    if how == "stalled":
        time.sleep(4)
    sys.exit()

comm.send(token, last)
began = time.monotonic()
try:
    with mj.checked():
        program(np.ones(3, np.float32))
except {"died": maypole.DiedError, "stalled": maypole.StalledError, "aborted": maypole.AbortedError}[how] as error:
    assert (error.kind, error.rank) == (how, last), (error.kind, error.rank)
    assert f"rank {last}" in str(error), error
    assert time.monotonic() - began < 30
    print(f"rank {comm.rank} passed {how}", flush=True)
