"""ELU and 1-d transposed convolution with trim, as one implicit matrix product without overlapping writes.

Output step j gets the taps tap = j % stride + i * stride of input steps n - i, n = j // stride. With rows (channel, phase = j % stride) and
columns n this is Y[C_out * stride, n] = W[C_out * stride, C_in * taps] @ X[C_in * taps, n] with taps = ceil(kernel / stride).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import elu as _elu
from .group_norm import apply_norm, group_norm_apply_ref, store_partial
from .product import add_product
from .tiles import Tile, conv_tile


def phase_weight(weight: Tensor, stride: int) -> Tensor:
    """The matrix [C_out * stride, C_in * taps] that the kernel multiplies by, of a weight [C_in, C_out, kernel]."""
    channels, out_channels, kernel = weight.shape
    taps = -(-kernel // stride)
    whole = torch.nn.functional.pad(weight, (0, taps * stride - kernel)).view(channels, out_channels, taps, stride)
    return whole.permute(1, 3, 0, 2).reshape(out_channels * stride, channels * taps).contiguous()


def transposed_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    kernel: int,
    stride: int,
    trim_left: int,
    trim_right: int,
    elu: bool = True,
    norm: tuple[Tensor, Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
    shift: int | None = None,
    out_length: int | None = None,
) -> Tensor:
    """Transposed convolution of the optionally normalised, optionally ELU'd input, trimmed.

    x: [B, C_in, T].  weight: `phase_weight` of [C_in, C_out, kernel].  bias: [C_out] or None.
    norm: as in `causal_conv1d_ref`.  lengths: [B], each clip's own T; past the end of a clip the output is zero.
    shift: untrimmed step of the first output, counted from the first step of x; trim_left when None.
    out_length: outputs to compute; the whole trimmed output when None.
    Returns [B, C_out, T_out] in x's dtype.
    Source: EncodecConvTranspose1d.forward, transformers 5.23 modeling_encodec.py.
    """
    taps = -(-kernel // stride)
    channels, out_channels = weight.shape[1] // taps, weight.shape[0] // stride
    whole = weight.view(out_channels, stride, channels, taps).permute(2, 0, 3, 1).reshape(channels, out_channels, taps * stride)
    shift = trim_left if shift is None else shift
    if out_length is None:
        out_length = (x.shape[2] - 1) * stride + kernel - trim_left - trim_right
    signal = x if norm is None else group_norm_apply_ref(x, norm)
    signal = torch.nn.functional.elu(signal) if elu else signal
    y = x.new_zeros(x.shape[0], out_channels, out_length)
    for clip in range(x.shape[0]):
        length = x.shape[2] if lengths is None else int(lengths[clip])
        steps = out_length if lengths is None else (length - 1) * stride + kernel - trim_left - trim_right
        full = torch.nn.functional.conv_transpose1d(signal[clip, :, :length], whole[..., :kernel], bias, stride)
        y[clip, :, :steps] = full[..., shift : shift + steps]
    return y


@triton.jit
def _transposed_conv1d_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    stats_ptr,
    gamma_ptr,
    beta_ptr,
    lengths_ptr,
    y_ptr,
    partials_ptr,
    stride_xb,
    stride_xc,
    stride_xt,
    C_in,
    C_out,
    T_in,
    T_out,
    columns,
    first,
    shift,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    TRIM: tl.constexpr,
    ELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[b, co, n * STRIDE + p - shift] = b[co] + sum over (c, i) of w[co * STRIDE + p, (c, i)] * f(x[b, c, n - i]), y contiguous.

    Columns n run over [first, first + columns).  Statistics take in the untrimmed output.
    Grid: B x column tiles x row tiles.  Reference: transposed_conv1d_ref.
    """
    TAPS: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(C_out * STRIDE, BLOCK_M)
    tiles_n = tl.cdiv(columns, BLOCK_N)
    clip = (pid // (tiles_m * tiles_n)).to(tl.int64)
    m = pid % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = first + pid // tiles_m % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    length = T_in
    steps = T_out
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + clip).to(tl.int32)
        steps = (length - 1) * STRIDE + KERNEL - TRIM

    depth = C_in * TAPS
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k0 in tl.range(0, depth, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        c = k // TAPS
        u = n[None, :] - (k % TAPS)[:, None]  # [BLOCK_K, BLOCK_N]
        inside = (k < depth)[:, None] & (u >= 0) & (u < length)
        x_row = x_ptr + clip * stride_xb + c.to(tl.int64) * stride_xc
        x = tl.load(x_row[:, None] + u * stride_xt, mask=inside, other=0.0).to(tl.float32)
        if stats_ptr is not None:
            x = tl.where(inside, apply_norm(x, stats_ptr, gamma_ptr, beta_ptr, clip, c, k < depth), 0.0)
        if ELU:
            x = _elu(x)
        w = tl.load(w_ptr + m[:, None] * depth + k[None, :], mask=(m < C_out * STRIDE)[:, None] & (k < depth)[None, :], other=0.0)
        acc = add_product(acc, w.to(tl.float32), x, PRECISION)

    channel = m // STRIDE
    if b_ptr is not None:
        acc += tl.load(b_ptr + channel, mask=m < C_out * STRIDE, other=0.0).to(tl.float32)[:, None]
    j = n[None, :] * STRIDE + (m % STRIDE)[:, None]  # [BLOCK_M, BLOCK_N]
    if partials_ptr is not None:
        whole = (m < C_out * STRIDE)[:, None] & (j < (length - 1) * STRIDE + KERNEL)
        store_partial(partials_ptr + pid.to(tl.int64) * 3, acc, whole)
    t = j - shift
    y_block = y_ptr + ((clip * C_out + channel) * T_out)[:, None] + t
    acc = tl.where(t < steps, acc, 0.0)
    tl.store(y_block, acc.to(y_ptr.dtype.element_ty), mask=(m < C_out * STRIDE)[:, None] & (t >= 0) & (t < T_out))


def transposed_conv1d_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    kernel: int,
    stride: int,
    trim_left: int,
    trim_right: int,
    elu: bool = True,
    norm: tuple[Tensor, Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
    shift: int | None = None,
    out_length: int | None = None,
    partials: bool = False,
    precision: str,
    tile: Tile | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `transposed_conv1d_ref`.  precision, partials: as in `causal_conv1d_triton`."""
    batch, channels, length = x.shape
    rows, depth = weight.shape
    taps = -(-kernel // stride)
    if depth != channels * taps or rows % stride or not weight.is_contiguous():
        raise ValueError(f"weight must be phase_weight of [{channels}, C_out, {kernel}], got a matrix {tuple(weight.shape)}")
    shift = trim_left if shift is None else shift
    if out_length is None:
        out_length = (length - 1) * stride + kernel - trim_left - trim_right
    # statistics need the trimmed columns too
    first, end = (0, length + taps - 1) if partials else (shift // stride, -(-(shift + out_length) // stride))
    columns = end - first
    y = x.new_empty(batch, rows // stride, out_length)
    tile = tile or conv_tile(x.device, rows, depth, precision)
    tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
    sums = x.new_empty(batch, tiles, 3, dtype=torch.float32) if partials else None
    if y.numel():
        _transposed_conv1d_kernel[(batch * tiles,)](
            x, weight, bias, *(norm or (None, None, None)), lengths, y, sums,
            *x.stride(), channels, rows // stride, length, out_length, columns, first, shift,
            KERNEL=kernel, STRIDE=stride, TRIM=trim_left + trim_right, ELU=elu,
            PRECISION=precision, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, **tile.options,
        )  # fmt: skip
    return y if sums is None else (y, sums)
