"""The pictures of a data set's report, as PNG in base64. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator

from encodec_fast.dataset.records import Record
from encodec_fast.dataset.statistics import FolderStatistics
from encodec_fast.pages import png_text
from encodec_fast.pages.figures import BAR, INK, new_axes

matplotlib.use("Agg")

PAUSE_SECONDS = 600.0


def durations(seconds: np.ndarray) -> str:
    """Draws how many clips have which length.  seconds: of each, [N]."""
    figure, axes = new_axes("seconds (logarithmic)", "clips")
    axes.yaxis.get_major_locator().set_params(integer=True)
    if len(seconds):
        low, high = max(1e-3, float(seconds.min())), float(seconds.max())
        axes.hist(seconds, bins=np.geomspace(low, max(high, 1.01 * low), 41), color=BAR)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        middle = float(np.median(seconds))
        axes.axvline(middle, color=INK, linewidth=1)
        axes.annotate(f" median {middle:.3g} s", (middle, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    return png_text(figure)


def use(found: FolderStatistics) -> str:
    """Draws the share of each codebook's entries that occur."""
    figure, axes = new_axes("level", "entries in use, %")
    axes.bar([each.level for each in found.codebooks], [100 * each.used / found.codebook_size for each in found.codebooks], color=BAR)
    axes.set_ylim(0, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return png_text(figure)


def entropy(found: FolderStatistics) -> str:
    """Draws the bits per code of each level beside what they are at most."""
    figure, axes = new_axes("level", "bits per code")
    axes.bar([each.level for each in found.codebooks], [each.entropy for each in found.codebooks], color=BAR)
    most = float(np.log2(found.codebook_size))
    axes.axhline(most, color=INK, linewidth=1, linestyle="--")
    axes.annotate("all entries alike", (1, most), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    axes.set_ylim(0, 1.12 * most)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return png_text(figure)


def throughput(records: Sequence[Record]) -> str | None:
    """Draws how fast the run went, over the time that it worked. Returns None of a run too short to tell."""
    figure, axes = new_axes("minutes of work", "x real time, all writers")
    paces = np.array(sorted(tuple(pace) for record in records for pace in record.paces) or [(0.0, 0.0)])
    # pauses between runs are cut out
    steps = np.diff(paces[:, 0], prepend=paces[0, 0])
    minutes = np.cumsum(np.where(steps > PAUSE_SECONDS, 0.0, steps)) / 60
    if minutes[-1] <= 0:
        return None
    bins = np.linspace(0, minutes[-1], 1 + min(60, max(2, len(paces) // 4)))
    audio, _ = np.histogram(minutes[1:], bins, weights=paces[1:, 1])
    axes.stairs(audio / (60 * np.diff(bins)), bins, color=BAR, fill=True)
    axes.set_ylim(bottom=0)
    return png_text(figure)
