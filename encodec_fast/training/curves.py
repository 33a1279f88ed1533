"""The curves of a run's report, as PNG in base64. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from encodec_fast.pages import png_text
from encodec_fast.pages.figures import BAR, INK, new_axes

matplotlib.use("Agg")

# Column of metrics.csv: title, axis
CURVES = {
    "mel": ("Mel loss", "of training crops"),
    "val_mel": ("Mel loss, validation", "mean over clips"),
    "time": ("Time loss", "of training crops"),
    "val_si_snr": ("SI-SNR, validation", "dB"),
    "val_stoi": ("STOI, validation", "mean over clips"),
    "features": ("Feature loss", "of training crops"),
    "generator": ("Loss of the generator", "hinge"),
    "discriminator": ("Loss of the discriminator", "hinge; 2: it can't tell"),
    "commitment": ("Commitment loss", "sum over levels"),
    "perplexity": ("Perplexity of the codes", "mean over levels"),
}


def curves(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Draws a picture for each column of metrics.csv that has numbers; returns titles and pictures.

    rows: as `csv.DictReader` gives them.
    """
    found = []
    for name, (title, ylabel) in CURVES.items():
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        if points:
            found.append((title, _curve(np.array(points), ylabel)))
    uses = [name for name in rows[-1] if name.startswith("val_use_")] if rows else []
    validated = [row for row in rows if uses and row[uses[0]]]
    if validated:
        shares = [100 * float(validated[-1][name]) for name in uses if validated[-1][name]]
        found.append((f"Entries in use, validation at step {validated[-1]['step']}", _use(shares)))
    return found


def _curve(points: np.ndarray, ylabel: str) -> str:
    """Draws steps and values, [N, 2]."""
    figure, axes = new_axes("step", ylabel, height=2.4)
    steps, values = points.T
    # of training, a row is one batch; its mean over a fiftieth of the run tells more
    width = max(1, len(values) // 50)
    if width > 1:
        axes.plot(steps, values, color=BAR, linewidth=0.8, alpha=0.35)
        axes.plot(steps[width - 1 :], np.convolve(values, np.full(width, 1 / width), "valid"), color=INK, linewidth=1.4)
    else:
        axes.plot(steps, values, color=BAR, linewidth=1.6, marker=".")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    return png_text(figure)


def _use(shares: Sequence[float]) -> str:
    figure, axes = new_axes("level", "%", height=2.4)
    axes.bar(range(1, len(shares) + 1), shares, color=BAR)
    axes.set_ylim(0, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return png_text(figure)
