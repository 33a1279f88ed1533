"""Tiles that compile without spilling on every listed architecture; resource-legal, not yet timed on a device.

Key: (architecture or "any", kernel, precision, width).  Value: (block_m, block_n, block_k, num_warps, num_stages), or None where a fused
residual block does not fit. `tests/aot` compiles every row; `bench/tune.py` rewrites this file on a machine with a GPU.
"""

# Below this many frames the search takes 16 frames a block: 47 blocks for a clip of 10 s.
MANY_FRAMES = 4000

TABLE: dict[tuple[str, str, str, int], tuple[int, int, int, int, int] | None] = {
    ("any", "conv", "ieee", 16): (16, 128, 16, 4, 2),
    ("any", "conv", "ieee", 32): (32, 64, 16, 4, 2),
    ("any", "conv", "ieee", 64): (64, 64, 16, 4, 1),
    ("sm_100", "conv", "ieee", 64): (64, 64, 16, 8, 1),
    ("any", "conv", "ieee", 128): (64, 64, 16, 4, 1),
    ("any", "conv", "tf32", 16): (16, 128, 32, 4, 2),
    ("any", "conv", "tf32", 32): (32, 64, 32, 4, 2),
    ("any", "conv", "tf32", 64): (64, 64, 32, 4, 2),
    ("any", "conv", "tf32", 128): (64, 128, 32, 8, 2),
    ("any", "conv", "tf32x3", 16): (16, 64, 32, 4, 2),
    ("any", "conv", "tf32x3", 32): (32, 64, 32, 4, 2),
    ("any", "conv", "tf32x3", 64): (64, 64, 16, 4, 2),
    ("sm_80", "conv", "tf32x3", 64): (64, 64, 16, 4, 1),
    ("any", "conv", "tf32x3", 128): (64, 64, 16, 4, 2),
    ("any", "merge", "ieee", 128): (64, 64, 16, 8, 2),
    ("any", "merge", "tf32", 128): (64, 64, 32, 4, 2),
    ("any", "merge", "tf32x3", 128): (64, 64, 16, 4, 2),
    ("any", "residual", "ieee", 32): (0, 64, 16, 4, 2),
    ("any", "residual", "ieee", 64): (0, 64, 16, 4, 2),
    ("any", "residual", "ieee", 128): (0, 32, 16, 8, 2),
    ("any", "residual", "ieee", 256): None,
    ("any", "residual", "tf32", 32): (0, 128, 32, 4, 2),
    ("any", "residual", "tf32", 64): (0, 64, 32, 4, 2),
    ("any", "residual", "tf32", 128): (0, 64, 32, 8, 2),
    ("any", "residual", "tf32", 256): (0, 32, 32, 8, 2),
    # it takes 147 KiB of shared memory
    ("gfx942", "residual", "tf32", 256): None,
    ("sm_89", "residual", "tf32", 256): None,
    ("sm_120", "residual", "tf32", 256): None,
    ("any", "residual", "tf32x3", 32): (0, 128, 16, 4, 2),
    ("any", "residual", "tf32x3", 64): (0, 64, 16, 4, 2),
    ("any", "residual", "tf32x3", 128): (0, 32, 16, 8, 2),
    ("any", "residual", "tf32x3", 256): None,
    ("any", "rvq_encode", "ieee", 0): (16, 64, 0, 8, 2),
    ("any", "rvq_encode", "ieee", 1): (64, 64, 0, 8, 2),
    # matrix cores: another shape of block could add in another order
    ("gfx942", "rvq_encode", "ieee", 0): (16, 64, 0, 4, 1),
    ("gfx942", "rvq_encode", "ieee", 1): (16, 64, 0, 4, 1),
    # 64 frames a block: 3.5 KiB of registers spilled
    ("sm_89", "rvq_encode", "ieee", 1): (32, 64, 0, 4, 2),
    ("any", "rvq_encode", "rerank", 0): (16, 64, 0, 8, 2),
    ("any", "rvq_encode", "rerank", 1): (32, 64, 0, 8, 2),
    ("any", "rvq_encode", "tf32x3", 0): (16, 64, 0, 4, 2),
    ("any", "rvq_encode", "tf32x3", 1): (16, 64, 0, 4, 2),
    ("any", "rvq_decode", "ieee", 0): (16, 0, 0, 8, 2),
    ("any", "lstm", "ieee", 0): (16, 16, 32, 4, 2),
    ("any", "lstm", "tf32", 0): (16, 16, 64, 4, 2),
    ("any", "lstm", "tf32x3", 0): (16, 16, 32, 4, 2),
}
