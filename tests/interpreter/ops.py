"""The kernels that read rows, from signals as they come: arranged first, and back as values [B, T, C]."""

import torch

from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton, conv_matrix
from encodec_fast.kernels.residual_block import residual_block_triton
from encodec_fast.kernels.rows import Padding, arrange_triton, pad_rows_triton
from encodec_fast.kernels.transposed_conv1d import phase_matrix, phase_padding, transposed_conv1d_triton


def rows_of(x, padding, lengths=None, start=0, activation="none"):
    if start == 0:
        return arrange_triton(x, padding, lengths=lengths, activation=activation)
    rows = arrange_triton(x, lead=padding.left, tail=padding.tail, activation=activation)
    pad_rows_triton(rows, padding, start=start)
    return rows


def conv(x, weight, bias, padding, *, lengths=None, start=0, mode="ieee", partials=False, **more):
    rows = rows_of(x, padding, lengths, start)
    matrix = conv_matrix(weight, mode)
    made = causal_conv1d_triton(
        rows, matrix, bias, padding, kernel=weight.shape[2], lengths=lengths, start=start, mode=mode, partials=partials, **more
    )
    return (made[0].values, made[1]) if partials else made.values


def residual(x, weight1, bias1, weight2, bias2, shortcut, shortcut_bias, padding, *, lengths=None, mode="ieee", **more):
    matrices = [None if weight is None else conv_matrix(weight, mode) for weight in (weight1, weight2, shortcut)]
    parameters = [matrices[0], bias1, matrices[1], bias2, matrices[2], shortcut_bias]
    rows = rows_of(x, padding, lengths)
    return residual_block_triton(rows, *parameters, padding, mode=mode, **more).values


def transposed(x, weight, bias, *, stride, lengths=None, mode="ieee", partials=False, **more):
    kernel = weight.shape[2]
    rows = rows_of(x, phase_padding(kernel, stride), lengths)
    columns = None if bias is None else bias.repeat(stride)
    made = transposed_conv1d_triton(
        rows, phase_matrix(weight, stride, mode), columns,
        kernel=kernel, stride=stride, lengths=lengths, mode=mode, partials=partials, **more,
    )  # fmt: skip
    return (made[0].values, made[1]) if partials else made.values


def among_longer_ones(lengths, channels, longest):
    """A batch [B, longest, C] of clips of these lengths with NaN behind each, and the lengths as the kernels take them."""
    x = torch.full((len(lengths), longest, channels), float("nan"))
    for clip, length in enumerate(lengths):
        x[clip, :length] = torch.randn(length, channels)
    return x, torch.tensor(lengths, dtype=torch.int32)


__all__ = ["Padding", "among_longer_ones", "conv", "residual", "rows_of", "transposed"]
