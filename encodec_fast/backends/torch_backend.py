"""The `torch` backend: any device and float dtype, the fallback of all others.

Weights are folded and geometry is integers. ELU is written straight into the padded row.
The residual block's last two products run as one.
On a CPU the convolutions up to the LSTM run one clip and one tile of time at a time.
So activations stay in cache. The LSTM takes the whole batch.
The libraries below choose their order of summation by shape: bits may differ between batch sizes, pieces and thread counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from encodec_fast.backends.base import Backend, Precision, QuantizerProgram
from encodec_fast.backends.batched import BATCH_DIM, BatchedProgram, is_like, join_trees, split_tree
from encodec_fast.backends.torch_functions import normalize_torch, overlap_add_torch
from encodec_fast.kernels.modes import Activation
from encodec_fast.plan import LSTM, Conv, Quantizer, ResidualBlock, Stage, Upsample, not_streamable, stage_weights, step_bytes

# The widest activation of one tile of time: 1 s of 24 kHz audio.
CPU_TILE_BYTES = 3 << 20
# Elsewhere a tile only bounds memory: convolution, padding and ELU hold a few tensors of this size at once.
DEVICE_TILE_BYTES = 512 << 20
# Rows of scores held at once by the codebook search: [2048, 1024] float32 is 8 MiB.
SEARCH_ROWS = 2048


_WRONG_ON_MPS = "its codes are wrong on mps (Apple's GPUs), without an error; a model that stays on the CPU saves the copies"


@dataclass
class ConvState:
    """State of a convolution.

    row: input that later outputs still need; once `started`, activated and with its left padding.
    seen: input steps so far, modulo the stride.
    No count grows with time, so clips that started at different times can run as one batch.
    """

    row: Tensor | None = None
    seen: int = 0
    started: bool = False


@dataclass
class ResidualState:
    conv1: ConvState = field(default_factory=ConvState)
    skip: Tensor | None = None


@dataclass
class UpsampleState:
    tail: Tensor | None = None
    dropped: int = 0


@dataclass
class LSTMState:
    """State of the LSTM.  hidden, cell: [layers, B, H]; None means zeros."""

    hidden: Tensor | None = field(default=None, metadata={BATCH_DIM: 1})
    cell: Tensor | None = field(default=None, metadata={BATCH_DIM: 1})


class _Step(Protocol):
    def open(self) -> Any: ...

    def push(self, x: Tensor, state: Any, final: bool) -> Tensor: ...

    def reachable(self, state: Any) -> bool: ...


# Of each activation: what returns it of a tensor, and what writes it into another.
_ACTIVATIONS: dict[Activation, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], object]]] = {
    Activation.NONE: (lambda x: x, lambda x, out: out.copy_(x)),
    Activation.ELU: (F.elu, lambda x, out: torch.ops.aten.elu.out(x, out=out)),
}


def _activated(x: Tensor, activation: Activation) -> Tensor:
    return _ACTIVATIONS[activation][0](x)


def _activate(x: Tensor, out: Tensor, activation: Activation) -> None:
    _ACTIVATIONS[activation][1](x, out)


class _ConvStep:
    def __init__(self, conv: Conv) -> None:
        self.conv = conv

    def open(self) -> ConvState:
        return ConvState()

    def reachable(self, state: ConvState) -> bool:
        conv, length = self.conv, 0 if state.row is None else state.row.shape[-1]
        if state.row is not None and not is_like(state.row, conv.weight, 1, conv.in_channels, length):
            return False
        if not state.started:
            return state.seen == 0 and length < conv.lead
        return 0 <= state.seen < conv.stride and length == conv.pad_left + state.seen

    def push(self, x: Tensor, state: ConvState, final: bool) -> Tensor:
        conv = self.conv
        if not state.started:
            if state.row is not None:
                x = torch.cat([state.row, x], -1)
            if final:
                return self._convolve(self._whole_row(x))
            if x.shape[-1] < conv.lead:
                state.row = x
                return x.new_empty(x.shape[0], conv.out_channels, 0)
            state.started, state.seen = True, x.shape[-1] % conv.stride
            row = self._pad(x, conv.pad_left, 0)
        else:
            state.seen = (state.seen + x.shape[-1]) % conv.stride
            row = self._continue_row(x, state, conv.extra_padding(state.seen) if final else 0)
        outputs = conv.windows(row.shape[-1])
        state.row = row[..., outputs * conv.stride :].clone()
        if outputs == 0:
            return x.new_empty(x.shape[0], conv.out_channels, 0)
        return self._convolve(row)

    def _continue_row(self, x: Tensor, state: ConvState, extra: int) -> Tensor:
        assert state.row is not None
        carried = state.row.shape[-1]
        row = x.new_empty(x.shape[0], x.shape[1], carried + x.shape[-1] + extra)
        row[..., :carried] = state.row
        end = carried + x.shape[-1]
        _activate(x, row[..., carried:end], self.conv.activation)
        if extra:
            self._fill_right(row, end, extra)
        return row

    def _whole_row(self, x: Tensor) -> Tensor:
        conv = self.conv
        length = x.shape[-1]
        left, right = conv.pad_left, conv.pad_right + conv.extra_padding(length)
        reflect_length = conv.reflect_length(length)
        if conv.pad_mode == "reflect" and reflect_length > length:
            extended = F.pad(_activated(x, conv.activation), (0, reflect_length - length))
            return F.pad(extended, (left, right), "reflect")[..., : left + length + right]
        return self._pad(x, left, right)

    def _pad(self, x: Tensor, left: int, right: int) -> Tensor:
        if self.conv.activation == Activation.NONE and not (left or right):
            return x
        end = left + x.shape[-1]
        row = x.new_empty(x.shape[0], x.shape[1], end + right)
        body = row[..., left:end]
        _activate(x, body, self.conv.activation)
        if left:
            if self.conv.pad_mode == "reflect":
                row[..., :left] = body[..., 1 : left + 1].flip(-1)
            else:
                row[..., :left] = body[..., :1] if self.conv.pad_mode == "replicate" else 0
        if right:
            self._fill_right(row, end, right)
        return row

    def _fill_right(self, row: Tensor, end: int, right: int) -> None:
        if self.conv.pad_mode == "reflect":
            row[..., end:] = row[..., end - 1 - right : end - 1].flip(-1)
        else:
            row[..., end:] = row[..., end - 1 : end] if self.conv.pad_mode == "replicate" else 0

    def _convolve(self, row: Tensor) -> Tensor:
        conv = self.conv
        y = F.conv1d(row, conv.weight, conv.bias, conv.stride, 0, conv.dilation)
        return y if conv.norm is None else torch.group_norm(y, 1, conv.norm.weight, conv.norm.bias, conv.norm.eps)


class _ResidualStep:
    def __init__(self, block: ResidualBlock) -> None:
        self.block = block
        self.conv1 = _ConvStep(block.conv1)
        self.conv2 = _ConvStep(block.conv2)
        self.shortcut = None if block.shortcut is None else _ConvStep(block.shortcut)
        self.joined: tuple[Tensor, Tensor | None] | None = None
        if block.shortcut is not None and block.shortcut.norm is None and block.conv2.norm is None:
            weight = torch.cat([block.conv2.weight, block.shortcut.weight], 1)[..., 0]
            biases = [bias for bias in (block.conv2.bias, block.shortcut.bias) if bias is not None]
            self.joined = weight, torch.stack(biases).sum(0)[:, None] if biases else None

    def open(self) -> ResidualState:
        return ResidualState()

    def reachable(self, state: ResidualState) -> bool:
        if not self.conv1.reachable(state.conv1):
            return False
        # the convolution keeps the length: once started, it has returned an output for every step
        row = None if state.conv1.started else state.conv1.row
        if row is None or row.shape[-1] == 0:
            return state.skip is None
        return is_like(state.skip, row, *row.shape)

    def push(self, x: Tensor, state: ResidualState, final: bool) -> Tensor:
        hidden = self.conv1.push(x, state.conv1, final)
        if state.skip is not None:
            x = torch.cat([state.skip, x], -1)
        outputs = hidden.shape[-1]
        state.skip = x[..., outputs:].clone() if outputs < x.shape[-1] else None
        if outputs == 0:
            return x.new_empty(x.shape[0], self.block.out_channels, 0)
        return self._combine(hidden, x[..., :outputs])

    def _combine(self, hidden: Tensor, x: Tensor) -> Tensor:
        if self.joined is None:
            y = self.conv2.push(hidden, ConvState(), final=True)
            # x may be the caller's tensor, so add into y
            return y.add_(x if self.shortcut is None else self.shortcut.push(x, ConvState(), final=True))
        weight, bias = self.joined
        width = hidden.shape[1]
        rows = x.new_empty(x.shape[0], width + x.shape[1], x.shape[2])
        _activate(hidden, rows[:, :width], self.block.conv2.activation)
        rows[:, width:] = x
        y = torch.matmul(weight, rows)
        return y if bias is None else y.add_(bias)


class _UpsampleStep:
    def __init__(self, up: Upsample) -> None:
        self.up = up
        self.overlap = up.kernel - up.stride

    def open(self) -> UpsampleState:
        return UpsampleState()

    def reachable(self, state: UpsampleState) -> bool:
        if state.tail is None:
            return state.dropped == 0
        if not is_like(state.tail, self.up.weight, 1, self.up.out_channels, self.overlap):
            return False
        trim = self.up.trim_left
        return state.dropped == trim or (0 <= state.dropped < trim and state.dropped % self.up.stride == 0)

    def push(self, x: Tensor, state: UpsampleState, final: bool) -> Tensor:
        up = self.up
        if final and state.tail is None and x.shape[-1]:
            y = F.conv_transpose1d(_activated(x, self.up.activation), up.weight, up.bias, up.stride)
            if up.norm is not None:
                y = torch.group_norm(y, 1, up.norm.weight, up.norm.bias, up.norm.eps)
            return y[..., up.trim_left : y.shape[-1] - up.trim_right]
        y = self._overlapped(x, state)
        complete = y.shape[-1] - self.overlap
        # the last `overlap` steps still lack what the next input adds
        state.tail = y[..., complete:].clone()
        y = y[..., : y.shape[-1] - up.trim_right] if final else y[..., :complete]
        drop = min(up.trim_left - state.dropped, y.shape[-1])
        state.dropped += drop
        y = y[..., drop:]
        return y if up.bias is None else y + up.bias[:, None]

    def _overlapped(self, x: Tensor, state: UpsampleState) -> Tensor:
        if state.tail is None:
            state.tail = x.new_zeros(x.shape[0], self.up.out_channels, self.overlap)
        if x.shape[-1] == 0:
            return state.tail
        y = F.conv_transpose1d(_activated(x, self.up.activation), self.up.weight, None, self.up.stride)
        y[..., : self.overlap] += state.tail
        return y


class _LSTMStep:
    def __init__(self, lstm: LSTM) -> None:
        self.depth = len(lstm.layers)
        self.weights = [w for layer in lstm.layers for w in (layer.w_ih, layer.w_hh, layer.b_ih, layer.b_hh)]

    def open(self) -> LSTMState:
        return LSTMState()

    def reachable(self, state: LSTMState) -> bool:
        if state.hidden is None or state.cell is None:
            return state.hidden is None and state.cell is None
        like, width = self.weights[0], self.weights[0].shape[1]
        return all(is_like(found, like, self.depth, 1, width) for found in (state.hidden, state.cell))

    def push(self, x: Tensor, state: LSTMState, final: bool) -> Tensor:
        if x.shape[-1] == 0:
            return x
        if state.hidden is None or state.cell is None:
            state.hidden = state.cell = x.new_zeros(self.depth, x.shape[0], x.shape[1])
        steps, carried = x.permute(2, 0, 1), (state.hidden, state.cell)
        y, state.hidden, state.cell = torch.lstm(steps, carried, self.weights, True, self.depth, 0.0, False, False, False)
        return (y + steps).permute(1, 2, 0)


_STEPS: dict[type, type] = {ResidualBlock: _ResidualStep, Upsample: _UpsampleStep, LSTM: _LSTMStep}


class _Section:
    """Consecutive convolutional stages, run in tiles of time; or one LSTM, run over the whole clip."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.steps: list[_Step] = [_STEPS.get(type(stage), _ConvStep)(stage) for stage in stages]
        self.recurrent = isinstance(stages[0], LSTM)
        self.tileable = not_streamable(stages) is None and not self.recurrent
        self.step_bytes = step_bytes(stages)

    def open(self, groups: int) -> list[list[Any]]:
        return [[step.open() for step in self.steps] for _ in range(groups)]

    def reachable(self, states: list[list[Any]]) -> bool:
        return all(step.reachable(state) for group in states for step, state in zip(self.steps, group))

    def push(self, x: Tensor, states: list[list[Any]], final: bool) -> Tensor:
        clips = x.split(x.shape[0] // len(states))
        outputs = [self._push_tiles(clip, state, final) for clip, state in zip(clips, states)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _push_tiles(self, x: Tensor, state: list[Any], final: bool) -> Tensor:
        length = x.shape[-1]
        tile = length
        if self.tileable:
            budget = CPU_TILE_BYTES if x.device.type == "cpu" else DEVICE_TILE_BYTES
            tile = max(1, int(budget / (self.step_bytes * x.shape[0])))
        if length <= tile * 1.5:
            return self._push_steps(x, state, final)
        starts = range(0, length, tile)
        pieces = [self._push_steps(x[..., at : at + tile], state, final and at + tile >= length) for at in starts]
        return torch.cat(pieces, -1)

    def _push_steps(self, x: Tensor, state: list[Any], final: bool) -> Tensor:
        for step, step_state in zip(self.steps, state):
            x = step.push(x, step_state, final)
        return x


class TorchProgram(BatchedProgram):
    """Sections of stages. The state is one list of step states per section and group of clips."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.not_streamable = not_streamable(stages)
        self.sections: list[_Section] = []
        run: list[Stage] = []
        for stage in stages:
            if isinstance(stage, LSTM) and run:
                self.sections.append(_Section(tuple(run)))
                run = []
            run.append(stage)
            if isinstance(stage, LSTM):
                self.sections.append(_Section(tuple(run)))
                run = []
        if run:
            self.sections.append(_Section(tuple(run)))
        self.out_channels = stages[-1].out_channels
        # the convolutions run in tiles, but the LSTM holds input, output and gates of the whole clip
        self.activations_held = 1
        on_cpu = stage_weights(stages[0])[0].device.type == "cpu"
        self.clip_by_clip = [on_cpu and not section.recurrent for section in self.sections]

    def open_batch(self, batch: int) -> list[list[list[Any]]]:
        return [section.open(batch if alone else 1) for section, alone in zip(self.sections, self.clip_by_clip)]

    def split(self, state: list[list[list[Any]]], batch: int) -> list[list[list[list[Any]]]]:
        sections = [
            [[group] for group in groups] if alone else split_tree(groups, batch) for groups, alone in zip(state, self.clip_by_clip)
        ]
        return [list(clip) for clip in zip(*sections)]

    def reachable(self, tree: list[list[list[Any]]]) -> bool:
        return all(section.reachable(groups) for section, groups in zip(self.sections, tree))

    def join(self, states: Sequence[list[list[list[Any]]]]) -> list[list[list[Any]]]:
        sections = zip(zip(*states), self.clip_by_clip)
        return [[group for groups in clips for group in groups] if alone else join_trees(clips) for clips, alone in sections]

    def push_batch(self, x: Tensor, state: list[list[list[Any]]], final: bool) -> Tensor:
        if self.not_streamable and not final:
            raise ValueError(f"these stages run on whole clips only: {self.not_streamable}")
        for section, section_state in zip(self.sections, state):
            x = section.push(x, section_state, final)
        return x


class TorchQuantizerProgram(QuantizerProgram):
    def __init__(self, quantizer: Quantizer) -> None:
        self.codebooks = quantizer.codebooks
        # |x - e|^2 without |x|^2, which all entries share: HF's formula with it errs 7 times more by cancellation
        self.square_norms = quantizer.codebooks.pow(2).sum(-1)

    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        batch, dim, frames = x.shape
        rows = x.transpose(1, 2).reshape(batch * frames, dim)
        codes = torch.empty(num_quantizers, batch * frames, dtype=torch.int64, device=x.device)
        for start in range(0, batch * frames, SEARCH_ROWS):
            residual = rows[start : start + SEARCH_ROWS]
            for level in range(num_quantizers):
                scores = torch.addmm(self.square_norms[level], residual, self.codebooks[level].t(), alpha=-2)
                nearest = scores.argmin(-1)
                codes[level, start : start + SEARCH_ROWS] = nearest
                residual = residual - F.embedding(nearest, self.codebooks[level])
        return codes.view(num_quantizers, batch, frames)

    def decode(self, codes: Tensor) -> Tensor:
        # HF's order: 0 + level 0 + level 1 + ...
        total = F.embedding(codes[0], self.codebooks[0]) + 0.0
        for level in range(1, codes.shape[0]):
            total += F.embedding(codes[level], self.codebooks[level])
        return total.transpose(1, 2)


class TorchBackend(Backend):
    name = "torch"
    has_kernels = False

    def unavailable(self) -> str | None:
        return None

    def refusal(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device) -> str | None:
        # facebookresearch/audiocraft#31 and #612, suno-ai/bark#19: garbled audio from EnCodec there, and no error
        return _WRONG_ON_MPS if device.type == "mps" else None

    def prepare(self, stages: tuple[Stage, ...], precision: Precision = Precision.PARITY) -> TorchProgram:
        return TorchProgram(stages)

    def prepare_quantizer(self, quantizer: Quantizer) -> TorchQuantizerProgram:
        return TorchQuantizerProgram(quantizer)

    def function_refusal(self, name: str, tensors: Sequence[Tensor]) -> str | None:
        return _WRONG_ON_MPS if tensors[0].device.type == "mps" else None

    def normalize(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        return normalize_torch(audio)

    def overlap_add(self, chunks: Sequence[Tensor], weight: Tensor, stride: int, length: int) -> Tensor:
        return overlap_add_torch(chunks, weight, stride, length)

    def products(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device, precision: Precision) -> str:
        """Describes the products. On CUDA torch's own flags decide, and by default they allow convolutions in tf32."""
        name = "cuda.matmul" if isinstance(stage, Quantizer) else "cudnn"
        allowed = torch.backends.cuda.matmul.allow_tf32 if isinstance(stage, Quantizer) else torch.backends.cudnn.allow_tf32
        if device.type == "cuda" and dtype == torch.float32 and allowed:
            return f"tf32, as torch.backends.{name}.allow_tf32 says"
        return super().products(stage, dtype, device, precision)
