"""Stored codes back to audio."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from encodec_fast.dataset.encoding import each_or_reason
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import BATCH_SECONDS
from encodec_fast.formats import ClipFailure, ClipRow, FormatError
from encodec_fast.formats.folder import read_rows, shard_ids, shards_of
from encodec_fast.model import EncodecModel, EncodedClip
from encodec_fast.plan.geometry import encoded_length


class StoredRows:
    """The rows of a folder of codes, or of one of its shards. They can be iterated any number of times.

    Each is a ClipRow, or a failure where the row or its shard is damaged.
    ids: of all of them, in order. A shard that can't be read stands for its rows with its own name. So does one that holds fewer rows
    than the ledger counts, for those that are gone.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        folder = Path(folder)
        # by the ledger; None where there is none
        self.seconds: float | None = None
        if folder.is_file():
            self.ids = _ids(folder)
            self._shards, self._lost = [(folder, self.ids)], {}
            return
        records = Ledger(folder).records()
        self.seconds = sum(record.seconds for record in records) or None
        counts = {record.file: record.clips for record in records if record.file is not None}
        found = {path: _ids(path) for path in shards_of(folder)}
        self._shards = [(path, found.get(path, [])) for path in sorted({*found, *(folder / name for name in counts)})]
        missing = {path: counts.get(path.name, 0) - len(ids) for path, ids in self._shards if path.name not in ids}
        self._lost = {path: count for path, count in missing.items() if count > 0}
        self.ids = [id for path, ids in self._shards for id in (*ids, *([path.name] if path in self._lost else []))]

    def __iter__(self) -> Iterator[ClipRow | ClipFailure]:
        for path, ids in self._shards:
            reason, count = "the shard has fewer rows than ids.", 0
            try:
                for row in itertools.islice(read_rows(path), len(ids)):
                    count += 1
                    yield row
            except FormatError as error:
                reason = str(error)
            # the rows behind the place where the shard can't be read on
            yield from (ClipFailure(id, str(path), reason) for id in ids[count:])
            if path in self._lost:
                yield ClipFailure(path.name, str(path), f"{self._lost[path]} of the rows that the ledger counts are gone.")


def _ids(path: Path) -> list[str]:
    try:
        return shard_ids(path)
    except FormatError:
        return [path.name]


def decode(
    model: EncodecModel, rows: Iterable[ClipRow | ClipFailure], *, batch_seconds: float = BATCH_SECONDS
) -> Iterator[tuple[ClipRow, np.ndarray | str] | tuple[ClipFailure, None]]:
    """Yields each row with its audio, float32 [C, num_samples], in the order of the rows; or with the reason why it has none.

    A failure among the rows is yielded with None.  batch_seconds: audio per call of the model.
    """
    batch: list[ClipRow | ClipFailure] = []
    seconds = 0.0
    for row in rows:
        length = row.duration if isinstance(row, ClipRow) else 0.0
        if batch and seconds + length > batch_seconds:
            yield from _decode_mixed(model, batch)
            batch, seconds = [], 0.0
        batch.append(row)
        seconds += length
    yield from _decode_mixed(model, batch)


def _decode_mixed(
    model: EncodecModel, rows: Sequence[ClipRow | ClipFailure]
) -> Iterator[tuple[ClipRow, np.ndarray | str] | tuple[ClipFailure, None]]:
    good = [row for row in rows if isinstance(row, ClipRow)]
    decoded = _decode_batch(model, good) if good else iter(())
    yield from ((row, None) if isinstance(row, ClipFailure) else next(decoded) for row in rows)


def _decode_batch(model: EncodecModel, rows: Sequence[ClipRow]) -> Iterator[tuple[ClipRow, np.ndarray | str]]:
    def decode_batch(batch: Sequence[ClipRow]) -> list[torch.Tensor]:
        return model.decode_batch([encoded_clip(row) for row in batch])

    problems = [_row_problem(row, model) for row in rows]
    good = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
    decoded = iter(each_or_reason(decode_batch, good) if good else [])
    for row, problem in zip(rows, problems, strict=True):
        audio = next(decoded) if problem is None else problem
        if isinstance(audio, str):
            yield row, audio if problem else f"the model can't decode it ({audio})."
            continue
        samples = audio.float().cpu().numpy()
        # of scales or codes that no encoder made
        yield row, samples if np.isfinite(samples).all() else "its audio has samples that are no finite numbers."


def _row_problem(row: ClipRow, model: EncodecModel) -> str | None:
    """Returns why the model can't decode the row, or None. On a GPU a code out of range would end the process."""
    config = model.config
    chunks, levels, frames = row.codes.shape
    if row.sampling_rate != config.sampling_rate:
        return f"the codes are of a {row.sampling_rate} Hz model, this is one of {config.sampling_rate} Hz."
    if levels > len(model.quantizer.layers):
        return f"the codes have {levels} levels, the model {len(model.quantizer.layers)}."
    if row.codes.size and int(row.codes.max()) >= config.codebook_size:
        return f"a code is {int(row.codes.max())}; the model has codes 0 ... {config.codebook_size - 1}."
    # the model's own arithmetic: chunks start every chunk_stride samples
    length = row.num_samples if config.chunk_length is None else min(row.num_samples, config.chunk_length)
    expected = (
        1 if config.chunk_length is None else -(-row.num_samples // config.chunk_stride),
        encoded_length(config, length),
    )
    if row.num_samples < 1 or (chunks, frames) != expected or (row.scales is not None) != bool(config.normalize):
        return f"codes of shape {list(row.codes.shape)} don't belong to a clip of {row.num_samples} samples."
    return None


def digest_of(row: ClipRow, weights_sha256: str, subtype: str) -> str:
    """Returns what tells whether a WAV file of this subtype was decoded from this row by these weights."""
    codes = np.ascontiguousarray(row.codes, np.int64)
    about = f"{weights_sha256} {subtype} {row.num_samples} {row.sampling_rate} {row.last_frame_pad_length} {codes.shape}"
    scales = b"" if row.scales is None else row.scales.tobytes()
    return hashlib.sha256(about.encode() + codes.tobytes() + scales).hexdigest()[:32]


def encoded_clip(row: ClipRow) -> EncodedClip:
    """Returns the row as decode_batch takes it, on the CPU."""
    return EncodedClip(
        codes=torch.from_numpy(row.codes.astype(np.int64)),
        scales=None if row.scales is None else torch.from_numpy(row.scales),
        last_frame_pad_length=row.last_frame_pad_length,
        num_samples=row.num_samples,
    )
