"""A run of one writer: reads, encodes and writes what is not done yet."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from encodec_fast.audio import RESAMPLE_QUALITY
from encodec_fast.audio.files import is_url
from encodec_fast.corpus.sources import scan_seconds
from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset.batches import BatchEncoder
from encodec_fast.dataset.columns import chosen_columns, column_types, with_typed_columns
from encodec_fast.dataset.encoding import ClipEncoder
from encodec_fast.dataset.ledger import Ledger, LedgerError
from encodec_fast.dataset.options import BLOCK_SECONDS, TokenizeOptions
from encodec_fast.dataset.reading import reader_for
from encodec_fast.dataset.schedule import Schedule, schedule_of
from encodec_fast.dataset.verification import ShareVerifier
from encodec_fast.dataset.writing import FinishedBatch, ShardWriter, add_counts
from encodec_fast.formats import ClipFailure, DatasetInfo
from encodec_fast.model import EncodecModel
from encodec_fast.serving.request import requested

logger = logging.getLogger("encodec_fast")

_CHOOSE = "Choose another folder or add --overwrite."
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
    """Returns everything that the codes, and which clips have some, depend on; a run is continued with the same only."""
    kept = ("bandwidth", "format", "batch_seconds", "long_clip_seconds", "audio_column")
    return {
        "weights": info.weights_sha256[:16],
        **{f"config.{name}": getattr(model.config, name) for name in _CONFIG},
        "backend": info.backend,
        "precision": requested(model.encoder).precision.value,
        "resampling": f"soxr {RESAMPLE_QUALITY}",
        "sources": [source if is_url(source) else os.path.abspath(source) for source in sources],
        **{name: getattr(options, name) for name in kept},
        # earlier versions know of none
        **({"embeddings": True} if options.embeddings else {}),
    }


def plan(
    ledger: Ledger,
    identity: Mapping[str, Any],
    tasks: Sequence[Task],
    options: TokenizeOptions,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Schedules the clips that are not scheduled yet, and again those that failed if retry_failed; returns how many.

    tasks: of the sources, sorted by id. limit: schedule only the first so many. progress: called with headers scanned and all.
    Processes that begin together plan one after the other, so the first one's work is found by the rest.
    Raises LedgerError for another run, or for columns that the folder can't store.
    """
    tasks = chosen_columns(tasks, options.columns)
    found = column_types(tasks)
    with ledger.planning():
        ledger.identify(identity, overwrite, found)
        if options.columns is not None and {*found} != {*ledger.columns}:
            raise LedgerError(f"{ledger.out} stores {_named(ledger.columns)}, and columns names {_named(found)}. {_CHOOSE}")
        new = ledger.new_tasks(tasks[:limit])
        if new and (left_out := [name for name in found if name not in ledger.columns]):
            logger.warning(
                "%s stores %s, as it did when it was begun; %s of the sources are left out",
                ledger.out,
                _named(ledger.columns),
                _named(left_out),
            )
        try:
            new = [task if task.problem else with_typed_columns(task, ledger.columns) for task in new]
        except ValueError as error:
            raise LedgerError(f"{error} {ledger.out} stores {_named(ledger.columns, types=True)}. {_CHOOSE}") from error
        if retry_failed:
            new += ledger.failed_tasks(tasks)
        if new:
            report = None if progress is None else lambda done: progress(done, len(new))
            scanned = scan_seconds(new, options.audio_column, report, options.max_clip_bytes, options.clip_timeout)
            ledger.add_schedule(scanned, options.batch_seconds, options.rows_per_shard)
        return len(new)


def _named(columns: Iterable[str], types: bool = False) -> str:
    names = [f"{name} ({columns[name]})" if types and isinstance(columns, Mapping) else name for name in columns]
    return f"the columns {', '.join(names)}" if names else "no columns"


