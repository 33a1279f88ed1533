"""Frequencies of codes, fitted to codes of one model: what `static` codes with, and `adaptive` begins with.

A table is one byte for each entry of a codebook: a number with four bits of mantissa, which whole numbers can compute with.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from encodec_fast.compression.segments import CompressedFileError

MAGIC = b"ECDT"
# Magic, version, levels, entries of a codebook, sha256 of the codec's weights
_HEADER = struct.Struct("!4sBHI32s")
MOST_ENTRIES = 1 << 16
# An entry that the fit never met counts as this share of a mean one: other audio has it
_UNSEEN = 0.05


@dataclass(frozen=True)
class Tables:
    """Frequencies of each level's codes.

    steps: uint8 [K, N]; the frequency of a step is `frequencies_of(step)`.
    weights_sha256: of the model whose codes they were fitted to.
    """

    steps: np.ndarray
    weights_sha256: str

    @property
    def levels(self) -> int:
        """How many levels have a table."""
        return self.steps.shape[0]

    @property
    def codebook_size(self) -> int:
        """Entries of each codebook."""
        return self.steps.shape[1]

    @cached_property
    def frequencies(self) -> np.ndarray:
        """Whole numbers of 16 and more, int64 [K, N]."""
        return frequencies_of(self.steps)

    @cached_property
    def starts(self) -> np.ndarray:
        """Sums of the frequencies before each entry, and of all, int64 [K, N + 1]."""
        return np.pad(np.cumsum(self.frequencies, axis=1), ((0, 0), (1, 0)))

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the file, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Returns the tables as a file."""
        header = _HEADER.pack(MAGIC, 1, self.levels, self.codebook_size, bytes.fromhex(self.weights_sha256))
        return header + self.steps.tobytes()


def frequencies_of(steps: np.ndarray) -> np.ndarray:
    """Returns the frequency that each step stands for, int64: 16 to 31, times a power of two of the upper four bits."""
    steps = steps.astype(np.int64)
    return (16 + (steps & 15)) << (steps >> 4)


def fit_tables(codes: Iterable[np.ndarray], codebook_size: int, weights_sha256: str) -> Tables:
    """Returns the tables that fit these codes.

    codes: integers [K, F] each, of one model at its highest bandwidth: levels beyond those of the first are left out.
    weights_sha256: of the model, as `plan.weights.weights_sha256` has it.
    Raises ValueError where there are no codes, or a code is none of the codebook.
    """
    counts: np.ndarray | None = None
    for clip in codes:
        if clip.size and not 0 <= clip.min() <= clip.max() < codebook_size:
            raise ValueError(f"codes has a code outside 0 ... {codebook_size - 1}; give the model's codebook_size.")
        levels = clip.shape[0] if counts is None else min(clip.shape[0], counts.shape[0])
        found = np.stack([np.bincount(level, minlength=codebook_size) for level in clip[:levels]])
        counts = found if counts is None else counts[:levels] + found
    if counts is None or not counts.any():
        raise ValueError("codes has no frames; tables are fitted to some.")
    # in proportion to the largest, which is near the greatest frequency of a step
    wanted = counts + _UNSEEN * np.maximum(1.0, counts.mean(axis=1, keepdims=True))
    wanted *= 2.0**19 / wanted.max(axis=1, keepdims=True)
    # the step next to it in logarithms
    all_steps = frequencies_of(np.arange(256))
    edges = np.sqrt(all_steps[:-1].astype(np.float64) * all_steps[1:])
    return Tables(np.searchsorted(edges, wanted).astype(np.uint8), weights_sha256)


def read_tables(source: Path | bytes) -> Tables:
    """Returns the tables of a file or of its bytes.  Raises CompressedFileError for what is none."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    name = "these bytes" if isinstance(source, bytes) else str(source)
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise CompressedFileError(f"{name}: no tables of codes; a file that `fit_tables(...).to_bytes()` gave is needed.")
    _, version, levels, entries, weights = _HEADER.unpack(data[: _HEADER.size])
    if version != 1 or not 1 <= entries <= MOST_ENTRIES or not levels or len(data) != _HEADER.size + levels * entries:
        raise CompressedFileError(f"{name}: tables of version {version}, {levels} levels and {entries} entries in {len(data)} bytes.")
    steps = np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(levels, entries)
    return Tables(steps, weights.hex())
