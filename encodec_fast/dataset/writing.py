"""Finished batches to shards and lines of the ledger, in a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.records import Record
from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo, ShardFile, format_module
from encodec_fast.formats.folder import file_crc32

# Codes of one shard, as they are stored
SHARD_BYTES = 256 << 20
WAITING_BATCHES = 8
PACE_SECONDS = 5.0


@dataclass(frozen=True)
class FinishedBatch:
    """A batch's results in the order of its tasks. busy: seconds that the encoder worked. verified: see Record."""

    number: int
    results: Sequence[ClipRow | ClipFailure]
    busy: float = 0.0
    verified: dict[str, Any] | None = None


def shard_name(first_batch: int) -> str:
    """Returns the name, without suffix, of the shard that begins with this batch."""
    return f"part-{first_batch:08d}"


class ShardWriter:
    """Writes batches, in the order they are put, into shards and their lines into the ledger.

    A shard has rows_per_shard clips at most, and ends after SHARD_BYTES of codes or shard_seconds of time: a kill costs no more work.
    Batches stay whole: one of more clips, as an earlier run may have planned it, is a shard of its own.
    As a context manager it finishes what was put, also where the block raises: after Ctrl-C that is kept.
    Errors of writing, such as a full disk, are raised by `put` and `close`.
    """

    def __init__(
        self,
        ledger: Ledger,
        info: DatasetInfo,
        *,
        format: str = "parquet",
        rows_per_shard: int = 10_000,
        shard_seconds: float = 600.0,
    ):
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is {rows_per_shard}; 1 or more.")
        self.files: list[Path] = []
        self._ledger, self._info = ledger, info
        self._format = format_module(format)
        self._rows_per_shard, self._shard_seconds = rows_per_shard, shard_seconds
        self._shard: ShardFile | None = None
        self._record: Record | None = None
        self._name, self._bytes, self._begun = "", 0, 0.0
        self._waiting: queue.Queue[FinishedBatch | None] = queue.Queue(WAITING_BATCHES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="encodec_fast writer", daemon=True)
        self._thread.start()

    def put(self, batch: FinishedBatch) -> None:
        """Hands a batch over; waits while WAITING_BATCHES are waiting."""
        if self._error is None:
            self._waiting.put(batch)
        if self._error is not None:
            self.close()

    def close(self) -> list[Path]:
        """Finishes the open shard; returns the shards written."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.files

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        batch: FinishedBatch | None
        while (batch := self._waiting.get()) is not None:
            if self._error is None:
                self._try(self._write, batch)
        if self._error is None:
            self._try(self._finish)

    def _try(self, step: Any, *arguments: Any) -> None:
        try:
            step(*arguments)
        except BaseException as error:  # raised by the next put, or close
            self._error = error
            if self._shard is not None:
                # this thread must live, or put would wait for ever
                with contextlib.suppress(OSError):
                    self._shard.discard()

    def _write(self, batch: FinishedBatch) -> None:
        clips = sum(not isinstance(result, ClipFailure) for result in batch.results)
        if self._record is not None and self._record.clips and self._record.clips + clips > self._rows_per_shard:
            self._finish()
        if self._record is None:
            self._record, self._bytes, self._begun = Record(None, []), 0, time.monotonic()
        record = self._record
        for result in batch.results:
            if isinstance(result, ClipFailure):
                record.failures.append(result)
                continue
            if self._shard is None:
                first = record.batches[0] if record.batches else batch.number
                self._name = f"{shard_name(first)}{self._format.SUFFIX}"
                self._ledger.begin(self._name)
                self._shard = self._format.Shard(self._ledger.out, shard_name(first), self._info)
            self._shard.write(result)
            self._bytes += result.codes.nbytes
            record.clips += 1
            record.seconds += result.duration
        record.batches.append(batch.number)
        self._note_pace(record)
        record.busy += batch.busy
        if batch.verified is not None:
            record.verified = add_counts(record.verified, batch.verified)
        full = record.clips >= self._rows_per_shard or self._bytes >= SHARD_BYTES
        if full or time.monotonic() - self._begun >= self._shard_seconds:
            self._finish()

    def _note_pace(self, record: Record) -> None:
        now, finished = time.time(), record.seconds - sum(seconds for _, seconds in record.paces)
        if record.paces and now - record.paces[-1][0] < PACE_SECONDS:
            record.paces[-1] = (record.paces[-1][0], record.paces[-1][1] + finished)
        else:
            record.paces.append((now, finished))

    def _finish(self) -> None:
        record = self._record
        if record is None:
            return
        if self._shard is not None:
            # it may have come since the shard was begun
            self._ledger.begin(self._name)
            path = self._shard.finish()
            self.files.append(path)
            record.file, record.size, record.file_crc32 = path.name, path.stat().st_size, file_crc32(path)
        self._shard = self._record = None
        self._ledger.append(record)


def add_counts(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any]:
    """Counts of two comparisons with HF as one: numbers are added, but of `worst_margin` the larger one holds."""
    if first is None:
        return dict(second)
    return {name: max(first[name], value) if name == "worst_margin" else first[name] + value for name, value in second.items()}
