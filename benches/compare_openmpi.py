#!/usr/bin/env python3
"""All-reduce of float32 beside Open MPI: the same loop, buffers, iteration counts, ranks, binding and launcher.

    cargo build --release
    benches/compare_openmpi.py                        # 2 ranks, shared memory and TCP on loopback, 8 B to 64 MiB
    benches/compare_openmpi.py --transports shm --rounds 9 --max 1M

Each round measures each size once with each library, one right after the other, and the next round in the other order;
so whatever else the machine does meets both. A figure is the median over rounds of the mean time of a call (averaged
over ranks). The ratio is Maypole's time over Open MPI's: below 1, Maypole is faster. It needs mpicc and mpirun of Open
MPI, and nothing beyond Python's standard library. Results go to benches/results/ as JSON and Markdown.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def parse_size(text):
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    return int(text[:-1] if shift else text) << shift


def show_size(size):
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def iterations(size, transport, seconds):
    """As many as take about `seconds` at a rough estimate of either library's speed; the same for both."""
    latency, bandwidth = (0.5e-6, 4e9) if transport == "shm" else (8e-6, 1.2e9)
    return max(10, min(100_000, int(seconds / (latency + size / bandwidth))))


def run(command, env=None):
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


class Maypole:
    name = "Maypole"

    def __init__(self, options):
        self.options = options
        self.program = Path(options.program)
        if not self.program.exists():
            sys.exit(f"{self.program} does not exist; run `cargo build --release` first, or name it with --program")

    def version(self):
        return run([self.program, "--version"]).split()[-1]

    def measure(self, size, transport, count, warmup):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            flags = ["-b", size, "-e", size, "-n", count, "-w", warmup, "-J", file.name, "--transport", transport]
            if self.options.launcher == "mpirun":
                command = mpirun(self.options) + [self.program]
            else:
                command = [self.program, "--ranks", self.options.ranks]
            run([str(word) for word in command + flags])
            report = json.load(open(file.name))
        figures = report["results"][0]["out_of_place"]
        if figures["nwrong"] != 0:
            sys.exit(f"Maypole: {figures['nwrong']} wrong elements at {size} bytes")
        return figures["time"]


class OpenMpi:
    name = "Open MPI"

    def __init__(self, options, build):
        self.options = options
        self.program = build / "mpi_all_reduce"
        run(["mpicc", "-O2", "-o", str(self.program), str(HERE / "peers" / "mpi_all_reduce.c")])

    def version(self):
        return run(["mpirun", "--version"]).splitlines()[0].split()[-1]

    def measure(self, size, transport, count, warmup):
        command = mpirun(self.options)
        if transport == "tcp":
            command += ["--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "lo"]
        return float(run([str(word) for word in command + [self.program, size, count, warmup]]))


def mpirun(options):
    command = ["mpirun", "-n", options.ranks, "--oversubscribe", "--bind-to", options.bind_to]
    return command + (["--allow-run-as-root"] if os.geteuid() == 0 else [])


def machine():
    processor = ""
    try:
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return {"cores": len(os.sched_getaffinity(0)), "processor": processor, "system": system}


def compare(options, transport, sides):
    sizes = []
    size = parse_size(options.min)
    while size <= parse_size(options.max):
        sizes.append(size)
        size *= options.factor
    times = {side.name: {size: [] for size in sizes} for side in sides}
    for number in range(options.rounds):
        print(f"{transport}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for size in sizes:
            count = iterations(size, transport, options.seconds)
            for side in sides if number % 2 == 0 else sides[::-1]:
                times[side.name][size].append(side.measure(size, transport, count, max(5, count // 10)))
    rows = []
    for size in sizes:
        ours, theirs = (times[side.name][size] for side in sides)
        maypole, openmpi = statistics.median(ours), statistics.median(theirs)
        rows.append({
            "size": size,
            "iterations": iterations(size, transport, options.seconds),
            "maypole_us": maypole,
            "openmpi_us": openmpi,
            "ratio": maypole / openmpi,
            "maypole_rounds_us": ours,
            "openmpi_rounds_us": theirs,
        })
    return rows


def markdown(report):
    host = report["host"]
    lines = [
        f"# All-reduce beside Open MPI, {report['transport']}",
        "",
        f"float32 sum, {report['ranks']} ranks on {host['cores']} cores ({host['processor']}, {host['system']}), "
        f"bound to {report['bind_to']}; Maypole {report['versions']['Maypole']}, "
        f"Open MPI {report['versions']['Open MPI']}; "
        f"medians of {report['rounds']} rounds of the mean time of a call; {report['date']}. "
        "Ratio: Maypole's time over Open MPI's.",
        "",
        "| size | iterations | Maypole (us) | Open MPI (us) | ratio |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["results"]:
        lines.append(
            f"| {show_size(row['size'])} | {row['iterations']} | {row['maypole_us']:.4g} | {row['openmpi_us']:.4g} "
            f"| {row['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    program = ROOT / "target" / "release" / "all_reduce_perf"
    parser.add_argument("--program", default=program, help="Maypole's all_reduce_perf")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="what each timed loop should take (0.2)")
    parser.add_argument("--min", default="8", help="smallest size (8)")
    parser.add_argument("--max", default="64M", help="largest size (64M)")
    parser.add_argument("--factor", type=int, default=4, help="between sizes (4)")
    parser.add_argument("--transports", default="shm,tcp", help="shm, tcp or both, comma-separated")
    parser.add_argument("--bind-to", default="core", choices=["core", "none"], help="how mpirun binds ranks (core)")
    parser.add_argument("--launcher", default="mpirun", choices=["mpirun", "own"],
                        help="who starts Maypole's ranks: mpirun, bound like Open MPI's, or itself, unbound")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="directory of the results")
    options = parser.parse_args()
    transports = options.transports.split(",")
    if options.factor < 2 or options.rounds < 1 or options.ranks < 1 or not set(transports) <= {"shm", "tcp"}:
        parser.error("--factor is at least 2, --rounds and --ranks at least 1, --transports shm, tcp or shm,tcp")
    for tool in ("mpicc", "mpirun"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing: install Open MPI (Debian: openmpi-bin libopenmpi-dev)")
    if "Open MPI" not in run(["mpirun", "--version"]):
        sys.exit("the mpirun in PATH is not Open MPI's")

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as build:
        sides = [Maypole(options), OpenMpi(options, Path(build))]
        for transport in transports:
            report = {
                "transport": {"shm": "shared memory", "tcp": "TCP loopback"}[transport],
                "ranks": options.ranks,
                "rounds": options.rounds,
                "bind_to": options.bind_to,
                "launcher": options.launcher,
                "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
                "host": machine(),
                "versions": {side.name: side.version() for side in sides},
                "results": compare(options, transport, sides),
            }
            name = f"all_reduce_openmpi_{transport}_{options.ranks}ranks"
            (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
            (options.out / f"{name}.md").write_text(markdown(report))
            print(markdown(report), flush=True)


if __name__ == "__main__":
    main()
