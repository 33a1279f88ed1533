"""Group norm with one group over all channels and all steps of a clip, split across the kernels around it.

The producer of a signal stores (count, mean, squared deviation) of each of its tiles.
`group_norm_statistics` combines them in tile order, without atomics.
`arrange` (rows.py) normalises, or a convolution of one step does as it reads.
Tiles past a clip's end have count 0 and change no bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile_table import FUSED

TILES_AT_ONCE = 1024


@triton.jit
def store_partial(partials_ptr, values, inside):
    """Stores count, mean and squared deviation of the values inside, in this program's slot of a one-axis grid."""
    partial_ptr = partials_ptr + tl.program_id(0).to(tl.int64)
    plane = tl.num_programs(0).to(tl.int64)
    count = tl.sum(tl.sum(inside.to(tl.float32), axis=1), axis=0)
    mean = tl.sum(tl.sum(tl.where(inside, values, 0.0), axis=1), axis=0) / tl.maximum(count, 1.0)
    deviation = tl.where(inside, values - mean, 0.0)
    tl.store(partial_ptr, count)
    tl.store(partial_ptr + plane, mean)
    tl.store(partial_ptr + 2 * plane, tl.sum(tl.sum(deviation * deviation, axis=1), axis=0))


def group_norm_statistics_ref(partials: Tensor, eps: float) -> Tensor:
    """Combines the partial sums into mean and 1 / sqrt(variance + eps) of each clip.

    partials: [3, B, tiles] float32, count, mean and squared deviation of each tile.
    Returns [B, 2], float32.
    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    count, mean, squares = partials.double().unbind()
    whole = count.sum(1, keepdim=True)
    centre = (count * mean).sum(1, keepdim=True) / whole
    variance = (squares + count * (mean - centre) ** 2).sum(1, keepdim=True) / whole
    return torch.cat((centre, (variance + eps).rsqrt()), 1).float()


@triton.jit
def _group_norm_statistics_kernel(partials_ptr, stats_ptr, tiles, eps, BLOCK: tl.constexpr):
    """Computes `mean = sum n_i m_i / sum n_i` and `variance = sum (s_i + n_i (m_i - mean)^2) / sum n_i`.

    Grid: B.  Reference: group_norm_statistics_ref.
    """
    clip = tl.program_id(0).to(tl.int64)
    plane = tl.num_programs(0).to(tl.int64) * tiles
    counts = partials_ptr + clip * tiles
    means, squares = counts + plane, counts + 2 * plane
    whole = 0.0
    first = 0.0
    for start in tl.range(0, tiles, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        count = tl.load(counts + i, mask=i < tiles, other=0.0)
        mean = tl.load(means + i, mask=i < tiles, other=0.0)
        whole += tl.sum(count, axis=0)
        first += tl.sum(count * mean, axis=0)
    centre = first / whole
    second = 0.0
    for start in tl.range(0, tiles, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        count = tl.load(counts + i, mask=i < tiles, other=0.0)
        off = tl.load(means + i, mask=i < tiles, other=0.0) - centre
        second += tl.sum(tl.load(squares + i, mask=i < tiles, other=0.0) + count * off * off, axis=0)
    tl.store(stats_ptr + 2 * clip, centre)
    tl.store(stats_ptr + 2 * clip + 1, 1.0 / tl.sqrt_rn(second / whole + eps))


def group_norm_statistics_triton(partials: Tensor, eps: float) -> Tensor:
    """Runs `group_norm_statistics_ref` on contiguous partials."""
    _, batch, tiles = partials.shape
    stats = partials.new_empty(batch, 2)
    if batch:
        _group_norm_statistics_kernel[(batch,)](partials, stats, tiles, eps, BLOCK=TILES_AT_ONCE, num_warps=4, **FUSED)
    return stats
