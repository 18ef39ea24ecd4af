#!/usr/bin/env python3
"""How long a step of DDP training takes under gloo and under Maypole: examples/ddp_digits.py with either, in turn.

    pip install . torch
    benches/ddp_step.py                         # 2 and 4 ranks, 2 to 3 minutes
    benches/ddp_step.py --ranks 2 --rounds 9

Each round runs the whole training once with each backend, the next round in the other order. A run's figure is the
median step on rank 0 (forward, backward with the gradients' all-reduce, optimiser); the result is the median over
rounds. The ratio is gloo's time over Maypole's. A step's arithmetic is in it and the same for both: the ratio says what a
user of this small network gains, not how the backends compare. Results go to benches/results/ddp_step.{json,md}.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from compare_openmpi import machine

HERE = Path(__file__).resolve().parent
BACKENDS = ("gloo", "maypole")


def train(backend, ranks):
    """One run of the example: what it says of itself. Without a result it is an error: nothing is tried again."""
    command = [sys.executable, "-m", "maypole", "run", "--no-prefix", "-n", str(ranks),
               sys.executable, str(HERE.parent / "examples" / "ddp_digits.py"), "--json", "--backend", backend]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode != 0 or not lines:
        sys.exit(f"{' '.join(command)} ended with status {run.returncode}:\n{run.stdout}{run.stderr}")
    return json.loads(lines[0])


def compare(ranks, rounds):
    found = {backend: [] for backend in BACKENDS}
    for number in range(rounds):
        for backend in BACKENDS if number % 2 == 0 else BACKENDS[::-1]:
            found[backend].append(train(backend, ranks))
            print(f"{ranks} ranks, {backend}: {found[backend][-1]['step_us']:.0f} us a step", file=sys.stderr, flush=True)
    row = {"ranks": ranks}
    for backend, runs in found.items():
        times = [run["step_us"] for run in runs]
        row |= {f"{backend}_us": statistics.median(times), f"{backend}_from_us": min(times), f"{backend}_to_us": max(times)}
    row["ratio"] = row["gloo_us"] / row["maypole_us"]
    row["same_weights"] = len({run["digest"] for runs in found.values() for run in runs}) == 1
    return row


def markdown(report):
    host = report["host"]
    lines = [
        "# A step of DDP training under gloo and under Maypole",
        "",
        f"examples/ddp_digits.py on {host['cores']} cores ({host['processor']}, {host['system']}), torch {report['torch']}, "
        f"Python {report['python']}; medians of {report['rounds']} runs, in brackets the least and the most; {report['date']}. Ratio: gloo's time over Maypole's.",
        "",
        "| ranks | gloo (us) | Maypole (us) | ratio | weights |",
        "| ---: | ---: | ---: | ---: | --- |",
    ]
    for row in report["results"]:
        cell = lambda backend: f"{row[backend + '_us']:.0f} ({row[backend + '_from_us']:.0f} to {row[backend + '_to_us']:.0f})"
        same = "the same bits" if row["same_weights"] else "of other bits: other order of sums"
        lines.append(f"| {row['ranks']} | {cell('gloo')} | {cell('maypole')} | {row['ratio']:.2f} | {same} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks, comma-separated (2,4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="directory of the results")
    options = parser.parse_args()
    report = {
        "rounds": options.rounds,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "host": machine(),
        "python": platform.python_version(),
        "torch": subprocess.check_output([sys.executable, "-c", "import torch; print(torch.__version__)"], text=True).strip(),
        "results": [compare(int(ranks), options.rounds) for ranks in options.ranks.split(",")],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ddp_step.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "ddp_step.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
