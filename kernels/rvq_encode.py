"""Residual vector quantization: every level of the nearest-entry search in one launch, with the residual kept on the chip.

Mode 'rerank' scores with half-precision products and proves its codes equal to those of 'ieee'.
Take a residual r and an entry e with score s = |e|^2 - 2 r.e.
r' and e' are r and e rounded to halves; their scales, powers of two, are left out here.
With u = 2^-24 and Euclidean norms:

    |s_half - s| <= A = 2 (|r - r'| max|e| + |r'| max|e - e'|)              rounded operands
                        + 2 (D 2^-21 + 2 u) |r'| max|e'| + 2 u max|e|^2     sum and score
    |s_ieee - s| <= B = 2 (D + 2) u |r| max|e| + 2 u max|e|^2               one chain of D FMAs, score
    |s_tree - s| <= B                                                       a tree rounds less often than a chain

Two entries with low s_half are scored again in float32 by a tree (s_tree). Let w be the better one.
- If the other one's s_tree exceeds w's by more than 4 B, then its s_ieee exceeds w's too.
- If all others' s_half exceed w's s_tree by more than A + 3 B, their s_ieee exceed w's too.
If both hold, w is the entry that 'ieee' chooses. Otherwise the block of frames searches that level again in ieee.
2^-21 per term is an assumption about tensor cores, whose float32 sums truncate. `bench/gpu_report.py` checks the codes on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .modes import SearchMode
from .product import half_exponent
from .tiles import Tile, block_of, rvq_encode_tile

# Bounds on the largest element of a codebook or residual. Within them float32 holds products and sums: 2 x 512 x 2^116 = 2^126.
SMALL, LARGE = tl.constexpr(2.0**-30), tl.constexpr(2.0**58)


class SearchTables(NamedTuple):
    """Tables that the search reads.

    codebooks: [K, N, D] float32.  squares: [K, N] float32, |e|^2.
    rounded: [K, N, D] float16, each level's entries times a power of two. It takes the largest element to [2^14, 2^15).
    bounds: [K, 4] float32, per level: max |e|, max |e - e'| and max |e'|, rounded up, then one over the power.
    e' is the rounded entry divided by that power.
    The first three are infinite where elements are so large or small that products overflow or vanish.
    """

    codebooks: Tensor
    squares: Tensor
    rounded: Tensor
    bounds: Tensor


def search_tables(codebooks: Tensor) -> SearchTables:
    """Builds the tables of codebooks [K, N, D]."""
    codebooks = codebooks.float().contiguous()
    largest = codebooks.abs().amax((1, 2))
    exponent = half_exponent(largest)
    rounded = torch.ldexp(codebooks, exponent[:, None, None]).half()
    exact, back = codebooks.double(), torch.ldexp(rounded.double(), -exponent[:, None, None])
    norms = torch.stack([part.norm(dim=2).amax(1) for part in (exact, exact - back, back)], 1) * (1 + 2**-20)
    usual = (largest > SMALL.value) & (largest < LARGE.value)
    bounds = torch.where(usual[:, None], norms.float(), torch.inf)
    unscale = torch.ldexp(torch.ones_like(largest), -exponent)
    return SearchTables(codebooks, exact.square().sum(2).float(), rounded, torch.cat((bounds, unscale[:, None]), 1))


def rvq_encode_ref(x: Tensor, tables: SearchTables, num_quantizers: int) -> Tensor:
    """Searches each codebook for the entry nearest to the residual left by the levels before.

    x: [B, D, F] encoder output.  tables: `search_tables` of codebooks [K, N, D].
    Returns codes [num_quantizers, B, F], int64. On equal distances the lowest index wins; a frame with a NaN gets code 0.
    Raises ValueError if D differs between the two, or if there are fewer codebooks than asked for.
    Source: EncodecResidualVectorQuantizer.encode, transformers 5.23 modeling_encodec.py.
    """
    _check(x, tables, num_quantizers)
    residual = x.float().transpose(1, 2)
    codes = []
    for level in range(num_quantizers):
        entries = tables.codebooks[level]
        # float64 sums give equal entries equal scores after rounding, at any position in the matrix
        scores = (tables.squares[level] - 2 * (residual.double() @ entries.double().T)).float()
        codes.append(torch.where(scores.isnan(), torch.inf, scores).argmin(-1))
        residual = residual - entries[codes[-1]]
    return torch.stack(codes)


def _check(x: Tensor, tables: SearchTables, num_quantizers: int) -> None:
    levels, _, width = tables.codebooks.shape
    if x.ndim != 3 or x.shape[1] != width:
        raise ValueError(f"x must be [B, {width}, F] for codebooks of dimension {width}, got {tuple(x.shape)}")
    if not 1 <= num_quantizers <= levels:
        raise ValueError(f"num_quantizers must be between 1 and the {levels} codebooks, got {num_quantizers}")


@triton.jit
def _scores(r, entries_ptr, squares_ptr, n, d, N, D, MODE: tl.constexpr):
    """Computes |e|^2 - 2 r.e of entries n, [BLOCK_F, BLOCK_N]; infinite where it is NaN or n >= N."""
    e_block = entries_ptr + n[None, :] * D + d[:, None]  # [BLOCK_D, BLOCK_N]
    e = tl.load(e_block, mask=(n < N)[None, :] & (d < D)[:, None], other=0.0)
    squares = tl.load(squares_ptr + n, mask=n < N, other=float("inf"))
    s = squares[None, :] - 2.0 * tl.dot(r, e, input_precision=MODE)
    return tl.where(s == s, s, float("inf"))


@triton.jit
def _search(r, entries_ptr, squares_ptr, d, N, D, MODE: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr):
    """Returns the index of the lowest score, [BLOCK_F]; on equal scores the lowest index."""
    best = tl.full((BLOCK_F,), float("inf"), tl.float32)
    index = tl.zeros((BLOCK_F,), tl.int32)
    for n0 in tl.range(0, N, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        low, at = tl.min(_scores(r, entries_ptr, squares_ptr, n, d, N, D, MODE), axis=1, return_indices=True)
        # strict: on equal scores the earlier block wins
        index = tl.where(low < best, n0 + at, index)
        best = tl.where(low < best, low, best)
    return index


@triton.jit
def _half(r):
    """Scales each row of r, [BLOCK_F, BLOCK_D], by a power of two and rounds it to halves.

    Returns the halves, one over the power, and whether the row's largest element is within SMALL and LARGE.
    """
    largest = tl.max(tl.abs(r), axis=1)
    stored = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    # biased exponent of the power that takes the largest element to [2^14, 2^15)
    power = tl.minimum(tl.maximum(268 - stored, 1), 253)
    half = (r * (power << 23).to(tl.float32, bitcast=True)[:, None]).to(tl.float16)
    return half, ((254 - power) << 23).to(tl.float32, bitcast=True), (largest > SMALL) & (largest < LARGE)


@triton.jit
def _tree_score(r, entries_ptr, squares_ptr, index, d, D):
    e = tl.load(entries_ptr + index[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)  # [BLOCK_F, BLOCK_D]
    return tl.load(squares_ptr + index) - 2.0 * tl.sum(r * e, axis=1)


@triton.jit
def _search_rerank(
    r,
    entries_ptr,
    squares_ptr,
    rounded_ptr,
    bounds_ptr,
    d,
    N,
    D,
    EVEN: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Returns the index of the lowest score, and whether `_search` in ieee provably chooses it too; both [BLOCK_F].

    Entries j, j + BLOCK_N, j + 2 BLOCK_N and so on share a slot.
    A slot keeps its lowest score with its entry, and its second lowest without. So slots are compared only at the end.
    EVEN: all blocks are full.
    """
    half, unscale, usual = _half(r)
    factor = 2.0 * unscale * tl.load(bounds_ptr + 3)
    low1 = tl.full((BLOCK_F, BLOCK_N), float("inf"), tl.float32)
    low2 = tl.full((BLOCK_F, BLOCK_N), float("inf"), tl.float32)
    block1 = tl.zeros((BLOCK_F, BLOCK_N), tl.int32)
    j = tl.arange(0, BLOCK_N)
    for n0 in tl.range(0, N, BLOCK_N):
        n = n0 + j
        e_block = rounded_ptr + n[None, :] * D + d[:, None]  # [BLOCK_D, BLOCK_N]
        if EVEN:
            e, squares = tl.load(e_block), tl.load(squares_ptr + n)
        else:
            e = tl.load(e_block, mask=(n < N)[None, :] & (d < D)[:, None], other=0.0)
            squares = tl.load(squares_ptr + n, mask=n < N, other=float("inf"))
        # a NaN score enters no minimum; its bounds are NaN too, so nothing is proven
        s = squares[None, :] - factor[:, None] * tl.dot(half, e)
        first = s < low1
        low2 = tl.minimum(low2, tl.where(first, low1, s))
        block1 = tl.where(first, n0, block1)
        low1 = tl.where(first, s, low1)

    slot1 = tl.argmin(low1, axis=1)
    index1 = slot1 + tl.sum(tl.where(j[None, :] == slot1[:, None], block1, 0), axis=1)
    low1 = tl.where(j[None, :] == slot1[:, None], float("inf"), low1)
    slot2 = tl.argmin(low1, axis=1)
    index2 = slot2 + tl.sum(tl.where(j[None, :] == slot2[:, None], block1, 0), axis=1)
    low1 = tl.where(j[None, :] == slot2[:, None], float("inf"), low1)
    others = tl.min(tl.minimum(low1, low2), axis=1)

    u: tl.constexpr = 2.0**-24
    max_e = tl.load(bounds_ptr)
    max_error = tl.load(bounds_ptr + 1)
    max_rounded = tl.load(bounds_ptr + 2)
    # 1.0001 covers the rounding of the norms and of the bounds themselves
    back = half.to(tl.float32) * unscale[:, None]
    norm = 1.0001 * tl.sqrt(tl.sum(r * r, axis=1))
    norm_half = 1.0001 * tl.sqrt(tl.sum(back * back, axis=1))
    error = 1.0001 * tl.sqrt(tl.sum((r - back) * (r - back), axis=1))
    bound = 2 * (error * max_e + norm_half * max_error) + 2 * (D * 2.0**-21 + 2 * u) * norm_half * max_rounded + 2 * u * max_e * max_e
    bound_ieee = 2 * (D + 2) * u * norm * max_e + 2 * u * max_e * max_e

    score1 = _tree_score(r, entries_ptr, squares_ptr, index1, d, D)
    score2 = _tree_score(r, entries_ptr, squares_ptr, index2, d, D)
    low = tl.where(score2 < score1, score2, score1)
    high = tl.where(score2 < score1, score1, score2)
    # a comparison with NaN is false, so a frame with one is never sure
    sure = usual & (low > float("-inf")) & (high - low > 4 * bound_ieee) & (others - low > bound + 3 * bound_ieee)
    return tl.where(score2 < score1, index2, index1), sure


