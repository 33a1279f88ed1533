"""Tiles that compile without spilling on every listed architecture.

For sm_90 they are the fastest by `bench/aot.py`; none is timed on a device yet. `tests/aot` compiles every row whose mode its architecture
runs in. A block may ask for 99 KiB of shared memory on sm_89 and sm_120; for 163 on sm_80; for 227 on sm_90. These are `SHARED_LIMITS` in
`bench/projection/compile_ahead.py`.

A new architecture: its rows here, where "any" does not serve it; its limit in `SHARED_LIMITS`; its line in `ARCHS` of
`tests/aot/test_resources.py`. For projected times, also its rates: `GPUS` in `bench/projection/hardware.py`; `PEAKS` in
`bench/bench_lib/roofline.py`. What was tried goes into `bench/NOTES.md`; other candidates go into `OTHERS` of `bench/gpu/variants.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .modes import ProductMode, SearchMode

# Set at every launch: the default for fusing multiply and add flips in triton 3.10, and with it the rounding.
FUSED = {"enable_fp_fusion": True}

IEEE, SPLIT, TF32, RERANK = ProductMode.IEEE, ProductMode.SPLIT, ProductMode.TF32, SearchMode.RERANK


@dataclass(frozen=True)
class Tile:
    """Tile that one thread block computes.

    block_m, block_n: its sides. conv, residual: steps x channels.  rvq: frames x entries.  lstm: clips x rows of weights.
    num_warps, num_stages: as in Triton. The depth of one step of a sum is `product.DEPTH`.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        """Returns the compiler's options for a launch."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **FUSED}


class Key(NamedTuple):
    """Key of the tile table.

    arch: 'sm_90', 'gfx942', ..., or 'any'.  op: 'conv', 'residual', 'rvq_encode', 'rvq_decode' or 'lstm'.
    width: output columns of conv, channels of residual, 0 or 1 for few or many frames of rvq_encode, otherwise 0.
    """

    arch: str
    op: str
    mode: ProductMode | SearchMode
    width: int


# Below this many frames the search uses 16 frames per block: 47 blocks for a clip of 10 s.
MANY_FRAMES = 4000

TABLE = {
    Key("any", "conv", IEEE, 16): Tile(64, 16, num_warps=4, num_stages=1),
    Key("any", "conv", IEEE, 32): Tile(64, 32, num_warps=4, num_stages=1),
    Key("any", "conv", IEEE, 64): Tile(64, 64, num_warps=4, num_stages=1),
    Key("any", "conv", IEEE, 128): Tile(64, 64, num_warps=4, num_stages=1),
    Key("any", "conv", SPLIT, 16): Tile(128, 16, num_warps=4, num_stages=2),
    Key("any", "conv", SPLIT, 32): Tile(128, 32, num_warps=4, num_stages=2),
    Key("any", "conv", SPLIT, 64): Tile(128, 64, num_warps=8, num_stages=2),
    Key("any", "conv", SPLIT, 128): Tile(64, 128, num_warps=8, num_stages=2),
    # four-warp instructions, whose operands need not pass through registers
    Key("sm_90", "conv", SPLIT, 64): Tile(128, 64, num_warps=4, num_stages=2),
    Key("sm_90", "conv", SPLIT, 128): Tile(128, 128, num_warps=8, num_stages=2),
    Key("sm_100", "conv", SPLIT, 64): Tile(128, 64, num_warps=4, num_stages=2),
    Key("sm_100", "conv", SPLIT, 128): Tile(128, 128, num_warps=8, num_stages=2),
    Key("any", "conv", TF32, 16): Tile(128, 16, num_warps=4, num_stages=2),
    Key("any", "conv", TF32, 32): Tile(128, 32, num_warps=4, num_stages=2),
    Key("any", "conv", TF32, 64): Tile(128, 64, num_warps=4, num_stages=2),
    Key("any", "conv", TF32, 128): Tile(128, 128, num_warps=8, num_stages=2),
    # twice the rows halve the reading of weights
    Key("sm_90", "conv", TF32, 64): Tile(256, 64, num_warps=8, num_stages=2),
    Key("sm_90", "conv", TF32, 128): Tile(256, 128, num_warps=8, num_stages=3),
    Key("any", "residual", IEEE, 32): Tile(64, 32, num_warps=4, num_stages=1),
    Key("any", "residual", IEEE, 64): Tile(64, 64, num_warps=4, num_stages=1),
    Key("any", "residual", IEEE, 128): Tile(32, 128, num_warps=4, num_stages=1),
    Key("any", "residual", IEEE, 256): Tile(16, 128, num_warps=4, num_stages=1),
    Key("any", "residual", SPLIT, 32): Tile(128, 32, num_warps=4, num_stages=2),
    Key("any", "residual", SPLIT, 64): Tile(64, 64, num_warps=4, num_stages=2),
    Key("any", "residual", SPLIT, 128): Tile(64, 128, num_warps=8, num_stages=1),
    Key("any", "residual", SPLIT, 256): Tile(32, 64, num_warps=8, num_stages=1),
    # the next row takes 160 KiB of shared memory
    Key("sm_80", "residual", SPLIT, 256): Tile(32, 128, num_warps=8, num_stages=1),
    Key("sm_90", "residual", SPLIT, 64): Tile(128, 64, num_warps=4, num_stages=2),
    Key("sm_90", "residual", SPLIT, 128): Tile(128, 128, num_warps=8, num_stages=2),
    Key("sm_90", "residual", SPLIT, 256): Tile(128, 128, num_warps=8, num_stages=2),
    Key("sm_100", "residual", SPLIT, 64): Tile(128, 64, num_warps=4, num_stages=2),
    Key("sm_100", "residual", SPLIT, 128): Tile(128, 128, num_warps=8, num_stages=2),
    Key("any", "residual", TF32, 32): Tile(128, 32, num_warps=4, num_stages=1),
    Key("any", "residual", TF32, 64): Tile(128, 64, num_warps=4, num_stages=1),
    Key("any", "residual", TF32, 128): Tile(128, 128, num_warps=8, num_stages=2),
    Key("any", "residual", TF32, 256): Tile(64, 128, num_warps=8, num_stages=1),
    Key("sm_90", "residual", TF32, 256): Tile(128, 256, num_warps=8, num_stages=1),
    Key("any", "rvq_encode", IEEE, 0): Tile(16, 64, num_warps=8, num_stages=2),
    Key("any", "rvq_encode", IEEE, 1): Tile(64, 64, num_warps=8, num_stages=2),
    # matrix cores: another block shape could add in another order
    Key("gfx942", "rvq_encode", IEEE, 0): Tile(16, 64, num_warps=4, num_stages=1),
    Key("gfx942", "rvq_encode", IEEE, 1): Tile(16, 64, num_warps=4, num_stages=1),
    # 64 frames per block would spill 3.5 KiB of registers
    Key("sm_89", "rvq_encode", IEEE, 1): Tile(32, 64, num_warps=4, num_stages=2),
    Key("any", "rvq_encode", RERANK, 0): Tile(16, 64, num_warps=8, num_stages=3),
    Key("any", "rvq_encode", RERANK, 1): Tile(32, 64, num_warps=8, num_stages=3),
    Key("any", "rvq_decode", IEEE, 0): Tile(16, 0, num_warps=8, num_stages=2),
    Key("any", "lstm", IEEE, 0): Tile(16, 32, num_warps=8, num_stages=1),
    # 64 rows of weights: the most that fit the registers where one launch runs all steps
    Key("any", "lstm", SPLIT, 0): Tile(16, 64, num_warps=8, num_stages=1),
    Key("any", "lstm", TF32, 0): Tile(16, 64, num_warps=4, num_stages=1),
}

# Replaces a row above for compilers before triton 3.6: with 3.2 that row takes 256 KiB of shared memory.
BEFORE_3_6 = {Key("sm_90", "residual", SPLIT, 256): Tile(128, 64, num_warps=8, num_stages=2)}
