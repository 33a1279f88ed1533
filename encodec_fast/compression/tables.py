"""Frequencies of codes, fitted to codes of one model: what `static` codes with, and `adaptive` begins with.

A table is one byte for each entry of a codebook: a number with four bits of mantissa, which whole numbers can compute with.
Tables of order 0 have one for each level. Those of order 1 have several, one for each class of codes in a context:
the code of the frame before, or that of the level above.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from encodec_fast.compression.segments import CompressedFileError

MAGIC = b"ECDT"
# Magic, version, levels, entries of a codebook, sha256 of the codec's weights
_HEADER = struct.Struct("!4sBHI32s")
MOST_ENTRIES = 1 << 16
# Of a level in version 2: its context, and its classes
_LEVEL = struct.Struct("!BB")
NO_CONTEXT, FRAME_BEFORE, LEVEL_ABOVE = range(3)
# Of order 1: more classes gain nothing from an hour of speech
_CLASSES = 16
# Codes of order 0 that count with those of a class
_PRIOR = 1000
# Counts of pairs take the square of it
_MOST_ENTRIES_IN_PAIRS = 1 << 12
# An entry that the fit never met counts as this share of a mean one: other audio has it
_UNSEEN = 0.05


@dataclass(frozen=True)
class Context:
    """The tables of one level behind a code that is known already.

    kind: FRAME_BEFORE, of the same level; or LEVEL_ABOVE, of the same frame.
    classes: uint8 [N], the class of each such code.  steps: uint8 [classes, N], as those of `Tables`.
    """

    kind: int
    classes: np.ndarray
    steps: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """Sums of the frequencies before each entry, and of all, int64 [classes, N + 1]."""
        return _starts(frequencies_of(self.steps))


@dataclass(frozen=True)
class Tables:
    """Frequencies of each level's codes.

    steps: uint8 [K, N], of order 0; the frequency of a step is `frequencies_of(step)`.
    weights_sha256: of the model whose codes they were fitted to.
    contexts: one for each level, None where order 0 is better; empty of tables of order 0.
    """

    steps: np.ndarray
    weights_sha256: str
    contexts: tuple[Context | None, ...] = ()

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
        return _starts(self.frequencies)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the file, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Returns the tables as a file."""
        version = 2 if self.contexts else 1
        header = _HEADER.pack(MAGIC, version, self.levels, self.codebook_size, bytes.fromhex(self.weights_sha256))
        return header + self.steps.tobytes() + b"".join(map(_context_bytes, self.contexts))


def _starts(frequencies: np.ndarray) -> np.ndarray:
    return np.pad(np.cumsum(frequencies, axis=1), ((0, 0), (1, 0)))


def _context_bytes(context: Context | None) -> bytes:
    if context is None:
        return _LEVEL.pack(NO_CONTEXT, 0)
    return _LEVEL.pack(context.kind, len(context.steps)) + context.classes.tobytes() + context.steps.tobytes()


def frequencies_of(steps: np.ndarray) -> np.ndarray:
    """Returns the frequency that each step stands for, int64: 16 to 31, times a power of two of the upper four bits."""
    steps = steps.astype(np.int64)
    return (16 + (steps & 15)) << (steps >> 4)


def fit_tables(codes: Iterable[np.ndarray], codebook_size: int, weights_sha256: str, order: int = 0) -> Tables:
    """Returns the tables that fit these codes.

    codes: integers [K, F] each, of one model at its highest bandwidth: levels beyond those of the first are left out.
    weights_sha256: of the model, as `plan.weights.weights_sha256` has it.
    order: 0, or 1 for tables behind the code of the frame before or of the level above; each level gets what fits it best.
    Raises ValueError where there are no codes, or a code is none of the codebook.
    """
    if order not in (0, 1):
        raise ValueError(f"order is {order!r}; 0 and 1 are allowed.")
    if order and codebook_size > _MOST_ENTRIES_IN_PAIRS:
        raise ValueError(f"codebook_size is {codebook_size}; order 1 takes {_MOST_ENTRIES_IN_PAIRS} at most, take order 0.")
    counts: np.ndarray | None = None
    clips: list[np.ndarray] = []
    for clip in codes:
        if clip.size and not 0 <= clip.min() <= clip.max() < codebook_size:
            raise ValueError(f"codes has a code outside 0 ... {codebook_size - 1}; give the model's codebook_size.")
        levels = clip.shape[0] if counts is None else min(clip.shape[0], counts.shape[0])
        found = np.stack([np.bincount(level, minlength=codebook_size) for level in clip[:levels]])
        counts = found if counts is None else counts[:levels] + found
        if order:
            clips.append(clip.astype(np.uint16))
    if counts is None or not counts.any():
        raise ValueError("codes has no frames; tables are fitted to some.")
    wanted = counts + _UNSEEN * np.maximum(1.0, counts.mean(axis=1, keepdims=True))
    contexts = tuple(_fit_context(clips, level, shares / shares.sum()) for level, shares in enumerate(wanted)) if order else ()
    return Tables(_nearest_steps(wanted), weights_sha256, contexts)


