"""Prepared stages and codebooks on the Triton kernels: what the `triton` backend runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from encodec_fast.backends.base import QuantizerProgram
from encodec_fast.backends.batched import BatchedProgram
from encodec_fast.backends.triton_layers import LibraryLSTMLayer, Signal, make_layers
from encodec_fast.kernels.modes import Activation, ProductMode, SearchMode
from encodec_fast.kernels.rows import arrange_triton
from encodec_fast.kernels.rvq_decode import rvq_decode_triton
from encodec_fast.kernels.rvq_encode import rvq_encode_triton, search_tables
from encodec_fast.plan import Quantizer, Stage

# Largest share of padding in the steps of a batch of clips of different lengths.
MOST_PADDING = 0.2


def device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of x current: Triton launches on the current device, wherever its arguments are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _similar_lengths(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields indices of clips that run as one batch, longest first, each long enough for MOST_PADDING."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        longest = lengths[order[0]]
        group = [index for index in order if lengths[index] >= (1 - MOST_PADDING) * longest]
        yield group
        order = order[len(group) :]


class TritonProgram(BatchedProgram):
    """Consecutive stages on Triton kernels.

    library_lstm: as in `make_layers`.
    """

    def __init__(self, stages: tuple[Stage, ...], mode: ProductMode, library_lstm: bool) -> None:
        self.stages = stages
        self.capturable = True
        self.layers = make_layers(stages, mode, library_lstm)
        self.exact = not any(isinstance(layer, LibraryLSTMLayer) for layer in self.layers)
        self.out_channels = stages[-1].out_channels
        # input, output, and the input joined with the carried steps
        self.activations_held = 3

    def output_length(self, length: int) -> int:
        for stage in self.stages:
            length = stage.output_length(length)
        return length

    def run(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Runs whole clips [B, C_in, T] to [B, C_out, T_out].

        lengths: each clip's own T, for a batch of clips of different lengths.
        In its first `output_length` steps a clip's output has the same bits as alone; later steps are unspecified.
        Raises ValueError if a length does not fit x.
        """
        signal = Signal(x.transpose(1, 2))
        table = None if lengths is None else self._lengths_table(x, lengths)
        with device_of(x):
            for index, layer in enumerate(self.layers):
                signal = layer.run(signal, None if table is None else table[index])
            return signal.applied().values.transpose(1, 2)

    def run_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Runs whole clips [C_in, T_b] of any lengths to [C_out, T_out_b] each.

        They run in few batches, with the same bits as alone.
        """
        outputs: dict[int, Tensor] = {}
        for members in _similar_lengths([clip.shape[1] for clip in clips]):
            lengths = [clips[index].shape[1] for index in members]
            x = clips[0].new_empty(len(members), clips[0].shape[0], lengths[0])
            for row, index in zip(x, members, strict=True):
                row[:, : clips[index].shape[1]] = clips[index]
            y = self.run(x, lengths if lengths[-1] < lengths[0] else None)
            outputs |= {index: row[:, : self.output_length(length)] for index, row, length in zip(members, y, lengths, strict=True)}
        return [outputs[index] for index in range(len(clips))]

    def _lengths_table(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Returns the input lengths of every stage [stages, B], int32.

        They are computed on the host and copied once, without waiting for the device.
        """
        if len(lengths) != x.shape[0] or not all(1 <= length <= x.shape[2] for length in lengths):
            raise ValueError(f"lengths must be {x.shape[0]} integers in [1, {x.shape[2]}], one per clip of x, got {list(lengths)}")
        rows = [list(lengths)]
        for stage in self.stages[:-1]:
            rows.append([stage.output_length(length) for length in rows[-1]])
        table = torch.tensor(rows, dtype=torch.int32, device="cpu", pin_memory=x.is_cuda)
        return table.to(x.device, non_blocking=True)

    def open_batch(self, batch: int) -> list[Any]:
        return [layer.open(batch) for layer in self.layers]

    def reachable(self, tree: list[Any]) -> bool:
        return all(layer.reachable(state) for layer, state in zip(self.layers, tree, strict=True))

    def push_batch(self, x: Tensor, state: list[Any], final: bool) -> Tensor:
        with device_of(x):
            steps = x.transpose(1, 2)
            activation = self.layers[0].input_activation
            if activation != Activation.NONE:
                steps = arrange_triton(steps, activation=activation).values
            for layer, carried in zip(self.layers, state, strict=True):
                steps = layer.push(steps, carried, final)
        return steps.transpose(1, 2)


class TritonQuantizerProgram(QuantizerProgram):
    """The codebooks and the mode of their search."""

    exact = True

    def __init__(self, quantizer: Quantizer, mode: SearchMode) -> None:
        self.tables = search_tables(quantizer.codebooks)
        self.codebooks = quantizer.codebooks.contiguous()
        self.mode = mode

    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        with device_of(x):
            return rvq_encode_triton(x, self.tables, num_quantizers, mode=self.mode)

    def decode(self, codes: Tensor) -> Tensor:
        """Runs `QuantizerProgram.decode`.

        On a GPU the device asserts for a code outside the codebook, as in transformers, and the host never waits.
        While a CUDA graph is captured such codes are clamped.
        """
        if not (codes.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._check_codes(codes)
        with device_of(codes):
            return rvq_decode_triton(codes, self.codebooks)

    def _check_codes(self, codes: Tensor) -> None:
        entries = self.codebooks.shape[1]
        if codes.is_cuda:
            torch._assert_async(((codes >= 0) & (codes < entries)).all(), f"codes must be in [0, {entries})")
        elif codes.numel():
            low, high = torch.stack(codes.aminmax()).tolist()
            if low < 0 or high >= entries:
                raise IndexError(f"codes must be in [0, {entries}), got values from {low} to {high}")
