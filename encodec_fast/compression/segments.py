"""Stretches of a clip that are stored one by one, and the errors of compressed files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class CompressedFileError(ValueError):
    """A compressed file that can't be read or written; the message says where and why."""


@dataclass(frozen=True)
class Segment:
    """The codes of a stretch of a clip.

    codes: integers [K, F], chunks end to end.
    scales: float32 [n_chunks], one for each chunk; None of a model that doesn't normalize.
    start, samples: where it lies in the clip, and what its codes cover, at the model's rate.
    """

    codes: np.ndarray
    scales: np.ndarray | None
    start: int
    samples: int
