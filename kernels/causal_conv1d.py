"""1-d convolution with EnCodec's padding, as one implicit matrix product.

Y[C_out, T_out] = W[C_out, C_in * kernel] @ X[C_in * kernel, T_out]: the columns of X are gathered from the unpadded signal by index
arithmetic, so neither a padded copy nor an unfolded one exists. Taps run innermost, so a tile's samples stay in L1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import elu as _elu
from .group_norm import apply_norm, group_norm_apply_ref, store_partial
from .padding import pad_ref, padded_index
from .product import add_product
from .tiles import Tile, conv_tile


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    pad_left: int,
    pad_right: int = 0,
    pad_mode: str = "reflect",
    elu: bool = False,
    residual: Tensor | None = None,
    norm: tuple[Tensor, Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
    start: int = 0,
    out_start: int = 0,
    out_length: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Convolution of the optionally normalised, optionally ELU'd, padded input, plus a residual.

    x: [B, C_in, T].  weight: [C_out, C_in, kernel].  bias: [C_out] or None.  residual: [B, C_out, T_out] or None, added to the output.
    pad_left, pad_right: padding of the whole signal; its right end is padded by what completes the last stride as well.
    norm: (statistics [B, 2] of `group_norm_statistics`, weight [C_in], bias [C_in]) applied to x before the ELU.
    lengths: [B] integers, each clip's own T; a clip is padded at its own end, and its output is zero past ceil(T / stride).
    start, out_start: where x[..., 0] and the first output stand in the whole signal, for a signal that comes in pieces.
    out_length: outputs to compute; ceil(T / stride) - out_start of the whole signal when None.
    out: [B, C_out, T_out] to write to, of any strides.
    Returns [B, C_out, T_out] in x's dtype.
    Source: EncodecConv1d.forward, transformers 5.23 modeling_encodec.py.
    """
    kernel_span = (weight.shape[2] - 1) * dilation + 1
    if out_length is None:
        out_length = -(-(start + x.shape[2]) // stride) - out_start
    y = x.new_zeros(x.shape[0], weight.shape[0], out_length)
    signal = x if norm is None else group_norm_apply_ref(x, norm)
    signal = torch.nn.functional.elu(signal) if elu else signal
    origin = out_start * stride - pad_left - start
    for clip in range(x.shape[0]):
        length = x.shape[2] if lengths is None else int(lengths[clip])
        steps = out_length if lengths is None else -(-length // stride)
        end = origin + (steps - 1) * stride + kernel_span
        padded = pad_ref(signal[clip, :, :length], max(0, -origin), max(0, end - length), pad_mode)[..., max(0, origin) :]
        y[clip, :, :steps] = torch.nn.functional.conv1d(padded, weight, bias, stride, dilation=dilation)[..., :steps]
        if residual is not None:
            y[clip, :, :steps] += residual[clip, :, :steps]
    return y if out is None else out.copy_(y)


@triton.jit
def _causal_conv1d_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    residual_ptr,
    stats_ptr,
    gamma_ptr,
    beta_ptr,
    lengths_ptr,
    y_ptr,
    partials_ptr,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_rb,
    stride_rc,
    stride_rt,
    stride_yb,
    stride_yc,
    stride_yt,
    C_in,
    C_out,
    T_in,
    T_out,
    start,
    out_start,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    PAD_RIGHT: tl.constexpr,
    PAD_MODE: tl.constexpr,
    ELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[b, m, t] = b[m] + sum over k = (c, tap) of w[m, k] * f(x[b, c, pad(t * STRIDE + tap * DILATION - PAD_LEFT)]) + residual[b, m, t].

    f is the optional group norm and ELU.  Grid: B x time tiles x channel tiles, channel tiles fastest, so that they share x in L2.
    Reference: causal_conv1d_ref.
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
        steps = tl.cdiv(length, STRIDE)
    total = start + length
    extra = tl.cdiv(total, STRIDE) * STRIDE - total
    mirror = tl.maximum(total, tl.maximum(PAD_LEFT, PAD_RIGHT + extra) + 1) - start
    window = (out_start + t) * STRIDE - PAD_LEFT - start  # [BLOCK_N]

    depth = C_in * KERNEL
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in tl.range(0, depth, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        c = k // KERNEL
        u = padded_index(window[None, :] + (k % KERNEL * DILATION)[:, None], length, mirror, PAD_MODE)  # [BLOCK_K, BLOCK_N]
        inside = (k < depth)[:, None] & (u >= 0) & (u < length)
        x_row = x_ptr + clip * stride_xb + c.to(tl.int64) * stride_xc
        x = tl.load(x_row[:, None] + u * stride_xt, mask=inside, other=0.0).to(tl.float32)
        if stats_ptr is not None:
            # padding comes after the norm, so what lies outside is zero again
            x = tl.where(inside, apply_norm(x, stats_ptr, gamma_ptr, beta_ptr, clip, c, k < depth), 0.0)
        if ELU:
            x = _elu(x)
        w = tl.load(w_ptr + m[:, None] * depth + k[None, :], mask=(m < C_out)[:, None] & (k < depth)[None, :], other=0.0)
        acc = add_product(acc, w.to(tl.float32), x, PRECISION)

    if b_ptr is not None:
        acc += tl.load(b_ptr + m, mask=m < C_out, other=0.0).to(tl.float32)[:, None]
    # a strided output, such as the gates of an LSTM, passes 2^31 elements within one clip
    row, column = m.to(tl.int64), t.to(tl.int64)
    inside = (m < C_out)[:, None] & (t < steps)[None, :]
    if residual_ptr is not None:
        r_block = residual_ptr + clip * stride_rb + (row * stride_rc)[:, None] + (column * stride_rt)[None, :]
        acc += tl.load(r_block, mask=inside, other=0.0).to(tl.float32)
    if partials_ptr is not None:
        store_partial(partials_ptr + pid.to(tl.int64) * 3, acc, inside)
    y_block = y_ptr + clip * stride_yb + (row * stride_yc)[:, None] + (column * stride_yt)[None, :]
    acc = tl.where(inside, acc, 0.0)
    tl.store(y_block, acc.to(y_ptr.dtype.element_ty), mask=(m < C_out)[:, None] & (t < T_out)[None, :])


def causal_conv1d_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    pad_left: int,
    pad_right: int = 0,
    pad_mode: str = "reflect",
    elu: bool = False,
    residual: Tensor | None = None,
    norm: tuple[Tensor, Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
    start: int = 0,
    out_start: int = 0,
    out_length: int | None = None,
    out: Tensor | None = None,
    partials: bool = False,
    precision: str,
    tile: Tile | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `causal_conv1d_ref`.

    precision: of the products, 'ieee', 'tf32x3' or 'tf32'; sums are float32.
    partials: also returns [B, tiles, 3] float32, count, mean and squared deviation of each output tile, for `group_norm_statistics`.
    """
    batch, channels, length = x.shape
    if weight.shape[1] != channels or not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous [C_out, {channels}, kernel] for x {tuple(x.shape)}, got {tuple(weight.shape)}")
    out_channels, _, kernel = weight.shape
    if out_length is None:
        out_length = -(-(start + length) // stride) - out_start
    y = x.new_empty(batch, out_channels, out_length) if out is None else out
    tile = tile or conv_tile(x.device, out_channels, channels * kernel, precision)
    tiles = triton.cdiv(out_channels, tile.block_m) * triton.cdiv(out_length, tile.block_n)
    sums = x.new_empty(batch, tiles, 3, dtype=torch.float32) if partials else None
    if y.numel():
        stats, gamma, beta = norm or (None, None, None)
        residual_strides = (0, 0, 0) if residual is None else residual.stride()
        _causal_conv1d_kernel[(batch * tiles,)](
            x, weight, bias, residual, stats, gamma, beta, lengths, y, sums,
            *x.stride(), *residual_strides, *y.stride(),
            channels, out_channels, length, out_length, start, out_start,
            KERNEL=kernel, STRIDE=stride, DILATION=dilation,
            PAD_LEFT=pad_left, PAD_RIGHT=pad_right, PAD_MODE=pad_mode, ELU=elu,
            PRECISION=precision, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            **tile.options,
        )  # fmt: skip
    return y if sums is None else (y, sums)
