"""1-d transposed convolution with trim, as the product of causal_conv1d.py, without overlapping writes.

Output step j sums the taps `j % stride + i * stride` of input steps `n - i`, with `n = j // stride`.
With channels last, the output steps of input step n, [stride, C_out], are adjacent.
So `Y[n, (phase, C_out)] = X[(n - taps + 1 .. n, C_in)] @ W`, where taps = ceil(kernel / stride).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import activate_ref
from .causal_conv1d import multiply_rows
from .modes import Activation, ProductMode
from .product import split_matrix
from .rows import Padding, Rows
from .tiles import Tile


def phase_matrix(weight: Tensor, stride: int, mode: ProductMode) -> Tensor:
    """Returns the matrix by which the kernel multiplies, [stride * C_out, taps * C_in] in the layout of `split_matrix`.

    weight: [C_in, C_out, kernel].
    """
    channels, out_channels, kernel = weight.shape
    taps = -(-kernel // stride)
    whole = torch.nn.functional.pad(weight, (0, taps * stride - kernel)).view(channels, out_channels, taps, stride)
    # the oldest step comes first in a row
    return split_matrix(whole.flip(2).permute(3, 1, 2, 0).reshape(stride * out_channels, taps * channels), mode)


def phase_padding(kernel: int, stride: int) -> Padding:
    """Returns the zero padding that the kernel reads beside the signal."""
    taps = -(-kernel // stride)
    return Padding(taps - 1, taps - 1)


def transposed_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int,
    trim_left: int,
    trim_right: int,
    activation: Activation = Activation.NONE,
    lengths: Tensor | None = None,
    shift: int | None = None,
    out_length: int | None = None,
) -> Tensor:
    """Computes a transposed convolution, trims it, then applies an activation.

    x: [B, T, C_in].  weight: [C_in, C_out, kernel].  bias: [C_out] or None.
    lengths: [B], each clip's own T; output past a clip's end is zero.
    shift: untrimmed step of the first output, counted from the first step of x; trim_left when None.
    out_length: outputs to compute; the whole trimmed output when None.
    Returns [B, T_out, C_out] in x's dtype.
    Source: EncodecConvTranspose1d.forward, transformers 5.23 modeling_encodec.py.
    """
    kernel = weight.shape[2]
    shift = trim_left if shift is None else shift
    if out_length is None:
        out_length = (x.shape[1] - 1) * stride + kernel - trim_left - trim_right
    y = x.new_zeros(x.shape[0], out_length, weight.shape[1])
    for clip in range(x.shape[0]):
        length = x.shape[1] if lengths is None else int(lengths[clip])
        steps = out_length if lengths is None else (length - 1) * stride + kernel - trim_left - trim_right
        full = torch.nn.functional.conv_transpose1d(x[clip, :length].T, weight, bias, stride)
        y[clip, :steps] = full[:, shift : shift + steps].T
    return activate_ref(y, activation)


def transposed_conv1d_triton(
    x: Rows,
    matrix: Tensor,
    bias: Tensor | None,
    *,
    kernel: int,
    stride: int,
    trim_left: int,
    trim_right: int,
    activation: Activation = Activation.NONE,
    lengths: Tensor | None = None,
    shift: int | None = None,
    out_length: int | None = None,
    lead: int = 0,
    tail: int = 0,
    partials: bool = False,
    mode: ProductMode,
    tile: Tile | None = None,
) -> Rows | tuple[Rows, Tensor]:
    """Runs `transposed_conv1d_ref` on rows with `phase_padding` written; output past a clip's end is unspecified.

    matrix: `phase_matrix` of the weight.  bias: of every column of the matrix, or None.
    lengths, lead, tail, partials, mode: as in `causal_conv1d_triton`; partials include the untrimmed output.
    """
    taps = -(-kernel // stride)
    shift = trim_left if shift is None else shift
    if out_length is None:
        out_length = (x.length - 1) * stride + kernel - trim_left - trim_right
    # statistics need the trimmed steps too
    first, end = (0, x.length + taps - 1) if partials else (shift // stride, -(-(shift + out_length) // stride))
    before = shift - first * stride
    behind = max(0, end - first) * stride - before - out_length
    lead = max(0, lead - before)
    made, sums = multiply_rows(
        x.first(first - (taps - 1)), matrix, bias, end - first, stride, kernel=kernel, activation=activation, lengths=lengths,
        lead=lead, tail=max(0, tail - behind), partials=partials, mode=mode, tile=tile,
    )  # fmt: skip
    rows = Rows(made, lead + before, out_length)
    return (rows, sums) if sums is not None else rows