@triton.jit
def _rvq_encode_kernel(
    x_ptr,
    codebooks_ptr,
    squares_ptr,
    rounded_ptr,
    bounds_ptr,
    codes_ptr,
    searched_again_ptr,
    stride_xb,
    stride_xd,
    stride_xf,
    frames,
    F,
    K,
    N,
    D,
    EVEN: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Computes `codes[q, n] = argmin over e of |e|^2 - 2 r_q[n].e` with `r_{q+1} = r_q - e`.

    n = b * F + f runs over all frames of all clips.
    Grid: blocks of frames.  Reference: rvq_encode_ref.
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)  # [BLOCK_F]
    d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    x_row = x_ptr + n // F * stride_xb + n % F * stride_xf
    inside = (n < frames)[:, None] & (d < D)[None, :]
    r = tl.load(x_row[:, None] + (d.to(tl.int64) * stride_xd)[None, :], mask=inside, other=0.0).to(tl.float32)  # [BLOCK_F, BLOCK_D]
    level_codes = codes_ptr + n
    for q in tl.range(0, K):
        entries_ptr = codebooks_ptr + q * N * D
        level_ptr = squares_ptr + q * N
        if MODE == "rerank":
            rounded_level, bounds_level = rounded_ptr + q * N * D, bounds_ptr + 4 * q
            index, sure = _search_rerank(
                r, entries_ptr, level_ptr, rounded_level, bounds_level, d, N, D, EVEN, BLOCK_F, BLOCK_N
            )  # fmt: skip
            unsure = tl.max((~sure & (n < frames)).to(tl.int32), axis=0)
            if unsure > 0:
                # narrow blocks keep this rare path from spilling registers
                index = _search(r, entries_ptr, level_ptr, d, N, D, "ieee", BLOCK_F, 16)
            if searched_again_ptr is not None:
                tl.store(searched_again_ptr + tl.program_id(0) * K + q, unsure)
        else:
            index = _search(r, entries_ptr, level_ptr, d, N, D, MODE, BLOCK_F, BLOCK_N)
        tl.store(level_codes, index.to(tl.int64), mask=n < frames)
        level_codes += frames
        r -= tl.load(entries_ptr + index[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)


def rvq_encode_triton(
    x: Tensor,
    tables: SearchTables,
    num_quantizers: int,
    *,
    mode: SearchMode,
    searched_again: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Runs `rvq_encode_ref`.

    mode: 'ieee', or 'rerank', whose codes equal those of 'ieee'.
    searched_again: [blocks, num_quantizers] int32 or None, set to 1 where 'rerank' had to search a block in ieee.
    """
    _check(x, tables, num_quantizers)
    if mode not in list(SearchMode):
        raise ValueError(f"mode must be one of {[known.value for known in SearchMode]}, got {mode!r}")
    batch, width, length = x.shape
    entries = tables.codebooks.shape[1]
    codes = torch.empty(num_quantizers, batch, length, dtype=torch.int64, device=x.device)
    frames = batch * length
    if frames:
        tile = tile or rvq_encode_tile(x.device, width, frames, mode)
        even = entries % tile.block_n == 0 and width == block_of(width)
        _rvq_encode_kernel[(triton.cdiv(frames, tile.block_m),)](
            x, *tables, codes, searched_again, *x.stride(), frames, length, num_quantizers, entries, width,
            EVEN=even, MODE=SearchMode(mode).value, BLOCK_F=tile.block_m, BLOCK_N=tile.block_n, BLOCK_D=block_of(width), **tile.options,
        )  # fmt: skip
    return codes
