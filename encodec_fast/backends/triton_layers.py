"""Each kind of stage on its kernels: whole clips of equal or of different lengths, or pieces of time with carried state.

Between layers a signal is channels-last, with room beside each clip for the next layer's padding (kernels/rows.py).
A layer applies the next layer's activation if that layer reads nothing else.
It also applies the group norm of the layer before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from encodec_fast.backends.batched import BATCH_DIM, is_like
from encodec_fast.kernels.activation import activate_ref
from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton, conv_matrix, conv_mode
from encodec_fast.kernels.group_norm import group_norm_statistics_triton
from encodec_fast.kernels.lstm import lstm_triton, persistent_refusal
from encodec_fast.kernels.lstm_weights import lstm_weights
from encodec_fast.kernels.modes import Activation, ProductMode
from encodec_fast.kernels.residual_block import residual_block_triton
from encodec_fast.kernels.rows import Norm, Padding, Rows, arrange_triton, empty_rows, pad_rows_triton
from encodec_fast.kernels.tiles import lstm_tile
from encodec_fast.kernels.transposed_conv1d import phase_matrix, phase_padding, transposed_conv1d_triton
from encodec_fast.plan import LSTM, Conv, GroupNorm, ResidualBlock, Stage, Upsample


@dataclass(frozen=True)
class Signal:
    """norm(values) + norm(other), where the reader still has to apply the norms and the sum.

    values: [B, T, C] of any strides.  rows: their buffer, if it may have room for padding.  activation: the one that has been applied.
    """

    values: Tensor
    rows: Rows | None = None
    activation: Activation = Activation.NONE
    norm: Norm | None = None
    other: Signal | None = None

    def arranged(self, padding: Padding, activation: Activation, lengths: Tensor | None) -> Rows:
        """Returns the signal with its padding written, in its own buffer if that suffices, otherwise in a new one."""
        plain = self.norm is None and self.other is None and self.activation == activation
        if plain and self.rows is not None and self.rows.lead >= padding.left and self.rows.tail >= padding.tail:
            pad_rows_triton(self.rows, padding, lengths)
            return self.rows
        assert self.activation in (Activation.NONE, activation), f"{self.activation} can't be taken back"
        other, other_norm = (None, None) if self.other is None else (self.other.values, self.other.norm)
        return arrange_triton(
            self.values,
            padding,
            norm=self.norm,
            other=other,
            other_norm=other_norm,
            activation=activation if self.activation == Activation.NONE else Activation.NONE,
            lengths=lengths,
        )

    def applied(self) -> Signal:
        """Returns the signal with its norms and sum applied."""
        if self.norm is None and self.other is None:
            return self
        return _plain(self.arranged(Padding(), self.activation, None), self.activation)


def _plain(made: Any, activation: Activation) -> Signal:
    return Signal(made.values, made, activation)


class Layer(ABC):
    """One stage with its weights laid out for the kernels.

    padding: rows that it reads beside its input.  input_activation: what it applies to its input, all of it.
    lead, tail: rows to leave free beside its output.  output_activation: what to apply to its output.
    """

    padding = Padding()
    input_activation = Activation.NONE

    def __init__(self, following: Layer | None) -> None:
        around = Padding() if following is None else following.padding
        self.lead, self.tail = around.left, around.tail
        self.output_activation = Activation.NONE if following is None else following.input_activation

    @property
    def _output(self) -> dict[str, Any]:
        return {"activation": self.output_activation, "lead": self.lead, "tail": self.tail}

    @abstractmethod
    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        """Runs whole clips, with lengths [B] if they differ. Output past a clip's end is unspecified."""

    @abstractmethod
    def open(self, batch: int) -> Any:
        """Returns the state of `batch` clips at time zero."""

    @abstractmethod
    def reachable(self, state: Any) -> bool:
        """Tells whether some pushes lead to the counts and tensor sizes of this state."""

    @abstractmethod
    def push(self, x: Tensor, state: Any, final: bool) -> Tensor:
        """Runs `StageProgram.push` on steps [B, T, C], with `input_activation` already applied."""


