"""`adaptive`: frequencies that are learned from the segment itself while it is coded, so that it needs no weights.

Five models of the next code are mixed:

    all entries alike
    the tables, where there are some
    the codes of this level so far
    those that followed the code of the frame before
    those that stood under the code of the level above

All of it is whole numbers. `docs/ecdc.md` has the arithmetic, which is binding to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from encodec_fast.compression.coders import NO_FINGERPRINT, LevelTables, check_end, check_levels, level_tables
from encodec_fast.compression.range_coder import RangeDecoder, RangeEncoder
from encodec_fast.compression.tables import Tables

# Probabilities as whole numbers
_ONE = 1 << 30
# Weights of the models add up to about this
_WEIGHTS = 1 << 16
# Of each weight after a code, so that none vanishes
_LEAST_WEIGHT = 300
# How much a model of few counts leaves to the one that it refines: counts of the level, of a context
_LEVEL_PRIOR, _CONTEXT_PRIOR = 300, 4


class _Context:
    """Codes that were met in one place: how often each, and how many in all."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0

    def add(self, code: int) -> None:
        self.counts[code] = self.counts.get(code, 0) + 1
        self.total += 1

    def before(self, code: int) -> int:
        """Returns the count of all smaller codes."""
        return sum(count for other, count in self.counts.items() if other < code)


_NOTHING = _Context()


