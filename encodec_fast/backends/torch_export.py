"""The plan in operations that torch can export: any batch and any length from one sample on, in one graph.

`torch.export`, `torch.onnx.export` and AOTInductor take it. They fail on the modules of transformers, whose geometry is tensors, and
whose `nn.LSTM` fixes its time axis (pytorch#115092). Here geometry is integers, padding is one gather, and the LSTM is torch's `scan`.

Sizes that a call chooses are symbols there. A comparison of two would become a condition of the graph, which some length breaks:
- Lengths are made of others by whole division, minimum and maximum. No branch depends on one.
- What a convolution takes is contiguous. Of other tensors torch compares strides, and asks whether a length is 1.

Legend: B batch, C channels, T steps at the stage's own rate, F codec frames. K quantizers, N codebook entries, D codebook dim.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encodec_fast.kernels.modes import Activation
from encodec_fast.plan import LSTM, Conv, GroupNorm, LSTMLayer, Network, Quantizer, ResidualBlock, Stage, Upsample

# The first that this was tried with: `scan` and what lowers it were new in several releases before
TORCH_NEEDED = (2, 13)

# A size, or the symbol of one
Size = int | torch.SymInt


def too_old() -> str | None:
    """Returns why the installed torch can't export these operations, or None."""
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    needed = ".".join(map(str, TORCH_NEEDED))
    return f"torch {needed} or newer is needed, {torch.__version__} is installed" if installed < TORCH_NEEDED else None


def any_length() -> AbstractContextManager[Any]:
    """Returns a context in which torch does not take apart the lengths 0 and 1: then one graph serves a single codec frame too.

    `torch.onnx.export` sets the same for itself.
    """
    from torch.fx.experimental import _config

    return _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def in_order(x: Tensor) -> Tensor:
    """Returns a copy in order. `x.contiguous()` would ask whether it is one, and with it whether a length is 1."""
    return x.clone(memory_format=torch.contiguous_format)


def normalize(audio: Tensor) -> tuple[Tensor, Tensor]:
    """Returns clips [B, C, T] of unit volume, and the scale [B, 1] that was taken off each.

    Not `normalize_torch`, whose order of summation depends on the length.
    """
    scale = audio.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() + 1e-8
    return audio / scale, scale[..., 0]


def run_network(network: Network, x: Tensor) -> Tensor:
    """Returns the output [B, C_out, T_out] of all stages for x [B, C, T]."""
    for stage in network.stages:
        x = _run_stage(stage, x)
    return x


def search(quantizer: Quantizer, x: Tensor, num_quantizers: int) -> Tensor:
    """Returns codes [K, B, F] of embeddings x [B, D, F]; on equal distances the lowest entry wins."""
    codes = []
    for codebook in quantizer.codebooks[:num_quantizers].unbind():
        # |e|^2 - 2 x e: the distance without |x|^2, which is the same for all entries.  [B, N, F]
        distances = F.conv1d(x, -2 * codebook[..., None], codebook.pow(2).sum(-1))
        codes.append(distances.argmin(1))
        x = x - in_order(F.embedding(codes[-1], codebook).transpose(1, 2))
    return torch.stack(codes)


def look_up(quantizer: Quantizer, codes: Tensor) -> Tensor:
    """Returns the sums [B, D, F] of the entries that codes [K, B, F] name."""
    _, size, dim = quantizer.codebooks.shape
    # all codebooks as one, in which level k begins at k * N
    first = torch.arange(codes.shape[0], device=codes.device) * size
    entries = F.embedding(codes + first[:, None, None], quantizer.codebooks.reshape(-1, dim))
    return in_order(entries.sum(0).transpose(1, 2))


def _run_stage(stage: Stage, x: Tensor) -> Tensor:
    if isinstance(stage, Conv):
        return _convolved(stage, x)
    if isinstance(stage, ResidualBlock):
        inner = _convolved(stage.conv2, _convolved(stage.conv1, x))
        return inner + (x if stage.shortcut is None else _convolved(stage.shortcut, x))
    if isinstance(stage, Upsample):
        return _upsampled(stage, x)
    return _with_lstm(stage, x)


def _convolved(conv: Conv, x: Tensor) -> Tensor:
    row = _padded(conv, activated(conv.activation, x))
    return _normed(conv.norm, F.conv1d(row, conv.weight, conv.bias, conv.stride, 0, conv.dilation))