@dataclass
class Carried:
    """Input steps [B, steps, C] that later outputs still need.

    start: position of the first of them in the signal.  done: outputs returned so far.
    Both count from the clip's start or, once the left end is out of reach, from a later step.
    Clips that started at different times then have equal counts and run as one batch.
    """

    steps: Tensor | None = None
    start: int = 0
    done: int = 0

    def take(self, x: Tensor, padding: Padding) -> Rows:
        """Joins the carried steps and x, with room for padding."""
        before = 0 if self.steps is None else self.steps.shape[1]
        made = empty_rows(x, x.shape[0], before + x.shape[1], x.shape[2], padding.left, padding.tail)
        if self.steps is not None:
            made.values[:, :before] = self.steps
        made.values[:, before:] = x
        return made

    def keep(self, x: Rows, first: int) -> None:
        """Keeps the steps from `first` on, counted in the whole signal."""
        first = max(self.start, first)
        # a copy: a view would hold all of x
        self.steps, self.start = x.values[:, first - self.start :].clone(), first

    def holds(self, like: Tensor, channels: int, done: int, first: int, total: int) -> bool:
        """Tells whether these steps begin with the needed `first` one and end at `total`, after `done` outputs."""
        counted = self.done == done and self.start == max(0, first) and self.start <= total
        if self.steps is None:
            return counted and self.start == total == 0
        return counted and is_like(self.steps, like, 1, total - self.start, channels)

    @property
    def total(self) -> int:
        """Steps of the signal so far."""
        return self.start + (0 if self.steps is None else self.steps.shape[1])

    def rebase(self, inputs: int, outputs: int, times: int) -> None:
        """Moves the origin of both counts later by `times` times `inputs` steps and `outputs` outputs."""
        times = max(0, min(times, self.start // inputs))
        self.start, self.done = self.start - times * inputs, self.done - times * outputs


def _normed(made: Any, norm: GroupNorm) -> Signal:
    """Returns the signal of a launch with partial sums, with the norm that follows still to be applied."""
    rows, partials = made
    return Signal(rows.values, rows, norm=Norm(group_norm_statistics_triton(partials, norm.eps), norm.weight, norm.bias))


class WindowLayer(Layer):
    """A stage whose steps see a window of `conv`'s input."""

    def __init__(self, conv: Conv, following: Layer | None) -> None:
        super().__init__(following)
        self.conv = conv
        self.padding = Padding(conv.pad_left, conv.pad_right, conv.pad_mode, conv.stride)

    @abstractmethod
    def _launch(self, x: Rows, **where: Any) -> Any:
        """Launches the kernel.  where: lengths, or start, out_start and out_length, as in `causal_conv1d_ref`."""

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        return self._made(self._launch(x.arranged(self.padding, self.input_activation, lengths), lengths=lengths))

    def _made(self, made: Any) -> Signal:
        return _plain(made, self.output_activation) if self.conv.norm is None else _normed(made, self.conv.norm)

    def open(self, batch: int) -> Carried:
        return Carried()

    def reachable(self, state: Carried) -> bool:
        conv, total = self.conv, state.total
        done = conv.ready_length(total)
        # counts that grow with time would in the end exceed the kernels' index range
        rebased = state.start < conv.stride or state.done <= conv.pad_left // conv.stride + 2
        first = conv.oldest_needed(total, done)
        return rebased and state.holds(conv.weight, conv.in_channels, done, first, total)

    def push(self, x: Tensor, state: Carried, final: bool) -> Tensor:
        rows = state.take(x, self.padding)
        total = state.start + rows.length
        count = (self.conv.output_length(total) if final else self.conv.ready_length(total)) - state.done
        pad_rows_triton(rows, self.padding, start=state.start)
        y: Tensor = self._launch(rows, start=state.start, out_start=state.done, out_length=count).values
        state.done += count
        state.keep(rows, self.conv.oldest_needed(total, state.done))
        # keeps one output more than those that reach the padding, so that the rest counts as started
        state.rebase(self.conv.stride, 1, state.done - self.conv.pad_left // self.conv.stride - 2)
        return y


class ConvLayer(WindowLayer):
    def __init__(self, conv: Conv, mode: ProductMode, following: Layer | None = None) -> None:
        super().__init__(conv, following if conv.norm is None else None)
        self.input_activation = conv.activation
        self.mode = conv_mode(conv.weight, mode, conv.norm is not None)
        self.matrix = conv_matrix(conv.weight, self.mode)
        self.reads_norm = conv.kernel == 1 and self.mode != ProductMode.THIN and self.padding == Padding(mode=conv.pad_mode)

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        if self.reads_norm and x.norm is not None and x.rows is not None and x.other is None:
            return self._made(self._launch(x.rows, lengths=lengths, norm=x.norm, norm_activation=self.input_activation))
        return super().run(x, lengths)

    def _launch(self, x: Rows, **where: Any) -> Any:
        conv = self.conv
        return causal_conv1d_triton(
            x,
            self.matrix,
            conv.bias,
            self.padding,
            kernel=conv.kernel,
            dilation=conv.dilation,
            partials=conv.norm is not None,
            mode=self.mode,
            **self._output,
            **where,
        )


class ResidualLayer(WindowLayer):
    """The fused block, without group norm."""

    def __init__(self, block: ResidualBlock, mode: ProductMode, following: Layer | None) -> None:
        super().__init__(block.conv1, following)
        self.mode = mode
        self.activations = (block.conv1.activation, block.conv2.activation)
        convs = (block.conv1, block.conv2, block.shortcut)
        self.parameters = [p for c in convs for p in ((None, None) if c is None else (conv_matrix(c.weight, mode), c.bias))]

    def _launch(self, x: Rows, lengths: Tensor | None = None, **where: Any) -> Any:
        return residual_block_triton(
            x,
            *self.parameters,
            self.padding,
            dilation=self.conv.dilation,
            activations=self.activations,
            mode=self.mode,
            **self._output,
            **where,
        )


class NormedResidualLayer(Layer):
    """The block with a group norm after each convolution. Every norm needs its whole clip, so the convolutions run one by one."""

    def __init__(self, block: ResidualBlock, mode: ProductMode) -> None:
        super().__init__(None)
        self.conv1, self.conv2 = ConvLayer(block.conv1, mode), ConvLayer(block.conv2, mode)
        self.shortcut = None if block.shortcut is None else ConvLayer(block.shortcut, mode)

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        if x.other is not None:
            x = x.applied()
        y = self.conv2.run(self.conv1.run(x, lengths), lengths)
        short = x if self.shortcut is None else self.shortcut.run(x, lengths)
        return Signal(y.values, norm=y.norm, other=short)

    def open(self, batch: int) -> Any:
        raise ValueError("a block with group norm normalises over the whole clip and can't take it in pieces; call run")

    def reachable(self, state: Any) -> bool:
        return False

    def push(self, x: Tensor, state: Any, final: bool) -> Tensor:
        return self.open(0)


class UpsampleLayer(Layer):
    def __init__(self, stage: Upsample, mode: ProductMode, following: Layer | None) -> None:
        super().__init__(following if stage.norm is None else None)
        self.stage, self.mode = stage, mode
        self.input_activation, self.padding = stage.activation, phase_padding(stage.kernel, stage.stride)
        self.matrix = phase_matrix(stage.weight, stage.stride, mode)
        self.bias = None if stage.bias is None else stage.bias.repeat(stage.stride)

    def _launch(self, x: Rows, **where: Any) -> Any:
        stage = self.stage
        return transposed_conv1d_triton(
            x,
            self.matrix,
            self.bias,
            kernel=stage.kernel,
            stride=stage.stride,
            trim_left=stage.trim_left,
            trim_right=stage.trim_right,
            partials=stage.norm is not None,
            mode=self.mode,
            **self._output,
            **where,
        )

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        made = self._launch(x.arranged(self.padding, self.input_activation, lengths), lengths=lengths)
        return _plain(made, self.output_activation) if self.stage.norm is None else _normed(made, self.stage.norm)

    def open(self, batch: int) -> Carried:
        return Carried()

    def reachable(self, state: Carried) -> bool:
        stage, total = self.stage, state.total
        done = stage.ready_length(total)
        rebased = state.start == 0 or state.done < stage.stride
        return rebased and state.holds(stage.weight, stage.in_channels, done, stage.oldest_needed(total, done), total)

    def push(self, x: Tensor, state: Carried, final: bool) -> Tensor:
        stage = self.stage
        rows = state.take(x, self.padding)
        total = state.start + rows.length
        count = (stage.output_length(total) if final else stage.ready_length(total)) - state.done if total else 0
        begin = stage.trim_left + state.done
        pad_rows_triton(rows, self.padding, start=state.start)
        y: Tensor = self._launch(rows, shift=begin - state.start * stage.stride, out_length=count).values
        state.done += count
        state.keep(rows, stage.oldest_needed(total, state.done))
        state.rebase(1, stage.stride, state.done // stage.stride)
        return y


@dataclass
class Recurrent:
    """State of the recurrence.

    hidden: [L, 2, B, H].  cell: [L, B, H].  time: steps taken so far, modulo 2.
    """

    hidden: Tensor = field(metadata={BATCH_DIM: 2})
    cell: Tensor = field(metadata={BATCH_DIM: 1})
    time: int = 0


class LSTMLayer(Layer):
    """The recurrence with a fixed order of summation."""

    def __init__(self, stage: LSTM, mode: ProductMode, following: Layer | None) -> None:
        super().__init__(following)
        self.stage, layers = stage, stage.layers
        bias = torch.stack([layer.b_ih.float() + layer.b_hh.float() for layer in layers])
        rows = lstm_tile(bias.device, stage.in_channels, mode).block_n
        self.weights = lstm_weights([layer.w_ih for layer in layers], [layer.w_hh for layer in layers], bias, mode, rows)

    def _launch(self, x: Rows, state: Recurrent) -> Rows:
        y = lstm_triton(x, self.weights, state.hidden, state.cell, state.time, **self._output)
        # only the parity selects a slot
        state.time = (state.time + x.length) % 2
        return y

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        rows = x.arranged(self.padding, Activation.NONE, lengths)
        return _plain(self._launch(rows, self.open(rows.buffer.shape[0])), self.output_activation)

    def open(self, batch: int) -> Recurrent:
        shape = (len(self.stage.layers), 2, batch, self.stage.in_channels)
        hidden = self.weights.bias.new_zeros(shape)
        return Recurrent(hidden, hidden.new_zeros((shape[0], *shape[2:])))

    def reachable(self, state: Recurrent) -> bool:
        layers, like, width = len(self.stage.layers), self.weights.bias, self.stage.in_channels
        shapes = is_like(state.hidden, like, layers, 2, 1, width) and is_like(state.cell, like, layers, 1, width)
        return shapes and state.time in (0, 1)

    def push(self, x: Tensor, state: Recurrent, final: bool) -> Tensor:
        return self._launch(Carried().take(x, self.padding), state).values


@dataclass
class LibraryRecurrent:
    """State of cuDNN's recurrence.  hidden, cell: [L, B, H]."""

    hidden: Tensor = field(metadata={BATCH_DIM: 1})
    cell: Tensor = field(metadata={BATCH_DIM: 1})


class LibraryLSTMLayer(Layer):
    """cuDNN's recurrence: faster than one launch per step, but its order of summation depends on the batch."""

    def __init__(self, stage: LSTM, following: Layer | None) -> None:
        super().__init__(following)
        width, layers = stage.in_channels, stage.layers
        weight = layers[0].w_ih
        # in training mode cuDNN would keep a reserve for a backward pass
        self.lstm = torch.nn.LSTM(width, width, len(layers), device=weight.device, dtype=weight.dtype).eval()
        for name, own in zip(("w_ih", "w_hh", "b_ih", "b_hh"), ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), strict=True):
            for index, layer in enumerate(layers):
                getattr(self.lstm, f"{own}_l{index}").data.copy_(getattr(layer, name))
        self.lstm.requires_grad_(False)

    def run(self, x: Signal, lengths: Tensor | None) -> Signal:
        # causal: steps past a clip's end reach none of its own
        values = x.applied().values
        return Signal(self.push(values, self.open(values.shape[0]), final=True), activation=self.output_activation)

    def open(self, batch: int) -> LibraryRecurrent:
        weight: Tensor = self.lstm.all_weights[0][1]
        zeros = weight.new_zeros(self.lstm.num_layers, batch, self.lstm.hidden_size)
        return LibraryRecurrent(zeros, zeros)

    def reachable(self, state: LibraryRecurrent) -> bool:
        shape, like = (self.lstm.num_layers, 1, self.lstm.hidden_size), self.lstm.all_weights[0][1]
        return is_like(state.hidden, like, *shape) and is_like(state.cell, like, *shape)

    def push(self, x: Tensor, state: LibraryRecurrent, final: bool) -> Tensor:
        if x.shape[1] == 0:
            return x.clone()
        y, (state.hidden, state.cell) = self.lstm(x.transpose(0, 1), (state.hidden, state.cell))
        y = y.transpose(0, 1) + x
        return activate_ref(y, self.output_activation)


def lstm_refusal(stage: LSTM, mode: ProductMode, device: torch.device) -> str | None:
    """Returns why a stage's recurrence needs one launch per step on a device; None if one launch runs all steps."""
    rows = lstm_tile(device, stage.in_channels, mode).block_n
    return persistent_refusal(stage.in_channels, len(stage.layers), rows, mode, device)


def make_layers(stages: tuple[Stage, ...], mode: ProductMode, library_lstm: bool) -> list[Layer]:
    """Returns a layer for each stage, each made for the layer after it.

    library_lstm: leave a recurrence that needs one launch per step to cuDNN, and with it the order of summation.
    """
    layers: list[Layer] = []
    for stage in reversed(stages):
        layers.insert(0, _make_layer(stage, mode, library_lstm, layers[0] if layers else None))
    return layers


def _make_layer(stage: Stage, mode: ProductMode, library_lstm: bool, following: Layer | None) -> Layer:
    if isinstance(stage, ResidualBlock):
        convs = (stage.conv1, stage.conv2, stage.shortcut)
        normed = any(conv is not None and conv.norm is not None for conv in convs)
        return NormedResidualLayer(stage, mode) if normed else ResidualLayer(stage, mode, following)
    if isinstance(stage, Upsample):
        return UpsampleLayer(stage, mode, following)
    if isinstance(stage, LSTM):
        by_library = library_lstm and lstm_refusal(stage, mode, stage.layers[0].w_hh.device) is not None
        return LibraryLSTMLayer(stage, following) if by_library else LSTMLayer(stage, mode, following)
    return ConvLayer(stage, mode, following)
