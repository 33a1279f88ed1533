"""Stacked LSTM with residual, its layers staggered by one step so that all of them work at every step.

At step s, layer l computes its own step `s - l`.
It reads the state that layer `l - 1` wrote at step `s - 1`.
One launch runs all steps where the recurrent weights fit the chip (lstm_persistent.py); elsewhere each step is a launch.
Both multiply and add in one fixed order, so a clip's result does not depend on the batch. cuDNN does not promise that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate as _activate
from .activation import activate_ref
from .causal_conv1d import causal_conv1d_triton
from .lstm_weights import SLICE, LSTMWeights, high_and_low, next_state, of_each_gate, sum_of_slices
from .modes import Activation, ProductMode
from .rows import Padding, Rows, empty_rows
from .tiles import Tile, lstm_tile

try:
    from .lstm_persistent import persistent_lstm, persistent_refusal
except ImportError as error:  # a Triton without Gluon, or with an incompatible one
    _GLUON_PROBLEM = f"triton {triton.__version__} has not the Gluon that the kernel is written in: {error}"

    def persistent_refusal(width: int, layers: int, rows: int, mode: ProductMode, device: torch.device) -> str | None:
        return _GLUON_PROBLEM


def lstm_ref(
    x: Tensor,
    w_ih: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    time: int = 0,
    *,
    activation: Activation = Activation.NONE,
) -> Tensor:
    """Computes x + lstm(x), then an activation; updates hidden and cell in place.

    x: [B, T, H].  w_ih, w_hh: [4 * H, H] of each layer, gates in torch's order i, f, g, o.  bias: [L, 4 * H], the sum of both.
    hidden: [L, 2, B, H] float32; the state after step t of the whole signal is in slot t % 2.  cell: [L, B, H] float32.
    time: steps of the whole signal before x.
    Returns [B, T, H] in x's dtype.
    Source: EncodecLSTM.forward, transformers 5.23 modeling_encodec.py; torch.nn.LSTM.
    """
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        below = x[:, t]
        for layer in range(len(w_ih)):
            past = hidden[layer, (time + t + 1) % 2]
            gates = below @ w_ih[layer].T + past @ w_hh[layer].T + bias[layer]
            i, f, g, o = gates.chunk(4, 1)
            cell[layer] = f.sigmoid() * cell[layer] + i.sigmoid() * g.tanh()
            hidden[layer, (time + t) % 2] = below = o.sigmoid() * cell[layer].tanh()
        y[:, t] = below + x[:, t]
    return activate_ref(y, activation)


@triton.jit
def _slice_sums(
    w_ptr,
    h_ptr,
    clips,
    B,
    H,
    ROWS: tl.constexpr,
    SLICES: tl.constexpr,
    LOW: tl.constexpr,
    CLIPS: tl.constexpr,
    MODE: tl.constexpr,
):
    """Multiplies a block's weights by one input [B, H], slice by slice, to [SLICES, ROWS, CLIPS].

    LOW: elements between a weight and its low part.
    """
    slices, rows, k = tl.arange(0, SLICES), tl.arange(0, ROWS), tl.arange(0, SLICE)
    w_block = w_ptr + (slices[:, None, None] * ROWS + rows[None, :, None]) * SLICE + k[None, None, :]
    terms = (slices[:, None] * SLICE + k[None, :])[:, :, None]
    inside = (terms < H) & (clips < B)[None, None, :]
    h = tl.load(h_ptr + clips[None, None, :] * H + terms, mask=inside, other=0.0)  # [SLICES, SLICE, CLIPS]
    high, low = high_and_low(h, MODE)
    w_high = tl.load(w_block)
    sums = tl.zeros((SLICES, ROWS, CLIPS), tl.float32)
    if MODE == "ieee":
        sums = tl.dot(w_high, high, sums, input_precision="ieee")
    else:
        if MODE == "split":
            sums = tl.dot(w_high, low, sums)
            sums = tl.dot(tl.load(w_block + LOW), high, sums)
        sums = tl.dot(w_high, high, sums)
    return sums


@triton.jit
def _layer_step(
    w_ptr,
    gates_ptr,
    x_ptr,
    b_ptr,
    unscale_ptr,
    hidden_ptr,
    cell_ptr,
    y_ptr,
    stride_xb,
    stride_yb,
    t,
    now,
    layer,
    first_unit,
    B,
    H,
    L,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    LEVELS: tl.constexpr,
    LOW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MODE: tl.constexpr,
    CLIPS: tl.constexpr,
):
    """Runs one step of a block of units of one layer.  now: the slot of `hidden` to write."""
    SLICES: tl.constexpr = 2**LEVELS
    units = first_unit + tl.arange(0, ROWS // 4)
    clips = tl.program_id(1) * CLIPS + tl.arange(0, CLIPS)
    inside = (units < H)[:, None] & (clips < B)[None, :]
    past = hidden_ptr + (layer * 2 + 1 - now) * B * H
    if FIRST:
        sums = _slice_sums(w_ptr, past, clips, B, H, ROWS, SLICES, LOW, CLIPS, MODE)
        gate = gates_ptr + (t.to(tl.int64) * B + clips[None, :]) * 4 * H + units[:, None]
    else:
        below = hidden_ptr + ((layer - 1) * 2 + now) * B * H
        sums = _slice_sums(w_ptr, below, clips, B, H, ROWS, SLICES, LOW, CLIPS, MODE)
        sums += _slice_sums(w_ptr + SLICES * ROWS * SLICE, past, clips, B, H, ROWS, SLICES, LOW, CLIPS, MODE)
        gate = b_ptr + layer * 4 * H + units[:, None] + 0 * clips[None, :]
    i, f, g, o = of_each_gate(sum_of_slices(sums, LEVELS, ROWS, CLIPS) * tl.load(unscale_ptr + layer), ROWS, CLIPS)
    i += tl.load(gate, mask=inside, other=0.0)
    f += tl.load(gate + H, mask=inside, other=0.0)
    g += tl.load(gate + 2 * H, mask=inside, other=0.0)
    o += tl.load(gate + 3 * H, mask=inside, other=0.0)

    cell_block = cell_ptr + (layer * B + clips)[None, :] * H + units[:, None]
    h, c = next_state(i, f, g, o, tl.load(cell_block, mask=inside, other=0.0))
    tl.store(cell_block, c, mask=inside)
    tl.store(hidden_ptr + ((layer * 2 + now) * B + clips)[None, :] * H + units[:, None], h, mask=inside)
    if layer == L - 1:
        at = (t.to(tl.int64) * H + units)[:, None]
        y = h + tl.load(x_ptr + (clips.to(tl.int64) * stride_xb)[None, :] + at, mask=inside, other=0.0).to(tl.float32)
        y = _activate(y, ACTIVATION)
        tl.store(y_ptr + (clips.to(tl.int64) * stride_yb)[None, :] + at, y.to(y_ptr.dtype.element_ty), mask=inside)


# step and time change at every launch: specialising on their values would recompile the kernel
@triton.jit(do_not_specialize=["step", "time"])
def _lstm_step_kernel(
    gates_ptr,
    x_ptr,
    w_ptr,
    b_ptr,
    unscale_ptr,
    hidden_ptr,
    cell_ptr,
    y_ptr,
    stride_xb,
    stride_yb,
    step,
    time,
    B,
    H,
    T,
    L,
    BLOCK_SIZE: tl.constexpr,
    LOW: tl.constexpr,
    ROWS: tl.constexpr,
    LEVELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MODE: tl.constexpr,
    CLIPS: tl.constexpr,
):
    """Computes `i, f, g, o = w_ih below + w_hh past + b`, `c = sigmoid(f) c + sigmoid(i) tanh(g)`, `h = sigmoid(o) tanh(c)`.

    gates: [T, B, 4 * H], input product and bias of the first layer.  x, y: contiguous steps of H channels.
    Grid: blocks of weights x blocks of clips.  Reference: lstm_ref.
    """
    block = tl.program_id(0)
    w_block = w_ptr + block.to(tl.int64) * BLOCK_SIZE
    first_layer = tl.cdiv(H, ROWS // 4)
    if block < first_layer:
        t = step
        if t < T:
            _layer_step(
                w_block, gates_ptr, x_ptr, b_ptr, unscale_ptr, hidden_ptr, cell_ptr, y_ptr, stride_xb, stride_yb,
                t, (time + t) % 2, 0, block * (ROWS // 4), B, H, L, True, ROWS, LEVELS, LOW, ACTIVATION, MODE, CLIPS,
            )  # fmt: skip
    else:
        a_layer = tl.cdiv(H, ROWS // 8)
        layer = 1 + (block - first_layer) // a_layer
        t = step - layer
        if (t >= 0) & (t < T):
            _layer_step(
                w_block, gates_ptr, x_ptr, b_ptr, unscale_ptr, hidden_ptr, cell_ptr, y_ptr, stride_xb, stride_yb,
                t, (time + t) % 2, layer, (block - first_layer) % a_layer * (ROWS // 8), B, H, L,
                False, ROWS // 2, LEVELS, LOW, ACTIVATION, MODE, CLIPS,
            )  # fmt: skip


def lstm_triton(
    x: Rows,
    weights: LSTMWeights,
    hidden: Tensor,
    cell: Tensor,
    time: int = 0,
    *,
    activation: Activation = Activation.NONE,
    lead: int = 0,
    tail: int = 0,
    tile: Tile | None = None,
) -> Rows:
    """Runs `lstm_ref`: one launch for the first layer's input product at all steps, then one or one per step for the recurrence.

    lead, tail: as in `causal_conv1d_triton`.  tile: of the launches per step, which it forces.
    """
    batch, _, width = x.buffer.shape
    y = empty_rows(x.buffer, batch, x.length, width, lead, tail)
    if batch == 0 or x.length == 0:
        return y
    device = x.buffer.device
    gates = torch.empty(x.length, batch, 4 * width, dtype=torch.float32, device=device)
    out = gates.transpose(0, 1)
    causal_conv1d_triton(x, weights.input_matrix, weights.bias[0], Padding(), kernel=1, out=out, mode=weights.mode)
    if tile is None and persistent_refusal(width, weights.layers, weights.rows, weights.mode, device) is None:
        persistent_lstm(gates, x, weights, hidden, cell, y, time, activation)
        return y
    tile = tile or lstm_tile(device, width, weights.mode)
    grid = (weights.blocks.shape[0], triton.cdiv(batch, tile.block_m))
    for step in range(x.length + weights.layers - 1):
        _lstm_step_kernel[grid](
            gates, x.first(0), weights.blocks, weights.bias, weights.unscale, hidden, cell, y.first(0),
            x.buffer.stride(0), y.buffer.stride(0), step, time, batch, width, x.length, weights.layers,
            BLOCK_SIZE=weights.blocks.stride(0), ACTIVATION=Activation(activation).value, CLIPS=tile.block_m, **weights.constants,
            **tile.options,
        )  # fmt: skip
    return y
