#!/usr/bin/env python3
"""What MAYPOLE_ENCRYPT=1 costs: all-reduce of float32 between hosts of one machine, with and without, in turn.

    cargo build --release --bin all_reduce_perf
    benches/encryption.py                            # 2 and 4 hosts, cables of 1 Gbit/s and without a limit
    benches/encryption.py --hosts 2 --rates none --sizes 8,64K,16M --rounds 9

Each host is a network namespace with one rank; its cable is a veth pair to a bridge, whose rate tc limits (each way).
Each round measures each size once with each setting, one right after the other, and the next round in the other order;
so whatever else the machine does meets both. A figure is the median over rounds of the mean time of a call (averaged
over ranks). All hosts share this machine's cores, so encryption takes them from the other ranks too: on real hosts
they have their own. It needs root and iproute2, and nothing beyond Python's standard library. Results go to
benches/results/ as JSON and Markdown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from compare_openmpi import HERE, ROOT, machine, parse_size, run, show_size

SETTINGS = {"plain": "0", "encrypted": "1"}


class Cluster:
    """Namespaces on a bridge, while it is open."""

    def __init__(self, hosts, rate):
        self.names = [f"maypole-bench-{os.getpid()}-{index}" for index in range(hosts)]
        self.switch = f"maypole-bench-{os.getpid()}-switch"
        self.rate = rate

    def __enter__(self):
        for name in [self.switch, *self.names]:
            run(["ip", "netns", "add", name])
        inside = ["ip", "-n", self.switch]
        run([*inside, "link", "add", "br0", "type", "bridge"])
        run([*inside, "link", "set", "br0", "up"])
        for index, name in enumerate(self.names):
            run([*inside, "link", "add", f"p{index}", "type", "veth", "peer", "name", "eth0", "netns", name])
            run([*inside, "link", "set", f"p{index}", "master", "br0", "up"])
            run(["ip", "-n", name, "addr", "add", f"{address(index)}/24", "dev", "eth0"])
            for device in ("lo", "eth0"):
                run(["ip", "-n", name, "link", "set", device, "up"])
            if self.rate != "none":
                shape = ["root", "tbf", "rate", self.rate, "burst", "256kb", "latency", "20ms"]
                run(["tc", "-n", self.switch, "qdisc", "add", "dev", f"p{index}", *shape])
                run(["tc", "-n", name, "qdisc", "add", "dev", "eth0", *shape])
        return self

    def __exit__(self, *_):
        for name in [self.switch, *self.names]:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def measure(self, program, size, count, setting):
        """Mean microseconds of a call."""
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            flags = ["-b", size, "-e", size, "-n", count, "-w", max(3, count // 10), "-J", file.name]
            ranks = []
            for rank, name in enumerate(self.names):
                world = {"RANK": rank, "WORLD_SIZE": len(self.names), "MASTER_ADDR": address(0), "MASTER_PORT": 29500}
                own = {"MAYPOLE_HOST": name, "MAYPOLE_ENCRYPT": setting, "MAYPOLE_KEY": "k" * 32}
                env = {**os.environ, **{key: str(value) for key, value in {**world, **own}.items()}}
                command = ["ip", "netns", "exec", name, str(program), *map(str, flags)]
                ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
            said = [rank.communicate(timeout=600)[0] for rank in ranks]
            if any(rank.returncode != 0 for rank in ranks):
                sys.exit("\n".join(text.decode() for text in said))
            figures = json.load(open(file.name))["results"][0]["out_of_place"]
        if figures["nwrong"] != 0:
            sys.exit(f"{figures['nwrong']} wrong elements at {size} bytes")
        return figures["time"]


def address(index):
    return f"10.89.0.{index + 1}"


def iterations(size, rate, seconds):
    bandwidth = 1e9 if rate == "none" else 1e8
    return max(5, min(20_000, int(seconds / (100e-6 + 2 * size / bandwidth))))


def compare(options, hosts, rate, sizes):
    times = {name: {size: [] for size in sizes} for name in SETTINGS}
    with Cluster(hosts, rate) as cluster:
        for number in range(options.rounds):
            print(f"{hosts} hosts, {rate}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for size in sizes:
                count = iterations(size, rate, options.seconds)
                order = list(SETTINGS) if number % 2 == 0 else list(SETTINGS)[::-1]
                for name in order:
                    times[name][size].append(cluster.measure(options.program, size, count, SETTINGS[name]))
    medians = {name: {size: statistics.median(times[name][size]) for size in sizes} for name in SETTINGS}
    return [
        {
            "hosts": hosts,
            "rate": rate,
            "size": size,
            "iterations": iterations(size, rate, options.seconds),
            "plain_us": medians["plain"][size],
            "encrypted_us": medians["encrypted"][size],
            "ratio": medians["encrypted"][size] / medians["plain"][size],
            "plain_rounds": times["plain"][size],
            "encrypted_rounds": times["encrypted"][size],
        }
        for size in sizes
    ]


def report(options, rows, load):
    where = {**machine(), "load": load, "date": datetime.now(timezone.utc).strftime("%Y-%m-%d")}
    out = HERE / "results" / "encryption"
    out.with_suffix(".json").write_text(json.dumps({"machine": where, "rounds": options.rounds, "rows": rows}, indent=1))
    lines = [
        "# All-reduce with and without MAYPOLE_ENCRYPT=1, hosts of one machine",
        "",
        f"float32 sum, one rank on each host, {where['cores']} cores for all hosts together ({where['processor']}, "
        f"{where['system']}); medians of {options.rounds} rounds of the mean time of a call; the machine's load was "
        f"{load[0]:.1f} at the beginning and {load[1]:.1f} at the end; {where['date']}. Ratio: encrypted over plain.",
        "",
        "| hosts | cables | size | iterations | plain (us) | encrypted (us) | ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        rate = {"none": "no limit", "1gbit": "1 Gbit/s"}.get(row["rate"], row["rate"])
        lines.append(
            f"| {row['hosts']} | {rate} | {show_size(row['size'])} | {row['iterations']} | {row['plain_us']:.4g} | "
            f"{row['encrypted_us']:.4g} | {row['ratio']:.2f} |"
        )
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=ROOT / "target" / "release" / "all_reduce_perf", type=Path)
    parser.add_argument("--hosts", default="2,4")
    parser.add_argument("--rates", default="1gbit,none")
    parser.add_argument("--sizes", default="8,64K,16M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="about so long for one measurement")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("making network namespaces needs root")
    if not options.program.exists():
        sys.exit(f"{options.program} does not exist; run `cargo build --release --bin all_reduce_perf` first")
    before = os.getloadavg()[0]
    sizes = [parse_size(size) for size in options.sizes.split(",")]
    rows = []
    for hosts in map(int, options.hosts.split(",")):
        for rate in options.rates.split(","):
            rows += compare(options, hosts, rate, sizes)
    report(options, rows, (before, os.getloadavg()[0]))


if __name__ == "__main__":
    main()
