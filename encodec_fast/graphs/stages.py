"""The nodes of each stage of the plan, on whole clips of any length from one step on.

Legend: B batch, C channels, T steps at the stage's own rate.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from encodec_fast.graphs.builder import FLOAT, GraphBuilder
from encodec_fast.kernels.modes import Activation
from encodec_fast.plan import LSTM, Conv, GroupNorm, LSTMLayer, Network, ResidualBlock, Stage, Upsample

# Of torch's i, f, g, o, as ONNX has them: i, o, f, c
_GATES = (0, 3, 1, 2)
END = np.iinfo(np.int64).max
# Of 256 * 256 samples no sum has more than 256 terms
_MEAN_BLOCK = 256


def weights(tensor: Tensor) -> np.ndarray:
    """Returns a tensor as float32 on the CPU."""
    return tensor.detach().float().cpu().numpy()


class ClipWriter:
    """Writes stages into a graph. Each clip begins and ends with what a call gives.

    steps: T of the input where it is the same in every call, None where each call chooses.
    """

    def __init__(self, graph: GraphBuilder) -> None:
        self.graph = graph

    def network(self, network: Network, x: str, steps: int | None) -> str:
        """Writes all stages.  x: [B, C, T].  Returns [B, C_out, T_out]."""
        for stage in network.stages:
            x = self.stage(stage, x, steps)
            steps = None if steps is None else stage.output_length(steps)
        return x

    def stage(self, stage: Stage, x: str, steps: int | None) -> str:
        """Writes one stage.  x: [B, C, T].  Returns [B, C_out, T_out]."""
        if isinstance(stage, Conv):
            return self.conv(stage, x, steps)
        if isinstance(stage, ResidualBlock):
            inner = self.conv(stage.conv2, self.conv(stage.conv1, x, steps), steps)
            return self.graph.add("Add", x if stage.shortcut is None else self.conv(stage.shortcut, x, steps), inner)
        if isinstance(stage, Upsample):
            return self.upsample(stage, x, steps)
        return self.lstm(stage, x)

    def conv(self, conv: Conv, x: str, steps: int | None) -> str:
        """Writes activation, padding, convolution and norm.  Returns [B, C_out, ceil(T / stride)]."""
        x = self.padded(conv, activated(self.graph, conv.activation, x), steps)
        y = self.graph.add("Conv", x, *weight_and_bias(self.graph, conv), strides=[conv.stride], dilations=[conv.dilation])
        return _normed(self.graph, conv.norm, y, None if steps is None else conv.output_length(steps))

    def padded(self, conv: Conv, x: str, steps: int | None) -> str:
        """Writes the padding of a convolution, with the steps at the right end that make the last stride whole."""
        if conv.stride == 1 and not conv.pad_left and not conv.pad_right:
            return x
        return _padded(self.graph, conv, x) if steps is None else _padded_by_constants(self.graph, conv, x, steps)

    def upsample(self, stage: Upsample, x: str, steps: int | None) -> str:
        """Writes activation, transposed convolution, norm and trim."""
        y = transposed_conv(self.graph, stage, activated(self.graph, stage.activation, x))
        y = _normed(self.graph, stage.norm, y, None if steps is None else (steps - 1) * stage.stride + stage.kernel)
        return trimmed(self.graph, y, stage.trim_left, stage.trim_right)

    def lstm(self, stage: LSTM, x: str) -> str:
        """Writes x + lstm(x) over time."""
        steps = y = self.graph.add("Transpose", x, perm=[2, 0, 1])
        for layer in stage.layers:
            y = self.lstm_layer(layer, y)
        return self.graph.add("Transpose", self.graph.add("Add", steps, y), perm=[1, 2, 0])

    def lstm_layer(self, layer: LSTMLayer, x: str) -> str:
        """Writes one layer.  x: [T, B, H].  Returns [T, B, H]."""
        # [T, directions, B, H]
        whole = self.graph.add("LSTM", x, *lstm_weights(self.graph, layer), hidden_size=layer.w_hh.shape[1])
        return self.graph.add("Squeeze", whole, [1])


def activated(graph: GraphBuilder, activation: Activation, x: str) -> str:
    """Writes an activation.

    ELU is max(x, expm1(min(x, 0))) with expm1(m) = tanh(m / 2) (exp(m) + 1). Runtimes compute the operator `Elu` with exp(m) - 1,
    which loses all digits of a small m: the error in near silence was 100 times that of transformers.
    """
    if activation == Activation.NONE:
        return x
    assert activation == Activation.ELU, activation
    one, half, zero = (graph.constant(value, np.float32) for value in (1.0, 0.5, 0.0))
    negative = graph.add("Min", x, zero)
    expm1 = graph.add("Mul", graph.add("Tanh", graph.add("Mul", negative, half)), graph.add("Add", graph.add("Exp", negative), one))
    return graph.add("Max", x, expm1)


def missing_steps(graph: GraphBuilder, conv: Conv, length: str) -> str:
    """Returns how many steps the last stride lacks, int64 [1]: (-T) mod stride, in numbers that are not negative."""
    return graph.add("Mod", graph.add("Sub", [conv.stride], graph.add("Mod", length, [conv.stride])), [conv.stride])


def count_up(graph: GraphBuilder, count: str) -> str:
    """Returns 0, 1, ... int64 [count].  count: int64 [1]."""
    return graph.add("Range", graph.constant(0), graph.add("Squeeze", count, [0]), graph.constant(1))


def _padded(graph: GraphBuilder, conv: Conv, x: str) -> str:
    length = graph.length(x, 2)
    right: str = graph.constant([conv.pad_right])
    if conv.stride > 1:
        right = graph.add("Add", right, missing_steps(graph, conv, length))
    if conv.pad_mode == "reflect":
        return _reflected(graph, conv, x, length, right)
    pads = graph.concat([0, 0, conv.pad_left, 0, 0], right)
    return graph.add("Pad", x, pads, mode={"constant": "constant", "replicate": "edge"}[conv.pad_mode])


def _padded_by_constants(graph: GraphBuilder, conv: Conv, x: str, steps: int) -> str:
    """Writes the padding of as many steps as each call has: their numbers are constants."""
    right = conv.pad_right + conv.extra_padding(steps)
    zeros = conv.reflect_length(steps) - steps if conv.pad_mode == "reflect" else 0
    numbers = np.append(np.arange(steps), np.full(zeros, steps))
    mode = {"constant": "constant", "replicate": "edge", "reflect": "reflect"}[conv.pad_mode]
    # step T is a zero
    filled = {"constant_values": steps} if mode == "constant" else {}
    shown = np.pad(numbers, (conv.pad_left, right), mode, **filled)[: conv.pad_left + steps + right]  # type: ignore[call-overload]
    before, behind = (_taken_by_constants(graph, x, steps, each) for each in (shown[: conv.pad_left], shown[conv.pad_left + steps :]))
    return graph.concat(*before, x, *behind, axis=2)


def _taken_by_constants(graph: GraphBuilder, x: str, steps: int, numbers: np.ndarray) -> list[str]:
    """Returns the steps of x by their numbers, of which T stands for zero: a value, or none for no numbers."""
    if not numbers.size:
        return []
    found = graph.add("Gather", x, graph.constant(np.where(numbers < steps, numbers, 0)), axis=2)
    if (numbers < steps).all():
        return [found]
    return [graph.add("Where", graph.constant(numbers < steps, np.bool_), found, graph.constant([0.0], np.float32))]


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
        behind = count_up(graph, right)
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


def _normed(graph: GraphBuilder, norm: GroupNorm | None, x: str, steps: int | None) -> str:
    """Writes a norm over all channels and all time of a clip.

    Not InstanceNormalization over all of it: onnxruntime adds up a million numbers one by one there, and errs by 1e-5.
    """
    if norm is None:
        return x
    deviation = graph.add("Sub", x, _mean(graph, x, steps))
    variance = _mean(graph, graph.add("Mul", deviation, deviation), steps)
    spread = graph.add("Sqrt", graph.add("Add", variance, graph.constant([norm.eps], np.float32)))
    factor = graph.add("Div", graph.constant(weights(norm.weight)[:, None], np.float32), spread)
    return graph.add("Add", graph.add("Mul", deviation, factor), graph.constant(weights(norm.bias)[:, None], np.float32))


def _mean(graph: GraphBuilder, x: str, steps: int | None) -> str:
    """Returns the mean over channels and time, [B, 1, 1]: of each channel first, so that the sums are shorter."""
    return graph.add("ReduceMean", time_mean(graph, x, steps), axes=[1], keepdims=1)


def time_mean(graph: GraphBuilder, x: str, steps: int | None) -> str:
    """Returns the mean over time, [B, C, 1], of the sums of blocks.

    onnxruntime in WebAssembly adds a row up one by one: the power of 48,000 samples would err by 4e-5 there.
    """
    if steps is None:
        length = graph.length(x, 2)
        pads = graph.concat([0] * 5, graph.add("Mod", graph.add("Neg", length), [_MEAN_BLOCK]))
        count = graph.add("Cast", length, to=FLOAT)
    else:
        pads, count = graph.constant([0] * 5 + [-steps % _MEAN_BLOCK]), graph.constant([steps], np.float32)
    blocks = graph.add("Reshape", graph.add("Pad", x, pads), [0, 0, -1, _MEAN_BLOCK])
    return graph.add("Div", graph.add("ReduceSum", graph.add("ReduceSum", blocks, [3], keepdims=0), [2], keepdims=1), count)


def transposed_conv(graph: GraphBuilder, stage: Upsample, x: str) -> str:
    """Writes the transposed convolution alone, untrimmed: [B, C_out, (T - 1) * stride + kernel]."""
    return graph.add("ConvTranspose", x, *weight_and_bias(graph, stage), strides=[stage.stride])


def trimmed(graph: GraphBuilder, x: str, left: int, right: int) -> str:
    """Writes what takes so many steps off both ends."""
    return graph.add("Slice", x, [left], [-right if right else END], [2]) if left or right else x


def lstm_weights(graph: GraphBuilder, layer: LSTMLayer) -> tuple[str, str, str]:
    """Returns W [1, 4 * H, H], R [1, 4 * H, H] and B [1, 8 * H] with the gates in ONNX's order."""
    input_weights, own_weights, *biases = (_in_order(tensor) for tensor in (layer.w_ih, layer.w_hh, layer.b_ih, layer.b_hh))
    return tuple(graph.constant(each[None], np.float32) for each in (input_weights, own_weights, np.concatenate(biases)))  # type: ignore[return-value]


def _in_order(gates: Tensor) -> np.ndarray:
    parts = np.split(weights(gates), 4)
    return np.concatenate([parts[gate] for gate in _GATES])


def weight_and_bias(graph: GraphBuilder, conv: Conv | Upsample) -> list[str]:
    """Returns the weight, and the bias of a convolution that has one."""
    found = [graph.constant(weights(conv.weight), np.float32)]
    return found if conv.bias is None else [*found, graph.constant(weights(conv.bias), np.float32)]
