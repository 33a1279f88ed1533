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
# The steps of each clip in a tensor that is as long as the longest, int64 [B, 1, 1]. None where all are as long as that
Lengths = Tensor | None
# The length of all clips, or the lengths of each: a Size or a tensor, with the same arithmetic
AnyLength = Any


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


def normalize(audio: Tensor, lengths: Lengths = None) -> tuple[Tensor, Tensor]:
    """Returns clips [B, C, T] of unit volume, and the scale [B, 1] that was taken off each.

    Not `normalize_torch`, whose order of summation depends on the length.
    """
    scale = time_mean(audio.mean(1, keepdim=True).square(), lengths).sqrt() + 1e-8
    return audio / scale, scale[..., 0]


def run_network(network: Network, x: Tensor) -> Tensor:
    """Returns the output [B, C_out, T_out] of all stages for x [B, C, T]."""
    return run_clips(network, x, None)[0]


def run_clips(network: Network, x: Tensor, lengths: Lengths) -> tuple[Tensor, Lengths]:
    """Returns the output [B, C_out, T_out] of all stages for x [B, C, T], and the lengths of its clips.

    Each clip gives what it gives by itself. What stands behind its end is any number, in x as in the output.
    """
    for stage in network.stages:
        x, lengths = _run_stage(stage, x, lengths)
    return x, lengths


def before_end(x: Tensor, lengths: Lengths) -> Tensor:
    """Returns x [B, C, T] with zeros behind the end of each clip."""
    return x if lengths is None else torch.where(torch.arange(x.shape[2], device=x.device) < lengths, x, 0)


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


def _run_stage(stage: Stage, x: Tensor, lengths: Lengths) -> tuple[Tensor, Lengths]:
    if isinstance(stage, Conv):
        return _convolved(stage, x, lengths)
    if isinstance(stage, ResidualBlock):
        inner, _ = _convolved(stage.conv2, *_convolved(stage.conv1, x, lengths))
        return inner + (x if stage.shortcut is None else _convolved(stage.shortcut, x, lengths)[0]), lengths
    if isinstance(stage, Upsample):
        return _upsampled(stage, x, lengths)
    # a step reads those before it, never what stands behind the end
    return _with_lstm(stage, x), lengths


def _convolved(conv: Conv, x: Tensor, lengths: Lengths) -> tuple[Tensor, Lengths]:
    row = _padded(conv, activated(conv.activation, x), lengths)
    lengths = None if lengths is None else _windows(conv, lengths)
    return _normed(conv.norm, F.conv1d(row, conv.weight, conv.bias, conv.stride, 0, conv.dilation), lengths), lengths


def activated(activation: Activation, x: Tensor) -> Tensor:
    if activation == Activation.NONE:
        return x
    assert activation == Activation.ELU, activation
    # expm1 as tanh(m / 2) (exp(m) + 1): of an ELU, ONNX and its runtimes make exp(m) - 1, which loses the digits of a small m
    negative = x.clamp(max=0)
    return torch.maximum(x, torch.tanh(negative / 2) * (negative.exp() + 1))


def _windows(conv: Conv, length: AnyLength) -> AnyLength:
    # not of -T, which the division of ONNX rounds towards zero
    return (length + conv.stride - 1) // conv.stride


def _rows(conv: Conv, length: AnyLength) -> AnyLength:
    """Returns the steps of the padded row."""
    return (_windows(conv, length) - 1) * conv.stride + conv.span


def _padded(conv: Conv, x: Tensor, lengths: Lengths) -> Tensor:
    """Returns the row [B, C, rows] of whole windows: one gather along time, for any length."""
    if conv.stride == 1 and not conv.pad_left and not conv.pad_right:
        return x
    steps = torch.arange(_rows(conv, x.shape[2]), device=x.device) - conv.pad_left
    steps, there = _sources(conv, steps, x.shape[2]) if lengths is None else _sources(conv, steps, lengths)
    row = x.index_select(2, steps) if lengths is None else x.gather(2, steps.expand(-1, x.shape[1], -1))
    return row if there is None else torch.where(there, row, 0.0)


def _sources(conv: Conv, steps: Tensor, length: AnyLength) -> tuple[Tensor, Tensor | None]:
    """Returns which steps of a clip the padded row shows, and where it shows one at all; None for everywhere.

    steps: [rows], those that it would show of a clip without ends.  Both are [B, 1, rows] where each clip has a length of its own.
    """
    if conv.pad_mode == "replicate":
        return steps.clamp(min=0).clamp(max=length - 1), None
    if conv.pad_mode == "reflect":
        # transformers extends a clip that is shorter than its padding with zeros first, and cuts them again
        right = _rows(conv, length) - conv.pad_left - length
        extended = _larger(_larger(right, conv.pad_left) + 1, length)
        steps = (extended - 1) - ((extended - 1) - steps.abs()).abs()
    there = (steps >= 0) & (steps < length)
    return torch.where(there, steps, 0), there


def _larger(length: AnyLength, other: AnyLength | int) -> AnyLength:
    return length.clamp(min=other) if isinstance(length, Tensor) else torch.sym_max(length, other)


def _normed(norm: GroupNorm | None, x: Tensor, lengths: Lengths) -> Tensor:
    """Returns x normalized over all channels and all time of a clip.

    Not `torch.group_norm`: exported to ONNX, onnxruntime adds up its million numbers one by one, and errs by 1e-5.
    """
    if norm is None:
        return x
    deviation = x - _mean(x, lengths)
    spread = (_mean(deviation * deviation, lengths) + norm.eps).sqrt()
    return deviation * (norm.weight[:, None] / spread) + norm.bias[:, None]


def _mean(x: Tensor, lengths: Lengths) -> Tensor:
    """Returns the mean over channels and time, [B, 1, 1]: of each channel first, so that the sums are shorter."""
    return time_mean(x, lengths).mean(1, keepdim=True)


def time_mean(x: Tensor, lengths: Lengths) -> Tensor:
    """Returns the mean of x [B, C, T] over the time of each clip, [B, C, 1]."""
    return x.mean(2, keepdim=True) if lengths is None else before_end(x, lengths).sum(2, keepdim=True) / lengths


def _upsampled(up: Upsample, x: Tensor, lengths: Lengths) -> tuple[Tensor, Lengths]:
    # its windows overlap, so zeros must follow the end
    y = F.conv_transpose1d(before_end(activated(up.activation, x), lengths), up.weight, up.bias, up.stride)
    if lengths is not None:
        lengths = (lengths - 1) * up.stride + up.kernel
    y = _normed(up.norm, y, lengths)
    if not up.trim_left and not up.trim_right:
        return y, lengths
    y = in_order(y[..., up.trim_left : y.shape[2] - up.trim_right])
    return y, None if lengths is None else lengths - up.trim_left - up.trim_right


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
