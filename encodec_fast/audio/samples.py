"""Converts sound to other channels and another rate, whole or in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

# The default of soxr and librosa: 20 bits of precision, below the noise of 16-bit sources, a third faster than VHQ.
RESAMPLE_QUALITY = "HQ"


def mix_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    """Mixes samples [C', T] to `channels` channels: float32 [C, T], contiguous.

    To mono: the mean of all channels. Mono to stereo: the channel twice.
    Raises ValueError for anything else, since a surround layout can't be told from the file.
    """
    if samples.shape[0] == channels:
        return np.ascontiguousarray(samples, dtype=np.float32)
    if channels == 1:
        return np.ascontiguousarray(samples.mean(axis=0, keepdims=True, dtype=np.float32))
    if samples.shape[0] == 1:
        return np.repeat(samples.astype(np.float32, copy=False), channels, axis=0)
    raise ValueError(
        f"{samples.shape[0]} channels can't be mixed to {channels}: mono or {channels} channels are needed; mix the file down first."
    )


def resample(samples: np.ndarray, original_rate: int, sampling_rate: int) -> np.ndarray:
    """Resamples to float32 [C, T] at sampling_rate, by soxr at RESAMPLE_QUALITY; returns the input if the rates are equal."""
    if original_rate == sampling_rate:
        return samples
    import soxr

    return np.ascontiguousarray(soxr.resample(samples.T, original_rate, sampling_rate, quality=RESAMPLE_QUALITY).T)


def resample_blocks(blocks: Iterable[np.ndarray], original_rate: int, sampling_rate: int) -> Iterator[np.ndarray]:
    """Yields `resample` of the clip that the blocks [C, T_i] form, bit for bit.

    The blocks [C, T_j] that it yields may be empty.
    """
    if original_rate == sampling_rate:
        yield from blocks
        return
    import soxr

    stream = None
    for block in blocks:
        if stream is None:
            stream = soxr.ResampleStream(original_rate, sampling_rate, len(block), dtype="float32", quality=RESAMPLE_QUALITY)
        yield np.ascontiguousarray(stream.resample_chunk(np.ascontiguousarray(block.T)).T)
    if stream is not None:
        yield np.ascontiguousarray(stream.resample_chunk(np.zeros((0, len(block)), np.float32), last=True).T)
