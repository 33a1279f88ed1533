"""The chunked model's functions without weights: the volume of a clip, and chunks faded into each other."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.serving.request import log_once
from encodec_fast.serving.route import route_function


def normalize(audio: Tensor) -> tuple[Tensor, Tensor]:
    """Returns clips [B, C, T] of unit volume, and the scale [B, 1] that was taken off each: the same bits on every backend."""
    backend = route_function("normalize", [audio]).prepared
    assert backend is not None
    return backend.normalize(audio)


def overlap_add(frames: list[Tensor], stride: int, num_samples: int | None = None) -> Tensor:
    """Returns chunks [B, C, T_i] faded linearly into each other at multiples of `stride`: [B, C, stride * (n - 1) + T_last].

    num_samples: cut to this length. HF can't add a chunk that ends after the last one; rounding up to whole codec frames makes one of
    300 clip lengths end so.
    Bit-equal to HF's `_linear_overlap_add`. Raises what that raises for gaps between chunks.
    """
    if not frames:
        return hf.EncodecModel._linear_overlap_add(frames, stride)
    length = frames[0].shape[-1]
    total = stride * (len(frames) - 1) + frames[-1].shape[-1] if num_samples is None else num_samples
    ends = [index * stride + frame.shape[-1] for index, frame in enumerate(frames)]
    regular = stride <= length <= 2 * stride and all(frame.shape[-1] <= length for frame in frames)
    regular = regular and len({frame.shape[:-1] for frame in frames}) == 1
    if not regular or (num_samples is None and max(ends) > total):
        if not torch.compiler.is_compiling():
            log_once("overlap_add runs on the reference (the chunks follow each other at no regular distance)")
        return hf.EncodecModel._linear_overlap_add(frames, stride)[..., :total]
    weight = fade_weight(length, frames[0])
    # the kernels know chunks of one length and dtype, cut at the end of the result
    mixed = weight.dtype != frames[0].dtype or any(frame.shape[-1] < length and end < total for frame, end in zip(frames, ends))
    backend = route_function("overlap_add", frames, "the chunks differ in length or dtype" if mixed else None).prepared
    assert backend is not None
    return backend.overlap_add(frames, weight, stride, total)


def fade_weight(length: int, like: Tensor) -> Tensor:
    """Returns the triangle [length] that weighs a chunk, on the device and in the dtype of `like`.

    In float32 where a half would hold zeros at its ends: HF decodes nothing there.
    Source: EncodecModel._linear_overlap_add.
    """
    if like.dtype in (torch.float16, torch.bfloat16) and not _triangle(length, torch.device("cpu"), like.dtype).all():
        return _triangle(length, like.device, torch.float32)
    return _triangle(length, like.device, like.dtype)


def _triangle(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    time = torch.linspace(0, 1, length + 2, device=device, dtype=dtype)[1:-1]
    return 0.5 - (time - 0.5).abs()
