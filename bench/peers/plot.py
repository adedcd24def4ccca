"""Draws a result: plot.py RESULT.json PICTURE.png. Runs in an environment with matplotlib."""

import json
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

import report  # noqa: E402

COLOURS = {"kvd": "#0b6e4f", "mooncake": "#d1495b", "lmcache": "#edae49", "redis": "#66799e",
           "memcached": "#9a8fb5"}


def _bars(axes, rows, stores, columns, key, value):
    """Groups of bars with whiskers from minimum to maximum."""
    width = 0.8 / max(1, len(stores))
    for index, store in enumerate(stores):
        for place, column in enumerate(columns):
            row = next((row for row in rows if row["store"] == store["name"]
                        and row[key] == column), None)
            spread = value(row) if row else None
            if spread is None:
                continue
            middle = spread["median"]
            axes.bar(place - 0.4 + width * (index + 0.5), middle, width * 0.94,
                     yerr=[[middle - spread["min"]], [spread["max"] - middle]],
                     color=COLOURS.get(store["name"], "#888888"), ecolor="#333333", capsize=1.5,
                     error_kw={"linewidth": 0.8}, label=store["title"] if place == 0 else None)
            axes.annotate(f"{middle:.2f}" if middle < 10 else f"{middle:,.0f}",
                          (place - 0.4 + width * (index + 0.5), spread["max"]), fontsize=6,
                          ha="center", va="bottom", xytext=(0, 1), textcoords="offset points")
    axes.set_xticks(range(len(columns)))
    axes.spines[["top", "right"]].set_visible(False)


def draw(result, path):
    rows = result["throughput"]
    stores = [store for store in result["stores"] if store["name"] != "memcpy"
              and any(row["store"] == store["name"] for row in rows)]
    sizes = sorted({row["bytes"] for row in rows})
    batches = sorted({row["batch"] for row in rows})
    figure = pyplot.figure(figsize=(12, 10), layout="constrained")
    grid = figure.add_gridspec(3, len(batches))
    first = None
    for down, operation in enumerate(("get", "put")):
        for across, batch in enumerate(batches):
            axes = figure.add_subplot(grid[down, across], sharey=first)
            first = first or axes
            some = [row for row in rows
                    if row["operation"] == operation and row["batch"] == batch]
            _bars(axes, some, stores, sizes, "bytes", lambda row: row["ratio"])
            axes.axhline(1, color="#333333", linewidth=0.8, linestyle="--")
            axes.set_xticklabels([report.size_name(size) for size in sizes])
            axes.set_title(f"{operation}, {report.batch_name(batch)}", fontsize=11)
            if across == 0:
                axes.set_ylabel("speed / memcpy (more is better)")
    axes = figure.add_subplot(grid[2, :])
    keys = sorted({row["keys"] for row in result["existence"]})
    _bars(axes, result["existence"], stores, keys, "keys", lambda row: row["p50_us"])
    axes.set_yscale("log")
    axes.set_xticklabels([f"{count} keys" for count in keys])
    axes.set_ylabel("us a call (less is better)")
    axes.set_title("existence of n keys", fontsize=11)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(stores), frameon=False)
    machine = result["machine"]
    figure.supxlabel(
        f"{machine['cpu']}, 2 processes on {len(machine['cpus'])} CPUs; median of "
        f"{result['options']['rounds']} rounds, whiskers minimum to maximum; kvd alone verifies "
        "what it returns", fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as source:
        draw(json.load(source), sys.argv[2])
