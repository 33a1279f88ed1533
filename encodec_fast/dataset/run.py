"""A run of one writer: what is not done yet, read, encoded and written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from encodec_fast.audio import RESAMPLE_QUALITY
from encodec_fast.audio.files import is_url
from encodec_fast.corpus.reader import Reader, UnreadableClip
from encodec_fast.corpus.sources import scan_seconds
from encodec_fast.corpus.tasks import Clip, Task
from encodec_fast.dataset.encoding import ClipEncoder, failure_of
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.schedule import Schedule
from encodec_fast.dataset.verification import ShareVerifier
from encodec_fast.dataset.writing import FinishedBatch, ShardWriter, add_counts
from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo
from encodec_fast.model import EncodecModel

# Blocks of a long clip, seconds
BLOCK_SECONDS = 30.0


@dataclass(frozen=True)
class TokenizeOptions:
    """How to tokenize; plain values, so that it can be sent to other processes.

    bandwidth: kbps. format: of formats.FORMATS. packed: codes in as few bits as they need. batch_seconds: audio per call of the
    model. long_clip_seconds: longer clips run in pieces. rows_per_shard, shard_seconds: a shard ends after that many clips, or that
    much time. workers: reading processes. prefetch_seconds: audio read ahead. audio_column: of tables. verify_share: of the clips,
    to be compared with transformers.
    """

    bandwidth: float
    format: str = "parquet"
    packed: bool = False
    batch_seconds: float = 60.0
    long_clip_seconds: float = 300.0
    rows_per_shard: int = 10_000
    shard_seconds: float = 600.0
    workers: int = 2
    prefetch_seconds: float = 240.0
    audio_column: str = "audio"
    verify_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "long_clip_seconds", "prefetch_seconds", "rows_per_shard"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; more than 0.")


# What of a config the codes depend on and the weights' shapes don't show
_CONFIG = (
    "sampling_rate",
    "normalize",
    "chunk_length_s",
    "overlap",
    "upsampling_ratios",
    "dilation_growth_rate",
    "use_causal_conv",
    "pad_mode",
    "norm_type",
    "use_conv_shortcut",
)


def identity(info: DatasetInfo, model: EncodecModel, options: TokenizeOptions, sources: Sequence[str]) -> dict[str, Any]:
    """Everything that the codes, and which clips have some, depend on; a run is only continued with the same."""
    kept = ("bandwidth", "format", "packed", "batch_seconds", "long_clip_seconds", "audio_column")
    return {
        "weights": info.weights_sha256[:16],
        **{f"config.{name}": getattr(model.config, name) for name in _CONFIG},
        "backend": info.backend,
        "resampling": f"soxr {RESAMPLE_QUALITY}",
        "sources": [source if is_url(source) else os.path.abspath(source) for source in sources],
        **{name: getattr(options, name) for name in kept},
    }


def plan(
    ledger: Ledger,
    identity: Mapping[str, Any],
    find: Callable[[], list[Task]],
    options: TokenizeOptions,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Schedules the clips that are not scheduled yet, and again those that failed if retry_failed; returns how many.

    find: lists the tasks. limit: schedule only the first so many ids. progress: called with headers scanned and all.
    Processes that begin together plan one after the other, so the first one's work is found by the rest.
    """
    with ledger.planning():
        ledger.identify(identity, overwrite)
        tasks = find()
        tasks = ledger.new_tasks(tasks if limit is None else tasks[:limit])
        if retry_failed:
            tasks += ledger.failed_tasks()
        if tasks:
            report = None if progress is None else lambda done: progress(done, len(tasks))
            ledger.add_schedule(scan_seconds(tasks, options.audio_column, report), options.batch_seconds, options.audio_column)
        return len(tasks)


