"""1-d convolution as one matrix product whose rows overlap.

Y[T_out, C_out] = X[T_out, kernel * C_in] @ W[kernel * C_in, C_out].
With channels last, row t of X is the memory from step `t * stride` on.
So neither a padded nor an unfolded copy exists.
Padding is written beside the signal beforehand (rows.py).
A transposed convolution is the same product: see transposed_conv1d.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate as _activate
from .activation import activate_ref
from .group_norm import store_partial
from .modes import Activation, ProductMode
from .padding import pad_ref
from .product import DEPTH, add_product, load_weight, split_matrix
from .rows import Norm, Padding, Rows, normed, row_tile
from .tiles import Tile, conv_tile

# Convolutions with so few terms or outputs are memory-bound even without matrix units: the first and the last of 24 kHz.
FEW_TERMS, FEW_OUTPUTS, MOST_CHANNELS = 8, 4, 512


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Padding,
    *,
    dilation: int = 1,
    activation: Activation = Activation.NONE,
    lengths: Tensor | None = None,
    start: int = 0,
    out_start: int = 0,
    out_length: int | None = None,
) -> Tensor:
    """Convolves the padded input, then applies an activation.

    x: [B, T, C_in].  weight: [C_out, C_in, kernel].  bias: [C_out] or None.
    padding: of the whole signal; its stride is that of the convolution.
    lengths: [B] integers, each clip's own T. A clip is padded at its own end, and its output is zero past ceil(T / stride).
    start, out_start: positions of x[:, 0] and of the first output in the whole signal, for a signal in pieces.
    out_length: outputs to compute; ceil(T / stride) - out_start of the whole signal when None.
    Returns [B, T_out, C_out] in x's dtype.
    Source: EncodecConv1d.forward, transformers 5.23 modeling_encodec.py.
    """
    stride = padding.stride
    span = (weight.shape[2] - 1) * dilation + 1
    if out_length is None:
        out_length = -(-(start + x.shape[1]) // stride) - out_start
    y = x.new_zeros(x.shape[0], out_length, weight.shape[0])
    origin = out_start * stride - padding.left - start
    for clip in range(x.shape[0]):
        length = x.shape[1] if lengths is None else int(lengths[clip])
        steps = out_length if lengths is None else -(-length // stride)
        end = origin + (steps - 1) * stride + span
        # only the piece that begins the signal has left padding
        left = max(0, -origin) if start == 0 else 0
        padded = pad_ref(x[clip, :length].T, left, max(0, end - length), padding.mode)
        window = padded[None, :, max(0, origin) :][..., : end - origin]
        y[clip, :steps] = torch.nn.functional.conv1d(window, weight, bias, stride, dilation=dilation)[0].T
    return activate_ref(y, activation)


def conv_mode(weight: Tensor, mode: ProductMode, normed: bool = False) -> ProductMode:
    """Returns 'thin' for a weight [C_out, C_in, kernel] with few terms or few outputs, otherwise `mode`.

    normed: a group norm follows, whose partial sums the kernel for few outputs does not store.
    """
    outputs, channels, kernel = weight.shape
    thin = channels * kernel <= FEW_TERMS or (outputs <= FEW_OUTPUTS and channels <= MOST_CHANNELS and not normed)
    return ProductMode.THIN if thin else mode


def conv_matrix(weight: Tensor, mode: ProductMode) -> Tensor:
    """Returns the matrix by which the kernel multiplies, from a weight [C_out, C_in, kernel].

    Its layout is that of `split_matrix`, with taps outside and channels inside.
    For a thin convolution with few terms it is transposed, [1, terms, C_out].
    """
    matrix = split_matrix(weight.transpose(1, 2).reshape(weight.shape[0], -1), mode)
    few_terms = mode == ProductMode.THIN and matrix.shape[2] <= FEW_TERMS
    return matrix.transpose(1, 2).contiguous() if few_terms else matrix


@triton.jit
def _store_rows(
    acc, y_ptr, lengths_ptr, partials_ptr, stride_yb, stride_yt, clip, t, n, rows, N,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PHASES: tl.constexpr, ACTIVATION: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """Stores a tile of outputs, and its partial sums for a group norm."""
    inside = (t < rows)[:, None] & (n < N)[None, :]
    if partials_ptr is not None:
        counted = inside
        if lengths_ptr is not None:
            length = tl.load(lengths_ptr + clip).to(tl.int32)
            if PHASES == 1:
                counted = counted & (t < tl.cdiv(length, STRIDE))[:, None]
            else:
                counted = counted & (t[:, None] * PHASES + n[None, :] // (N // PHASES) < (length - 1) * PHASES + KERNEL)
        store_partial(partials_ptr, acc, counted)
    acc = _activate(acc, ACTIVATION)
    y_block = y_ptr + clip * stride_yb + (t.to(tl.int64) * stride_yt)[:, None] + n[None, :]
    if EVEN_N:
        inside = (t < rows)[:, None]
    tl.store(y_block, acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _causal_conv1d_kernel(
    x_ptr, w_ptr, b_ptr, lengths_ptr, y_ptr, partials_ptr,
    stride_xb, stride_yb, stride_yt, C, rows, N,
    KERNEL: tl.constexpr, TERMS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, PHASES: tl.constexpr, ACTIVATION: tl.constexpr,
    EVEN_N: tl.constexpr, MODE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    stats_ptr=None, gamma_ptr=None, beta_ptr=None, NORM_ACTIVATION: tl.constexpr = "none",
):  # fmt: skip
    """Computes `y[b, t, n] = f(b[n] + sum over k of w[n, k] x[b, t * STRIDE * C + k])`, k over TERMS.

    stats, gamma, beta: of a group norm applied to x first, for a kernel of one step only.
    NORM_ACTIVATION: of what that norm gives.
    Grid: B x tiles of rows x tiles of columns.  Reference: causal_conv1d_ref.
    """
    clip, t, n, x_row, column = row_tile(x_ptr, stride_xb, STRIDE * C, rows, N, EVEN_N, BLOCK_T, BLOCK_N)
    w_row = w_ptr + column * TERMS
    EVEN_K: tl.constexpr = TERMS % BLOCK_K == 0
    acc = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    if stats_ptr is not None:
        mean, rstd = tl.load(stats_ptr + 2 * clip), tl.load(stats_ptr + 2 * clip + 1)
    for k0 in tl.range(0, TERMS, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        offset = k if DILATION == 1 else k // C * (DILATION * C) + k % C
        w_block = w_row[None, :] + k[:, None]
        if EVEN_K:
            x = tl.load(x_row[:, None] + offset[None, :], cache_modifier=".ca")
        else:
            x = tl.load(x_row[:, None] + offset[None, :], mask=(k < TERMS)[None, :], other=0.0, cache_modifier=".ca")
        x = x.to(tl.float32)
        if stats_ptr is not None:
            x = normed(x, mean, rstd, gamma_ptr, beta_ptr, k, TERMS)
            x = _activate(x, NORM_ACTIVATION)
        w, w_low = load_weight(w_block, k[:, None], TERMS, N * TERMS, EVEN_K, MODE)
        acc = add_product(acc, x, w, w_low, MODE)
    if b_ptr is not None:
        acc += tl.load(b_ptr + column).to(tl.float32)[None, :]
    _store_rows(
        acc, y_ptr, lengths_ptr, partials_ptr, stride_yb, stride_yt, clip, t, n, rows, N, KERNEL, STRIDE, PHASES, ACTIVATION, EVEN_N
    )


@triton.jit
def _few_terms_kernel(
    x_ptr, w_ptr, b_ptr, lengths_ptr, y_ptr, partials_ptr,
    stride_xb, stride_yb, stride_yt, C, rows, N,
    KERNEL: tl.constexpr, TERMS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, PHASES: tl.constexpr, ACTIVATION: tl.constexpr,
    EVEN_N: tl.constexpr, MODE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Computes `_causal_conv1d_kernel` for few terms, in one chain of float32 multiply-adds.  w: [TERMS, N]."""
    clip, t, n, x_row, column = row_tile(x_ptr, stride_xb, STRIDE * C, rows, N, EVEN_N, BLOCK_T, BLOCK_N)
    acc = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for k in tl.static_range(TERMS):
        offset = k if DILATION == 1 else k // C * (DILATION * C) + k % C
        x = tl.load(x_row + offset).to(tl.float32)
        w = tl.load(w_ptr + k * N + column).to(tl.float32)
        acc += x[:, None] * w[None, :]
    if b_ptr is not None:
        acc += tl.load(b_ptr + column).to(tl.float32)[None, :]
    _store_rows(
        acc, y_ptr, lengths_ptr, partials_ptr, stride_yb, stride_yt, clip, t, n, rows, N, KERNEL, STRIDE, PHASES, ACTIVATION, EVEN_N
    )