def _nearest_steps(wanted: np.ndarray) -> np.ndarray:
    """Returns the steps next to these frequencies in logarithms, uint8 [K, N].  wanted: in any unit, above 0."""
    # in proportion to the largest, which is near the greatest frequency of a step
    wanted = wanted * (2.0**19 / wanted.max(axis=1, keepdims=True))
    all_steps = frequencies_of(np.arange(256))
    edges = np.sqrt(all_steps[:-1].astype(np.float64) * all_steps[1:])
    return np.searchsorted(edges, wanted).astype(np.uint8)


def _fit_context(clips: Sequence[np.ndarray], level: int, shares: np.ndarray) -> Context | None:
    """Returns the tables behind the context that tells most of a level's codes; None where none does.

    shares: of the level's codes, float64 [N].
    The context is chosen by the second half of the codes, with classes of the first: more tables always fit their own codes better.
    """
    least, chosen = np.inf, None
    for kind in (FRAME_BEFORE, LEVEL_ABOVE)[: 1 + (level > 0)]:
        before, after = _pairs(clips, level, kind)
        half = len(after) // 2
        classes, frequencies = _clustered(_counted(before[:half], after[:half], len(shares)), shares)
        other_before, other_after = before[half:], after[half:]
        cost = -np.log(frequencies[classes[other_before], other_after]).sum()
        if cost < min(least, -np.log(shares[other_after]).sum()):
            classes, frequencies = _clustered(_counted(before, after, len(shares)), shares)
            least, chosen = cost, Context(kind, classes.astype(np.uint8), _nearest_steps(frequencies))
    return chosen


def _pairs(clips: Sequence[np.ndarray], level: int, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the code in the context and the code behind it, for each code that has one."""
    if kind == FRAME_BEFORE:
        pairs = [(clip[level, :-1], clip[level, 1:]) for clip in clips]
    else:
        pairs = [(clip[level - 1], clip[level]) for clip in clips]
    return np.concatenate([first for first, _ in pairs]), np.concatenate([second for _, second in pairs])


def _counted(before: np.ndarray, after: np.ndarray, entries: int) -> np.ndarray:
    """Returns how often each pair came, float64 [N, N]."""
    places = before.astype(np.int64) * entries + after
    return np.bincount(places, minlength=entries * entries).reshape(entries, entries).astype(np.float64)


def _clustered(counts: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class of each code of a context, and the shares of the codes behind each class, [classes, N].

    counts: of pairs, float64 [N, N].  shares: of order 0, which fill up a class of few counts.
    By k-means with the length of the codes as the distance.
    """
    often = counts.sum(axis=1)
    seeds = np.argsort(-often, kind="stable")[: min(_CLASSES, len(often))]
    sums = counts[seeds]
    for _ in range(12):
        frequencies = (sums + _PRIOR * shares) / (sums.sum(axis=1, keepdims=True) + _PRIOR)
        classes = (counts @ np.log(frequencies).T).argmax(axis=1)
        sums = np.zeros_like(sums)
        np.add.at(sums, classes, counts)
    return classes, (sums + _PRIOR * shares) / (sums.sum(axis=1, keepdims=True) + _PRIOR)


def read_tables(source: Path | bytes) -> Tables:
    """Returns the tables of a file or of its bytes.  Raises CompressedFileError for what is none."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    name = "these bytes" if isinstance(source, bytes) else str(source)
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise CompressedFileError(f"{name}: no tables of codes; a file that `fit_tables(...).to_bytes()` gave is needed.")
    _, version, levels, entries, weights = _HEADER.unpack(data[: _HEADER.size])
    size = _HEADER.size + levels * entries
    if version not in (1, 2) or not 1 <= entries <= MOST_ENTRIES or not levels or len(data) < size:
        raise CompressedFileError(f"{name}: tables of version {version}, {levels} levels and {entries} entries in {len(data)} bytes.")
    contexts, end = _read_contexts(data, size, levels, entries) if version == 2 else ((), size)
    if end != len(data):
        raise CompressedFileError(f"{name}: {len(data)} bytes of tables, {end} are needed; the file is damaged.")
    steps = np.frombuffer(data, np.uint8, levels * entries, _HEADER.size).reshape(levels, entries)
    return Tables(steps, weights.hex(), contexts)


def _read_contexts(data: bytes, start: int, levels: int, entries: int) -> tuple[tuple[Context | None, ...], int]:
    """Returns the context of each level and where they end; an end behind the data's where they are none."""
    contexts: list[Context | None] = []
    nothing = (), len(data) + 1
    for level in range(levels):
        if start + _LEVEL.size > len(data):
            return nothing
        kind, count = _LEVEL.unpack_from(data, start)
        start += _LEVEL.size
        if kind == NO_CONTEXT and not count:
            contexts.append(None)
            continue
        if kind not in (FRAME_BEFORE, LEVEL_ABOVE) or not count or (kind == LEVEL_ABOVE and not level):
            return nothing
        if start + (1 + count) * entries > len(data):
            return nothing
        classes = np.frombuffer(data, np.uint8, entries, start)
        if classes.max() >= count:
            return nothing
        steps = np.frombuffer(data, np.uint8, count * entries, start + entries).reshape(count, entries)
        contexts.append(Context(kind, classes, steps))
        start += (1 + count) * entries
    return tuple(contexts), start
