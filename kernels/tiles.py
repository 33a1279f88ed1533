"""Which tile each kernel runs with: one checked-in table, and a heuristic for what the table does not name.

Nothing is tuned at run time. A sum goes in steps of `product.DEPTH` whatever the tile. But a tile may set the order of
others, as on the matrix cores of AMD. So tiles chosen by timing could change codes from run to run.
A choice depends on the architecture, the kernel, the mode and the layer's width.
It never depends on the batch or the length.
Only `rvq_encode` has two rows, for few and for many frames.
In ieee both add in the same order, and 'rerank' returns the codes of ieee with any tile.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
import triton

from .modes import ProductMode, SearchMode
from .tile_table import BEFORE_3_6, MANY_FRAMES, TABLE, Key, Tile

# tl.dot allows no side under 16
MIN_BLOCK = 16


_OLD_COMPILER = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 6)

# Absent from the table, and served by the rows of the other: registers, shared memory and instructions equal those of another architecture.
ALIKE = {"sm_86": "sm_89", "sm_103": "sm_100", "sm_121": "sm_120"}


def block_of(size: int) -> int:
    """Returns the smallest block side that holds `size`."""
    return max(MIN_BLOCK, triton.next_power_of_2(size))


@functools.cache
def _device_arch(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def arch_of(device: torch.device) -> str:
    """Returns 'sm_90', 'gfx942', ..., or 'interpreter' for CPU tensors."""
    if device.type != "cuda":
        return "interpreter"
    return _device_arch(torch.cuda.current_device() if device.index is None else device.index)


def lookup(op: str, arch: str, mode: ProductMode | SearchMode, width: int) -> Tile:
    """Returns the tile of a kernel.  op, width: as in `Key`."""
    if arch == "interpreter":
        return _interpreter_tile(op, width)
    for key in (Key(ALIKE.get(arch, arch), op, mode, width), Key("any", op, mode, width)):
        if key in TABLE:
            return BEFORE_3_6.get(key, TABLE[key]) if _OLD_COMPILER else TABLE[key]
    # fits every architecture: for widths and modes that the table does not name
    return Tile(16, min(block_of(width), 32), 4, 1)


def _interpreter_tile(op: str, width: int) -> Tile:
    """Returns few large blocks: the interpreter pays per block operation, not per multiply-add."""
    if op == "rvq_encode":
        return Tile(128, 1024, 1, 1)
    if op == "rvq_decode":
        return Tile(64, 0, 1, 1)
    if op == "lstm":
        return Tile(4, 4 * triton.next_power_of_2(width), 1, 1)
    block_n = min(block_of(width), 512)
    return Tile(max(64, min(1024, 65536 // block_n)), block_n, 1, 1)


def conv_tile(device: torch.device, columns: int, mode: ProductMode, partials: bool) -> Tile:
    """Returns the tile of causal_conv1d and transposed_conv1d with `columns` columns.

    partials: whether they store sums for a group norm.
    """
    arch = arch_of(device)
    if mode == ProductMode.THIN:
        return _thin_tile(arch, columns)
    tile = lookup("conv", arch, mode, min(block_of(columns), 512 if arch == "interpreter" else 128))
    # the sums take registers too
    return replace(tile, block_m=128) if partials and tile.block_m == 256 else tile


def _thin_tile(arch: str, columns: int) -> Tile:
    """Returns the tile of thin convolutions: steps x columns for few terms, steps x channels for few outputs."""
    few_outputs = columns <= 4
    width = 32 if few_outputs else min(triton.next_power_of_2(columns), 64)
    if arch == "interpreter":
        return Tile(32_768 // width, width, 1, 1)
    return Tile(4096 // width, width, 4, 1)


def residual_tile(device: torch.device, channels: int, hidden: int, mode: ProductMode) -> Tile:
    """Returns the tile of the residual block."""
    arch = arch_of(device)
    # the table's rows were compiled for hidden = channels / 2
    width = max(block_of(channels), 2 * block_of(hidden))
    return lookup("residual", arch, mode, min(width, 256))


def rvq_encode_tile(device: torch.device, dim: int, frames: int, mode: SearchMode) -> Tile:
    tile = lookup("rvq_encode", arch_of(device), mode, int(frames >= MANY_FRAMES)) if dim <= 128 else None
    return tile or Tile(16, 32, 4, 1)


def rvq_decode_tile(device: torch.device) -> Tile:
    return lookup("rvq_decode", arch_of(device), ProductMode.IEEE, 0)


def lstm_tile(device: torch.device, width: int, mode: ProductMode) -> Tile:
    """Returns the tile of an LSTM step: clips x rows of weights."""
    arch = arch_of(device)
    return lookup("lstm", arch, mode, width if arch == "interpreter" else 0)


# For devices that are only compiled for: the smallest of each architecture that people train on.
_MULTIPROCESSORS = {"sm_80": 108, "sm_86": 82, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_120": 170}


def multiprocessors(device: torch.device) -> int:
    """Returns the number of multiprocessors of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return _MULTIPROCESSORS.get(arch_of(device), 0)
