"""The look that the plots of pages have in common. Needs matplotlib."""

from __future__ import annotations

from typing import Any

# One hue: no picture has more than one series
INK, BAR, FAINT = "#1f2937", "#2563eb", "#d1d5db"


def new_axes(xlabel: str, ylabel: str, height: float = 3.4) -> tuple[Any, Any]:
    """Returns an empty figure, 6.4 inches wide and `height` high, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes
