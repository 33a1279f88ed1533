"""All steps of an LSTM in one launch, with its recurrent weights in registers.

Every thread block owns some units of a layer and keeps their weights from the first step to the last.
A state passes from block to block through the L2 cache.
Between two steps every block waits for all others, so all must be resident at once: a cooperative launch.
Each warp multiplies one slice of the state by warp-level matrix instructions, straight from the registers it was loaded to.

Needs Gluon, Triton's language of explicit layouts, because Triton's own would leave the sums of a step in every warp.
The arithmetic is that of lstm.py, which runs in the interpreter too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from . import tiles
from .activation import activate as _activate
from .lstm_weights import SLICE, LSTMWeights, high_and_low, next_state, of_each_gate, sum_of_slices
from .modes import Activation, ProductMode
from .rows import Rows
from .tile_table import FUSED

# A block's weights, 64 rows of 512 terms in two parts, fill half of an SM's registers.
MOST_ROWS = 64
MOST_WIDTH = 512
WARPS = 8
# Half a minute of polling; a step takes microseconds. A block that never arrives must end in an error, not hang the GPU.
MOST_LOOKS = 1 << 25

# triton 3.7 renames thread_barrier
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier

# Thread 0 releases, after a barrier of the block: whoever sees the counter also sees what the block wrote.
_ARRIVE = gl.constexpr("""{
.reg .pred %gridp1;
.reg .b32 %gridr1;
mov.u32 %gridr1, %tid.x;
setp.eq.u32 %gridp1, %gridr1, 0;
@%gridp1 red.release.gpu.global.add.u32 [$1], 1;
mov.u32 $0, %gridr1;
}""")
# Waits until the counter reaches $2; traps after $3 polls.
_AWAIT = gl.constexpr("""{
.reg .pred %gridp2;
.reg .b32 %gridr2, %gridr3;
mov.u32 %gridr2, %tid.x;
mov.u32 %gridr3, 0;
setp.ne.u32 %gridp2, %gridr2, 0;
@%gridp2 bra $$grid_passed_${:uid};
$$grid_again_${:uid}:
ld.acquire.gpu.global.u32 %gridr2, [$1];
setp.ge.u32 %gridp2, %gridr2, $2;
@%gridp2 bra $$grid_passed_${:uid};
add.u32 %gridr3, %gridr3, 1;
setp.lt.u32 %gridp2, %gridr3, $3;
@%gridp2 bra $$grid_again_${:uid};
trap;
$$grid_passed_${:uid}:
mov.u32 $0, %gridr2;
}""")


@gluon.jit
def _arrive(counter_ptr):
    _barrier()
    gl.inline_asm_elementwise(_ARRIVE, "=r,l", [counter_ptr], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _await(counter_ptr, count, looks):
    gl.inline_asm_elementwise(_AWAIT, "=r,l,r,r", [counter_ptr, count, looks], dtype=gl.int32, is_pure=False, pack=1)
    _barrier()


@gluon.jit
def _weights(w_ptr, ROWS: gl.constexpr, SLICES: gl.constexpr, LOW: gl.constexpr, LAYOUT: gl.constexpr, MODE: gl.constexpr):
    """Loads the high and low parts of a block's weights for one input, [SLICES, ROWS, SLICE] each."""
    slices = gl.arange(0, SLICES, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    rows = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))
    k = gl.arange(0, SLICE, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))
    block = w_ptr + (slices[:, None, None] * ROWS + rows[None, :, None]) * SLICE + k[None, None, :]
    high = gl.load(block)
    return high, gl.load(block + LOW) if MODE == "split" else high


@gluon.jit
def _state(h_ptr, inside, low, MODE: gl.constexpr):
    """Loads the high and low parts of a state, [SLICES, SLICE, CLIPS] each.  low: elements from the high to the low parts."""
    # from the L2 cache: another block wrote it, so this SM's L1 cache may be stale
    high = gl.load(h_ptr, mask=inside, other=0.0, cache_modifier=".cg")
    return high, gl.load(h_ptr + low, mask=inside, other=0.0, cache_modifier=".cg") if MODE == "split" else high


