#!/usr/bin/env python3
"""What a call of torch.distributed costs above the same call from Rust: 8 bytes, a world of one rank.

    pip install . torch
    benches/torch_call.py

With one rank nothing is waited for, so all there is to a call is what stands above the library. Three figures for each,
in microseconds: the call under Maypole (*call*), the same under a process group in Python whose methods return at once
a work that is done (*torch*: what torch.distributed itself costs such a group), and the library's call through
the extension module, without any of torch.distributed (*direct*). A figure is the lowest mean of 1000 calls, over rounds in which all take
turns, so that whatever else the machine does meets all of them.
"""

import argparse
import os
import platform
import sys
import time

CALLS = 1000


def calls(dist, torch, group):
    """What is measured, by name."""
    x, y = torch.zeros(2), torch.zeros(2)

    def asynchronous():
        dist.all_reduce(x, group=group, async_op=True).wait()

    def four():
        for work in [dist.all_reduce(x, group=group, async_op=True) for _ in range(4)]:
            work.wait()

    return {
        "all_reduce": lambda: dist.all_reduce(x, group=group),
        "all_reduce, asynchronous, and wait": asynchronous,
        "four of these, then four waits": four,
        "broadcast": lambda: dist.broadcast(x, 0, group=group),
        "reduce": lambda: dist.reduce(x, 0, group=group),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(y, x, group=group),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(y, x, group=group),
        "all_to_all_single": lambda: dist.all_to_all_single(y, x, group=group),
        "all_gather": lambda: dist.all_gather([y], x, group=group),
        "barrier": lambda: dist.barrier(group=group),
    }


def nothing(c10d, done):
    """A process group in Python that does nothing."""

    class Nothing(c10d.ProcessGroup):
        def getBackendName(self):
            return "nothing"

        def size(self):
            return 1

        def rank(self):
            return 0

    def at_once(self, *arguments, **named):
        return done

    for name in ("allreduce broadcast reduce allgather _allgather_base all_gather_single _reduce_scatter_base "
                 "reduce_scatter_single alltoall_base all_to_all_single barrier").split():  # fmt: skip
        setattr(Nothing, name, at_once)
    return lambda *_: Nothing(0, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="calls whose name has this in it")
    options = parser.parse_args()
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK="0", WORLD_SIZE="1", MASTER_PORT="0")
    import warnings

    import torch
    import torch.distributed as dist
    from torch._C import _distributed_c10d as c10d

    warnings.simplefilter("ignore")
    import maypole.torch
    from maypole.torch.work import Done

    torch.set_num_threads(1)
    dist.Backend.register_backend("nothing", nothing(c10d, Done()), devices=["cpu"])
    dist.init_process_group("maypole", store=dist.HashStore(), rank=0, world_size=1)
    ours, theirs = dist.new_group(), dist.new_group(backend="nothing")
    measured = {(name, side): call
                for side, group in (("call", ours), ("torch", theirs))
                for name, call in calls(dist, torch, group).items() if options.only in name}  # fmt: skip
    x = torch.zeros(2)
    what = maypole.torch.kinds.PLAIN[torch.float32, hash(dist.ReduceOp.SUM)]
    link, at = ours._link, x.data_ptr()
    measured["direct", "direct"] = lambda: link.run(what, 0, 2, at, at, 1.0)
    best = dict.fromkeys(measured, float("inf"))
    for _ in range(options.rounds):
        for key, call in measured.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            best[key] = min(best[key], (time.perf_counter() - began) / CALLS * 1e6)
    direct = best["direct", "direct"]
    print(f"torch {torch.__version__}, Python {platform.python_version()}; the direct call {direct:.2f} us")
    print("| call | call (us) | torch (us) | Maypole's part (us) |\n| --- | ---: | ---: | ---: |")
    for name in (name for name, side in measured if side == "call"):
        call, own = best[name, "call"], best[name, "torch"]
        print(f"| {name} | {call:.2f} | {own:.2f} | {call - own:.2f} |")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
