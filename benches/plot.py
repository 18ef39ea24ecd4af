#!/usr/bin/env python3
"""Draw time of an all-reduce over its size, Maypole and another library, from the JSON in benches/results/.

    benches/compare_openmpi.py && benches/plot.py      # all_reduce.svg: Open MPI, a panel for each transport
    benches/torch_gloo.py && benches/plot.py           # torch_all_reduce.svg: PyTorch's gloo, a panel for 2 and 4 ranks

Python's standard library only.
"""

import json
import math
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 420, 300, 62, 40, 46, 70
MAYPOLE = ("maypole_us", "Maypole", "#1f6f5c")
OPEN_MPI = ("openmpi_us", "Open MPI", "#b0462e")
GLOO = ("gloo_us", "gloo", "#8a5a9e")


def show_size(size):
    for shift, unit in ((20, "M"), (10, "K")):
        if size >= 1 << shift:
            return f"{size >> shift}{unit}"
    return str(size)


def show_time(us):
    return f"{us / 1000:g} ms" if us >= 1000 else f"{us:g} us"


def panel(report, series, left, low, high):
    rows = report["results"]
    x0, x1 = math.log2(rows[0]["size"]), math.log2(rows[-1]["size"])
    x = lambda size: left + (math.log2(size) - x0) / (x1 - x0) * WIDTH
    y = lambda us: TOP + HEIGHT - (math.log10(us) - low) / (high - low) * HEIGHT
    out = [f'<text x="{left}" y="{TOP - 14}" class="title">{report["title"]}</text>']
    for decade in range(low, high + 1):
        at = y(10**decade)
        out.append(f'<line x1="{left}" y1="{at:.1f}" x2="{left + WIDTH}" y2="{at:.1f}" class="grid"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{show_time(10**decade)}</text>')
    for row in rows[::2]:
        out.append(f'<text x="{x(row["size"]):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{show_size(row["size"])}</text>')
    for key, name, colour in series:
        points = " ".join(f'{x(row["size"]):.1f},{y(row[key]):.1f}' for row in rows)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        out += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2.6" fill="{colour}"/>' for p in points.split()]
    for i, (_, name, colour) in enumerate(series):
        out.append(f'<text x="{left + 14}" y="{TOP + 20 + 18 * i}" style="fill:{colour}" class="name">{name}</text>')
    out.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle">bytes</text>')
    return out


def draw(name, reports, series):
    times = [row[key] for report in reports for row in report["results"] for key, _, _ in series]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    width, height = LEFT + len(reports) * (WIDTH + GAP) - GAP + 20, TOP + HEIGHT + BOTTOM
    style = "text{font:12px sans-serif;fill:#444}.title{font-size:14px;font-weight:bold}.name{font-weight:bold}.grid{stroke:#ddd}"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
           f"<style>{style}</style>", f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, report in enumerate(reports):
        out += panel(report, series, LEFT + i * (WIDTH + GAP), low, high)
    (RESULTS / name).write_text("\n".join(out + ["</svg>"]) + "\n")


def read(pattern, keys, title):
    """The reports that exist under the names that a pattern and keys give, each with its title."""
    paths = [RESULTS / pattern.format(key) for key in keys]
    reports = [json.loads(path.read_text()) for path in paths if path.exists()]
    return [dict(report, title=title(report)) for report in reports]


def main():
    figures = [
        ("all_reduce.svg", OPEN_MPI,
         read("all_reduce_openmpi_{}_2ranks.json", ("shm", "tcp"), lambda report: report["transport"])),
        ("torch_all_reduce.svg", GLOO,
         read("torch_gloo_{}ranks.json", (2, 4), lambda report: f"torch.distributed.all_reduce, {report['ranks']} ranks")),
    ]
    for name, other, reports in figures:
        if reports:
            draw(name, reports, (other, MAYPOLE))


if __name__ == "__main__":
    main()