@gluon.jit
def _slice_sums(
    w_high,
    w_low,
    high,
    low,
    ROWS: gl.constexpr,
    SLICES: gl.constexpr,
    CLIPS: gl.constexpr,
    LAYOUT: gl.constexpr,
    MODE: gl.constexpr,
):
    """Computes the sums of lstm.py's `_slice_sums`."""
    sums = gl.zeros((SLICES, ROWS, CLIPS), gl.float32, LAYOUT)
    if MODE == "split":
        sums = mma_v2(w_high, low, sums)
        sums = mma_v2(w_low, high, sums)
    return mma_v2(w_high, high, sums)


@gluon.jit
def _layer_steps(
    w_ptr,
    gates_ptr,
    x_ptr,
    b_ptr,
    unscale_ptr,
    exchange_ptr,
    hidden_ptr,
    cell_ptr,
    y_ptr,
    counter_ptr,
    stride_xb,
    stride_yb,
    looks,
    time,
    B,
    T,
    L,
    layer,
    first_unit,
    H: gl.constexpr,
    FIRST: gl.constexpr,
    ROWS: gl.constexpr,
    LEVELS: gl.constexpr,
    LOW: gl.constexpr,
    ACTIVATION: gl.constexpr,
    MODE: gl.constexpr,
    CLIPS: gl.constexpr,
):
    """Runs all steps of a block of units of one layer."""
    SLICES: gl.constexpr = 2**LEVELS
    UNITS: gl.constexpr = ROWS // 4
    PARTS: gl.constexpr = 2 if MODE == "split" else 1
    WARPS: gl.constexpr = gl.num_warps()
    # one warp per slice; a thread holds eight adjacent terms of the state and of the weights, so both load 16 bytes at once
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[WARPS, 1, 1], instr_shape=[1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SUMS, 8)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, SUMS, 8)
    # a thread holds the sums of all slices for the four gates of a unit
    BY_UNIT: gl.constexpr = gl.BlockedLayout([SLICES, 4, 1], [1, UNITS, 32 // UNITS], [1, 1, WARPS], [0, 1, 2])
    OUT: gl.constexpr = gl.BlockedLayout([1, 1], [UNITS, 32 // UNITS], [1, WARPS], [0, 1])

    # v multiplies the state of the layer below, w the layer's own past
    v_high, v_low = _weights(w_ptr, ROWS, SLICES, LOW, LEFT, MODE)
    w_high, w_low = v_high, v_low
    if not FIRST:
        w_high, w_low = _weights(w_ptr + SLICES * ROWS * SLICE, ROWS, SLICES, LOW, LEFT, MODE)
    unscale = gl.load(unscale_ptr + layer)

    slices = gl.arange(0, SLICES, gl.SliceLayout(1, gl.SliceLayout(2, RIGHT)))
    k = gl.arange(0, SLICE, gl.SliceLayout(0, gl.SliceLayout(2, RIGHT)))
    columns = gl.arange(0, CLIPS, gl.SliceLayout(0, gl.SliceLayout(1, RIGHT)))
    state_block = columns[None, None, :] * H + slices[:, None, None] * SLICE + k[None, :, None]
    low = B * H  # elements from high to low parts
    slot = L * PARTS * low  # elements from the states of even steps to those of odd steps
    units = first_unit + gl.arange(0, UNITS, gl.SliceLayout(1, OUT))
    tile_clips = gl.arange(0, CLIPS, gl.SliceLayout(0, OUT))

    # the initial state, in the form in which a step leaves it
    for first_clip in range(0, B, CLIPS):
        clips = first_clip + tile_clips
        inside = (units < H)[:, None] & (clips < B)[None, :]
        h = gl.load(hidden_ptr + ((layer * 2 + 1 - time % 2) * B + clips)[None, :] * H + units[:, None], mask=inside, other=0.0)
        high, rest = high_and_low(h, MODE)
        into = exchange_ptr + slot + layer * PARTS * low + clips[None, :] * H + units[:, None]
        gl.store(into, high, mask=inside)
        if MODE == "split":
            gl.store(into + low, rest, mask=inside)
    _arrive(counter_ptr)

    for step in range(T + L - 1):
        _await(counter_ptr, (step + 1) * gl.num_programs(0), looks)
        t = step - layer
        if (t >= 0) & (t < T):
            own = exchange_ptr + (t & 1) * slot + layer * PARTS * low
            past = exchange_ptr + (1 - (t & 1)) * slot + layer * PARTS * low
            for first_clip in range(0, B, CLIPS):
                here = (first_clip + columns < B)[None, None, :] & (slices[:, None, None] * SLICE + k[None, :, None] < H)
                state = first_clip * H + state_block
                # all loads precede the first product, so that their latencies overlap
                past_high, past_low = _state(past + state, here, low, MODE)
                if not FIRST:
                    below_high, below_low = _state(own - PARTS * low + state, here, low, MODE)
                    sums = _slice_sums(v_high, v_low, below_high, below_low, ROWS, SLICES, CLIPS, SUMS, MODE)
                    sums += _slice_sums(w_high, w_low, past_high, past_low, ROWS, SLICES, CLIPS, SUMS, MODE)
                else:
                    sums = _slice_sums(w_high, w_low, past_high, past_low, ROWS, SLICES, CLIPS, SUMS, MODE)

                clips = first_clip + tile_clips
                inside = (units < H)[:, None] & (clips < B)[None, :]
                cell_block = cell_ptr + (layer * B + clips)[None, :] * H + units[:, None]
                c = gl.load(cell_block, mask=inside, other=0.0)
                if FIRST:
                    gate = gates_ptr + (t.to(gl.int64) * B + clips[None, :]) * 4 * H + units[:, None]
                else:
                    gate = b_ptr + layer * 4 * H + units[:, None] + 0 * clips[None, :]
                i = gl.load(gate, mask=inside, other=0.0)
                f = gl.load(gate + H, mask=inside, other=0.0)
                g = gl.load(gate + 2 * H, mask=inside, other=0.0)
                o = gl.load(gate + 3 * H, mask=inside, other=0.0)
                at = (t.to(gl.int64) * H + units)[:, None]
                x_block = x_ptr + (clips.to(gl.int64) * stride_xb)[None, :] + at
                y = gl.load(x_block, mask=inside & (layer == L - 1), other=0.0).to(gl.float32)
                sums = sum_of_slices(gl.convert_layout(sums, BY_UNIT), LEVELS, ROWS, CLIPS) * unscale
                sum_i, sum_f, sum_g, sum_o = of_each_gate(sums, ROWS, CLIPS)
                i += gl.convert_layout(sum_i, OUT)
                f += gl.convert_layout(sum_f, OUT)
                g += gl.convert_layout(sum_g, OUT)
                o += gl.convert_layout(sum_o, OUT)
                h, c = next_state(i, f, g, o, c)
                high, rest = high_and_low(h, MODE)
                into = own + clips[None, :] * H + units[:, None]
                gl.store(into, high, mask=inside)
                if MODE == "split":
                    gl.store(into + low, rest, mask=inside)
                gl.store(cell_block, c, mask=inside)
                # masks instead of branches keep the instructions for a tile of clips in one straight run
                final = hidden_ptr + ((layer * 2 + (time + t) % 2) * B + clips)[None, :] * H + units[:, None]
                gl.store(final, h, mask=inside & (t == T - 1))
                y += h
                y = _activate(y, ACTIVATION)
                y_block = y_ptr + (clips.to(gl.int64) * stride_yb)[None, :] + at
                gl.store(y_block, y.to(y_ptr.dtype.element_ty), mask=inside & (layer == L - 1))
        _arrive(counter_ptr)


# specialising on their values would recompile the kernel for every length
@gluon.jit(do_not_specialize=["T", "time", "looks"])
def _lstm_persistent_kernel(
    gates_ptr,
    x_ptr,
    w_ptr,
    b_ptr,
    unscale_ptr,
    exchange_ptr,
    hidden_ptr,
    cell_ptr,
    y_ptr,
    counter_ptr,
    stride_xb,
    stride_yb,
    looks,
    time,
    B,
    T,
    L,
    H: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    LOW: gl.constexpr,
    ROWS: gl.constexpr,
    LEVELS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    MODE: gl.constexpr,
    CLIPS: gl.constexpr,
):
    """Computes `i, f, g, o = w_ih below + w_hh past + b`, `c = sigmoid(f) c + sigmoid(i) tanh(g)`, `h = sigmoid(o) tanh(c)`.

    gates: [T, B, 4 * H], input product and bias of the first layer.  x, y: contiguous steps of H channels.
    exchange: [2, L, parts, B, H], parts of the states after the last even and the last odd step.  counter: [1], zero.
    Grid: blocks of weights, all resident at once.  Reference: lstm_ref.
    """
    block = gl.program_id(0)
    w_block = w_ptr + block.to(gl.int64) * BLOCK_SIZE
    first_layer: gl.constexpr = 4 * H // ROWS
    a_layer: gl.constexpr = 8 * H // ROWS
    if block < first_layer:
        _layer_steps(
            w_block, gates_ptr, x_ptr, b_ptr, unscale_ptr, exchange_ptr, hidden_ptr, cell_ptr, y_ptr, counter_ptr, stride_xb, stride_yb,
            looks, time, B, T, L, 0, block * (ROWS // 4), H, True, ROWS, LEVELS, LOW, ACTIVATION, MODE, CLIPS,
        )  # fmt: skip
    else:
        above = block - first_layer
        _layer_steps(
            w_block, gates_ptr, x_ptr, b_ptr, unscale_ptr, exchange_ptr, hidden_ptr, cell_ptr, y_ptr, counter_ptr, stride_xb, stride_yb,
            looks, time, B, T, L, 1 + above // a_layer, above % a_layer * (ROWS // 8),
            H, False, ROWS // 2, LEVELS, LOW, ACTIVATION, MODE, CLIPS,
        )  # fmt: skip


def persistent_refusal(width: int, layers: int, rows: int, mode: ProductMode, device: torch.device) -> str | None:
    """Returns why one launch can't run all steps on a device, or None; batch and length don't matter.

    rows: of `LSTMWeights`.
    """
    arch = tiles.arch_of(device)
    if not arch.startswith("sm_") or int(arch.removeprefix("sm_")) < 80:
        return f"{arch} is none of NVIDIA's architectures from sm_80 on"
    if mode == ProductMode.IEEE:
        return "products in float32"
    if not SLICE.value <= width <= MOST_WIDTH or width & (width - 1) or rows > MOST_ROWS:
        return (
            f"{rows} rows of {width} terms; what fits the registers are {MOST_ROWS} rows of {SLICE.value}, 128, 256 or {MOST_WIDTH} terms"
        )
    blocks, there = width * (8 * layers - 4) // rows, tiles.multiprocessors(device)
    if blocks > there:
        return f"{blocks} blocks of weights, one for each multiprocessor; the device has {there}"
    return None


def persistent_lstm(
    gates: Tensor, x: Rows, weights: LSTMWeights, hidden: Tensor, cell: Tensor, y: Rows, time: int, activation: Activation
) -> None:
    """Writes y and updates hidden and cell, as `lstm_triton` does.

    gates: [T, B, 4 * H], the input product of the first layer.  hidden: only the slot of the last step is written.
    The device's error 'unspecified launch failure' means that a block never arrived.
    """
    length, batch, width = gates.shape[0], gates.shape[1], weights.width
    parts, device = weights.blocks.shape[1], gates.device
    # every matrix instruction takes 8 clips; the batch only sets how many run side by side. More would spill registers.
    clips = 8 if batch <= 8 else 16 if batch <= 16 or parts == 2 else 32
    exchange = torch.empty(2, weights.layers, parts, batch, width, dtype=torch.float16, device=device)
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    _lstm_persistent_kernel[(weights.blocks.shape[0],)](
        gates, x.first(0), weights.blocks, weights.bias, weights.unscale, exchange, hidden, cell, y.first(0), counter,
        x.buffer.stride(0), y.buffer.stride(0), MOST_LOOKS, time, batch, length, weights.layers,
        H=width, BLOCK_SIZE=weights.blocks.stride(0), ACTIVATION=Activation(activation).value, CLIPS=clips, **weights.constants,
        num_warps=WARPS, launch_cooperative_grid=True, **FUSED,
    )  # fmt: skip