def activated(activation: Activation, x: Tensor) -> Tensor:
    if activation == Activation.NONE:
        return x
    assert activation == Activation.ELU, activation
    # expm1 as tanh(m / 2) (exp(m) + 1): of an ELU, ONNX and its runtimes make exp(m) - 1, which loses the digits of a small m
    negative = x.clamp(max=0)
    return torch.maximum(x, torch.tanh(negative / 2) * (negative.exp() + 1))


def _padded(conv: Conv, x: Tensor) -> Tensor:
    """Returns the row [B, C, rows] of whole windows: one gather along time, for any length."""
    if conv.stride == 1 and not conv.pad_left and not conv.pad_right:
        return x
    length = x.shape[2]
    # not of -T, which the division of ONNX rounds towards zero
    windows = (length + conv.stride - 1) // conv.stride
    rows = (windows - 1) * conv.stride + conv.span
    steps = torch.arange(rows, device=x.device) - conv.pad_left
    if conv.pad_mode == "replicate":
        return x.index_select(2, steps.clamp(0, length - 1))
    if conv.pad_mode == "reflect":
        # transformers extends a clip that is shorter than its padding with zeros first, and cuts them again
        extended = torch.sym_max(length, torch.sym_max(conv.pad_left, rows - conv.pad_left - length) + 1)
        steps = (extended - 1) - ((extended - 1) - steps.abs()).abs()
    there = (steps >= 0) & (steps < length)
    return torch.where(there, x.index_select(2, torch.where(there, steps, 0)), 0.0)


def _normed(norm: GroupNorm | None, x: Tensor) -> Tensor:
    """Returns x normalized over all channels and all time of a clip.

    Not `torch.group_norm`: exported to ONNX, onnxruntime adds up its million numbers one by one, and errs by 1e-5.
    """
    if norm is None:
        return x
    deviation = x - _mean(x)
    spread = (_mean(deviation * deviation) + norm.eps).sqrt()
    return deviation * (norm.weight[:, None] / spread) + norm.bias[:, None]


def _mean(x: Tensor) -> Tensor:
    """Returns the mean over channels and time, [B, 1, 1]: of each channel first, so that the sums are shorter."""
    return x.mean(2, keepdim=True).mean(1, keepdim=True)


def _upsampled(up: Upsample, x: Tensor) -> Tensor:
    y = _normed(up.norm, F.conv_transpose1d(activated(up.activation, x), up.weight, up.bias, up.stride))
    if not up.trim_left and not up.trim_right:
        return y
    return in_order(y[..., up.trim_left : y.shape[2] - up.trim_right])


def _with_lstm(lstm: LSTM, x: Tensor) -> Tensor:
    y = x
    for layer in lstm.layers:
        y = _lstm(layer, y)
    return x + y


def _lstm(layer: LSTMLayer, x: Tensor) -> Tensor:
    """Returns the outputs [B, H, T] of one layer over x [B, H, T], from a state of zeros."""
    from torch._higher_order_ops.scan import scan_op

    # the part of the input, of all steps in one product
    gates = F.conv1d(x, layer.w_ih[..., None], layer.b_ih + layer.b_hh).permute(2, 0, 1)
    start = x.new_zeros(x.shape[0], x.shape[1]), x.new_zeros(x.shape[0], x.shape[1])
    *_, hidden = scan_op(_lstm_step, list(start), [gates], (layer.w_hh, *_symbols(x.shape[0], x.shape[2])))
    return in_order(hidden.permute(1, 2, 0))


def _symbols(*sizes: Size) -> list[torch.SymInt]:
    """Returns the symbols that sizes are made of. Inductor makes a loop's buffer of what the loop is given, and T is their quotient."""
    symbols = {}
    for size in sizes:
        if isinstance(size, torch.SymInt):
            shapes = size.node.shape_env
            symbols.update({each: shapes.create_symintnode(each, hint=None) for each in size.node.expr.free_symbols})
    return [symbols[each] for each in sorted(symbols, key=str)]


def _lstm_step(hidden: Tensor, cell: Tensor, gates: Tensor, weight: Tensor, *_: Size) -> list[Tensor]:
    """Returns the next hidden and cell [B, H], and the former once more as the output.  gates: [B, 4 * H], without its part."""
    into, keep, new, out = (gates + F.linear(hidden, weight)).chunk(4, -1)
    cell = keep.sigmoid() * cell + into.sigmoid() * new.tanh()
    hidden = out.sigmoid() * cell.tanh()
    # what a step returns twice must be two tensors
    return [hidden, cell, hidden.clone()]
