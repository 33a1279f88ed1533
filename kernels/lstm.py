"""Stacked LSTM with residual, one launch per step of time with all layers as a wavefront.

In launch s layer l computes step s - l, from what layer l - 1 left in launch s - 1. No program waits for another, so
nothing rests on a grid barrier; the launches are meant to be captured in a CUDA graph. Sums run over the layer below
first, then over the layer's own past, in a fixed order: the result of a clip does not depend on the batch, which cuDNN
does not promise.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import elu as _elu
from .activation import sigmoid, tanh
from .causal_conv1d import causal_conv1d_triton
from .product import add_product
from .rows import Padding, Rows, empty_rows
from .tiles import Tile, lstm_tile


def lstm_ref(
    x: Tensor,
    input_weight: Tensor,
    weights: Tensor,
    bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    time: int = 0,
    *,
    elu: bool = False,
) -> Tensor:
    """x + lstm(x), then an optional ELU; hidden and cell move on in place.

    x: [B, T, H].  input_weight: [4 * H, H] of the first layer, gates in torch's order i, f, g, o.
    weights: [L, 2 * H, 4 * H], transposed input and recurrent weight of each layer, one above the other (the first layer's upper half is
        not read): threads that stand side by side read units that do.
    bias: [L, 4 * H], the sum of both.
    hidden: [L, 2, B, H] float32; the state after step t of the whole signal is in slot t % 2.  cell: [L, B, H] float32.
    time: steps of the whole signal that came before x.
    Returns [B, T, H] in x's dtype.
    Source: EncodecLSTM.forward, transformers 5.23 modeling_encodec.py; torch.nn.LSTM.
    """
    width = x.shape[2]
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        below = x[:, t]
        for layer in range(weights.shape[0]):
            w_ih = input_weight.T if layer == 0 else weights[layer, :width]
            past = hidden[layer, (time + t + 1) % 2]
            gates = below @ w_ih + past @ weights[layer, width:] + bias[layer]
            i, f, g, o = gates.chunk(4, 1)
            cell[layer] = f.sigmoid() * cell[layer] + i.sigmoid() * g.tanh()
            hidden[layer, (time + t) % 2] = below = o.sigmoid() * cell[layer].tanh()
        y[:, t] = below + x[:, t]
    return torch.nn.functional.elu(y) if elu else y


@triton.jit
def _gate_sums(acc_i, acc_f, acc_g, acc_o, h_ptr, w_ptr, rows, units, B, H, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):
    """Adds h [B, H] @ w[H, gate * H + units] to the sum of each gate; rows of w are 4 * H apart."""
    for k0 in tl.range(0, H, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        h = tl.load(h_ptr + rows[:, None] * H + k[None, :], mask=(rows < B)[:, None] & (k < H)[None, :], other=0.0)
        w_block = w_ptr + (k * 4 * H)[:, None] + units[None, :]  # [BLOCK_K, BLOCK_U]
        inside = (units < H)[None, :] & (k < H)[:, None]
        w_i = tl.load(w_block, mask=inside, other=0.0).to(tl.float32)
        acc_i = add_product(acc_i, h, w_i, w_i, PRECISION)
        w_f = tl.load(w_block + H, mask=inside, other=0.0).to(tl.float32)
        acc_f = add_product(acc_f, h, w_f, w_f, PRECISION)
        w_g = tl.load(w_block + 2 * H, mask=inside, other=0.0).to(tl.float32)
        acc_g = add_product(acc_g, h, w_g, w_g, PRECISION)
        w_o = tl.load(w_block + 3 * H, mask=inside, other=0.0).to(tl.float32)
        acc_o = add_product(acc_o, h, w_o, w_o, PRECISION)
    return acc_i, acc_f, acc_g, acc_o


# step and time change at every launch: specialised on their values, they would be compiled anew
@triton.jit(do_not_specialize=["step", "time"])
def _lstm_step_kernel(
    gates_ptr,
    x_ptr,
    w_ptr,
    b_ptr,
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
    ELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """i, f, g, o = w_ih below + w_hh past + b;  c = sigmoid(f) c + sigmoid(i) tanh(g);  h = sigmoid(o) tanh(c).

    gates: [T, B, 4 * H], input product and bias of the first layer.  x, y: steps of H channels side by side.
    Grid: blocks of units x blocks of clips x layers.  Reference: lstm_ref.
    """
    layer = tl.program_id(2)
    t = step - layer
    if (t >= 0) & (t < T):
        units = tl.program_id(0) * BLOCK_U + tl.arange(0, BLOCK_U)  # [BLOCK_U]
        rows = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)  # [BLOCK_B]
        inside = (rows < B)[:, None] & (units < H)[None, :]
        now = (time + t) % 2
        w_layer = w_ptr + layer * 8 * H * H
        if layer == 0:
            gates_block = gates_ptr + (t.to(tl.int64) * B + rows[:, None]) * 4 * H + units[None, :]
            acc_i = tl.load(gates_block, mask=inside, other=0.0)
            acc_f = tl.load(gates_block + H, mask=inside, other=0.0)
            acc_g = tl.load(gates_block + 2 * H, mask=inside, other=0.0)
            acc_o = tl.load(gates_block + 3 * H, mask=inside, other=0.0)
        else:
            bias_block = b_ptr + (layer * 4 * H + units)[None, :] + 0 * rows[:, None]
            acc_i = tl.load(bias_block, mask=inside, other=0.0)
            acc_f = tl.load(bias_block + H, mask=inside, other=0.0)
            acc_g = tl.load(bias_block + 2 * H, mask=inside, other=0.0)
            acc_o = tl.load(bias_block + 3 * H, mask=inside, other=0.0)
            below = hidden_ptr + ((layer - 1) * 2 + now) * B * H
            acc_i, acc_f, acc_g, acc_o = _gate_sums(acc_i, acc_f, acc_g, acc_o, below, w_layer, rows, units, B, H, PRECISION, BLOCK_K)
        past = hidden_ptr + (layer * 2 + 1 - now) * B * H
        w_past = w_layer + 4 * H * H
        acc_i, acc_f, acc_g, acc_o = _gate_sums(acc_i, acc_f, acc_g, acc_o, past, w_past, rows, units, B, H, PRECISION, BLOCK_K)

        cell_block = cell_ptr + (layer * B + rows[:, None]) * H + units[None, :]
        c = sigmoid(acc_f) * tl.load(cell_block, mask=inside, other=0.0) + sigmoid(acc_i) * tanh(acc_g)
        h = sigmoid(acc_o) * tanh(c)
        tl.store(cell_block, c, mask=inside)
        tl.store(hidden_ptr + ((layer * 2 + now) * B + rows[:, None]) * H + units[None, :], h, mask=inside)
        if layer == L - 1:
            step_block = (t.to(tl.int64) * H + units)[None, :]
            y = h + tl.load(x_ptr + (rows.to(tl.int64) * stride_xb)[:, None] + step_block, mask=inside, other=0.0).to(tl.float32)
            if ELU:
                y = _elu(y)
            tl.store(y_ptr + (rows.to(tl.int64) * stride_yb)[:, None] + step_block, y.to(y_ptr.dtype.element_ty), mask=inside)


def lstm_triton(
    x: Rows,
    input_matrix: Tensor,
    weights: Tensor,
    bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    time: int = 0,
    *,
    elu: bool = False,
    lead: int = 0,
    tail: int = 0,
    precision: str,
    tile: Tile | None = None,
) -> Rows:
    """As `lstm_ref`; T + L - 1 launches after one for the input product of the first layer at all steps.

    input_matrix: `split_matrix` of the first layer's input weight.  lead, tail: as in `causal_conv1d_triton`.
    precision: of the input product; the recurrence multiplies in float32 where that is 'split'.
    """
    batch, _, width = x.buffer.shape
    length, layers = x.length, weights.shape[0]
    y = empty_rows(x.buffer, batch, length, width, lead, tail)
    if batch == 0 or length == 0:
        return y
    gates = torch.empty(length, batch, 4 * width, dtype=torch.float32, device=x.buffer.device)
    causal_conv1d_triton(x, input_matrix, bias[0], Padding(), kernel=1, out=gates.transpose(0, 1), precision=precision)
    precision = "ieee" if precision == "split" else precision
    tile = tile or lstm_tile(x.buffer.device, width, precision)
    grid = (triton.cdiv(width, tile.block_n), triton.cdiv(batch, tile.block_m), layers)
    for step in range(length + layers - 1):
        _lstm_step_kernel[grid](
            gates, x.first(0), weights, bias, hidden, cell, y.first(0), x.buffer.stride(0), y.buffer.stride(0),
            step, time, batch, width, length, layers,
            ELU=elu, PRECISION=precision, BLOCK_B=tile.block_m, BLOCK_U=tile.block_n, BLOCK_K=tile.block_k, **tile.options,
        )  # fmt: skip
    return y
