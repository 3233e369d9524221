#!/usr/bin/env python3
"""Draws a token's time against the cached tokens, and where it goes, as SVG and PNG.

    plot_decode.py OUT CSV...     OUT.svg and OUT.png from the rows of `bitshard bench decode --csv` and torch_decode.py

Left: milliseconds a token, a curve for each format, model and grid; dashed: its floor, weights and cache read once at the
bandwidth of a streaming read of the same run. Right: the parts of a step op by op, of the longest context of each. Rows of
batch 1, else of the smallest batch there is. Needs matplotlib.
"""
import csv
import sys

COLOURS = {"f16": "#666666", "bf16": "#aaaaaa", "int8": "#8c6d31", "int4": "#1f77b4", "int2": "#d62728"}
OTHERS = ["#2ca02c", "#9467bd", "#17becf", "#e377c2"]
PARTS = (("attend_ms", "attention", "#1f77b4"), ("dense_ms", "dense", "#ff7f0e"), ("comm_ms", "collectives", "#2ca02c"),
         ("other_ms", "other", "#999999"))


def read_rows(paths):
    rows = []
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["op"] != "decode" or row["check"] != "passed":
                    continue
                for key in ("batch", "context", "ms"):
                    row[key] = float(row[key])
                rows.append(row)
    batch = min((row["batch"] for row in rows), default=1)
    return [row for row in rows if row["batch"] == batch]


def lines_of(rows):
    """{name: {context: row}}; the model and the grid are named where they differ."""
    models, grids = {row["model"] for row in rows if "PyTorch" not in row["model"]}, {row["grid"] for row in rows}
    lines = {}
    for row in rows:
        words = [row["kv"].replace(":s1:r2", "")]
        if "PyTorch" in row["model"]:
            words.append("PyTorch, one graph")
        elif len(models) > 1:
            words.append(row["model"])
        if len(grids) > 1:
            words.append(row["grid"])
        lines.setdefault(" ".join(words), {})[row["context"]] = row
    return lines


def context_name(tokens):
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{int(tokens) // size}{unit}"
    return str(int(tokens))


def draw_times(axes, lines):
    contexts, n_others = sorted({context for line in lines.values() for context in line}), 0
    for name, line in lines.items():
        colour = COLOURS.get(name.split(":")[0].split(" ")[0])
        if colour is None:
            colour = OTHERS[n_others % len(OTHERS)]
            n_others += 1
        at = sorted(line)
        axes.plot(at, [line[s]["ms"] for s in at], "s:" if "PyTorch" in name else "o-", color=colour, label=name, markersize=4)
        if all(line[s].get("floor_ms") for s in at):
            axes.plot(at, [float(line[s]["floor_ms"]) for s in at], "--", color=colour, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(contexts, [context_name(s) for s in contexts])
    axes.minorticks_off()
    most, least = max(row["ms"] for line in lines.values() for row in line.values()), axes.get_ylim()[0]
    axes.set_yticks([n * 2**k for k in range(-4, 12) for n in (2, 3) if least <= n * 2**k <= 1.2 * most])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.set_xlabel("cached tokens")
    axes.set_ylabel("ms a token (dashed: floor)")
    axes.legend(fontsize="small")


def draw_parts(axes, lines):
    shown = [(name, line[max(line)]) for name, line in lines.items() if line[max(line)].get("attend_ms")]
    left = [0.0] * len(shown)
    for key, label, colour in PARTS:
        ms = [float(row[key]) for _, row in shown]
        axes.barh(range(len(shown)), ms, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, ms)]
    axes.plot([row["ms"] for _, row in shown], range(len(shown)), "k|", markersize=16, label="a token as it runs")
    axes.set_yticks(range(len(shown)), [f"{name}\n{context_name(row['context'])}" for name, row in shown], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("ms of a step op by op")
    axes.legend(fontsize="small")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    lines = lines_of(read_rows(sys.argv[2:]))
    if not lines:
        sys.exit("no measured row of bench decode in these files")
    figure, (times, parts) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    draw_times(times, lines)
    draw_parts(parts, lines)
    figure.savefig(sys.argv[1] + ".svg")
    figure.savefig(sys.argv[1] + ".png", dpi=110)


main()
