"""Residual vector dequantization: the sum over all levels in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tile, block_of, rvq_decode_tile


def rvq_decode_ref(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Sums the codebook entries that the codes name.

    codes: [K, B, F] integers in [0, N). The kernel clamps others; checking them is the caller's part.  codebooks: [>= K, N, D].
    Returns [B, D, F] in the codebooks' dtype, summed in float32 from the first level to the last.
    Source: EncodecResidualVectorQuantizer.decode, transformers 5.23 modeling_encodec.py.
    """
    total = torch.zeros((), dtype=torch.float32, device=codes.device)
    for level, indices in enumerate(codes.clamp(0, codebooks.shape[1] - 1)):
        total = total + codebooks[level].float()[indices]
    return total.transpose(1, 2).to(codebooks.dtype)


@triton.jit
def _rvq_decode_kernel(
    codes_ptr,
    codebooks_ptr,
    y_ptr,
    stride_ck,
    stride_cb,
    stride_cf,
    frames,
    F,
    K,
    N,
    D,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Computes `y[b, f, :] = sum over q of codebooks[q, codes[q, b, f]]`, y contiguous.

    Grid: blocks of frames.  Reference: rvq_decode_ref.
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)  # [BLOCK_F]
    d = tl.arange(0, BLOCK_D)  # [BLOCK_D]
    acc = tl.zeros((BLOCK_F, BLOCK_D), dtype=tl.float32)
    codes_block = codes_ptr + n // F * stride_cb + n % F * stride_cf
    for q in tl.range(0, K):
        index = tl.load(codes_block, mask=n < frames, other=0)
        codes_block += stride_ck
        index = tl.minimum(tl.maximum(index, 0), N - 1)
        acc += tl.load(codebooks_ptr + ((q * N + index) * D)[:, None] + d[None, :], mask=(d < D)[None, :], other=0.0).to(tl.float32)
    y_block = y_ptr + (n * D)[:, None] + d[None, :]
    tl.store(y_block, acc.to(y_ptr.dtype.element_ty), mask=(n < frames)[:, None] & (d < D)[None, :])


def rvq_decode_triton(codes: Tensor, codebooks: Tensor, *, tile: Tile | None = None) -> Tensor:
    """Runs `rvq_decode_ref`, bit for bit; the result is channels-last in memory."""
    levels, batch, length = codes.shape
    available, entries, width = codebooks.shape
    if levels > available:
        raise ValueError(f"codes have {levels} levels, the codebooks only {available}")
    y = codebooks.new_empty(batch, length, width)
    frames = batch * length
    if frames:
        tile = tile or rvq_decode_tile(codes.device)
        _rvq_decode_kernel[(triton.cdiv(frames, tile.block_m),)](
            codes, codebooks, y, *codes.stride(), frames, length, levels, entries, width,
            BLOCK_F=tile.block_m, BLOCK_D=block_of(width), **tile.options,
        )  # fmt: skip
    return y.transpose(1, 2)
