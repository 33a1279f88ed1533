"""Spectrograms for the listening page, as PNG in base64. Needs matplotlib."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from encodec_fast.pages import png_text

matplotlib.use("Agg")

WINDOW = 512
# Shown below the loudest bin of the original, decibels
RANGE_DB = 80.0


def spectrograms(versions: list[np.ndarray], sampling_rate: int) -> list[str]:
    """Draws the spectrogram of each version [C, T] of one clip, channels averaged; colours are those of the first one's loudness."""
    from matplotlib.figure import Figure

    powers = [_power(version.mean(axis=0)) for version in versions]
    top = max(float(powers[0].max()), -100.0)
    pictures = []
    for version, power in zip(versions, powers):
        figure = Figure(figsize=(3.2, 1.7), dpi=120)
        # by hand: the layouts that matplotlib computes take most of the time
        axes = figure.add_axes((0.11, 0.2, 0.86, 0.75))
        extent = (0.0, version.shape[1] / sampling_rate, 0.0, sampling_rate / 2000)
        axes.imshow(power, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - RANGE_DB, vmax=top)
        axes.set_xlabel("s", fontsize=7, labelpad=1)
        axes.set_ylabel("kHz", fontsize=7, labelpad=2)
        axes.tick_params(labelsize=7)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        pictures.append(png_text(figure))
    return pictures


def _power(samples: np.ndarray) -> np.ndarray:
    """Returns decibels [WINDOW // 2 + 1, frames]; a clip shorter than a window is filled up with zeros."""
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[:: WINDOW // 2] * np.hanning(WINDOW)
    power: np.ndarray = 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-10)
    return power
