"""Channels-last signals [B, T, C] with the padding rows that a convolution reads beside each clip's steps.

A convolution's window is then one contiguous run of `kernel * C` floats, and no kernel tests where a clip ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .activation import activate as _activate
from .activation import activate_ref
from .modes import Activation
from .padding import pad_ref, padded_index
from .tile_table import FUSED


@dataclass(frozen=True)
class Rows:
    """A channels-last signal with free rows around it.

    buffer: [B, >= lead + length, C] contiguous; step 0 of a clip is in row `lead`.
    """

    buffer: Tensor
    lead: int
    length: int

    @property
    def values(self) -> Tensor:
        """The signal [B, T, C], without the padding."""
        return self.buffer[:, self.lead : self.lead + self.length]

    @property
    def tail(self) -> int:
        """Rows after the last step."""
        return self.buffer.shape[1] - self.lead - self.length

    def first(self, step: int) -> Tensor:
        """Returns the buffer from a step on, which may precede step 0."""
        return self.buffer[:, self.lead + step :]


def empty_rows(like: Tensor, batch: int, length: int, channels: int, lead: int = 0, tail: int = 0) -> Rows:
    """Allocates uninitialised rows in the dtype and on the device of `like`."""
    return Rows(like.new_empty(batch, lead + length + tail, channels), lead, length)


@dataclass(frozen=True)
class Padding:
    """Padding of a convolution over a whole signal; the right end also gets what completes the last stride.

    mode: 'reflect', 'constant' or 'replicate'.
    """

    left: int = 0
    right: int = 0
    mode: str = "constant"
    stride: int = 1

    @property
    def tail(self) -> int:
        """The most rows that the right end may need."""
        return self.right + self.stride - 1


@dataclass(frozen=True)
class Norm:
    """A group norm that is still to be applied.  statistics: [B, 2] of `group_norm_statistics`.  weight, bias: [C]."""

    statistics: Tensor
    weight: Tensor
    bias: Tensor


def arrange_ref(
    x: Tensor,
    padding: Padding = Padding(),
    *,
    norm: Norm | None = None,
    other: Tensor | None = None,
    other_norm: Norm | None = None,
    activation: Activation = Activation.NONE,
    lengths: Tensor | None = None,
) -> list[Tensor]:
    """Computes activation(norm(x) + norm(other)) of each clip, then pads it.

    x, other: [B, T, C].  lengths: [B], each clip's own T.
    Returns [left + T_b + right + what completes the last stride, C] of each clip, in x's dtype.
    Source: EncodecConv1d._pad1d, transformers 5.23 modeling_encodec.py.
    """
    y = _normed(x, norm)
    y = y if other is None else y + _normed(other, other_norm)
    y = activate_ref(y, activation)
    clips = []
    for clip, row in enumerate(y):
        length = row.shape[0] if lengths is None else int(lengths[clip])
        extra = -length % padding.stride
        clips.append(pad_ref(row[:length].T, padding.left, padding.right + extra, padding.mode).T)
    return clips


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    mean, rstd = norm.statistics[:, 0, None, None], norm.statistics[:, 1, None]
    return (x - mean) * (rstd * norm.weight)[:, None] + norm.bias


@triton.jit
def row_tile(x_ptr, stride_xb, step, rows, N, EVEN_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    """Returns this program's clip, its output rows t [BLOCK_T] and columns n [BLOCK_N], and where to read.

    The last two results are the addresses of those rows in x and the columns of the matrix.
    They repeat the last row and the first column past the end, so the sum needs no mask.
    step: elements of x from row to row.
    Grid: B x tiles of rows x tiles of columns.
    """
    pid = tl.program_id(0)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_t = tl.cdiv(rows, BLOCK_T)
    clip = (pid // (tiles_n * tiles_t)).to(tl.int64)
    t = pid // tiles_n % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)
    n = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    x_row = x_ptr + clip * stride_xb + tl.minimum(t, rows - 1).to(tl.int64) * step
    column = n if EVEN_N else tl.where(n < N, n, 0)
    return clip, t, n, x_row, column


@triton.jit
def normed(x, mean, rstd, gamma_ptr, beta_ptr, c, C):
    """Computes (x - mean) * rstd * gamma + beta of channels c.  x: [BLOCK_T, BLOCK_C] float32."""
    gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    return (x - mean) * (rstd * gamma)[None, :] + beta[None, :]


@triton.jit
def _load_normed(x_ptr, stats_ptr, gamma_ptr, beta_ptr, stride_xb, stride_xt, stride_xc, clip, u, c, C, inside):
    """Loads steps u and channels c of a clip, [BLOCK_T, BLOCK_C] float32, normalised if there is a norm."""
    x_block = x_ptr + clip * stride_xb + (u.to(tl.int64) * stride_xt)[:, None] + (c.to(tl.int64) * stride_xc)[None, :]
    x = tl.load(x_block, mask=inside, other=0.0).to(tl.float32)
    if stats_ptr is not None:
        x = normed(x, tl.load(stats_ptr + 2 * clip), tl.load(stats_ptr + 2 * clip + 1), gamma_ptr, beta_ptr, c, C)
    return x


@triton.jit
def _arrange_kernel(
    x_ptr, stats_ptr, gamma_ptr, beta_ptr, other_ptr, other_stats_ptr, other_gamma_ptr, other_beta_ptr, lengths_ptr, y_ptr,
    stride_xb, stride_xt, stride_xc, stride_ob, stride_ot, stride_oc, stride_yb,
    C, T, start, left, right, begin, rows,
    STRIDE: tl.constexpr, PAD_MODE: tl.constexpr, ACTIVATION: tl.constexpr, EDGES: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Computes `y[b, i, :] = f(norm(x) + norm(other))` at the step that row i shows, zero outside.

    Row 0 is the first row of padding; `begin` is the first row computed.  EDGES: only padding rows, of an x that is already in y.
    Grid: B x blocks of rows x blocks of channels.  Reference: arrange_ref.
    """
    clip = tl.program_id(0).to(tl.int64)
    i = begin + tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    length = T
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + clip).to(tl.int32)
    total = start + length
    extra = tl.cdiv(total, STRIDE) * STRIDE - total
    wanted = i < begin + rows
    if EDGES:
        i = tl.where(i < left, i, i + length)
        wanted = wanted & (i < left + length + right + extra)
    mirror = tl.maximum(total, tl.maximum(left, right + extra) + 1) - start
    u = padded_index(i - left, length, mirror, PAD_MODE)
    inside = (wanted & (u >= 0) & (u < length))[:, None] & (c < C)[None, :]
    y = _load_normed(x_ptr, stats_ptr, gamma_ptr, beta_ptr, stride_xb, stride_xt, stride_xc, clip, u, c, C, inside)
    if other_ptr is not None:
        y += _load_normed(
            other_ptr, other_stats_ptr, other_gamma_ptr, other_beta_ptr, stride_ob, stride_ot, stride_oc, clip, u, c, C, inside
        )
    y = _activate(y, ACTIVATION)
    # padding comes after norm and activation, so rows outside the signal are zero again
    y = tl.where(inside, y, 0.0)
    y_block = y_ptr + clip * stride_yb + (i.to(tl.int64) * C)[:, None] + c[None, :]
    tl.store(y_block, y.to(y_ptr.dtype.element_ty), mask=wanted[:, None] & (c < C)[None, :])


