#!/usr/bin/env python3
"""Very large tensors and objects in torch.distributed under gloo and under Maypole, in the same
processes, one after the other.

    pip install . torch
    benches/torch_large.py                      # 2 ranks; needs 19 GiB of memory; some 10 minutes
    benches/torch_large.py --scale 0.1          # a tenth of each, for a look

* `elements`: all_reduce of 2^31 + 5 elements of uint8, more than a 32-bit number counts.
* `bytes`: all_reduce of 8 GiB of float32. In place, so all ranks together have 16 GiB.
* `message`: send and recv of 2 GiB, timed on the receiver.
* `object`: all_gather_object of 300 MB of bytes, of each rank.

Each round measures a case once with each backend, one right after the other, and the next round in
the other order. A call is timed on every rank, and the slowest counts. The figure is the median over
rounds, the ratio gloo's time over Maypole's: above 1, Maypole is faster. Memory is touched before
it is timed, and results are checked. Results go to benches/results/torch_large.{json,md}.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from compare_openmpi import machine

HERE = Path(__file__).resolve().parent
BACKENDS = ("gloo", "maypole")
CASES = ("elements", "bytes", "message", "object")
GIB = 1 << 30


def reduced(dist, group, tensor):
    """Seconds of an all_reduce of ones, which is checked."""
    tensor.fill_(1)
    dist.barrier(group=group)
    began = time.perf_counter()
    dist.all_reduce(tensor, group=group)
    took = time.perf_counter() - began
    step = max(1, tensor.numel() // 1000)
    assert (tensor[::step] == dist.get_world_size()).all() and tensor[-1] == dist.get_world_size()
    return took


def received(dist, group, tensor):
    """Seconds until rank 1 has what rank 0 sends; nothing on other ranks."""
    rank = dist.get_rank()
    tensor.fill_(7 - rank)
    dist.barrier(group=group)
    began = time.perf_counter()
    if rank == 0:
        dist.send(tensor, 1, group=group)
    elif rank == 1:
        dist.recv(tensor, 0, group=group)
        took = time.perf_counter() - began
        assert tensor[0] == 7 and tensor[-1] == 7
        return took
    return 0.0


def gathered(dist, group, length):
    """Seconds of gathering an object of so many bytes of each rank."""
    given, taken = bytes([dist.get_rank()]) * length, [None] * dist.get_world_size()
    dist.barrier(group=group)
    began = time.perf_counter()
    dist.all_gather_object(taken, given, group=group)
    took = time.perf_counter() - began
    assert [(len(one), one[-1]) for one in taken] == [(length, r) for r in range(len(taken))]
    return took


def case(torch, dist, name, scale):
    """What measures a case with a group, and how large it is in words."""
    if name == "object":
        length = int(300e6 * scale)
        return (lambda group: gathered(dist, group, length)), f"{length / 1e6:g} MB of bytes"
    if name == "elements":
        count, dtype = int((1 << 31) * scale) + 5, torch.uint8
    elif name == "bytes":
        count, dtype = int(8 * GIB * scale) // 4, torch.float32
    else:
        count, dtype = int(2 * GIB * scale), torch.uint8
    tensor = torch.ones(count, dtype=dtype)
    what = f"{count} x {str(dtype).removeprefix('torch.')}"
    if name == "message":
        return (lambda group: received(dist, group, tensor)), what
    return (lambda group: reduced(dist, group, tensor)), what


def rank(options):
    """One rank of a measurement. Rank 0 writes the figures to the file that the driver named."""
    import torch
    import torch.distributed as dist

    import maypole.torch  # noqa: F401  registers the backend

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    groups = {name: dist.new_group(backend=name) for name in BACKENDS}
    rows = []
    for name in options.cases.split(","):
        measure, what = case(torch, dist, name, options.scale)
        rounds = {backend: [] for backend in BACKENDS}
        for number in range(options.rounds + 1):
            for backend in BACKENDS if number % 2 == 0 else BACKENDS[::-1]:
                slowest = torch.tensor([measure(groups[backend])])
                dist.all_reduce(slowest, dist.ReduceOp.MAX)
                if number > 0:  # the first round makes connections and buffers
                    rounds[backend].append(slowest.item())
                if dist.get_rank() == 0:
                    took = f"{name}: round {number} of {options.rounds}: {backend} {slowest.item():.3f} s"
                    print(took, file=sys.stderr, flush=True)
        del measure
        medians = {backend: statistics.median(took) for backend, took in rounds.items()}
        ratio = medians["gloo"] / medians["maypole"]
        rows.append({"case": name, "what": what, **medians, "ratio": ratio, "rounds": rounds})
    if dist.get_rank() == 0:
        report = {"torch": torch.__version__, "maypole": maypole.__version__, "results": rows}
        Path(options.figures).write_text(json.dumps(report))
    dist.destroy_process_group()


def refuse_without_memory(options):
    """End here rather than have the kernel end somebody when memory is full."""
    each = max({"elements": 2, "bytes": 8, "message": 2, "object": 2}[name] for name in options.cases.split(","))
    needed = options.ranks * (each * options.scale + 0.75) + 1
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    there = int(fields["MemAvailable"].split()[0]) / (1 << 20)
    if there < needed:
        sys.exit(f"{needed:.1f} GiB of memory are needed, and {there:.1f} are there; see --scale and --cases")


def launch(options):
    """Starts the ranks and returns what rank 0 wrote."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch) / "figures.json"
        flags = ["--figures", figures, "--rounds", options.rounds, "--scale", options.scale, "--cases", options.cases]
        command = [sys.executable, __file__, *map(str, flags)]
        common = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(options.ranks),
                      LOCAL_WORLD_SIZE=str(options.ranks), OMP_NUM_THREADS="1")
        places = [dict(common, RANK=str(i), LOCAL_RANK=str(i)) for i in range(options.ranks)]
        started = [subprocess.Popen(command, env=place) for place in places]
        try:
            failed = [i for i, process in enumerate(started) if process.wait(timeout=3600) != 0]
        finally:
            for process in started:
                process.kill()
        if failed:
            sys.exit(f"ranks {failed} of {options.ranks} failed")
        return json.loads(figures.read_text())


def markdown(report):
    host = report["host"]
    lines = [
        "# Very large tensors and objects in torch.distributed under gloo and under Maypole",
        "",
        f"{report['ranks']} ranks on {host['cores']} cores ({host['processor']}, {host['system']}); torch "
        f"{report['torch']}, Maypole {report['maypole']}, Python {report['python']}; medians of {report['rounds']} "
        f"rounds, the slowest rank of each; {report['date']}. Ratio: gloo's time over Maypole's.",
        "",
        "| case | size | gloo (s) | Maypole (s) | ratio |",
        "| :--- | :--- | ---: | ---: | ---: |",
    ]
    for row in report["results"]:
        lines.append(f"| {row['case']} | {row['what']} | {row['gloo']:.3f} | {row['maypole']:.3f} "
                     f"| {row['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="how much of each case (1.0)")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="directory of the results")
    parser.add_argument("--figures", help=argparse.SUPPRESS)  # given to the ranks that this script starts
    options = parser.parse_args()
    if options.figures:
        return rank(options)
    refuse_without_memory(options)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "ranks": options.ranks,
        "rounds": options.rounds,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "host": machine(),
        "python": platform.python_version(),
        **launch(options),
    }
    (options.out / "torch_large.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "torch_large.md").write_text(markdown(report))
    print(markdown(report), flush=True)


if __name__ == "__main__":
    main()
