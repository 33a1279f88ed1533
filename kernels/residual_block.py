"""EnCodec's residual block as one read and one write.

`h = f2(conv1(f1(x)))` and `y = conv2(h) + shortcut(x)`, where f1 and f2 are ELU in EnCodec.
conv2 and the shortcut have kernel 1; the shortcut may be the identity.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate as _activate
from .activation import activate_ref
from .causal_conv1d import causal_conv1d_ref
from .modes import Activation, ProductMode
from .product import DEPTH, add_product, load_weight
from .rows import Padding, Rows, empty_rows, row_tile
from .tiles import Tile, block_of, residual_tile


def residual_block_ref(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    padding: Padding,
    *,
    dilation: int = 1,
    activations: tuple[Activation, Activation] = (Activation.ELU, Activation.ELU),
    activation: Activation = Activation.NONE,
    lengths: Tensor | None = None,
    start: int = 0,
    out_start: int = 0,
    out_length: int | None = None,
) -> Tensor:
    """Computes the block's output, one step for each step of x, then an activation.

    x: [B, T, C].  weight1: [H, C, kernel].  weight2: [C_out, H, 1].  shortcut: [C_out, C, 1], or None for the identity.
    Biases: [H], [C_out], [C_out], or None.
    padding, dilation: of conv1.  activations: f1 and f2, of its input and of conv2's.
    lengths, start, out_start, out_length: as in `causal_conv1d_ref`.
    Returns [B, T_out, C_out] in x's dtype.
    Source: EncodecResnetBlock.forward, transformers 5.23 modeling_encodec.py.
    """
    hidden = causal_conv1d_ref(
        activate_ref(x, activations[0]), weight1, bias1, padding, dilation=dilation, activation=activations[1],
        lengths=lengths, start=start, out_start=out_start, out_length=out_length,
    )  # fmt: skip
    x = x[:, out_start - start :][:, : hidden.shape[1]].transpose(1, 2)
    short = x if shortcut is None else torch.nn.functional.conv1d(x, shortcut, shortcut_bias)
    y = (torch.nn.functional.conv1d(hidden.transpose(1, 2), weight2, bias2) + short).transpose(1, 2)
    y = activate_ref(y, activation)
    return y if lengths is None else y * (torch.arange(y.shape[1], device=y.device) < lengths[:, None])[..., None]


@triton.jit
def _residual_block_kernel(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, ws_ptr, bs_ptr, y_ptr,
    stride_xb, stride_yb, C, H, C_out, rows, here,
    TERMS: tl.constexpr, DILATION: tl.constexpr, ACTIVATION1: tl.constexpr, ACTIVATION2: tl.constexpr, ACTIVATION: tl.constexpr,
    MODE: tl.constexpr, EVEN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Computes `y = f(w2 @ f2(w1 * f1(x) + b1) + b2 + ws @ x + bs)` for BLOCK_T steps and BLOCK_N of C_out channels.

    The window of output t starts at row t of x_ptr; the step itself is row t + here.  EVEN: blocks divide C, H and C_out evenly.
    Grid: B x tiles of time x tiles of channels.  Reference: residual_block_ref.
    """
    clip, t, n, x_row, column = row_tile(x_ptr, stride_xb, C, rows, C_out, EVEN, BLOCK_T, BLOCK_N)
    h = tl.arange(0, BLOCK_H)  # [BLOCK_H]
    unit = h if EVEN else tl.where(h < H, h, 0)
    EVEN_K: tl.constexpr = TERMS % BLOCK_K == 0
    acc_h = tl.zeros((BLOCK_T, BLOCK_H), dtype=tl.float32)
    for k0 in tl.range(0, TERMS, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        offset = k if DILATION == 1 else k // C * (DILATION * C) + k % C
        # keeps these rows in the L1 cache, since the next tap reads most of them again
        if EVEN_K:
            x = tl.load(x_row[:, None] + offset[None, :], cache_modifier=".ca")
        else:
            x = tl.load(x_row[:, None] + offset[None, :], mask=(k < TERMS)[None, :], other=0.0, cache_modifier=".ca")
        w, w_low = load_weight(w1_ptr + unit[None, :] * TERMS + k[:, None], k[:, None], TERMS, H * TERMS, EVEN_K, MODE)
        acc_h = add_product(acc_h, _activate(x.to(tl.float32), ACTIVATION1), w, w_low, MODE)
    if b1_ptr is not None:
        acc_h += tl.load(b1_ptr + unit).to(tl.float32)[None, :]
    hidden = _activate(acc_h, ACTIVATION2)
    if not EVEN:
        hidden = tl.where((h < H)[None, :], hidden, 0.0)

    acc = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    w2, w2_low = load_weight(w2_ptr + column[None, :] * H + h[:, None], h[:, None], H, C_out * H, EVEN, MODE)
    acc = add_product(acc, hidden, w2, w2_low, MODE)
    x_here = x_row + here * C
    if ws_ptr is not None:
        for c0 in tl.range(0, C, BLOCK_K):
            c = c0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
            if EVEN:
                centre = tl.load(x_here[:, None] + c[None, :])
            else:
                centre = tl.load(x_here[:, None] + c[None, :], mask=(c < C)[None, :], other=0.0)
            ws, ws_low = load_weight(ws_ptr + column[None, :] * C + c[:, None], c[:, None], C, C_out * C, EVEN, MODE)
            acc = add_product(acc, centre.to(tl.float32), ws, ws_low, MODE)
    else:
        acc += tl.load(x_here[:, None] + column[None, :]).to(tl.float32)
    if b2_ptr is not None:
        acc += tl.load(b2_ptr + column).to(tl.float32)[None, :]
    if bs_ptr is not None:
        acc += tl.load(bs_ptr + column).to(tl.float32)[None, :]
    acc = _activate(acc, ACTIVATION)
    y_block = y_ptr + clip * stride_yb + (t.to(tl.int64) * C_out)[:, None] + n[None, :]
    inside = (t < rows)[:, None] if EVEN else (t < rows)[:, None] & (n < C_out)[None, :]
    tl.store(y_block, acc.to(y_ptr.dtype.element_ty), mask=inside)


def residual_block_triton(
    x: Rows,
    matrix1: Tensor,
    bias1: Tensor | None,
    matrix2: Tensor,
    bias2: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    padding: Padding,
    *,
    dilation: int = 1,
    activations: tuple[Activation, Activation] = (Activation.ELU, Activation.ELU),
    activation: Activation = Activation.NONE,
    start: int = 0,
    out_start: int = 0,
    out_length: int | None = None,
    lead: int = 0,
    tail: int = 0,
    mode: ProductMode,
    tile: Tile | None = None,
) -> Rows:
    """Runs `residual_block_ref` on rows whose padding is written; output past a clip's end is unspecified.

    matrix1, matrix2, shortcut: `conv_matrix` of the weights.  lead, tail, mode: as in `causal_conv1d_triton`.
    """
    batch, channels = x.buffer.shape[0], x.buffer.shape[2]
    _, hidden, terms = matrix1.shape
    out_channels = matrix2.shape[1]
    out_length = start + x.length - out_start if out_length is None else out_length
    made = empty_rows(x.buffer, batch, out_length, out_channels, lead, tail)
    tile = tile or residual_tile(x.buffer.device, out_channels, hidden, mode)
    if batch and out_length > 0:
        block_h, block_n, depth = block_of(hidden), min(block_of(out_channels), tile.block_n), DEPTH[mode]
        even = hidden == block_h and channels % depth == 0 and out_channels % block_n == 0
        tiles = triton.cdiv(out_length, tile.block_m) * triton.cdiv(out_channels, block_n)
        _residual_block_kernel[(batch * tiles,)](
            x.first(out_start - padding.left - start), matrix1, bias1, matrix2, bias2, shortcut, shortcut_bias, made.first(0),
            x.buffer.stride(0), made.buffer.stride(0), channels, hidden, out_channels, out_length, padding.left,
            TERMS=terms, DILATION=dilation, ACTIVATION1=Activation(activations[0]).value, ACTIVATION2=Activation(activations[1]).value,
            ACTIVATION=Activation(activation).value, MODE=ProductMode(mode).value, EVEN=even,
            BLOCK_T=tile.block_m, BLOCK_H=block_h, BLOCK_N=block_n, BLOCK_K=depth, **tile.options,
        )  # fmt: skip
    return made