class _Level:
    """The models of one level of one segment, and their weights."""

    def __init__(self, entries: int, tables: LevelTables | None):
        self._entries = entries
        self._places = np.arange(entries + 1, dtype=np.int64)
        self._tables = tables
        # twice: an element of an array takes Python longer
        self._table_list, self._table = [0] * (entries + 1), np.zeros(entries + 1, np.int64)
        self._counts = [0] * entries
        # of all smaller codes
        self._sums = np.zeros(entries + 1, np.int64)
        self._seen = 0
        self._followed: dict[int, _Context] = {}
        self._under: dict[int, _Context] = {}
        self._weights: dict[tuple[int, int], list[int]] = {}

    def mix(self, before: int, above: int) -> int:
        """Computes how often each count weighs in the next code, and returns the sum of all frequencies.

        before, above: the codes of the frame before and of the level above, -1 for none.
        """
        self._before, self._above = before, above
        if self._tables is not None:
            self._table_list, self._table = self._tables.starts(before, above)
        self._b = b = self._followed.get(before, _NOTHING)
        self._a = a = self._under.get(above, _NOTHING)
        self._w = w = self._weights.setdefault((min(b.total, 3), min(a.total, 3)), [_WEIGHTS // 5] * 5)
        self._of_b = of_b = (w[3] << 20) // (b.total + _CONTEXT_PRIOR)
        self._of_a = of_a = (w[4] << 20) // (a.total + _CONTEXT_PRIOR)
        self._of_level = of_level = ((w[2] << 20) + _CONTEXT_PRIOR * (of_b + of_a)) // (self._seen + _LEVEL_PRIOR)
        alike, static, whole = w[0] << 20, w[1] << 20, self._table_list[-1]
        if whole:
            static += of_level * _LEVEL_PRIOR
            self._of_table = static // whole
        else:
            alike += static + of_level * _LEVEL_PRIOR
            self._of_table = 0
        self._of_all = alike // self._entries + 1
        self.total = self._of_all * self._entries + self._of_table * whole + of_level * self._seen + of_b * b.total + of_a * a.total
        return self.total

    def place(self, code: int) -> tuple[int, int]:
        """Returns (start, frequency) of a code, after `mix`."""
        a, b, table = self._a, self._b, self._table_list
        start = (
            self._of_all * code
            + self._of_table * table[code]
            + self._of_level * int(self._sums[code])
            + self._of_b * b.before(code)
            + self._of_a * a.before(code)
        )
        frequency = (
            self._of_all
            + self._of_table * (table[code + 1] - table[code])
            + self._of_level * self._counts[code]
            + self._of_b * b.counts.get(code, 0)
            + self._of_a * a.counts.get(code, 0)
        )
        return start, frequency

    def find(self, target: int) -> int:
        """Returns the code that a target lies in, after `mix`."""
        starts = self._of_all * self._places + self._of_level * self._sums
        if self._tables is not None:
            starts += self._of_table * self._table
        if self._b.total or self._a.total:
            steps = np.zeros(self._entries + 1, np.int64)
            for factor, context in ((self._of_b, self._b), (self._of_a, self._a)):
                for code, count in context.counts.items():
                    steps[code + 1] += factor * count
            starts += np.cumsum(steps)
        return int(np.searchsorted(starts, target, side="right")) - 1

    def learn(self, code: int) -> None:
        """Counts the code, and gives more weight to the models that expected it."""
        a, b, w, table = self._a, self._b, self._w, self._table_list
        alike = static = _ONE // self._entries
        if table[-1]:
            static = (table[code + 1] - table[code]) * _ONE // table[-1]
        level = (self._counts[code] * _ONE + _LEVEL_PRIOR * static) // (self._seen + _LEVEL_PRIOR)
        followed = (b.counts.get(code, 0) * _ONE + _CONTEXT_PRIOR * level) // (b.total + _CONTEXT_PRIOR)
        under = (a.counts.get(code, 0) * _ONE + _CONTEXT_PRIOR * level) // (a.total + _CONTEXT_PRIOR)
        merits = [w[0] * alike, w[1] * static, w[2] * level, w[3] * followed, w[4] * under]
        whole = sum(merits)
        w[:] = [merit * (_WEIGHTS - 5 * _LEAST_WEIGHT) // whole + _LEAST_WEIGHT for merit in merits]
        self._counts[code] += 1
        self._sums[code + 1 :] += 1
        self._seen += 1
        if self._before >= 0:
            self._followed.setdefault(self._before, _Context()).add(code)
        if self._above >= 0:
            self._under.setdefault(self._above, _Context()).add(code)


class AdaptiveCoder:
    """Codes by frequencies learned from the segment itself.

    codebook_size: entries.  tables: to begin with; None for none.
    """

    name = "adaptive"

    def __init__(self, codebook_size: int, tables: Tables | None = None):
        if tables is not None and tables.codebook_size != codebook_size:
            raise ValueError(f"tables have {tables.codebook_size} entries in a codebook, codebook_size is {codebook_size}.")
        self._entries, self._tables = codebook_size, tables
        self._level_tables = [] if tables is None else level_tables(tables)
        self.fingerprint = NO_FINGERPRINT if tables is None else tables.fingerprint

    def encode(self, segments: Sequence[np.ndarray]) -> list[bytes]:
        payloads = []
        for codes in segments:
            encoder, models = RangeEncoder(), self._models(len(codes))
            before = [-1] * len(codes)
            for frame in codes.T.tolist():
                above = -1
                for level, code in enumerate(frame):
                    model = models[level]
                    total = model.mix(before[level], above)
                    encoder.encode(*model.place(code), total)
                    model.learn(code)
                    above = code
                before = frame
            payloads.append(encoder.finish())
        return payloads

    def decode(self, payloads: Sequence[bytes], frames: Sequence[int], levels: int) -> list[np.ndarray]:
        decoded = []
        for data, count in zip(payloads, frames, strict=True):
            decoder, models = RangeDecoder(data), self._models(levels)
            rows = np.empty((count, levels), np.int64)
            before = [-1] * levels
            for row in rows:
                above, frame = -1, []
                for model, last in zip(models, before):
                    target = decoder.target(model.mix(last, above))
                    above = model.find(target)
                    decoder.take(*model.place(above))
                    model.learn(above)
                    frame.append(above)
                row[:] = before = frame
            check_end(decoder)
            decoded.append(np.ascontiguousarray(rows.T))
        return decoded

    def _models(self, levels: int) -> list[_Level]:
        if self._tables is None:
            return [_Level(self._entries, None) for _ in range(levels)]
        check_levels(self._tables, levels)
        return [_Level(self._entries, tables) for tables in self._level_tables[:levels]]
