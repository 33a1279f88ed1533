"""Group norm with one group over all channels and all time of a clip, split between the kernels around it.

The producer of a signal leaves (count, mean, squared deviation) of each of its tiles; `group_norm_statistics` joins them
in the order of the tiles, without atomics; the consumer normalises while it loads. Tiles past a clip's end have count 0
and change no bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import FUSED, Tile

TILES_AT_ONCE = 1024


@triton.jit
def store_partial(partial_ptr, values, inside):
    """Leaves count, mean and squared deviation of the values inside at partial_ptr[0:3]."""
    count = tl.sum(tl.sum(inside.to(tl.float32), axis=1), axis=0)
    mean = tl.sum(tl.sum(tl.where(inside, values, 0.0), axis=1), axis=0) / tl.maximum(count, 1.0)
    deviation = tl.where(inside, values - mean, 0.0)
    tl.store(partial_ptr, count)
    tl.store(partial_ptr + 1, mean)
    tl.store(partial_ptr + 2, tl.sum(tl.sum(deviation * deviation, axis=1), axis=0))


@triton.jit
def apply_norm(x, stats_ptr, gamma_ptr, beta_ptr, clip, channels, inside):
    """(x - mean) * rstd * gamma + beta for a block x [channels, time] of one clip."""
    mean = tl.load(stats_ptr + 2 * clip)
    rstd = tl.load(stats_ptr + 2 * clip + 1)
    gamma = tl.load(gamma_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    return (x - mean) * (rstd * gamma)[:, None] + beta[:, None]


def group_norm_statistics_ref(partials: Tensor, eps: float) -> Tensor:
    """Mean and 1 / sqrt(variance + eps) of each clip.

    partials: [B, tiles, 3] float32, count, mean and squared deviation of each tile.
    Returns [B, 2], float32.
    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    count, mean, squares = partials.double().unbind(-1)
    whole = count.sum(1, keepdim=True)
    centre = (count * mean).sum(1, keepdim=True) / whole
    variance = (squares + count * (mean - centre) ** 2).sum(1, keepdim=True) / whole
    return torch.cat((centre, (variance + eps).rsqrt()), 1).float()


@triton.jit
def _group_norm_statistics_kernel(partials_ptr, stats_ptr, tiles, eps, BLOCK: tl.constexpr):
    """mean = sum n_i m_i / sum n_i; variance = sum (s_i + n_i (m_i - mean)^2) / sum n_i.  Reference: group_norm_statistics_ref."""
    clip = tl.program_id(0).to(tl.int64)
    rows = partials_ptr + clip * tiles * 3
    whole = 0.0
    first = 0.0
    for start in tl.range(0, tiles, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        count = tl.load(rows + i * 3, mask=i < tiles, other=0.0)
        mean = tl.load(rows + i * 3 + 1, mask=i < tiles, other=0.0)
        whole += tl.sum(count, axis=0)
        first += tl.sum(count * mean, axis=0)
    centre = first / whole
    second = 0.0
    for start in tl.range(0, tiles, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        count = tl.load(rows + i * 3, mask=i < tiles, other=0.0)
        off = tl.load(rows + i * 3 + 1, mask=i < tiles, other=0.0) - centre
        second += tl.sum(tl.load(rows + i * 3 + 2, mask=i < tiles, other=0.0) + count * off * off, axis=0)
    tl.store(stats_ptr + 2 * clip, centre)
    tl.store(stats_ptr + 2 * clip + 1, 1.0 / tl.sqrt_rn(second / whole + eps))


def group_norm_statistics_triton(partials: Tensor, eps: float) -> Tensor:
    """As `group_norm_statistics_ref`."""
    stats = partials.new_empty(partials.shape[0], 2)
    if partials.shape[0]:
        _group_norm_statistics_kernel[(partials.shape[0],)](
            partials, stats, partials.shape[1], eps, BLOCK=TILES_AT_ONCE, num_warps=4, **FUSED
        )
    return stats


def group_norm_apply_ref(
    x: Tensor, norm: tuple[Tensor, Tensor, Tensor], other: Tensor | None = None, other_norm: tuple[Tensor, Tensor, Tensor] | None = None
) -> Tensor:
    """Normalised x, plus other, normalised too where it has a norm.

    x, other: [B, C, T].  norm: (statistics [B, 2], weight [C], bias [C]).
    Returns [B, C, T] in x's dtype.
    Source: torch.nn.GroupNorm with num_groups=1.
    """
    stats, gamma, beta = norm
    y = (x - stats[:, 0, None, None]) * (stats[:, 1, None] * gamma)[:, :, None] + beta[None, :, None]
    if other is None:
        return y
    return y + (other if other_norm is None else group_norm_apply_ref(other, other_norm))


@triton.jit
def _group_norm_apply_kernel(
    x_ptr,
    stats_ptr,
    gamma_ptr,
    beta_ptr,
    other_ptr,
    other_stats_ptr,
    other_gamma_ptr,
    other_beta_ptr,
    y_ptr,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_ob,
    stride_oc,
    stride_ot,
    C,
    T,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y = norm(x) + norm(other), y contiguous.  Reference: group_norm_apply_ref."""
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(C, BLOCK_M)
    tiles_n = tl.cdiv(T, BLOCK_N)
    clip = (pid // (tiles_m * tiles_n)).to(tl.int64)
    c = pid % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    t = pid // tiles_m % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    inside = (c < C)[:, None] & (t < T)[None, :]
    row = c.to(tl.int64)
    x_block = x_ptr + clip * stride_xb + (row * stride_xc)[:, None] + (t * stride_xt)[None, :]
    x = tl.load(x_block, mask=inside, other=0.0).to(tl.float32)
    y = apply_norm(x, stats_ptr, gamma_ptr, beta_ptr, clip, c, c < C)
    if other_ptr is not None:
        other_block = other_ptr + clip * stride_ob + (row * stride_oc)[:, None] + (t * stride_ot)[None, :]
        other = tl.load(other_block, mask=inside, other=0.0).to(tl.float32)
        if other_stats_ptr is not None:
            other = apply_norm(other, other_stats_ptr, other_gamma_ptr, other_beta_ptr, clip, c, c < C)
        y += other
    y_block = y_ptr + ((clip * C + row) * T)[:, None] + t[None, :]
    tl.store(y_block, y.to(y_ptr.dtype.element_ty), mask=inside)


def group_norm_apply_triton(
    x: Tensor,
    norm: tuple[Tensor, Tensor, Tensor],
    other: Tensor | None = None,
    other_norm: tuple[Tensor, Tensor, Tensor] | None = None,
    tile: Tile = Tile(block_m=8, block_n=512, block_k=0, num_warps=4, num_stages=1),  # noqa: B008 (frozen)
) -> Tensor:
    """As `group_norm_apply_ref`."""
    batch, channels, length = x.shape
    y = x.new_empty(x.shape)
    if y.numel():
        grid = (batch * triton.cdiv(channels, tile.block_m) * triton.cdiv(length, tile.block_n),)
        other_strides = (0, 0, 0) if other is None else other.stride()
        _group_norm_apply_kernel[grid](
            x, *norm, other, *(other_norm or (None, None, None)), y,
            *x.stride(), *other_strides, channels, length,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, **tile.options,
        )  # fmt: skip
    return y
