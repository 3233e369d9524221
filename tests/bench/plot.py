#!/usr/bin/env python3
"""Draws attention's time, and its share of the read bandwidth, against the context, as SVG and PNG.

    plot.py OUT CSV...        OUT.svg and OUT.png from the rows of `bitshard bench kernel --csv` and torch_attend.py

One line of panels for each family of shapes (batch x heads, one query token, head size 128), a curve for each format
that has two contexts or more. Dashed: stored bytes over the read bandwidth of the same run, the time that no kernel can beat. For each format
the faster of plain and overlapped launches. Needs matplotlib.
"""
import csv
import sys

COLOURS = {"f16": "#666666", "int8": "#8c6d31", "int4": "#1f77b4", "int2": "#d62728"}
OTHERS = ["#2ca02c", "#9467bd", "#17becf", "#e377c2"]


def read_rows(paths):
    """Rows of attend that passed their check, figures as numbers."""
    rows = []
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["op"] != "attend" or row["check"] != "passed" or row["window"] != "0":
                    continue
                if row["tokens"] != "1" or row["head_dim"] != "128" or row["shape"].startswith("ragged"):
                    continue
                row["name"] = row["mode"] if row["mode"].startswith("torch") else row["kv"].replace(":s1:r2", "")
                for key in ("batch", "heads", "kv_heads", "context", "bytes", "us"):
                    row[key] = float(row[key])
                row["read_gb_s"] = float(row["read_gb_s"] or 0)
                rows.append(row)
    return rows


def families(rows):
    """{(batch, heads, KV heads): {name: {context: fastest row}}} of what has two contexts or more."""
    found = {}
    for row in rows:
        family = found.setdefault((row["batch"], row["heads"], row["kv_heads"]), {})
        line = family.setdefault(row["name"], {})
        best = line.get(row["context"])
        if best is None or row["us"] < best["us"]:
            line[row["context"]] = row
    lines = {key: {name: line for name, line in family.items() if len(line) > 1} for key, family in sorted(found.items())}
    return {key: family for key, family in lines.items() if family}


def colour_of(name, used):
    for part, colour in COLOURS.items():
        if name.startswith(part + ":") or name == part:
            return colour
    return OTHERS[used.setdefault(name, len(used)) % len(OTHERS)]


def context_name(tokens):
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{int(tokens) // size}{unit}"
    return str(int(tokens))


def draw_family(time_axes, share_axes, key, family, read_gb_s, used):
    contexts = sorted({context for line in family.values() for context in line})
    for name, line in family.items():
        at = sorted(line)
        colour = colour_of(name, used)
        times = [line[s]["us"] for s in at]
        floor = [line[s]["bytes"] / read_gb_s * 1e-3 for s in at]
        time_axes.plot(at, times, "o-", color=colour, label=name, markersize=4)
        time_axes.plot(at, floor, "--", color=colour, linewidth=0.8)
        share_axes.plot(at, [100 * f / t for f, t in zip(floor, times)], "o-", color=colour, label=name, markersize=4)
    for axes in (time_axes, share_axes):
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [context_name(s) for s in contexts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set_xlabel("cached tokens of each sequence")
    time_axes.set_yscale("log")
    time_axes.set_ylabel("µs a call")
    share_axes.set_ylabel("% of the read bandwidth")
    share_axes.set_ylim(0, 105)
    time_axes.set_title("{:.0f} × {:.0f}/{:.0f} heads".format(*key), fontsize=10, loc="left")
    time_axes.legend(fontsize=7, frameon=False)


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: plot.py OUT CSV...")
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("plot.py: this Python has no matplotlib (Debian: python3-matplotlib; elsewhere: pip install matplotlib)")
    rows = read_rows(sys.argv[2:])
    read_gb_s = max((row["read_gb_s"] for row in rows), default=0)
    drawn = families(rows)
    if not drawn or read_gb_s == 0:
        sys.exit("plot.py: no family of shapes with two contexts, or no row that knows the read bandwidth")
    plt.rcParams["svg.hashsalt"] = "bitshard"
    figure, axes = plt.subplots(len(drawn), 2, figsize=(10, 3.4 * len(drawn)), squeeze=False, layout="constrained")
    used = {}
    for (time_axes, share_axes), (key, family) in zip(axes, drawn.items()):
        draw_family(time_axes, share_axes, key, family, read_gb_s, used)
    device = next(row["device"] for row in rows)
    figure.suptitle(f"Decode attention, {device}, streaming read {read_gb_s:.0f} GB/s (dashed: stored bytes at that rate)", fontsize=10)
    for kind in ("svg", "png"):
        figure.savefig(f"{sys.argv[1]}.{kind}", dpi=150, metadata={"Date": None} if kind == "svg" else None)
    print(f"wrote {sys.argv[1]}.svg and {sys.argv[1]}.png: {len(rows)} rows, {len(drawn)} families of shapes")


main()
