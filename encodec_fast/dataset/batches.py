"""Clips that were read to finished batches, while the samples of the next batch are copied to the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from encodec_fast.corpus.reader import LongClip, UnreadableClip
from encodec_fast.corpus.tasks import Clip
from encodec_fast.dataset.encoding import ClipEncoder, failure_of
from encodec_fast.dataset.verification import ShareVerifier
from encodec_fast.dataset.writing import FinishedBatch, add_counts
from encodec_fast.formats import ClipFailure, ClipRow


@dataclass(frozen=True)
class _ReadBatch:
    """results: of clips that are done already; None: the next of `clips`. uploaded: see ClipEncoder.upload."""

    number: int
    results: list[ClipRow | ClipFailure | None]
    clips: list[Clip]
    uploaded: Callable[[], list[Any]]
    busy: float


class BatchEncoder:
    """Encodes batch after batch, and has a share of the clips compared with transformers."""

    def __init__(self, encoder: ClipEncoder, verifier: ShareVerifier):
        self._encoder, self._verifier = encoder, verifier

    def finished(self, sizes: Iterable[tuple[int, int]], clips: Iterator[Clip | LongClip | UnreadableClip]) -> Iterator[FinishedBatch]:
        """Yields the batches of `sizes` (number, clips), in that order, from the clips that were read for them."""
        waiting: _ReadBatch | None = None
        for number, size in sizes:
            batch = self._collect(number, size, clips)
            if waiting is not None:
                yield self._finish(waiting)
            waiting = batch
        if waiting is not None:
            yield self._finish(waiting, last=True)

    def _collect(self, number: int, size: int, clips: Iterator[Clip | LongClip | UnreadableClip]) -> _ReadBatch:
        results: list[ClipRow | ClipFailure | None] = []
        whole: list[Clip] = []
        busy = 0.0
        while len(results) < size:
            clip = next(clips)
            if isinstance(clip, Clip):
                whole.append(clip)
                results.append(None)
            elif isinstance(clip, UnreadableClip):
                results.append(failure_of(clip.task, clip.reason))
            else:
                # now: the reader's next clip comes after this one's last block
                start = time.perf_counter()
                results.append(self._encoder.encode_long(clip))
                busy += time.perf_counter() - start
        return _ReadBatch(number, results, whole, self._encoder.upload(whole) if whole else list, busy)

    def _finish(self, batch: _ReadBatch, last: bool = False) -> FinishedBatch:
        start = time.perf_counter()
        rows = self._encoder.encode(batch.clips, batch.uploaded)
        busy = batch.busy + time.perf_counter() - start
        verified = None
        comparisons = [self._verifier.add(clip, row) for clip, row in zip(batch.clips, rows, strict=True) if isinstance(row, ClipRow)]
        for counts in [*comparisons, self._verifier.compare() if last else None]:
            if counts is not None:
                verified = add_counts(verified, counts)
        left = iter(rows)
        return FinishedBatch(batch.number, [next(left) if result is None else result for result in batch.results], busy, verified)