@triton.jit
def _few_outputs_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, stride_xb, stride_yb, stride_yt, C, rows,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, OUTPUTS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Computes `_causal_conv1d_kernel` for few outputs: each channel sums its taps in one chain, then the channels are summed."""
    pid = tl.program_id(0)
    tiles_t = tl.cdiv(rows, BLOCK_T)
    clip = (pid // tiles_t).to(tl.int64)
    t = pid % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    c = tl.arange(0, BLOCK_C)  # [BLOCK_C]
    x_row = x_ptr + clip * stride_xb + tl.minimum(t, rows - 1).to(tl.int64) * (STRIDE * C)
    y_row = y_ptr + clip * stride_yb + t.to(tl.int64) * stride_yt
    for n in tl.static_range(OUTPUTS):
        acc = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
        for tap in tl.static_range(KERNEL):
            x = tl.load(x_row[:, None] + (tap * DILATION * C + c)[None, :], mask=(c < C)[None, :], other=0.0).to(tl.float32)
            w = tl.load(w_ptr + (n * KERNEL + tap) * C + c, mask=c < C, other=0.0).to(tl.float32)
            acc += x * w[None, :]
        y = tl.sum(acc, axis=1)
        if b_ptr is not None:
            y += tl.load(b_ptr + n).to(tl.float32)
        y = _activate(y, ACTIVATION)
        tl.store(y_row + n, y.to(y_ptr.dtype.element_ty), mask=t < rows)


def causal_conv1d_triton(
    x: Rows,
    matrix: Tensor,
    bias: Tensor | None,
    padding: Padding,
    *,
    kernel: int,
    dilation: int = 1,
    activation: Activation = Activation.NONE,
    lengths: Tensor | None = None,
    start: int = 0,
    out_start: int = 0,
    out_length: int | None = None,
    lead: int = 0,
    tail: int = 0,
    out: Tensor | None = None,
    partials: bool = False,
    norm: Norm | None = None,
    norm_activation: Activation = Activation.NONE,
    mode: ProductMode,
    tile: Tile | None = None,
) -> Rows | tuple[Rows, Tensor]:
    """Runs `causal_conv1d_ref` on rows whose padding is written; output past a clip's end is unspecified.

    matrix: `conv_matrix` of the weight.  lengths: used by `partials` only.
    lead, tail: rows to leave free before and after each clip's output.  out: [B, T_out, C_out] to write to, channels contiguous.
    partials: return [3, B, tiles] float32 as well, count, mean and squared deviation of each output tile. `group_norm_statistics` reads
    them.
    norm: applied to x as it is read, followed by norm_activation. It needs a kernel of one step and excludes 'thin'.
    mode: of the products, as in `add_product`; sums are float32.
    """
    stride = padding.stride
    if out_length is None:
        out_length = -(-(start + x.length) // stride) - out_start
    window = x.first(out_start * stride - padding.left - start)
    made = multiply_rows(
        window, matrix, bias, out_length, 1, kernel=kernel, stride=stride, dilation=dilation, activation=activation, lengths=lengths,
        lead=lead, tail=tail, out=out, partials=partials, norm=norm, norm_activation=norm_activation, mode=mode, tile=tile,
    )  # fmt: skip
    rows = Rows(made[0], lead, out_length)
    return (rows, made[1]) if partials else rows


def multiply_rows(
    x: Tensor, matrix: Tensor, bias: Tensor | None, rows: int, phases: int, *, kernel: int, stride: int = 1, dilation: int = 1,
    activation: Activation = Activation.NONE, lengths: Tensor | None = None, lead: int = 0, tail: int = 0, out: Tensor | None = None,
    partials: bool = False, norm: Norm | None = None, norm_activation: Activation = Activation.NONE, mode: ProductMode,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Multiplies the overlapping rows of x by a matrix.

    x: [B, T, C]; the first row starts at x[:, 0].
    phases: output steps per row, side by side; lead and tail count output steps.
    norm, norm_activation: as in `causal_conv1d_triton`.
    Returns the buffer of `lead` + rows * phases + `tail` steps, and the partial sums or None.
    """
    batch, _, channels = x.shape
    parts, columns, terms = matrix.shape
    taps = kernel if phases == 1 else -(-kernel // phases)
    few_terms = mode == ProductMode.THIN and taps * channels <= FEW_TERMS
    if few_terms:
        columns, terms = terms, columns
    expected = 2 if mode == ProductMode.SPLIT else 1, taps * channels
    if (parts, terms) != expected or not matrix.is_contiguous():
        raise ValueError(f"matrix must be contiguous [{expected[0]}, C_out, {expected[1]}] in {mode}, got {tuple(matrix.shape)}")
    if norm is not None and (kernel > 1 or mode == ProductMode.THIN):
        raise ValueError(f"norm is for a kernel of one step and not for thin products, got a kernel of {kernel} in {mode}")
    if partials and mode == ProductMode.THIN and not few_terms:
        raise ValueError("thin convolutions of few outputs leave no partial sums; take another mode, as `conv_mode` does")
    if x.stride(2) != 1 or x.stride(1) != channels:
        raise ValueError(f"x must have its channels last and its steps side by side, got strides {x.stride()}")
    y = x.new_empty(batch, lead + rows * phases + tail, columns // phases) if out is None else out
    first = y[:, lead:]
    strides = x.stride(0), first.stride(0), first.stride(1) * phases
    tile = tile or conv_tile(x.device, columns, mode, partials)
    sums = None
    if mode == ProductMode.THIN and not few_terms:
        if batch and rows > 0:
            _few_outputs_kernel[(batch * triton.cdiv(rows, tile.block_m),)](
                x, matrix, bias, first, *strides, channels, rows,
                KERNEL=taps, STRIDE=stride, DILATION=dilation, OUTPUTS=columns, ACTIVATION=Activation(activation).value,
                BLOCK_T=tile.block_m, BLOCK_C=triton.next_power_of_2(channels), **tile.options,
            )  # fmt: skip
        return y, sums
    tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
    if partials:
        sums = x.new_empty(3, batch, tiles, dtype=torch.float32)
    if batch and rows > 0:
        before: dict[str, Any] = {}
        if norm is not None:
            before = {"stats_ptr": norm.statistics, "gamma_ptr": norm.weight, "beta_ptr": norm.bias}
            before["NORM_ACTIVATION"] = Activation(norm_activation).value
        run = _few_terms_kernel if few_terms else _causal_conv1d_kernel
        run[(batch * tiles,)](
            x, matrix, bias, lengths, first, sums, *strides, channels, rows, columns,
            KERNEL=kernel, TERMS=terms, STRIDE=stride, DILATION=dilation, PHASES=phases, ACTIVATION=Activation(activation).value,
            EVEN_N=columns % tile.block_n == 0,
            MODE=ProductMode(mode).value, BLOCK_T=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=DEPTH.get(mode, 0), **before, **tile.options,
        )  # fmt: skip
    return y, sums