def arrange_triton(
    x: Tensor,
    padding: Padding = Padding(),
    *,
    norm: Norm | None = None,
    other: Tensor | None = None,
    other_norm: Norm | None = None,
    activation: Activation = Activation.NONE,
    lengths: Tensor | None = None,
    lead: int = 0,
    tail: int = 0,
) -> Rows:
    """Runs `arrange_ref` into one buffer with at least `lead` rows before and `tail` rows after.

    Only the padding is written of those rows.  x, other: of any strides.
    """
    batch, length, channels = x.shape
    lead, tail = max(lead, padding.left), max(tail, padding.tail)
    made = empty_rows(x, batch, length, channels, lead, tail)
    _launch(made, padding, x, norm, other, other_norm, lengths, activation, 0, 0, edges=False)
    return made


def pad_rows_triton(rows: Rows, padding: Padding, lengths: Tensor | None = None, start: int = 0) -> None:
    """Writes the padding rows of a signal in its buffer; if the signal began earlier, only those of the right end.

    start: position of the buffer's step 0 in the whole signal.
    """
    if padding.left or padding.tail:
        begin = 0 if start == 0 else padding.left
        _launch(rows, padding, rows.values, None, None, None, lengths, Activation.NONE, start, begin, edges=True)


def _launch(
    made: Rows, padding: Padding, x: Tensor, norm: Norm | None, other: Tensor | None, other_norm: Norm | None, lengths: Tensor | None,
    activation: Activation, start: int, begin: int, edges: bool,
) -> None:  # fmt: skip
    batch, length, channels = x.shape
    rows = padding.left + padding.tail + (0 if edges else length) - begin
    if batch == 0 or length == 0 or rows == 0:
        return
    block_c = min(triton.next_power_of_2(channels), 128)
    block_t = 1 if edges else 4096 // block_c
    norms = [(n.statistics, n.weight, n.bias) if n is not None else (None, None, None) for n in (norm, other_norm)]
    strides = (0, 0, 0) if other is None else other.stride()
    _arrange_kernel[(batch, triton.cdiv(rows, block_t), triton.cdiv(channels, block_c))](
        x, *norms[0], other, *norms[1], lengths, made.first(-padding.left),
        *x.stride(), *strides, made.buffer.stride(0), channels, length, start, padding.left, padding.right, begin, rows,
        STRIDE=padding.stride, PAD_MODE=padding.mode, ACTIVATION=Activation(activation).value, EDGES=edges,
        BLOCK_T=block_t, BLOCK_C=block_c, num_warps=1 if edges else 4, **FUSED,
    )  # fmt: skip
