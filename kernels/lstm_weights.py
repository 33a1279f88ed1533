"""Weights of a stacked LSTM as the kernels read them, and the arithmetic of a step that all kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import sigmoid, tanh
from .modes import ProductMode
from .product import half_exponent, split_matrix

# Terms that a matrix unit sums from zero. The sums of all slices are then added in float32, in pairs.
SLICE = tl.constexpr(64)
# A state is at most 1. With this scale its low part is a normal half down to states of 2^-17.
STATE_SCALE = tl.constexpr(2.0**15)


@dataclass(frozen=True)
class LSTMWeights:
    """Weights of a stack of layers of equal width as the kernels read them.

    input_matrix: `split_matrix` of the first layer's input weight, which multiplies all steps at once.  bias: [L, 4 * H] float32.
    blocks: [blocks, parts, terms] in the order of the layers. In the first layer the terms are [slices, rows, SLICE].
    Above it they are [2, slices, rows / 2, SLICE], for the layer below and for the layer's own past.
    A row belongs to one gate of a unit, and the four gates of a unit are adjacent.
    Parts: high and low halves in 'split', the high one in 'tf32', float32 in 'ieee'.
    unscale: [L] float32, factor for sums of products. It undoes the power of two that scales halves to the end of their range.
    """

    input_matrix: Tensor
    bias: Tensor
    blocks: Tensor
    unscale: Tensor
    width: int
    rows: int
    mode: ProductMode

    @property
    def layers(self) -> int:
        return self.bias.shape[0]

    @property
    def constants(self) -> dict[str, int | str]:
        """Compile-time constants of the kernels.  LEVELS: log2 of the slices.  LOW: elements between a weight and its low part."""
        levels = _slices(self.width).bit_length() - 1
        return {"ROWS": self.rows, "LEVELS": levels, "LOW": self.blocks.shape[2], "MODE": ProductMode(self.mode).value}


def _slices(width: int) -> int:
    return int(triton.next_power_of_2(triton.cdiv(width, SLICE.value)))


def lstm_weights(w_ih: Sequence[Tensor], w_hh: Sequence[Tensor], bias: Tensor, mode: ProductMode, rows: int) -> LSTMWeights:
    """Lays out weights [4 * H, H] of each layer, gates in torch's order i, f, g, o.

    bias: [L, 4 * H], the sum of both.
    mode: 'split' for float32's accuracy from three products of half precision, 'tf32' for one, 'ieee' for float32 itself.
    rows: per block of the first layer. Blocks of the layers above have two inputs and half as many rows.
    """
    blocks, unscale = [], []
    for layer, (below, past) in enumerate(zip(w_ih, w_hh, strict=True)):
        inputs = (past,) if layer == 0 else (below, past)
        matrix = torch.stack([_in_slices(weight.float(), rows // len(inputs)) for weight in inputs], 1).flatten(1)
        parts, factor = _parts(matrix, mode)
        blocks.append(parts)
        unscale.append(factor)
    input_matrix = split_matrix(w_ih[0], mode)
    return LSTMWeights(input_matrix, bias.float(), torch.cat(blocks), torch.stack(unscale), w_hh[0].shape[1], rows, mode)


def _in_slices(weight: Tensor, rows: int) -> Tensor:
    """Reshapes [4 * H, H] to [blocks, slices, rows, SLICE], padded with zeros."""
    width, units = weight.shape[1], rows // 4
    terms, blocks = _slices(width) * SLICE.value, triton.cdiv(width, units)
    by_unit = weight.view(4, width, width).transpose(0, 1)
    filled = torch.nn.functional.pad(by_unit, (0, terms - width, 0, 0, 0, blocks * units - width))
    return filled.reshape(blocks, rows, -1, SLICE.value).transpose(1, 2)


def _parts(matrix: Tensor, mode: ProductMode) -> tuple[Tensor, Tensor]:
    """Splits [blocks, n] into [blocks, parts, n]; returns the factor that unscales their products with a scaled state too."""
    if mode == ProductMode.IEEE:
        return matrix[:, None], matrix.new_ones(())
    # the low part keeps its bits down to weights of 2^-17 of the largest
    exponent = half_exponent(matrix.abs().amax())
    scaled = torch.ldexp(matrix, exponent)
    high = scaled.half()
    parts = [high, (scaled - high).half()] if mode == ProductMode.SPLIT else [high]
    return torch.stack(parts, 1), torch.ldexp(matrix.new_ones(()), -exponent) / STATE_SCALE.value


@triton.jit
def high_and_low(h, MODE: tl.constexpr):
    """Splits a state into the parts that multiply weights; the low one counts in split only."""
    if MODE == "ieee":
        high, low = h, h
    else:
        scaled = h * STATE_SCALE
        high = scaled.to(tl.float16)
        low = (scaled - high.to(tl.float32)).to(tl.float16)
    return high, low


@triton.jit
def sum_of_slices(parts, LEVELS: tl.constexpr, ROWS: tl.constexpr, CLIPS: tl.constexpr):
    """Sums [2 ** LEVELS, ROWS, CLIPS] to [ROWS, CLIPS]: neighbours first, then sums of neighbours."""
    parts = tl.permute(parts, (1, 2, 0))
    for level in tl.static_range(LEVELS):
        even, odd = tl.split(tl.reshape(parts, (ROWS, CLIPS, 2 ** (LEVELS - 1 - level), 2)))
        parts = even + odd
    return tl.reshape(parts, (ROWS, CLIPS))


@triton.jit
def of_each_gate(sums, ROWS: tl.constexpr, CLIPS: tl.constexpr):
    """Splits [ROWS, CLIPS] into i, f, g and o of [ROWS // 4, CLIPS] each."""
    pairs = tl.permute(tl.reshape(sums, (ROWS // 4, 2, 2, CLIPS)), (0, 3, 1, 2))
    i_and_g, f_and_o = tl.split(pairs)
    i, g = tl.split(i_and_g)
    f, o = tl.split(f_and_o)
    return i, f, g, o


@triton.jit
def next_state(i, f, g, o, c):
    """Computes `c = sigmoid(f) c + sigmoid(i) tanh(g)` and `h = sigmoid(o) tanh(c)`."""
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c
