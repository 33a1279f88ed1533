"""Each kind of stage on its kernels: whole clips of equal or of different lengths, or pieces of time with carried state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from encodec_fast.executors.batched import BATCH_DIM, is_like
from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton
from encodec_fast.kernels.group_norm import group_norm_apply_triton, group_norm_statistics_triton
from encodec_fast.kernels.lstm import lstm_triton
from encodec_fast.kernels.residual_block import residual_block_triton
from encodec_fast.kernels.transposed_conv1d import phase_weight, transposed_conv1d_triton
from encodec_fast.plan import LSTM, Conv, GroupNorm, ResidualBlock, Stage, Upsample


class Signal(NamedTuple):
    """values [B, C, T], and the group norm (statistics, weight, bias) that whoever reads them has still to apply."""

    values: Tensor
    norm: tuple[Tensor, Tensor, Tensor] | None = None

    def applied(self) -> Tensor:
        return self.values if self.norm is None else group_norm_apply_triton(self.values, self.norm)


class Layer(ABC):
    """One stage with its weights laid out for the kernels."""

    @abstractmethod
    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        """Whole clips; lengths [B] where they differ."""

    @abstractmethod
    def open(self, batch: int) -> Any:
        """State of `batch` clips at time zero."""

    @abstractmethod
    def reachable(self, state: Any) -> bool:
        """As `BatchedProgram.reachable`."""

    @abstractmethod
    def push(self, x: Tensor, state: Any, final: bool) -> Tensor:
        """As `StageProgram.push`."""


@dataclass
class Carried:
    """Input steps that later outputs still need.  start: where the first of them stands in the signal; done: outputs given so far.

    Both count from the clip's start or, once the left end is out of reach, from a later step: clips that started at different times
    then stand at the same place, and run as one batch.
    """

    steps: Tensor | None = None
    start: int = 0
    done: int = 0

    def take(self, x: Tensor) -> Tensor:
        return x if self.steps is None else torch.cat((self.steps, x), 2)

    def keep(self, x: Tensor, first: int) -> None:
        """Keeps the steps from `first` on, counted in the whole signal."""
        first = max(self.start, first)
        # a copy: a view would hold all of x
        self.steps, self.start = x[..., first - self.start :].clone(), first

    def holds(self, like: Tensor, channels: int, done: int, first: int, total: int) -> bool:
        """Whether these steps end at `total`, after `done` outputs, and begin with the `first` one that is needed."""
        counted = self.done == done and self.start == max(0, first) and self.start <= total
        if self.steps is None:
            return counted and self.start == total == 0
        return counted and is_like(self.steps, like, 1, channels, total - self.start)

    @property
    def total(self) -> int:
        """Steps of the signal so far."""
        return self.start + (0 if self.steps is None else self.steps.shape[-1])

    def rebase(self, inputs: int, outputs: int, times: int) -> None:
        """Counts from `times` times `inputs` steps later, which gave `outputs`."""
        times = max(0, min(times, self.start // inputs))
        self.start, self.done = self.start - times * inputs, self.done - times * outputs


def oldest_needed(conv: Conv, total: int, done: int) -> int:
    """The first step that outputs after `done` will read; the padding at the right end may show the last `stride` steps again."""
    return min(done * conv.stride - conv.pad_left, total - conv.stride)


def _signal(made: Any, norm: GroupNorm | None) -> Signal:
    """What a launch made: values, or values and the partial sums of the norm that follows."""
    if norm is None:
        return Signal(made)
    values, partials = made
    return Signal(values, (group_norm_statistics_triton(partials, norm.eps), norm.weight, norm.bias))


class WindowLayer(Layer):
    """A stage whose steps see a window of `conv`'s input."""

    conv: Conv

    @property
    def window(self) -> dict[str, Any]:
        """The window's geometry, as the kernels of convolutions take it."""
        conv = self.conv
        return {"dilation": conv.dilation, "pad_left": conv.pad_left, "pad_right": conv.pad_right, "pad_mode": conv.pad_mode}

    @abstractmethod
    def _launch(self, x: Signal, **where: Any) -> Signal:
        """where: lengths, or start, out_start and out_length, as in `causal_conv1d_ref`."""

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        return self._launch(x, lengths=lengths)

    def open(self, batch: int) -> Carried:
        return Carried()

    def reachable(self, state: Carried) -> bool:
        conv, total = self.conv, state.total
        done = conv.ready_length(total)
        # counts that grew with time would be beyond what the kernels index by one day
        rebased = state.start < conv.stride or state.done <= conv.pad_left // conv.stride + 2
        first = oldest_needed(conv, total, done)
        return rebased and state.holds(conv.weight, conv.in_channels, done, first, total)

    def push(self, x: Tensor, state: Carried, final: bool) -> Tensor:
        x = state.take(x)
        total = state.start + x.shape[2]
        count = (self.conv.output_length(total) if final else self.conv.ready_length(total)) - state.done
        y = self._launch(Signal(x), start=state.start, out_start=state.done, out_length=count).values
        state.done += count
        state.keep(x, oldest_needed(self.conv, total, state.done))
        # an output more than those that reach the padding: so that the rest counts as started
        state.rebase(self.conv.stride, 1, state.done - self.conv.pad_left // self.conv.stride - 2)
        return y


class ConvLayer(WindowLayer):
    def __init__(self, conv: Conv, precision: str) -> None:
        self.conv, self.precision = conv, precision
        self.weight = conv.weight.contiguous()

    def _launch(self, x: Signal, **where: Any) -> Signal:
        conv = self.conv
        made = causal_conv1d_triton(
            x.values,
            self.weight,
            conv.bias,
            stride=conv.stride,
            elu=conv.elu,
            norm=x.norm,
            partials=conv.norm is not None,
            precision=self.precision,
            **self.window,
            **where,
        )
        return _signal(made, conv.norm)


class ResidualLayer(WindowLayer):
    """The fused block; without group norm."""

    def __init__(self, block: ResidualBlock, precision: str) -> None:
        self.conv, self.precision = block.conv1, precision
        convs = (block.conv1, block.conv2, block.shortcut)
        self.parameters = [p for c in convs for p in ((None, None) if c is None else (c.weight.contiguous(), c.bias))]

    def _launch(self, x: Signal, **where: Any) -> Signal:
        return Signal(residual_block_triton(x.applied(), *self.parameters, precision=self.precision, **self.window, **where))


class NormedResidualLayer(Layer):
    """The block with a group norm after each convolution: every norm needs its whole clip, so the convolutions run one by one."""

    def __init__(self, block: ResidualBlock, precision: str) -> None:
        self.conv1, self.conv2 = ConvLayer(block.conv1, precision), ConvLayer(block.conv2, precision)
        self.shortcut = None if block.shortcut is None else ConvLayer(block.shortcut, precision)

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        y = self.conv2.run(self.conv1.run(x, lengths), lengths)
        short = x if self.shortcut is None else self.shortcut.run(x, lengths)
        assert y.norm is not None
        return Signal(group_norm_apply_triton(y.values, y.norm, short.values, short.norm))

    def open(self, batch: int) -> Any:
        raise ValueError("a block with group norm normalises over the whole clip and can't take it in pieces; call run")

    def reachable(self, state: Any) -> bool:
        return False

    def push(self, x: Tensor, state: Any, final: bool) -> Tensor:
        return self.open(0)


class UpsampleLayer(Layer):
    def __init__(self, stage: Upsample, precision: str) -> None:
        self.stage, self.precision = stage, precision
        self.weight = phase_weight(stage.weight, stage.stride)

    def _launch(self, x: Signal, **where: Any) -> Signal:
        stage = self.stage
        made = transposed_conv1d_triton(
            x.values,
            self.weight,
            stage.bias,
            kernel=stage.kernel,
            stride=stage.stride,
            trim_left=stage.trim_left,
            trim_right=stage.trim_right,
            elu=stage.elu,
            norm=x.norm,
            partials=stage.norm is not None,
            precision=self.precision,
            **where,
        )
        return _signal(made, stage.norm)

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        return self._launch(x, lengths=lengths)

    def open(self, batch: int) -> Carried:
        return Carried()

    def reachable(self, state: Carried) -> bool:
        stage, total = self.stage, state.total
        done = max(0, total * stage.stride - stage.trim_left)
        rebased = state.start == 0 or state.done < stage.stride
        return rebased and state.holds(stage.weight, stage.in_channels, done, self._oldest_needed(total, done), total)

    def _oldest_needed(self, total: int, done: int) -> int:
        """The first step that outputs after `done` will read."""
        stage = self.stage
        return min(total, (stage.trim_left + done) // stage.stride - (-(-stage.kernel // stage.stride) - 1))

    def push(self, x: Tensor, state: Carried, final: bool) -> Tensor:
        stage = self.stage
        x = state.take(x)
        total = state.start + x.shape[2]
        # untrimmed steps: those before total * stride get nothing more from frames to come
        end = (total - 1) * stage.stride + stage.kernel - stage.trim_right if final else total * stage.stride
        begin = stage.trim_left + state.done
        count = max(0, end - begin) if total else 0
        y = self._launch(Signal(x), shift=begin - state.start * stage.stride, out_length=count).values
        state.done += count
        state.keep(x, self._oldest_needed(total, state.done))
        state.rebase(1, stage.stride, state.done // stage.stride)
        return y


@dataclass
class Recurrent:
    """hidden [L, 2, B, H], cell [L, B, H]; time: steps taken so far."""

    hidden: Tensor = field(metadata={BATCH_DIM: 2})
    cell: Tensor = field(metadata={BATCH_DIM: 1})
    time: int = 0


class LSTMLayer(Layer):
    """The recurrence with a fixed order of summation."""

    def __init__(self, stage: LSTM, precision: str) -> None:
        self.stage, self.precision = stage, precision
        layers = stage.layers
        self.input_weight = layers[0].w_ih.contiguous()
        self.weights = torch.stack([torch.cat((layer.w_ih.T, layer.w_hh.T)) for layer in layers])
        self.bias = torch.stack([layer.b_ih.float() + layer.b_hh.float() for layer in layers])

    def _launch(self, x: Tensor, state: Recurrent, lengths: Tensor | None) -> Tensor:
        y = lstm_triton(
            x, self.input_weight, self.weights, self.bias, state.hidden, state.cell, state.time, lengths, precision=self.precision
        )
        # only whether it is even matters
        state.time = (state.time + x.shape[2]) % 2
        return y

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        return Signal(self._launch(x.applied(), self.open(x.values.shape[0]), lengths))

    def open(self, batch: int) -> Recurrent:
        shape = (len(self.stage.layers), 2, batch, self.stage.in_channels)
        hidden = self.bias.new_zeros(shape)
        return Recurrent(hidden, hidden.new_zeros((shape[0], *shape[2:])))

    def reachable(self, state: Recurrent) -> bool:
        layers, like, width = len(self.stage.layers), self.bias, self.stage.in_channels
        shapes = is_like(state.hidden, like, layers, 2, 1, width) and is_like(state.cell, like, layers, 1, width)
        return shapes and state.time in (0, 1)

    def push(self, x: Tensor, state: Recurrent, final: bool) -> Tensor:
        return self._launch(x, state, None)


@dataclass
class LibraryRecurrent:
    """hidden, cell: [L, B, H]."""

    hidden: Tensor = field(metadata={BATCH_DIM: 1})
    cell: Tensor = field(metadata={BATCH_DIM: 1})


class LibraryLSTMLayer(Layer):
    """cuDNN's recurrence: the fast one, whose order of summation follows the batch."""

    def __init__(self, stage: LSTM) -> None:
        width, layers = stage.in_channels, stage.layers
        weight = layers[0].w_ih
        # in training mode cuDNN would keep a reserve for a backward pass
        self.lstm = torch.nn.LSTM(width, width, len(layers), device=weight.device, dtype=weight.dtype).eval()
        for name, own in zip(("w_ih", "w_hh", "b_ih", "b_hh"), ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), strict=True):
            for index, layer in enumerate(layers):
                getattr(self.lstm, f"{own}_l{index}").data.copy_(getattr(layer, name))
        self.lstm.requires_grad_(False)

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        # causal: what stands behind a clip's end reaches none of its steps
        return Signal(self.push(x.applied(), self.open(x.values.shape[0]), final=True))

    def open(self, batch: int) -> LibraryRecurrent:
        weight: Tensor = self.lstm.all_weights[0][1]
        zeros = weight.new_zeros(self.lstm.num_layers, batch, self.lstm.hidden_size)
        return LibraryRecurrent(zeros, zeros)

    def reachable(self, state: LibraryRecurrent) -> bool:
        shape, like = (self.lstm.num_layers, 1, self.lstm.hidden_size), self.lstm.all_weights[0][1]
        return is_like(state.hidden, like, *shape) and is_like(state.cell, like, *shape)

    def push(self, x: Tensor, state: LibraryRecurrent, final: bool) -> Tensor:
        if x.shape[2] == 0:
            return x.clone()
        y, (state.hidden, state.cell) = self.lstm(x.permute(2, 0, 1), (state.hidden, state.cell))
        return y.permute(1, 2, 0).contiguous() + x


def make_layer(stage: Stage, precision: str, library_lstm: bool) -> Layer:
    if isinstance(stage, ResidualBlock):
        convs = (stage.conv1, stage.conv2, stage.shortcut)
        normed = any(conv is not None and conv.norm is not None for conv in convs)
        return NormedResidualLayer(stage, precision) if normed else ResidualLayer(stage, precision)
    if isinstance(stage, Upsample):
        return UpsampleLayer(stage, precision)
    if isinstance(stage, LSTM):
        return LibraryLSTMLayer(stage) if library_lstm else LSTMLayer(stage, precision)
    return ConvLayer(stage, precision)
