"""EnCodec's residual block as one read and one write; as two kernels where its registers do not suffice.

h = ELU(conv1(ELU(x)));  y = conv2(h) + shortcut(x)        conv2 and shortcut have kernel 1; the shortcut may be the identity
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import elu as _elu
from .causal_conv1d import causal_conv1d_ref, causal_conv1d_triton
from .padding import padded_index
from .product import add_product
from .tiles import Tile, block_of, merge_tile, residual_tile


def residual_block_ref(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    *,
    dilation: int = 1,
    pad_left: int,
    pad_right: int = 0,
    pad_mode: str = "reflect",
    lengths: Tensor | None = None,
    start: int = 0,
    out_start: int = 0,
    out_length: int | None = None,
) -> Tensor:
    """The block's output, one step for each step of x.

    x: [B, C, T].  weight1: [H, C, kernel].  weight2: [C_out, H, 1].  shortcut: [C_out, C, 1], or None for the identity.
    Biases: [H], [C_out], [C_out], or None.
    dilation, pad_left, pad_right, pad_mode: of conv1.  lengths, start, out_start, out_length: as in `causal_conv1d_ref`.
    Returns [B, C_out, T_out] in x's dtype.
    Source: EncodecResnetBlock.forward, transformers 5.23 modeling_encodec.py.
    """
    hidden = causal_conv1d_ref(
        x, weight1, bias1, dilation=dilation, pad_left=pad_left, pad_right=pad_right, pad_mode=pad_mode, elu=True,
        lengths=lengths, start=start, out_start=out_start, out_length=out_length,
    )  # fmt: skip
    return _merge_ref(hidden, x[..., out_start - start :], weight2, bias2, shortcut, shortcut_bias, lengths)


def _merge_ref(
    hidden: Tensor, x: Tensor, weight2: Tensor, bias2: Tensor | None, shortcut: Tensor | None, shortcut_bias: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    x = x[..., : hidden.shape[2]]
    short = x if shortcut is None else torch.nn.functional.conv1d(x, shortcut, shortcut_bias)
    y = torch.nn.functional.conv1d(torch.nn.functional.elu(hidden), weight2, bias2) + short
    return y if lengths is None else y * (torch.arange(y.shape[2], device=y.device) < lengths[:, None])[:, None]


@triton.jit
def _load_weight(w_ptr, rows, columns, ROWS, COLUMNS):
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(w_ptr + rows[:, None] * COLUMNS + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _add_shortcut(
    acc, x_clip, ws_ptr, b2_ptr, bs_ptr, stride_xc, stride_xt, m, u, length, C, C_out, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr
):
    """acc + ws @ x + b2 + bs, or acc + x + b2 for the identity."""
    inside_t = (u >= 0) & (u < length)
    if ws_ptr is not None:
        for c0 in tl.range(0, C, BLOCK_K):
            c = c0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
            x_block = x_clip + (c.to(tl.int64) * stride_xc)[:, None] + (u * stride_xt)[None, :]
            x = tl.load(x_block, mask=(c < C)[:, None] & inside_t[None, :], other=0.0).to(tl.float32)
            acc = add_product(acc, _load_weight(ws_ptr, m, c, C_out, C), x, PRECISION)
    else:
        x_block = x_clip + (m.to(tl.int64) * stride_xc)[:, None] + (u * stride_xt)[None, :]
        acc += tl.load(x_block, mask=(m < C)[:, None] & inside_t[None, :], other=0.0).to(tl.float32)
    if b2_ptr is not None:
        acc += tl.load(b2_ptr + m, mask=m < C_out, other=0.0).to(tl.float32)[:, None]
    if bs_ptr is not None:
        acc += tl.load(bs_ptr + m, mask=m < C_out, other=0.0).to(tl.float32)[:, None]
    return acc


@triton.jit
def _residual_block_kernel(
    x_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    ws_ptr,
    bs_ptr,
    lengths_ptr,
    y_ptr,
    stride_xb,
    stride_xc,
    stride_xt,
    C,
    H,
    C_out,
    T_in,
    T_out,
    start,
    out_start,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    PAD_RIGHT: tl.constexpr,
    PAD_MODE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = w2 @ ELU(w1 * pad(ELU(x)) + b1) + b2 + ws @ x + bs for all C_out <= BLOCK_M channels of BLOCK_N steps, y contiguous.

    Grid: B x time tiles.  Reference: residual_block_ref.
    """
    tiles_n = tl.cdiv(T_out, BLOCK_N)
    clip = (tl.program_id(0) // tiles_n).to(tl.int64)
    t = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    length = T_in
    steps = T_out
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + clip).to(tl.int32)
        steps = length
    mirror = tl.maximum(start + length, tl.maximum(PAD_LEFT, PAD_RIGHT) + 1) - start
    window = out_start + t - PAD_LEFT - start  # [BLOCK_N]
    x_clip = x_ptr + clip * stride_xb

    h = tl.arange(0, BLOCK_H)  # [BLOCK_H]
    depth = C * KERNEL
    acc_h = tl.zeros((BLOCK_H, BLOCK_N), dtype=tl.float32)
    for k0 in tl.range(0, depth, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        u = padded_index(window[None, :] + (k % KERNEL * DILATION)[:, None], length, mirror, PAD_MODE)  # [BLOCK_K, BLOCK_N]
        inside = (k < depth)[:, None] & (u >= 0) & (u < length)
        x_row = x_clip + (k // KERNEL).to(tl.int64) * stride_xc
        x = _elu(tl.load(x_row[:, None] + u * stride_xt, mask=inside, other=0.0).to(tl.float32))
        acc_h = add_product(acc_h, _load_weight(w1_ptr, h, k, H, depth), x, PRECISION)
    if b1_ptr is not None:
        acc_h += tl.load(b1_ptr + h, mask=h < H, other=0.0).to(tl.float32)[:, None]

    m = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    acc = add_product(acc, _load_weight(w2_ptr, m, h, C_out, H), _elu(acc_h), PRECISION)
    acc = _add_shortcut(
        acc, x_clip, ws_ptr, b2_ptr, bs_ptr, stride_xc, stride_xt, m, out_start - start + t, length, C, C_out, PRECISION, BLOCK_K
    )
    y_block = y_ptr + ((clip * C_out + m) * T_out)[:, None] + t[None, :]
    acc = tl.where((t < steps)[None, :], acc, 0.0)
    tl.store(y_block, acc.to(y_ptr.dtype.element_ty), mask=(m < C_out)[:, None] & (t < T_out)[None, :])


@triton.jit
def _residual_merge_kernel(
    h_ptr,
    x_ptr,
    w2_ptr,
    b2_ptr,
    ws_ptr,
    bs_ptr,
    lengths_ptr,
    y_ptr,
    stride_xb,
    stride_xc,
    stride_xt,
    C,
    H,
    C_out,
    T_in,
    T_out,
    x_offset,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = w2 @ ELU(h) + b2 + ws @ x + bs, h and y contiguous; step t of h stands beside step x_offset + t of x.

    Grid: B x time tiles x channel tiles.  Reference: residual_block_ref.
    """
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(C_out, BLOCK_M)
    tiles_n = tl.cdiv(T_out, BLOCK_N)
    clip = (pid // (tiles_m * tiles_n)).to(tl.int64)
    m = pid % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    t = pid // tiles_m % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    length = T_in
    steps = T_out
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + clip).to(tl.int32)
        steps = length
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for h0 in tl.range(0, H, BLOCK_K):
        h = h0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        h_block = h_ptr + ((clip * H + h) * T_out)[:, None] + t[None, :]
        hidden = tl.load(h_block, mask=(h < H)[:, None] & (t < T_out)[None, :], other=0.0).to(tl.float32)
        acc = add_product(acc, _load_weight(w2_ptr, m, h, C_out, H), _elu(hidden), PRECISION)
    x_clip = x_ptr + clip * stride_xb
    acc = _add_shortcut(acc, x_clip, ws_ptr, b2_ptr, bs_ptr, stride_xc, stride_xt, m, x_offset + t, length, C, C_out, PRECISION, BLOCK_K)
    y_block = y_ptr + ((clip * C_out + m) * T_out)[:, None] + t[None, :]
    acc = tl.where((t < steps)[None, :], acc, 0.0)
    tl.store(y_block, acc.to(y_ptr.dtype.element_ty), mask=(m < C_out)[:, None] & (t < T_out)[None, :])


def residual_block_triton(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    *,
    dilation: int = 1,
    pad_left: int,
    pad_right: int = 0,
    pad_mode: str = "reflect",
    lengths: Tensor | None = None,
    start: int = 0,
    out_start: int = 0,
    out_length: int | None = None,
    precision: str,
    tile: Tile | None = None,
) -> Tensor:
    """As `residual_block_ref`.  Fused, or split in two kernels where `residual_tile` says that the block does not fit."""
    batch, channels, length = x.shape
    hidden, _, kernel = weight1.shape
    out_channels = weight2.shape[0]
    out_length = start + length - out_start if out_length is None else out_length
    tile = tile or residual_tile(x.device, out_channels, hidden, precision)
    if tile is None:
        h = causal_conv1d_triton(
            x, weight1, bias1, dilation=dilation, pad_left=pad_left, pad_right=pad_right, pad_mode=pad_mode, elu=True,
            lengths=lengths, start=start, out_start=out_start, out_length=out_length, precision=precision,
        )  # fmt: skip
        return _merge(h, x, weight2, bias2, shortcut, shortcut_bias, lengths, out_start - start, precision)
    y = x.new_empty(batch, out_channels, out_length)
    if y.numel():
        _residual_block_kernel[(batch * triton.cdiv(out_length, tile.block_n),)](
            x, weight1, bias1, weight2, bias2, shortcut, shortcut_bias, lengths, y,
            *x.stride(), channels, hidden, out_channels, length, out_length, start, out_start,
            KERNEL=kernel, DILATION=dilation, PAD_LEFT=pad_left, PAD_RIGHT=pad_right, PAD_MODE=pad_mode,
            PRECISION=precision, BLOCK_M=block_of(out_channels), BLOCK_H=block_of(hidden),
            BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, **tile.options,
        )  # fmt: skip
    return y


def _merge(
    hidden: Tensor, x: Tensor, weight2: Tensor, bias2: Tensor | None, shortcut: Tensor | None, shortcut_bias: Tensor | None,
    lengths: Tensor | None, x_offset: int, precision: str,
) -> Tensor:  # fmt: skip
    batch, width, steps = hidden.shape
    channels, out_channels = x.shape[1], weight2.shape[0]
    y = x.new_empty(batch, out_channels, steps)
    if y.numel():
        tile = merge_tile(x.device, out_channels, precision)
        tiles = triton.cdiv(out_channels, tile.block_m) * triton.cdiv(steps, tile.block_n)
        _residual_merge_kernel[(batch * tiles,)](
            hidden, x, weight2, bias2, shortcut, shortcut_bias, lengths, y,
            *x.stride(), channels, width, out_channels, x.shape[2], steps, x_offset,
            PRECISION=precision, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, **tile.options,
        )  # fmt: skip
    return y
