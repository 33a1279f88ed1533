"""What a folder of codes holds, in numbers: hours, tokens, how the codebooks are used, lengths of clips, bytes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from encodec_fast.dataset.ledger import Ledger
from encodec_fast.formats import ClipRow, DatasetInfo, FormatError
from encodec_fast.formats.folder import format_of, read_info, read_shard, shards_of

Item = TypeVar("Item")

# Shards that are read where not all are, spread evenly, and the codes of them: each of 1024 entries occurs thousands of times
SAMPLED_SHARDS, SAMPLED_CODES = 64, 20_000_000
# Seconds between which the lengths of clips are counted
LENGTH_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 300.0, 3600.0)


@dataclass(frozen=True)
class LengthRange:
    """Clips of `low` seconds or more and less than `high` (None: no end).

    clips: how many.  seconds: of all of them.
    """

    low: float
    high: float | None
    clips: int
    seconds: float


@dataclass(frozen=True)
class CodebookUse:
    """How a level's codes spread over its codebook.

    level: counted from 1.  tokens: codes that were counted.  used: entries that occur among them.
    entropy: bits per code; log2 of the codebook's size if all entries are equally frequent.
    perplexity: 2 to the entropy, the entries that a code chooses from.
    """

    level: int
    tokens: int
    used: int
    entropy: float
    perplexity: float


@dataclass(frozen=True)
class FolderStatistics:
    """What a folder of codes holds.

    clips, seconds: all of them, by the ledger where there is one.  failed: clips without codes.  shards: files of rows.  bytes: of
    shards and their side files.  read_shards, read_clips, read_seconds: what the rest was counted on, not all where it is a sample.
    tokens: codes of all levels.  codebooks: by level.  lengths: of the clips.
    model_id, weights_sha256, codebook_size: of the model that made the codes.  bandwidth: kbps, None where the shards do not say.
    columns: that rows have from their sources, with the type of each.
    """

    model_id: str
    weights_sha256: str
    bandwidth: float | None
    codebook_size: int
    columns: dict[str, str]
    clips: int
    seconds: float
    failed: int
    shards: int
    bytes: int
    read_shards: int
    read_clips: int
    read_seconds: float
    tokens: int
    codebooks: list[CodebookUse]
    lengths: list[LengthRange]

    @property
    def is_sample(self) -> bool:
        """Tells whether not all clips were read."""
        return self.read_clips < self.clips

    @property
    def tokens_per_hour(self) -> float:
        """Codes of all levels for an hour of audio."""
        return 3600 * self.tokens / self.read_seconds if self.read_seconds else 0.0

    @property
    def bytes_per_hour(self) -> float:
        """Bytes on the disk for an hour of audio."""
        return 3600 * self.bytes / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON can hold it."""
        return {**asdict(self), "tokens_per_hour": self.tokens_per_hour, "bytes_per_hour": self.bytes_per_hour}


def folder_statistics(
    folder: str | os.PathLike[str], sample: bool = False, progress: Callable[[int, int], None] | None = None
) -> FolderStatistics:
    """Returns what a folder of `tokenize` holds. Raises FormatError if it has no shards, or one that can't be read.

    sample: reads SAMPLED_SHARDS at most, and up to SAMPLED_CODES of them.  progress: called with the shards read and all to be read.
    """
    folder = Path(folder)
    shards, info, ledger = shards_of(folder), read_info(folder), Ledger(folder)
    records = ledger.records()
    count = _Count(info)
    chosen = spread(shards, SAMPLED_SHARDS) if sample else shards
    for number, shard in enumerate(chosen, 1):
        for row in _rows(shard, SAMPLED_CODES // len(chosen) if sample else None):
            count.add(row)
        if progress is not None:
            progress(number, len(chosen))
    known = bool(records)
    return FolderStatistics(
        model_id=info.model_id,
        weights_sha256=info.weights_sha256,
        bandwidth=info.options.get("bandwidth"),
        codebook_size=info.codebook_size,
        columns=dict(info.columns),
        clips=sum(record.clips for record in records) if known else count.clips,
        seconds=sum(record.seconds for record in records) if known else float(np.sum(count.seconds)),
        failed=len(ledger.failures()) if known else 0,
        shards=len(shards),
        bytes=sum(_bytes_of(shard) for shard in shards),
        read_shards=len(chosen),
        read_clips=count.clips,
        read_seconds=float(np.sum(count.seconds)),
        tokens=int(count.entries.sum()),
        codebooks=count.codebooks(),
        lengths=_lengths(np.array(count.seconds)),
    )


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Returns at most so many of the items, spread evenly."""
    count = min(len(items), most)
    return [items[len(items) * index // count] for index in range(count)]


def _rows(shard: Path, most_codes: int | None) -> Iterator[ClipRow]:
    codes = 0
    for row in read_shard(shard):
        yield row
        codes += row.codes.size
        if most_codes is not None and codes >= most_codes:
            return


class _Count:
    """Adds up rows. entries: int64 [K, N], how often each entry of each level occurs."""

    def __init__(self, info: DatasetInfo):
        self._info = info
        self.clips = 0
        self.seconds: list[float] = []
        self.entries = np.zeros((0, info.codebook_size), np.int64)

    def add(self, row: ClipRow) -> None:
        self.clips += 1
        self.seconds.append(row.duration)
        levels, size = row.codes.shape[1], self._info.codebook_size
        if row.codes.size and int(row.codes.max()) >= size:
            raise FormatError(f"{row.id}: a code is {int(row.codes.max())}; the codebooks have entries 0 ... {size - 1}.")
        self.entries = np.pad(self.entries, ((0, max(0, levels - len(self.entries))), (0, 0)))
        # what fills up the last chunk of a 48 kHz clip is no code
        for level, codes in enumerate(row.frame_codes()):
            self.entries[level] += np.bincount(codes, minlength=size)

    def codebooks(self) -> list[CodebookUse]:
        found = []
        for level, entries in enumerate(self.entries):
            share = entries[entries > 0] / max(1, entries.sum())
            entropy = float(-(share * np.log2(share)).sum()) + 0.0
            found.append(CodebookUse(level + 1, int(entries.sum()), int((entries > 0).sum()), entropy, float(2**entropy)))
        return found


def _lengths(seconds: np.ndarray) -> list[LengthRange]:
    """Returns the ranges between the shortest and the longest clip."""
    ranges = []
    for low, high in itertools.zip_longest(LENGTH_EDGES, LENGTH_EDGES[1:]):
        inside = seconds[(seconds >= low) & (seconds < (np.inf if high is None else high))]
        ranges.append(LengthRange(low, high, len(inside), float(inside.sum())))
    while ranges and not ranges[-1].clips:
        ranges.pop()
    while ranges and not ranges[0].clips:
        ranges.pop(0)
    return ranges


def _bytes_of(shard: Path) -> int:
    found = format_of(shard.name)
    assert found is not None
    files = [shard, *(shard.parent / name for name in found.side_files(shard))]
    return sum(path.stat().st_size for path in files if path.is_file())
