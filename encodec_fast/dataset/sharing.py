"""Who reads which rows of a folder: shards in blocks, blocks in an order, and even shares of that order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """Rows start ... stop - 1 of a shard, by its number."""

    shard: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def blocks(counts: Sequence[int], block_rows: int) -> list[Segment]:
    """Returns the rows of shards in blocks of at most block_rows, in their order.  counts: rows of each shard."""
    return [
        Segment(shard, start, min(start + block_rows, count)) for shard, count in enumerate(counts) for start in range(0, count, block_rows)
    ]


def dealt(segments: Sequence[Segment], hands: int) -> list[Segment]:
    """Returns the segments as if dealt out in turn: first those of the first hand, and so on. Neighbours are alike in length."""
    return [segment for hand in range(hands) for segment in segments[hand::hands]]


def rows_between(segments: Sequence[Segment], first: int, end: int, total: int | None = None) -> list[Segment]:
    """Returns the rows first ... end - 1 of a sequence of segments.  total: its rows; what lies behind begins from its front again."""
    if total is not None and end > total:
        return rows_between(segments, first, total) + rows_between(segments, max(0, first - total), end - total, total)
    found, at = [], 0
    for segment in segments:
        low, high = max(first - at, 0), min(end - at, segment.rows)
        if low < high:
            found.append(Segment(segment.shard, segment.start + low, segment.start + high))
        at += segment.rows
    return found


def windows(segments: Sequence[Segment], rows: int) -> Iterator[list[Segment]]:
    """Yields the segments in groups of so many rows; the last one may have fewer."""
    window: list[Segment] = []
    free = rows
    for segment in segments:
        while segment.rows > free:
            window.append(Segment(segment.shard, segment.start, segment.start + free))
            segment = Segment(segment.shard, segment.start + free, segment.stop)
            yield window
            window, free = [], rows
        if segment.rows:
            window.append(segment)
            free -= segment.rows
    if window:
        yield window
