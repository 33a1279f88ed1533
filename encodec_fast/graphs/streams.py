"""The nodes of each stage on one piece of a stream. What it has to remember is carried from piece to piece.

All that a stream remembers is one vector: whether it has begun, and per layer the last steps that its convolution sees again.
Of an LSTM it is h and c. Zeros are a stream that has not begun. So hosts carry one tensor, and a batch may hold old and new streams.

Pieces are whole codec frames, but for the last one of a clip. The first piece is long enough for the reflections at the clip's beginning.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum

import numpy as np

from encodec_fast.graphs.builder import INT64, GraphBuilder
from encodec_fast.graphs.stages import (
    END,
    ClipWriter,
    activated,
    count_up,
    lstm_weights,
    missing_steps,
    transposed_conv,
    trimmed,
)
from encodec_fast.plan import LSTM, Conv, LSTMLayer, Network, Upsample, convolutions, not_streamable


class Begins(Enum):
    """Whether a piece is the first of its stream."""

    MAYBE = "maybe"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class _Carry:
    """A part of the state.  steps: of a convolution's input; 0 for one row, as the LSTM has it."""

    channels: int
    steps: int

    @property
    def size(self) -> int:
        return self.channels * max(1, self.steps)


class PieceWriter(ClipWriter):
    """Writes stages that go on from `state` [B, S], and collects what becomes the next one.

    state: None for pieces that are always the first of their stream. Those that never are have no reflection at the clip's beginning.
    Where steps are the same in every call, B is 1 and pieces are whole codec frames.
    """

    def __init__(self, graph: GraphBuilder, network: Network, state: str | None, begins: Begins) -> None:
        super().__init__(graph)
        assert (state is None) == (begins == Begins.ALWAYS)
        self._state, self._begins = state, begins
        self._parts = iter(carries(network))
        self._at = 1
        self._kept: list[str] = []
        if begins == Begins.MAYBE:
            flag = graph.add("Slice", state, [0], [1], [1])
            begun = graph.add("Greater", flag, graph.constant([0.5], np.float32))
            # [B, 1, 1]
            self._begun = graph.add("Unsqueeze", begun, [2])

    def next_state(self, batch: int | None) -> str:
        """Returns the state [B, S] after this piece, when all stages are written.  batch: B where it is the same in every call."""
        assert next(self._parts, None) is None
        begun: str = self.graph.constant([[1.0]] * (batch or 1), np.float32)
        if batch is None:
            assert self._state is not None
            begun = self.graph.add("Expand", begun, self.graph.concat(self.graph.length(self._state, 0), [1]))
        return self.graph.concat(begun, *self._kept, axis=1)

    def padded(self, conv: Conv, x: str, steps: int | None) -> str:
        """Writes the steps before the piece, and behind a last piece those that make the last stride whole."""
        if conv.pad_left:
            x = self._joined(self._before(conv, x, steps), x, conv.pad_left)
        if conv.stride == 1 or steps is not None:
            assert steps is None or steps % conv.stride == 0
            return x
        # the padding on the left is whole strides
        length = self.graph.add("Sub", self.graph.length(x, 2), [conv.pad_left])
        missing = missing_steps(self.graph, conv, length)
        if conv.pad_mode == "constant":
            return self.graph.add("Pad", x, self.graph.concat([0, 0, 0, 0, 0], missing), mode="constant")
        last = self.graph.add("Sub", self.graph.length(x, 2), [1])
        shown = self.graph.add("Add", last, self.graph.add("Mul", count_up(self.graph, missing), [0]))
        if conv.pad_mode == "reflect":
            shown = self.graph.add("Sub", self.graph.add("Sub", last, [1]), count_up(self.graph, missing))
        return self.graph.concat(x, self.graph.add("Gather", x, shown, axis=2), axis=2)

    def _before(self, conv: Conv, x: str, steps: int | None) -> str:
        """Returns the steps before the piece: carried ones, or the padding of a clip that begins with it."""
        part = next(self._parts)
        if conv.pad_mode == "constant" or self._begins == Begins.NEVER:
            return self._carried(part)
        numbers: str = self.graph.constant([0] * conv.pad_left if conv.pad_mode == "replicate" else list(range(conv.pad_left, 0, -1)))
        if self._begins == Begins.ALWAYS:
            return self.graph.add("Gather", x, numbers, axis=2)
        if steps is None:
            # later pieces may be too short for these steps; of a first piece that is, the runtime says that they are out of bounds
            first = self.graph.add("Cast", self.graph.add("Not", self._begun), to=INT64)
            numbers = self.graph.add("Mul", numbers, self.graph.add("ReduceMax", first, axes=[0, 1, 2], keepdims=0))
        return self.graph.add("Where", self._begun, self._carried(part), self.graph.add("Gather", x, numbers, axis=2))

    def upsample(self, stage: Upsample, x: str, steps: int | None) -> str:
        """Writes activation and transposed convolution; what the steps before give to this piece is computed again."""
        x, before = activated(self.graph, stage.activation, x), _steps_before(stage)
        if before:
            x = self._joined(self._carried(next(self._parts)), x, before)
        return trimmed(self.graph, transposed_conv(self.graph, stage, x), before * stage.stride, stage.kernel - stage.stride)

    def lstm_layer(self, layer: LSTMLayer, x: str) -> str:
        """Writes one layer, which goes on from its h and c."""
        states = [self._carried(next(self._parts)) for _ in range(2)]
        given = ["", *(self.graph.add("Unsqueeze", each, [0]) for each in states)]
        size = layer.w_hh.shape[1]
        whole, *left = self.graph.add_many("LSTM", 3, x, *lstm_weights(self.graph, layer), *given, hidden_size=size)
        # [directions, B, H]
        self._kept += [self.graph.add("Squeeze", each, [0]) for each in left]
        return self.graph.add("Squeeze", whole, [1])

    def _carried(self, part: _Carry) -> str:
        """Returns that part of the state: [B, channels, steps], or [B, channels] of one row."""
        shape = [-1, part.channels, part.steps] if part.steps else [-1, part.channels]
        if self._state is None:
            return self.graph.constant(np.zeros([1, *shape[1:]]), np.float32)
        own = self.graph.add("Slice", self._state, [self._at], [self._at + part.size], [1])
        self._at += part.size
        return self.graph.add("Reshape", own, shape) if part.steps else own

    def _joined(self, before: str, x: str, steps: int) -> str:
        """Returns x behind the steps before it, and keeps the last ones for the next piece."""
        x = self.graph.concat(before, x, axis=2)
        self._kept.append(self.graph.add("Flatten", self.graph.add("Slice", x, [-steps], [END], [2]), axis=1))
        return x


