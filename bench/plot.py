"""Draws the pictures of the documentation from bench/results: `python bench/plot.py [--results FOLDER] [--out docs/plots]`."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import matplotlib

from bench_lib import results
from bench_lib.legend import LEGEND, OTHER_COLOURS
from bench_lib.results import Row
from bench_lib.tables import threads_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def most_threads(rows: list[Row]) -> int:
    """Returns the largest number of threads that the rows were measured with: one picture shows one number."""
    return max(row["environment"]["threads"] for row in rows)


def speed(rows: list[Row], out: Path) -> None:
    """Draws x real time of each contender, by model, call, batch and length, at one bandwidth."""
    threads = most_threads(rows)
    rows = [row for row in rows if "median" in row and row["case"]["bandwidth"] == 6 and row["environment"]["threads"] == threads]
    models = [model for model in ("demo", "demo-48khz") if any(row["case"]["model"] == model for row in rows)]
    panels = [(model, call) for model in models for call in ("encode", "decode")]
    figure, axes = plt.subplots(len(models), 2, figsize=(11, 1 + 3.3 * len(models)), layout="constrained", squeeze=False)
    names = [name for name in LEGEND if any(row["contender"] == name for row in rows)]
    for axis, (model, call) in zip(axes.flat, panels):
        shown = [row for row in rows if (row["case"]["model"], row["case"]["call"]) == (model, call)]
        shapes = sorted({(row["case"]["batch"], row["case"]["seconds"]) for row in shown})
        for place, name in enumerate(names):
            values = {(row["case"]["batch"], row["case"]["seconds"]): row["x_real_time"] for row in shown if row["contender"] == name}
            width = 0.84 / len(names)
            at = [index + (place - (len(names) - 1) / 2) * width for index, shape in enumerate(shapes) if shape in values]
            heights = [values[shape] for shape in shapes if shape in values]
            bars = axis.bar(at, heights, width, color=LEGEND[name].colour, label=LEGEND[name].label)
            if name.startswith("ours"):
                axis.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        axis.set_xticks(range(len(shapes)), [f"{batch} x {seconds:g} s" for batch, seconds in shapes])
        axis.set_title(f"{'48 kHz stereo' if '48' in model else '24 kHz'}, {call}", loc="left")
        axis.set_ylabel("x real time")
        axis.grid(axis="x", visible=False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(f"Seconds of audio per second of work: {_machine(rows)}, {threads_of(rows[-1]['environment'])}, float32, 6 kbps")
    _save(figure, out / "speed.png")


def stages(rows: list[Row], out: Path) -> None:
    """Draws the share of its floor that each stage reaches, per contender."""
    threads = most_threads(rows)
    rows = [row for row in rows if row["environment"]["threads"] == threads and row["case"]["model"] == "demo"]
    batch = max(row["case"]["batch"] for row in rows)
    figure, axes = plt.subplots(1, 2, figsize=(11, 6.5), layout="constrained")
    names = [name for name in LEGEND if any(row["contender"] == name for row in rows)]
    for axis, call in zip(axes, ("encode", "decode")):
        shown = [row for row in rows if row["case"]["call"] == call and row["case"]["batch"] == batch]
        order = list(dict.fromkeys(row["stage"] for row in shown))
        for place, name in enumerate(names):
            values = {row["stage"]: row["share_of_floor"] for row in shown if row["contender"] == name}
            height = 0.8 / len(names)
            at = [index + (place - (len(names) - 1) / 2) * height for index, stage in enumerate(order) if stage in values]
            axis.barh(
                at, [values[stage] for stage in order if stage in values], height, color=LEGEND[name].colour, label=LEGEND[name].label
            )
        bound = {row["stage"]: row["bound_by"] for row in shown}
        axis.set_yticks(range(len(order)), [_stage_label(stage) + ("  (memory)" if bound[stage] == "memory" else "") for stage in order])
        axis.invert_yaxis()
        axis.axvline(1, color="#c0392b", linewidth=1)
        axis.set_xlabel("share of the floor")
        axis.set_title(call, loc="left")
        axis.grid(axis="y", visible=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    case = rows[0]["case"]
    figure.suptitle(
        f"Each stage alone, 24 kHz, {batch} x {case['seconds']:g} s: {_machine(rows)}, {threads_of(rows[-1]['environment'])}\n"
        "1 is torch's own matrix product, or its copy where a stage is bound by memory"
    )
    _save(figure, out / "stages.png")


def lengths(rows: list[Row], out: Path) -> None:
    """Draws time and peak memory against the length of one clip."""
    threads = most_threads(rows)
    rows = [row for row in rows if "median" in row and row["environment"]["threads"] == threads]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained", sharex=True)
    for column, call in enumerate(("encode", "decode")):
        shown = [row for row in rows if row["case"]["call"] == call]
        for name in LEGEND:
            points = sorted((row["case"]["seconds"], row["median"], row["peak_bytes"] / 2**20) for row in shown if row["contender"] == name)
            if not points:
                continue
            seconds, times, peaks = zip(*points)
            style = dict(color=LEGEND[name].colour, marker=LEGEND[name].marker, markersize=5, label=LEGEND[name].label)
            axes[0, column].plot(seconds, times, **style)
            axes[1, column].plot(seconds, [max(peak, 1) for peak in peaks], **style)
        _slope(axes[0, column], shown)
        for axis in axes[:, column]:
            axis.set_xscale("log")
            axis.set_yscale("log")
        axes[0, column].set_title(call, loc="left")
        axes[0, column].set_ylabel("time of one call, s")
        axes[1, column].set_ylabel("peak memory beyond\nmodel and input, MiB")
        axes[1, column].set_xticks([1, 10, 60, 600, 3600], ["1 s", "10 s", "1 min", "10 min", "1 h"])
        axes[1, column].minorticks_off()
        axes[1, column].set_xlabel("length of the clip")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"One clip, 24 kHz, 6 kbps: {_machine(rows)}, {threads_of(rows[-1]['environment'])}")
    _save(figure, out / "lengths.png")


def _slope(axis: Axes, rows: list[Row]) -> None:
    """Draws a thin line of linear growth through our longest clip."""
    own = [row for row in rows if row["contender"] == "ours-cpu"]
    if own:
        last = max(own, key=lambda row: row["case"]["seconds"])
        seconds = last["case"]["seconds"]
        axis.plot(
            [1, seconds], [last["median"] / seconds, last["median"]], color="#c0392b", linewidth=0.8, linestyle=":", label="linear growth"
        )


def margins(rows: list[Row], out: Path) -> None:
    """Draws how many codes have less than a given margin, and where each way of computing lies."""
    studies = [row for row in rows if "margin_histogram" in row]
    if not studies:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained", width_ratios=(1, 1.1))
    # lines of one ink: a colour is a contender's
    for row, line in zip(studies, itertools.cycle(("-", "--", ":"))):
        edges, counts = row["margin_histogram"]["log10_edges"], row["margin_histogram"]["counts"]
        total, below, shares = sum(counts), 0, []
        for count in counts:
            below += count
            shares.append(below / total)
        left.plot([10**edge for edge in edges[1:]], shares, line, color="#222222", label=f"{row['model']}")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("margin: change of the embedding that swaps the code, relative")
    left.set_ylabel("share of codes with less")
    left.set_title("margins in float64", loc="left")
    left.legend()
    model = studies[0]["model"]
    others = itertools.cycle(zip(OTHER_COLOURS, "<>*hXp"))
    for row in (row for row in rows if "levels" in row and row["model"] == model):
        own = [entry for entry in LEGEND.values() if row["contender"].startswith(entry.label)]
        colour, marker = (own[-1].colour, own[-1].marker) if own else next(others)
        shares = [level["differing"] / level["codes"] for level in row["levels"]]
        right.plot(range(1, len(shares) + 1), shares, color=colour, marker=marker, markersize=5, label=row["contender"])
    # linear below one code in a thousand: a way without any difference lies on the axis
    right.set_yscale("symlog", linthresh=1e-3)
    right.set_ylim(-1e-4, 1.5)
    right.set_xlabel("level of the quantizer")
    right.set_ylabel("share of codes unlike float64's")
    right.set_title(f"codes that differ from float64, {model}", loc="left")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    _save(figure, out / "margins.png")


def _stage_label(stage: str) -> str:
    return stage.removeprefix("layers.")


def _machine(rows: list[Row]) -> str:
    machine = rows[-1]["environment"]["machine"]
    return machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    print(path)


PICTURES = {"cpu": speed, "kernels": stages, "memory": lengths, "precision": margins}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "plots")
    options = parser.parse_args()
    plt.rcParams.update(STYLE)
    for suite, draw in PICTURES.items():
        rows = results.latest(results.read(options.results / f"{suite}.jsonl"))
        if rows:
            draw(rows, options.out)
        else:
            print(f"no picture of the suite {suite}: {options.results / suite}.jsonl has no rows")


if __name__ == "__main__":
    main()
