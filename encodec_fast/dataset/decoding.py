"""Stored codes back to audio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from encodec_fast.chunks import encoded_length
from encodec_fast.dataset.encoding import each_or_reason
from encodec_fast.dataset.options import BATCH_SECONDS
from encodec_fast.formats import ClipRow
from encodec_fast.model import EncodecModel, EncodedClip


def decode(
    model: EncodecModel, rows: Iterable[ClipRow], *, batch_seconds: float = BATCH_SECONDS
) -> Iterator[tuple[ClipRow, np.ndarray | str]]:
    """Each row with its audio, float32 [C, num_samples], in the order of the rows; or with why it has none."""
    batch: list[ClipRow] = []
    seconds = 0.0
    for row in rows:
        if batch and seconds + row.duration > batch_seconds:
            yield from _decode_batch(model, batch)
            batch, seconds = [], 0.0
        batch.append(row)
        seconds += row.duration
    if batch:
        yield from _decode_batch(model, batch)


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
        else:
            yield row, audio.float().cpu().numpy()


def _row_problem(row: ClipRow, model: EncodecModel) -> str | None:
    """Why the model can't decode the row, or None. On a GPU a code out of range would end the process."""
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


def encoded_clip(row: ClipRow) -> EncodedClip:
    """The row as decode_batch takes it, on the CPU."""
    return EncodedClip(
        codes=torch.from_numpy(row.codes.astype(np.int64)),
        scales=None if row.scales is None else torch.from_numpy(row.scales),
        last_frame_pad_length=row.last_frame_pad_length,
        num_samples=row.num_samples,
    )
