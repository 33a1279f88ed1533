"""Lengths that follow from a model's configuration alone."""

from __future__ import annotations

import math
from typing import Any

from encodec_fast.transformers_versions import PADS_LAST_FRAME


def hop_length(config: Any) -> int:
    """Returns the samples per codec frame; the config says so itself from transformers 4.45 on."""
    return math.prod(config.upsampling_ratios)


def encoded_length(config: Any, length: int) -> int:
    """Returns the frames of `length` samples: each downsampling rounds up."""
    for ratio in reversed(config.upsampling_ratios):
        # not of -length, which a graph of ONNX rounds towards zero
        length = (length + ratio - 1) // ratio
    return length


def chunks_of(config: Any, num_samples: int) -> list[tuple[int, int]]:
    """Returns (length, start) of the chunks that HF's `encode` cuts a clip into; the whole clip for a model without chunks."""
    chunk_length = config.chunk_length
    if chunk_length is None:
        return [(num_samples, 0)]
    return [(min(chunk_length, num_samples - start), start) for start in range(0, num_samples, config.chunk_stride)]


def whole_clips_only(config: Any) -> str | None:
    """Returns why a model needs the whole of a clip at once, by its configuration, or None."""
    if config.normalize:
        return "it scales every clip by the volume of the whole of it (normalize=True)"
    if config.chunk_length is not None:
        return f"it encodes chunks of {config.chunk_length} samples, each by itself"
    return None


def reference_length(config: Any, num_samples: int) -> int:
    """Returns the longest length up to `num_samples` that HF itself can encode and decode.

    HF stacks and adds chunks of which only the last may be short: a last chunk that ends inside the one before breaks both.
    """
    length, stride = config.chunk_length, config.chunk_stride
    if length is None:
        return num_samples
    if not PADS_LAST_FRAME:
        # before 4.53 the last chunk must be full
        return (num_samples - length) // stride * stride + length
    while num_samples > 0:
        parts = chunks_of(config, num_samples)
        frames = [encoded_length(config, part) for part, _ in parts]
        ends = [start + count * hop_length(config) for count, (_, start) in zip(frames, parts)]
        if len(set(frames[:-1])) <= 1 and max(ends) == ends[-1]:
            break
        num_samples = (num_samples - 1) // stride * stride
    return num_samples
