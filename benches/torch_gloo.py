#!/usr/bin/env python3
"""torch.distributed.all_reduce of float32 under gloo and under Maypole, in the same processes, one after the other.

    pip install . torch
    benches/torch_gloo.py                       # 2 and 4 ranks, 8 B to 64 MiB, under 4 minutes
    benches/torch_gloo.py --ranks 2 --rounds 9 --max 1M

Each round measures each size once with each backend, one right after the other with the same number of calls, and the
next round in the other order; so whatever else the machine does meets both. Every call is timed on every rank; a round's
figure is the median over its calls, averaged over ranks, and the result the median over rounds. The ratio is gloo's time
over Maypole's: above 1, Maypole is faster. Each rank has one thread for arithmetic. Before it is measured, each size is
checked to give the right sum. Results go to benches/results/ as JSON and Markdown; benches/plot.py draws them.
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

from compare_openmpi import machine, parse_size, show_size

HERE = Path(__file__).resolve().parent
BACKENDS = ("gloo", "maypole")


def sizes(smallest, largest):
    """8 B, then every fourth size from 64 B, so that 256 KiB, 16 MiB and 64 MiB are among them."""
    found = [size for size in (8, *(64 << 2 * k for k in range(20))) if smallest <= size <= largest]
    return found + ([largest] if largest not in found else [])


def measure(dist, tensor, group, count):
    """Median microseconds of a call, averaged over ranks."""
    import torch

    times = []
    dist.barrier(group=group)
    for _ in range(count):
        began = time.perf_counter_ns()
        dist.all_reduce(tensor, group=group)
        times.append(time.perf_counter_ns() - began)
    median = torch.tensor([statistics.median(times) / 1e3], dtype=torch.float64)
    dist.all_reduce(median, group=group)
    return median.item() / dist.get_world_size()


def rank(options):
    """One rank of a measurement. Rank 0 writes the figures to the file that the driver named."""
    import torch
    import torch.distributed as dist

    import maypole.torch  # noqa: F401  registers the backend

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    groups = {name: dist.new_group(backend=name) for name in BACKENDS}
    counts, rounds = {}, {name: {} for name in BACKENDS}
    wanted = sizes(parse_size(options.min), parse_size(options.max))
    for number in range(options.rounds):
        if dist.get_rank() == 0:
            print(f"{dist.get_world_size()} ranks: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for size in wanted:
            tensor = torch.empty(size // 4)
            if size not in counts:
                for name, group in groups.items():
                    dist.all_reduce(tensor.fill_(dist.get_rank() + 1), group=group)
                    expected = dist.get_world_size() * (dist.get_world_size() + 1) / 2
                    if not torch.all(tensor == expected):
                        sys.exit(f"{name}: wrong sum at {size} bytes")
                # As many calls as gloo makes in `seconds`; rank 0's count is everybody's.
                took = measure(dist, tensor.zero_(), groups["gloo"], 10 if size < 1 << 20 else 3) / 1e6
                count = torch.tensor([max(5, min(2000, int(options.seconds / took)))])
                dist.broadcast(count, 0)
                counts[size] = count.item()
            tensor.zero_()  # zero, because sums of anything else grow from call to call
            for name in BACKENDS if number % 2 == 0 else BACKENDS[::-1]:
                measure(dist, tensor, groups[name], max(2, counts[size] // 10))
                rounds[name].setdefault(size, []).append(measure(dist, tensor, groups[name], counts[size]))
    if dist.get_rank() == 0:
        rows = []
        for size in wanted:
            gloo, maypole_ = (statistics.median(rounds[name][size]) for name in BACKENDS)
            rows.append({"size": size, "iterations": counts[size], "gloo_us": gloo, "maypole_us": maypole_,
                         "ratio": gloo / maypole_, "gloo_rounds_us": rounds["gloo"][size],
                         "maypole_rounds_us": rounds["maypole"][size]})
        report = {"torch": torch.__version__, "maypole": maypole.__version__, "results": rows}
        Path(options.figures).write_text(json.dumps(report))
    dist.destroy_process_group()


def launch(options, ranks):
    """Starts the ranks and returns what rank 0 wrote."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch) / "figures.json"
        flags = ["--figures", figures, "--rounds", options.rounds, "--seconds", options.seconds, "--min", options.min,
                 "--max", options.max]
        command = [sys.executable, __file__, *map(str, flags)]
        common = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(ranks),
                      LOCAL_WORLD_SIZE=str(ranks), OMP_NUM_THREADS="1")
        started = [subprocess.Popen(command, env=dict(common, RANK=str(i), LOCAL_RANK=str(i))) for i in range(ranks)]
        try:
            failed = [i for i, process in enumerate(started) if process.wait(timeout=600) != 0]
        finally:
            for process in started:
                process.kill()
        if failed:
            sys.exit(f"ranks {failed} of {ranks} failed")
        return json.loads(figures.read_text())


def markdown(report):
    host = report["host"]
    lines = [
        f"# torch.distributed.all_reduce under gloo and under Maypole, {report['ranks']} ranks",
        "",
        f"float32 sum, {report['ranks']} ranks on {host['cores']} cores ({host['processor']}, {host['system']}); "
        f"torch {report['torch']}, Maypole {report['maypole']}, Python {report['python']}; medians of "
        f"{report['rounds']} rounds of the median call; {report['date']}. Ratio: gloo's time over Maypole's.",
        "",
        "| size | calls a round | gloo (us) | Maypole (us) | ratio |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["results"]:
        lines.append(f"| {show_size(row['size'])} | {row['iterations']} | {row['gloo_us']:.4g} "
                     f"| {row['maypole_us']:.4g} | {row['ratio']:.1f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks, comma-separated (2,4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="what a round of gloo's should take (0.2)")
    parser.add_argument("--min", default="8", help="smallest size (8)")
    parser.add_argument("--max", default="64M", help="largest size (64M)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="directory of the results")
    parser.add_argument("--figures", help=argparse.SUPPRESS)  # given to the ranks that this script starts
    options = parser.parse_args()
    if options.figures:
        return rank(options)
    options.out.mkdir(parents=True, exist_ok=True)
    for ranks in (int(word) for word in options.ranks.split(",")):
        report = {
            "ranks": ranks,
            "rounds": options.rounds,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "host": machine(),
            "python": platform.python_version(),
            **launch(options, ranks),
        }
        (options.out / f"torch_gloo_{ranks}ranks.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.out / f"torch_gloo_{ranks}ranks.md").write_text(markdown(report))
        print(markdown(report), flush=True)


if __name__ == "__main__":
    main()
