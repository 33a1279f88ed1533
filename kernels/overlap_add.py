"""Linear overlap-add of decoded chunks, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def overlap_add_ref(chunks: Tensor, weight: Tensor, stride: int, length: int) -> Tensor:
    """Fades chunks into each other and divides by the sum of their weights; every operation rounds to the chunks' dtype.

    chunks: [n, B, C, L].  weight: [L].
    stride: steps between the starts of chunks, at most L.  length: steps of the result; chunks are cut there.
    Returns [B, C, length] in the dtype of the chunks.
    Source: EncodecModel._linear_overlap_add, transformers 5.23 modeling_encodec.py.
    """
    y = chunks.new_zeros(*chunks.shape[1:3], length)
    total = chunks.new_zeros(length)
    for i, chunk in enumerate(chunks):
        steps = max(0, min(chunk.shape[2], length - i * stride))
        y[..., i * stride : i * stride + steps] += weight[:steps] * chunk[..., :steps]
        total[i * stride : i * stride + steps] += weight[:steps]
    return y / total


@triton.jit
def _rounded(x, y_ptr):
    """Rounds x to the dtype that y_ptr points to; rounding to float32 first changes nothing for a half."""
    return x.to(y_ptr.dtype.element_ty).to(tl.float32)


@triton.jit
def _overlap_add_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    stride_xn,
    stride_xb,
    stride_xc,
    stride_xt,
    n,
    C,
    LENGTH,
    STEP,
    T,
    OVERLAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Computes `y[b, c, t] = sum over i of w[t - i * STEP] * x[i, b, c, t - i * STEP] / sum over i of w[t - i * STEP]`, y contiguous.

    Grid: B x C x time tiles.  Reference: overlap_add_ref.
    """
    tiles = tl.cdiv(T, BLOCK_N)
    pid = tl.program_id(0)
    t = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    row = (pid // tiles).to(tl.int64)
    clip = row // C
    acc = tl.zeros((BLOCK_N,), dtype=tl.float32)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for overlap in tl.static_range(OVERLAP):
        # earliest chunk first, the order in which HF adds
        i = t // STEP - (OVERLAP - 1 - overlap)
        at = t - i * STEP
        # t < T cuts the last chunks
        inside = (i >= 0) & (i < n) & (at < LENGTH) & (t < T)
        w = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x_block = x_ptr + i.to(tl.int64) * stride_xn + clip * stride_xb + row % C * stride_xc + at * stride_xt
        x = tl.load(x_block, mask=inside, other=0.0).to(tl.float32)
        acc = _rounded(acc + _rounded(w * x, y_ptr), y_ptr)
        total = _rounded(total + w, y_ptr)
    total = tl.where(t < T, total, 1.0)
    tl.store(y_ptr + row * T + t, tl.div_rn(acc, total).to(y_ptr.dtype.element_ty), mask=t < T)


def overlap_add_triton(chunks: Tensor, weight: Tensor, stride: int, length: int) -> Tensor:
    """Runs `overlap_add_ref`, bit for bit."""
    count, batch, channels, steps = chunks.shape
    y = chunks.new_empty(batch, channels, length)
    if y.numel():
        _overlap_add_kernel[(batch * channels * triton.cdiv(length, BLOCK),)](
            chunks, weight, y, *chunks.stride(), count, channels, steps, stride, length,
            OVERLAP=triton.cdiv(steps, stride), BLOCK_N=BLOCK, num_warps=4,
            # HF rounds the product before it adds
            enable_fp_fusion=False,
        )  # fmt: skip
    return y
