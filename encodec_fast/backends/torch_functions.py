"""The chunked model's functions without weights, in torch's operations: on any device, in any dtype, differentiable."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize_torch(audio: Tensor) -> tuple[Tensor, Tensor]:
    """Returns audio [B, C, T] of unit volume, and the scale [B, 1] by which each clip was divided.

    float32 and float64 are summed by halves, in one order for any batch and thread count.
    torch's own sum splits a single chunk over the threads, but not a chunk in a batch.
    Half keeps torch's sum, which runs in float32.
    Source: EncodecModel._encode_frame.
    """
    if audio.dtype not in (torch.float32, torch.float64):
        mono = audio.sum(1) / audio.shape[1]
        mean = mono.pow(2).mean(dim=-1, keepdim=True)
    else:
        mono = functools.reduce(torch.add, audio.unbind(1)) / audio.shape[1]
        sums = mono * mono
        while sums.shape[-1] > 1:
            half = (sums.shape[-1] + 1) // 2
            sums = sums[..., :half] + F.pad(sums[..., half:], (0, 2 * half - sums.shape[-1]))
        mean = sums / audio.shape[-1]
    scale = _root(mean) + 1e-8
    return audio / scale[:, None], scale


def _root(x: Tensor) -> Tensor:
    """Returns the nearest float32 to the square root.

    torch's own is MKL's on some CPUs, a last place off for one number in five.
    """
    # Apple's GPUs have no float64
    return x.double().sqrt().float() if x.dtype == torch.float32 and x.device.type != "mps" else x.sqrt()


def overlap_add_torch(chunks: Sequence[Tensor], weight: Tensor, stride: int, length: int) -> Tensor:
    """Returns chunks [B, C, T_i] cross-faded linearly, [B, C, length], as `Backend.overlap_add` does.

    Bit-equal to HF's `_linear_overlap_add`, without its host sync: at most two chunks cover a sample, and a + b is b + a.
    """
    summed = weight.new_zeros(*chunks[0].shape[:-1], length)
    weights = weight.new_zeros(length)
    for index, chunk in enumerate(chunks):
        start = min(index * stride, length)
        end = min(index * stride + chunk.shape[-1], length)
        summed[..., start:end] += (chunk * weight[: chunk.shape[-1]])[..., : end - start]
        weights[start:end] += weight[: end - start]
    return summed.div_(weights).to(chunks[0].dtype)
