"""The codec as plain data: weights folded, geometry in integers, one frozen record per fused stage.

A plan is read once from the Hugging Face module tree (`reader`). Backends, streaming, `explain` and the roofline are functions of it.

    Plan = encoder Network + Quantizer + decoder Network
    Network = Conv, (ResidualBlock..., Conv)..., LSTM, Conv        encoder
              Conv, LSTM, (Upsample, ResidualBlock...)..., Conv    decoder

Legend: B batch, C channels, T samples or frames at the layer's own rate, F codec frames. K quantizers, N codebook entries, D codebook dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from encodec_fast.kernels.modes import Activation


@dataclass(frozen=True, eq=False)
class GroupNorm:
    """One group over all channels and all time of a clip.  weight, bias: [C]."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True, eq=False)
class Conv:
    """Activation, padding, convolution, optional group norm.

    weight: [C_out, C_in, kernel], weight norm folded.  bias: [C_out] or None.
    The output has ceil(T / stride) steps: the right end is padded by `extra_padding(T)` more than `pad_right`.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    stride: int
    dilation: int
    pad_left: int
    pad_right: int
    pad_mode: str
    activation: Activation
    norm: GroupNorm | None

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1]

    @property
    def out_channels(self) -> int:
        return self.weight.shape[0]

    @property
    def kernel(self) -> int:
        return self.weight.shape[2]

    @property
    def span(self) -> int:
        """Input steps that one output step sees."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def causal(self) -> bool:
        return self.pad_right == 0

    @property
    def lead(self) -> int:
        """Input steps before which the left padding, and with it any output, is not known."""
        return self.pad_left + 1 if self.pad_mode == "reflect" else 1

    def output_length(self, length: int) -> int:
        return -(-length // self.stride)

    def windows(self, rows: int) -> int:
        """Returns the outputs that so many consecutive input steps complete, padding included."""
        return max(0, (rows - self.span) // self.stride + 1)

    def ready_length(self, length: int) -> int:
        """Returns the outputs that the first `length` steps of a clip determine, whatever follows them."""
        return self.windows(length + self.pad_left) if length >= self.lead else 0

    def oldest_needed(self, length: int, outputs: int) -> int:
        """Returns the first step that what follows `outputs` reads, after `length` steps; negative where that is left padding.

        The padding at the right end may show the last `stride` steps again.
        """
        return min(outputs * self.stride - self.pad_left, length - self.stride)

    def extra_padding(self, length: int) -> int:
        return self.output_length(length) * self.stride - length

    def reflect_length(self, length: int) -> int:
        """Returns the length of the signal that reflection sees: HF extends a clip shorter than its padding with zeros first."""
        return max(length, max(self.pad_left, self.pad_right + self.extra_padding(length)) + 1)


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """shortcut(x) + conv2(conv1(x)); each convolution with the activation of its input.  shortcut None is the identity."""

    name: str
    conv1: Conv
    conv2: Conv
    shortcut: Conv | None

    @property
    def in_channels(self) -> int:
        return self.conv1.in_channels

    @property
    def out_channels(self) -> int:
        return self.conv2.out_channels

    def output_length(self, length: int) -> int:
        return length

    def ready_length(self, length: int) -> int:
        return self.conv1.ready_length(length)


@dataclass(frozen=True, eq=False)
class Upsample:
    """Activation, transposed convolution, optional group norm over the untrimmed output, trim.

    weight: [C_in, C_out, kernel], weight norm folded.  bias: [C_out] or None.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    stride: int
    trim_left: int
    trim_right: int
    activation: Activation
    norm: GroupNorm | None

    @property
    def in_channels(self) -> int:
        return self.weight.shape[0]

    @property
    def out_channels(self) -> int:
        return self.weight.shape[1]

    @property
    def kernel(self) -> int:
        return self.weight.shape[2]

    def output_length(self, length: int) -> int:
        return (length - 1) * self.stride + self.kernel - self.trim_left - self.trim_right

    def ready_length(self, length: int) -> int:
        """Returns the outputs that the first `length` steps of a clip determine: those before `length * stride`, untrimmed."""
        return max(0, length * self.stride - self.trim_left)

    def oldest_needed(self, length: int, outputs: int) -> int:
        """Returns the first step that what follows `outputs` reads, after `length` steps; negative before the clip."""
        return min(length, (self.trim_left + outputs) // self.stride - (-(-self.kernel // self.stride) - 1))


@dataclass(frozen=True, eq=False)
class LSTMLayer:
    """w_ih, w_hh: [4 * H, H], gates in torch's order i, f, g, o.  b_ih, b_hh: [4 * H]."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor


@dataclass(frozen=True, eq=False)
class LSTM:
    """x + lstm(x) over time, hidden size = channels, zero initial state."""

    name: str
    layers: tuple[LSTMLayer, ...]

    @property
    def in_channels(self) -> int:
        return self.layers[0].w_hh.shape[1]

    @property
    def out_channels(self) -> int:
        return self.in_channels

    def output_length(self, length: int) -> int:
        return length

    def ready_length(self, length: int) -> int:
        return length


Stage = Conv | ResidualBlock | Upsample | LSTM


@dataclass(frozen=True, eq=False)
class Quantizer:
    """codebooks: [K, N, D], all levels of the model, first level first."""

    codebooks: Tensor


@dataclass(frozen=True, eq=False)
class Network:
    """The encoder or the decoder: stages in order."""

    stages: tuple[Stage, ...]

    @property
    def dtype(self) -> torch.dtype:
        return stage_weights(self.stages[0])[0].dtype

    @property
    def device(self) -> torch.device:
        return stage_weights(self.stages[0])[0].device

    @property
    def hop_length(self) -> int:
        """Samples per codec frame."""
        return math.prod(stage.stride for stage in self.stages if isinstance(stage, (Conv, Upsample)))

    def output_length(self, length: int) -> int:
        for stage in self.stages:
            length = stage.output_length(length)
        return length

    def ready_length(self, length: int) -> int:
        """Returns the output steps that the first `length` input steps of a clip determine, whatever follows them."""
        for stage in self.stages:
            length = stage.ready_length(length)
        return length


@dataclass(frozen=True, eq=False)
class Plan:
    """The whole codec."""

    encoder: Network
    quantizer: Quantizer
    decoder: Network


def convolutions(stage: Stage) -> tuple[Conv | Upsample, ...]:
    """Returns the convolutions inside a stage, in the order they run."""
    if isinstance(stage, ResidualBlock):
        inner = (stage.conv1, stage.conv2)
        return inner if stage.shortcut is None else (*inner, stage.shortcut)
    return () if isinstance(stage, LSTM) else (stage,)


def not_streamable(stages: tuple[Stage, ...]) -> str | None:
    """Returns why the stages can't run on a piece of time with carried state, or None if they can."""
    for stage in stages:
        for conv in convolutions(stage):
            if conv.norm is not None:
                return f"{conv.name} normalises over the whole clip (norm_type 'time_group_norm')"
            if isinstance(conv, Conv) and not conv.causal:
                return f"{conv.name} looks ahead (use_causal_conv=False)"
    return None


def step_bytes(stages: tuple[Stage, ...]) -> float:
    """Returns the bytes of the widest activation of one clip, per input step of the first stage."""
    rate, widest = 1.0, 0.0
    for stage in stages:
        widest = max(widest, stage.in_channels * rate)
        if isinstance(stage, Upsample):
            rate *= stage.stride
        elif isinstance(stage, Conv):
            rate /= stage.stride
        widest = max(widest, stage.out_channels * rate)
    return widest * stage_weights(stages[0])[0].element_size()


def stage_weights(stage: Stage) -> tuple[Tensor, ...]:
    """Returns the weight matrices of a stage: what its multiplications read."""
    if isinstance(stage, LSTM):
        return tuple(w for layer in stage.layers for w in (layer.w_ih, layer.w_hh))
    return tuple(conv.weight for conv in convolutions(stage))


def stage_tensors(stage: Stage) -> tuple[Tensor, ...]:
    """Returns all that a stage holds: weights, biases and norms."""
    if isinstance(stage, LSTM):
        return tuple(w for layer in stage.layers for w in (layer.w_ih, layer.w_hh, layer.b_ih, layer.b_hh))
    found = [tensor for conv in convolutions(stage) for tensor in (conv.weight, conv.bias)]
    found += [tensor for conv in convolutions(stage) if conv.norm is not None for tensor in (conv.norm.weight, conv.norm.bias)]
    return tuple(tensor for tensor in found if tensor is not None)


Part = TypeVar("Part")


def mapped(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    """Returns a stage, a network, the quantizer, or what they hold, with `change` of each tensor; always in the same order."""
    if isinstance(part, Tensor):
        return cast(Part, change(part))
    if isinstance(part, tuple):
        return cast(Part, tuple(mapped(each, change) for each in part))
    if is_dataclass(part) and not isinstance(part, type):
        own = {each.name: mapped(getattr(part, each.name), change) for each in fields(part) if each.init}
        return replace(part, **own)
    return part


def moved(part: Part, device: torch.device) -> Part:
    """Returns a stage, the quantizer, or what they hold, with its tensors on the device."""
    return mapped(part, lambda tensor: tensor.to(device))


def multiply_adds(stage: Stage, length: int) -> int:
    """Returns the multiply-adds of one clip whose input to the stage has `length` steps."""
    if isinstance(stage, LSTM):
        return length * sum(w.numel() for w in stage_weights(stage))
    if isinstance(stage, Upsample):
        return length * stage.weight.numel()
    return sum(stage.output_length(length) * w.numel() for w in stage_weights(stage))


def fused_bytes(stage: Stage, length: int, itemsize: int = 4) -> int:
    """Returns the bytes that a perfectly fused stage moves for one clip: its input once, its output once, its weights once."""
    activations = stage.in_channels * length + stage.out_channels * stage.output_length(length)
    return itemsize * (activations + sum(w.numel() for w in stage_weights(stage)))
