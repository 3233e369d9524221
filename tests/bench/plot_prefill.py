#!/usr/bin/env python3
"""Draws how fast a prompt is read against position, and where a chunk's time goes, as SVG and PNG.

    plot_prefill.py OUT CSV...     OUT.svg and OUT.png from the rows of `bitshard bench prefill --csv`

Left: tokens a second of the chunk at each position, a curve for each format, model and grid; a prompt read whole is a line,
samples are points. Middle: the share of the rate of a large GEMM that a chunk reaches, all of
it (solid) and attention alone (dashed). Right: parts of a chunk op by op, first and last of each curve. Needs matplotlib.
"""
import csv
import sys

COLOURS = {"f16": "#666666", "int8": "#8c6d31", "int4": "#1f77b4", "int2": "#d62728", "int4vint2": "#9467bd"}
OTHERS = ["#2ca02c", "#17becf", "#e377c2", "#ff7f0e"]
PARTS = (("gemm_ms", "GEMMs", "#ff7f0e"), ("attend_ms", "attention", "#1f77b4"), ("quantize_ms", "quantizer", "#d62728"),
         ("comm_ms", "collectives", "#2ca02c"), ("other_ms", "other", "#999999"))


def read_lines(paths):
    """{name: rows by position}; a file is a curve of its own for each format."""
    rows = []
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            rows += [{**row, "path": path} for row in csv.DictReader(file) if row["op"] == "chunk" and row["check"] == "passed"]
    models, grids = {row["model"] for row in rows}, {row["grid"] for row in rows}
    lines = {}
    for row in rows:
        words = [row["kv"].replace(":s1:r2", "")] + ([row["model"]] if len(models) > 1 else []) + ([row["grid"]] if len(grids) > 1 else [])
        lines.setdefault((" ".join(words), row["path"]), []).append({**row, "at": int(row["position"]), "n": int(row["tokens"])})
    lines = {key: sorted(line, key=lambda row: row["at"]) for key, line in lines.items()}
    whole = {key: all(a["at"] + a["n"] == b["at"] for a, b in zip(line, line[1:])) for key, line in lines.items()}
    return {f"{name}{'' if whole[name, path] else ', samples'}": line for (name, path), line in lines.items()}


def name_of(tokens):
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def colours_of(lines):
    used, others = {}, 0
    for name in lines:
        colour = COLOURS.get(name.split(":")[0].split(",")[0].split(" ")[0])
        if colour is None:
            colour, others = OTHERS[others % len(OTHERS)], others + 1
        used[name] = colour
    return used


def set_positions(axes, most):
    ticks = [0] + [1 << k for k in range(11, 31) if 1 << k <= 2 * most]
    axes.set_xscale("symlog", base=2, linthresh=2048, linscale=0.5)
    axes.set_xticks(ticks, [name_of(tick) for tick in ticks], rotation=45, fontsize="small")
    axes.set_xlim(0, 1.15 * most)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("position")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    lines = read_lines(sys.argv[2:])
    if not lines:
        sys.exit("no chunk of bench prefill in these files")
    colours, most = colours_of(lines), max(row["at"] + row["n"] for line in lines.values() for row in line)
    figure, (speed, share, parts) = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    for name, line in lines.items():
        mark = "s" if name.endswith("samples") else "-"
        speed.plot([row["at"] for row in line], [float(row["tokens_s"]) for row in line], mark, color=colours[name], label=name, markersize=4)
        share.plot([row["at"] for row in line], [float(row["percent"]) for row in line], mark, color=colours[name],
                   markersize=4, linewidth=1)
        apart = [row for row in line if row["attend_percent"] and row["at"] > 0]
        share.plot([row["at"] for row in apart], [float(row["attend_percent"]) for row in apart], "^:", color=colours[name], markersize=5)
    speed.set_yscale("log", base=2)
    least, best = (f(float(row["tokens_s"]) for line in lines.values() for row in line) for f in (min, max))
    speed.set_yticks([n for n in (10**k * d for k in range(0, 7) for d in (1, 2, 5)) if least / 1.5 <= n <= 1.5 * best])
    speed.yaxis.set_major_formatter("{x:,.0f}")
    speed.set_ylabel("tokens a second")
    speed.legend(fontsize="small")
    share.set_ylim(0, 105)
    share.set_ylabel("% of a large GEMM's rate (triangles: attention alone)")
    for axes in (speed, share):
        set_positions(axes, most)
    shown = [(name, row) for name, line in lines.items() for row in [row for row in line if row["gemm_ms"]][::max(1, len([r for r in line if r["gemm_ms"]]) - 1)]]
    left = [0.0] * len(shown)
    for key, label, colour in PARTS:
        ms = [100 * float(row[key]) / sum(float(row[other]) for other, _, _ in PARTS) for _, row in shown]
        parts.barh(range(len(shown)), ms, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, ms)]
    parts.set_yticks(range(len(shown)), [f"{name}\nat {name_of(row['at'])}: {float(row['ms']):.0f} ms" for name, row in shown], fontsize="small")
    parts.invert_yaxis()
    parts.set_xlabel("% of a chunk's time, op by op")
    parts.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5)
    figure.savefig(sys.argv[1] + ".svg")
    figure.savefig(sys.argv[1] + ".png", dpi=110)


main()
