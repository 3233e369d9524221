#!/usr/bin/env python3
"""Draws perplexity, and what each format adds to f16's, against the tokens read, as SVG.

    plot_eval.py OUT.svg CSV [FORMAT...]     from the rows of `bitshard eval --csv FILE --every N`

The CSV must have f16; FORMATs are the ones to draw, as --kv had them, without any all of the file. Needs matplotlib.
"""
import csv
import sys

COLOURS = {"f16": "#666666", "int8": "#8c6d31", "int4": "#1f77b4", "k4v2": "#2ca02c", "int2": "#d62728"}
OTHERS = ["#9467bd", "#17becf", "#e377c2", "#ff7f0e", "#bcbd22"]


def read(path):
    """{format: {tokens: perplexity}}"""
    lines = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            lines.setdefault(row["kv"], {})[int(row["tokens"])] = float(row["perplexity"])
    return lines


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "bitshard", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    lines = read(sys.argv[2])
    reference = lines["f16"]
    names = sys.argv[3:] or list(lines)
    others = iter(OTHERS)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in names:
        at, colour = sorted(lines[name]), COLOURS.get(name) or next(others)
        style = "--" if ":" in name else "-"
        left.plot(at, [lines[name][n] for n in at], style, color=colour, label=name)
        if name != "f16":
            right.plot(at, [100 * (lines[name][n] / reference[n] - 1) for n in at], style, color=colour, label=name)
    left.set_title("perplexity of the text so far")
    right.set_title("over f16's, %")
    for axes in (left, right):
        axes.set_xlabel("tokens")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    right.axhline(0, color=COLOURS["f16"], linewidth=0.8)
    left.legend(frameon=False)
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