def carries(network: Network) -> list[_Carry]:
    """Returns the parts of a stream's state, in order."""
    found = []
    for stage in network.stages:
        if isinstance(stage, LSTM):
            found += [_Carry(stage.in_channels, 0)] * (2 * len(stage.layers))
        for conv in convolutions(stage):
            steps = _steps_before(conv) if isinstance(conv, Upsample) else conv.pad_left
            if steps:
                found.append(_Carry(conv.in_channels, steps))
    return found


def state_size(network: Network) -> int:
    """Returns S, the numbers that a stream remembers."""
    return 1 + sum(part.size for part in carries(network))


def first_frames(network: Network, decoding: bool) -> int:
    """Returns how many codec frames the first piece of a stream has at least: all their outputs are known then."""
    hop = network.hop_length
    given, out = (1, hop) if decoding else (hop, 1)
    return next(count for count in itertools.count(1) if network.ready_length(count * given) == count * out)


def why_not_streamed(network: Network) -> str | None:
    """Returns why no streaming graph can be written of the network, or None."""
    reason = not_streamable(network.stages)
    for stage in network.stages:
        for conv in convolutions(stage):
            if reason is None and isinstance(conv, Upsample) and (conv.trim_left or conv.trim_right != conv.kernel - conv.stride):
                reason = f"{conv.name} trims its left end (trim_right_ratio below 1), so that pieces are no whole frames"
    return reason


def _steps_before(stage: Upsample) -> int:
    """Returns how many steps before a piece its outputs see."""
    return -(-stage.kernel // stage.stride) - 1
