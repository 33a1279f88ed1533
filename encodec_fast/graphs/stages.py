"""The nodes of each stage of the plan, for any batch and any length from one step on.

Legend: B batch, C channels, T steps at the stage's own rate.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from encodec_fast.graphs.builder import GraphBuilder
from encodec_fast.kernels.modes import Activation
from encodec_fast.plan import LSTM, Conv, GroupNorm, LSTMLayer, Network, ResidualBlock, Stage, Upsample

# Of torch's i, f, g, o, as ONNX has them: i, o, f, c
_GATES = (0, 3, 1, 2)
_END = np.iinfo(np.int64).max


def weights(tensor: Tensor) -> np.ndarray:
    """Returns a tensor as float32 on the CPU."""
    return tensor.detach().float().cpu().numpy()


def write_network(graph: GraphBuilder, network: Network, x: str) -> str:
    """Writes all stages.  x: [B, C, T].  Returns [B, C_out, T_out]."""
    for stage in network.stages:
        x = write_stage(graph, stage, x)
    return x


def write_stage(graph: GraphBuilder, stage: Stage, x: str) -> str:
    """Writes one stage.  x: [B, C, T].  Returns [B, C_out, T_out]."""
    if isinstance(stage, Conv):
        return write_conv(graph, stage, x)
    if isinstance(stage, ResidualBlock):
        inner = write_conv(graph, stage.conv2, write_conv(graph, stage.conv1, x))
        return graph.add("Add", x if stage.shortcut is None else write_conv(graph, stage.shortcut, x), inner)
    if isinstance(stage, Upsample):
        return write_upsample(graph, stage, x)
    return write_lstm(graph, stage, x)


def write_conv(graph: GraphBuilder, conv: Conv, x: str) -> str:
    """Writes activation, padding, convolution and norm.  Returns [B, C_out, ceil(T / stride)]."""
    x = padded(graph, conv, activated(graph, conv.activation, x))
    y = graph.add("Conv", x, *_weight_and_bias(graph, conv), strides=[conv.stride], dilations=[conv.dilation])
    return normed(graph, conv.norm, y)


def activated(graph: GraphBuilder, activation: Activation, x: str) -> str:
    """Writes an activation."""
    if activation == Activation.NONE:
        return x
    assert activation == Activation.ELU, activation
    return graph.add("Elu", x, alpha=1.0)


def padded(graph: GraphBuilder, conv: Conv, x: str) -> str:
    """Writes the padding of a convolution, with the steps at the right end that make the last stride whole."""
    if conv.stride == 1 and not conv.pad_left and not conv.pad_right:
        return x
    length = graph.length(x, 2)
    right: str = graph.constant([conv.pad_right])
    if conv.stride > 1:
        # (-T) mod stride, in numbers that are not negative
        missing = graph.add("Mod", graph.add("Sub", [conv.stride], graph.add("Mod", length, [conv.stride])), [conv.stride])
        right = graph.add("Add", right, missing)
    if conv.pad_mode == "reflect":
        return _reflected(graph, conv, x, length, right)
    pads = graph.concat([0, 0, conv.pad_left, 0, 0], right)
    return graph.add("Pad", x, pads, mode={"constant": "constant", "replicate": "edge"}[conv.pad_mode])


def _reflected(graph: GraphBuilder, conv: Conv, x: str, length: str, right: str) -> str:
    """Writes reflection as transformers has it: a clip shorter than its padding is first extended with zeros, which are cut again.

    Not the operator Pad: not all runtimes reflect with it, and none does a clip that is too short. That would take two more copies.
    """
    # the zeros: max(0, longest padding - T + 1)
    longest = graph.add("Max", right, [conv.pad_left]) if conv.stride > 1 else graph.constant([max(conv.pad_left, conv.pad_right)])
    zeros = graph.add("Max", graph.add("Sub", graph.add("Add", longest, [1]), length), [0])
    parts = [x]
    if conv.pad_left:
        parts = [_taken(graph, x, length, graph.constant(list(range(conv.pad_left, 0, -1)))), x]
    if conv.pad_right or conv.stride > 1:
        # step q behind the clip is a zero of the extension; behind those it shows step T + 2 * zeros - 2 - q
        behind = graph.add("Range", graph.constant(0), graph.add("Squeeze", right, [0]), graph.constant(1))
        shown = graph.add("Sub", graph.add("Add", length, graph.add("Sub", graph.add("Mul", zeros, [2]), [2])), behind)
        parts.append(_taken(graph, x, length, shown, graph.add("GreaterOrEqual", behind, zeros)))
    return graph.concat(*parts, axis=2)


def _taken(graph: GraphBuilder, x: str, length: str, steps: str, where: str | None = None) -> str:
    """Returns the steps of x by their numbers [n], which are not negative: 0 for those behind its end, and where `where` [n] is false."""
    there = graph.add("Less", steps, length)
    if where is not None:
        there = graph.add("And", there, where)
    # a step that is not there is step 0, which always is
    found = graph.add("Gather", x, graph.add("Where", there, steps, graph.constant([0])), axis=2)
    return graph.add("Where", there, found, graph.constant([0.0], np.float32))


def normed(graph: GraphBuilder, norm: GroupNorm | None, x: str) -> str:
    """Writes a norm over all channels and all time of a clip.

    Not InstanceNormalization over all of it: onnxruntime adds up a million numbers one by one there, and errs by 1e-5.
    """
    if norm is None:
        return x
    deviation = graph.add("Sub", x, _mean(graph, x))
    variance = _mean(graph, graph.add("Mul", deviation, deviation))
    spread = graph.add("Sqrt", graph.add("Add", variance, graph.constant([norm.eps], np.float32)))
    factor = graph.add("Div", graph.constant(weights(norm.weight)[:, None], np.float32), spread)
    return graph.add("Add", graph.add("Mul", deviation, factor), graph.constant(weights(norm.bias)[:, None], np.float32))


def _mean(graph: GraphBuilder, x: str) -> str:
    """Returns the mean over channels and time, [B, 1, 1]: of each channel first, so that the sums are shorter."""
    return graph.add("ReduceMean", graph.add("ReduceMean", x, axes=[2], keepdims=1), axes=[1], keepdims=1)


def write_upsample(graph: GraphBuilder, stage: Upsample, x: str) -> str:
    """Writes activation, transposed convolution, norm and trim."""
    x = activated(graph, stage.activation, x)
    y = normed(graph, stage.norm, graph.add("ConvTranspose", x, *_weight_and_bias(graph, stage), strides=[stage.stride]))
    if not stage.trim_left and not stage.trim_right:
        return y
    return graph.add("Slice", y, [stage.trim_left], [-stage.trim_right if stage.trim_right else _END], [2])


def write_lstm(graph: GraphBuilder, stage: LSTM, x: str) -> str:
    """Writes x + lstm(x) over time."""
    steps = graph.add("Transpose", x, perm=[2, 0, 1])
    y = steps
    for layer in stage.layers:
        # [T, directions, B, H]
        whole = graph.add("LSTM", y, *lstm_weights(graph, layer), hidden_size=stage.in_channels)
        y = graph.add("Squeeze", whole, [1])
    return graph.add("Transpose", graph.add("Add", steps, y), perm=[1, 2, 0])


def lstm_weights(graph: GraphBuilder, layer: LSTMLayer) -> tuple[str, str, str]:
    """Returns W [1, 4 * H, H], R [1, 4 * H, H] and B [1, 8 * H] with the gates in ONNX's order."""
    input_weights, own_weights, *biases = (_in_order(tensor) for tensor in (layer.w_ih, layer.w_hh, layer.b_ih, layer.b_hh))
    return tuple(graph.constant(each[None], np.float32) for each in (input_weights, own_weights, np.concatenate(biases)))  # type: ignore[return-value]


def _in_order(gates: Tensor) -> np.ndarray:
    parts = np.split(weights(gates), 4)
    return np.concatenate([parts[gate] for gate in _GATES])


def _weight_and_bias(graph: GraphBuilder, conv: Conv | Upsample) -> list[str]:
    found = [graph.constant(weights(conv.weight), np.float32)]
    return found if conv.bias is None else [*found, graph.constant(weights(conv.bias), np.float32)]
