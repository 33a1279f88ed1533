"""The chunks of a clip in operations that torch can export: all of them are one batch, in which short ones have their own length.

The last chunk is what is left of the clip, from one sample on. Those that overlap it may be short, too.

Legend: B batch, C channels, T samples of a clip, L samples of a chunk, n chunks.
Chunks of a batch are [n * B, ...], chunk by chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from encodec_fast.backends.torch_export import in_order


def cut(audio: Tensor, chunk_length: int, stride: int) -> tuple[Tensor, Tensor]:
    """Returns the chunks [n * B, C, L] of clips [B, C, T], and their lengths, int64 [n, 1].

    L is `chunk_length`, or T where that is less. What stands behind the end of a chunk is the clip's last sample.
    """
    batch, channels, length = audio.shape
    longest = torch.sym_min(length, chunk_length)
    starts = torch.arange((length + stride - 1) // stride, device=audio.device)[:, None] * stride
    samples = (starts + torch.arange(longest, device=audio.device)).clamp(max=length - 1)
    chunks = audio.index_select(2, samples.flatten()).view(batch, channels, starts.shape[0], longest)
    return in_order(chunks.permute(2, 0, 1, 3)).view(-1, channels, longest), (length - starts).clamp(max=longest)


def joined(chunks: Tensor, stride: int, most: int, last: Any) -> Tensor:
    """Returns chunks [n, B, C, L] faded linearly into each other at multiples of `stride`: [B, C, stride * (n - 1) + last].

    most: chunks that overlap at a sample.  last: samples of the last chunk, a number or its symbol.
    Sums as transformers' `_linear_overlap_add` does, the earliest chunk first.
    """
    count, length = chunks.shape[0], chunks.shape[3]
    # never negative, but a symbol of the clip's length does not show it
    total = torch.sym_max(stride * (count - 1) + last, 0)
    # halves hold zeros at the ends of a long triangle
    dtype = torch.promote_types(chunks.dtype, torch.float32)
    time = torch.arange(1, length + 1, device=chunks.device, dtype=dtype) / (length + 1)
    weight = 0.5 - (time - 0.5).abs()
    flat = in_order(chunks.permute(1, 2, 0, 3)).flatten(2)
    at = torch.arange(total, device=chunks.device)
    audio, weights = flat.new_zeros(()), weight.new_zeros(())
    for back in reversed(range(most)):
        index = at // stride - back
        step = at - index * stride
        there = (index >= 0) & (index < count) & (step < length)
        share = weight.index_select(0, torch.where(there, step, 0))
        audio = audio + torch.where(there, share * flat.index_select(2, torch.where(there, index * length + step, 0)), 0)
        weights = weights + torch.where(there, share, 0)
    return (audio / weights).to(chunks.dtype)