@dataclass
class Summary:
    """What a run did. clips, seconds of audio: with codes. busy: seconds that the encoder worked. waited: that it had nothing to do.

    planned_clips, planned_seconds: what the run began with. reading: x real time of all reading processes.
    done_before: clips that were done or had failed when it began. left: clips that other writers have to do.
    """

    clips: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    busy: float = 0.0
    waited: float = 0.0
    reading: float = 0.0
    planned_clips: int = 0
    planned_seconds: float = 0.0
    done_before: int = 0
    left: int = 0
    failures: list[ClipFailure] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    verified: dict[str, Any] | None = None

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second of wall time."""
        return self.seconds / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def encoding(self) -> float:
        """Seconds of audio per second that the encoder worked."""
        return self.seconds / self.busy if self.busy else 0.0


class Run:
    """One writer's part of what a ledger has left to do."""

    def __init__(self, model: EncodecModel, info: DatasetInfo, ledger: Ledger, options: TokenizeOptions):
        self._encoder = ClipEncoder(model, options.bandwidth)
        self._verifier = ShareVerifier(model, options.bandwidth, options.verify_share)
        self._info, self._ledger, self._options = info, ledger, options
        self.summary = Summary()

    def run(self, progress: Callable[[Summary], None] | None = None) -> Summary:
        """Encodes every batch that is this writer's and not done; says what was done.

        A clip that can't be read or encoded becomes a failure and stops nothing. progress: called after each batch.
        Raises LedgerError if another process is at it, OSError if the disk is full: what was finished stays, and the next run
        goes on from there. So it does after KeyboardInterrupt, or kill.
        """
        start = time.perf_counter()
        config, options, summary = self._encoder.model.config, self._options, self.summary
        with self._ledger.writing():
            schedules = self._ledger.schedules()
            batches = self._own_batches(schedules)
            reader = Reader(
                config.sampling_rate,
                config.audio_channels,
                workers=min(options.workers, summary.planned_clips),
                prefetch_seconds=options.prefetch_seconds,
                long_seconds=options.long_clip_seconds,
                block_seconds=BLOCK_SECONDS,
                audio_column=options.audio_column,
            )
            with reader, self._writer() as writer:
                for batch in self._encoded(batches, schedules, reader):
                    writer.put(batch)
                    summary.wall_seconds = time.perf_counter() - start
                    summary.reading, summary.waited = reader.rates.times_real_time, reader.rates.waited_seconds
                    if progress is not None:
                        progress(summary)
                summary.files = writer.close()
            self._ledger.write_errors()
        summary.wall_seconds = time.perf_counter() - start
        return summary

    def _own_batches(self, schedules: Sequence[Schedule]) -> list[int]:
        undone = self._ledger.undone()
        own = undone[undone % self._ledger.count == self._ledger.index]
        totals = []
        for numbers in (own, undone):
            parts = [(0, 0.0)]
            for schedule in schedules:
                parts.append(schedule.clips_of(numbers[(numbers >= schedule.first_batch) & (numbers < schedule.end_batch)]))
            totals.append(np.sum(parts, axis=0))
        self.summary.planned_clips, self.summary.planned_seconds = int(totals[0][0]), float(totals[0][1])
        self.summary.left = int(totals[1][0] - totals[0][0])
        self.summary.done_before = sum(schedule.num_clips for schedule in schedules) - int(totals[1][0])
        return [int(number) for number in own]

    def _writer(self) -> ShardWriter:
        options = self._options
        return ShardWriter(
            self._ledger,
            self._info,
            format=options.format,
            packed=options.packed,
            rows_per_shard=options.rows_per_shard,
            shard_seconds=options.shard_seconds,
        )

    def _encoded(self, batches: Sequence[int], schedules: Sequence[Schedule], reader: Reader) -> Iterator[FinishedBatch]:
        """The batches with their rows. The next one's samples are on their way to the device while one is encoded."""
        waiting: _ReadBatch | None = None
        for batch in self._read(batches, schedules, reader):
            if waiting is not None:
                yield self._finish(waiting)
            waiting = batch
        if waiting is not None:
            yield self._finish(waiting, last=True)

    def _read(self, batches: Sequence[int], schedules: Sequence[Schedule], reader: Reader) -> Iterator[_ReadBatch]:
        sizes: list[int] = []

        def tasks() -> Iterator[Task]:
            for number in batches:
                own = list(next(schedule for schedule in schedules if number < schedule.end_batch).tasks(number))
                sizes.append(len(own))
                yield from own

        clips = reader.read(tasks())
        for index, number in enumerate(batches):
            results: list[ClipRow | ClipFailure | None] = []
            whole: list[Clip] = []
            busy = 0.0
            while not results or len(results) < sizes[index]:
                clip = next(clips)
                if isinstance(clip, Clip):
                    whole.append(clip)
                    results.append(None)
                elif isinstance(clip, UnreadableClip):
                    results.append(failure_of(clip.task, clip.reason))
                else:
                    busy -= time.perf_counter()
                    results.append(self._encoder.encode_long(clip))
                    busy += time.perf_counter()
            yield _ReadBatch(number, results, whole, self._encoder.upload(whole) if whole else list, busy)

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
        results = [next(left) if result is None else result for result in batch.results]
        summary = self.summary
        for result in results:
            if isinstance(result, ClipFailure):
                summary.failures.append(result)
            else:
                summary.clips += 1
                summary.seconds += result.duration
        summary.busy += busy
        if verified is not None:
            summary.verified = add_counts(summary.verified, verified)
        return FinishedBatch(batch.number, results, busy, verified)


@dataclass(frozen=True)
class _ReadBatch:
    """results: of clips that are done already; None: the next of `clips`. uploaded: see ClipEncoder.upload."""

    number: int
    results: list[ClipRow | ClipFailure | None]
    clips: list[Clip]
    uploaded: Callable[[], list[Any]]
    busy: float