@dataclass
class Summary:
    """What a run did.

    clips: that got codes.  seconds: of their audio.  failures: clips that got none, with the reason.
    files: the shards that were written.  wall_seconds: that the run took.
    done_before: clips that were done, or had failed, when the run began: they were skipped.
    left: clips that other writers have to do.
    planned_clips, planned_seconds: what the run had to do when it began.
    busy: seconds that the encoder worked.  waited: seconds that it had nothing to do.  reading: x real time of all reading processes.
    verified: counts of the comparison with transformers (see ShareVerifier.compare); None if nothing was compared.
    left_out: files of the source folders that are no audio by their names, by suffix.
    warnings: a sentence each on what happened to the machines and cost nothing but time.
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
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def times_real_time(self) -> float:
        """Seconds of audio per second of wall time."""
        return self.seconds / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def encoding(self) -> float:
        """Seconds of audio per second that the encoder worked."""
        return self.seconds / self.busy if self.busy else 0.0

    def add(self, batch: FinishedBatch) -> None:
        """Counts a batch."""
        for result in batch.results:
            if isinstance(result, ClipFailure):
                self.failures.append(result)
            else:
                self.clips += 1
                self.seconds += result.duration
        self.busy += batch.busy
        if batch.verified is not None:
            self.verified = add_counts(self.verified, batch.verified)

    def plan(self, schedules: Sequence[Schedule], own: np.ndarray, undone: np.ndarray) -> None:
        """Notes what there is to do: in the batches `own`, and in all that are undone."""
        totals = []
        for numbers in (own, undone):
            parts = [(0, 0.0)]
            for schedule in schedules:
                parts.append(schedule.clips_of(numbers[(numbers >= schedule.first_batch) & (numbers < schedule.end_batch)]))
            totals.append(np.sum(parts, axis=0))
        self.planned_clips, self.planned_seconds = int(totals[0][0]), float(totals[0][1])
        self.left = int(totals[1][0] - totals[0][0])
        self.done_before = sum(schedule.num_clips for schedule in schedules) - int(totals[1][0])


class Run:
    """One writer's part of what a ledger has left to do."""

    def __init__(self, model: EncodecModel, info: DatasetInfo, ledger: Ledger, options: TokenizeOptions):
        self._model = model
        self._batches = BatchEncoder(
            ClipEncoder(model, options.bandwidth, options.embeddings), ShareVerifier(model, options.bandwidth, options.verify_share)
        )
        self._info, self._ledger, self._options = info, ledger, options
        self.summary = Summary()

    def run(self, progress: Callable[[Summary], None] | None = None) -> Summary:
        """Encodes every batch that is this writer's and not done; returns what was done.

        A clip that can't be read or encoded becomes a failure and stops nothing.  progress: called after each batch.
        Raises LedgerError if another process is at work, OSError if the disk is full. What was finished stays, and the next run goes
        on from there; also after KeyboardInterrupt, or kill.
        """
        start = time.perf_counter()
        config, options, summary = self._model.config, self._options, self.summary
        with self._ledger.writing(check=options.check):
            schedules = self._ledger.schedules()
            undone = self._ledger.undone()
            own = undone[undone % self._ledger.count == self._ledger.index]
            summary.plan(schedules, own, undone)
            batches = [int(number) for number in own]
            reader = reader_for(
                options,
                config.sampling_rate,
                config.audio_channels,
                min(options.workers, summary.planned_clips),
                prefetch_seconds=options.prefetch_seconds,
                long_seconds=options.long_clip_seconds,
                block_seconds=BLOCK_SECONDS,
            )
            with reader, self._writer() as writer:
                clips = reader.read(task for number in batches for task in schedule_of(schedules, number).tasks(number))
                sizes = ((number, schedule_of(schedules, number).size(number)) for number in batches)
                for batch in self._batches.finished(sizes, clips):
                    writer.put(batch)
                    summary.add(batch)
                    summary.wall_seconds = time.perf_counter() - start
                    summary.reading, summary.waited = reader.rates.times_real_time, reader.rates.waited_seconds
                    if progress is not None:
                        progress(summary)
                summary.files = writer.close()
            self._ledger.write_failures()
        summary.wall_seconds = time.perf_counter() - start
        return summary

    def _writer(self) -> ShardWriter:
        options = self._options
        return ShardWriter(
            self._ledger,
            self._info,
            format=options.format,
            rows_per_shard=options.rows_per_shard,
            shard_seconds=options.shard_seconds,
        )
