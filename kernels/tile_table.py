"""Tiles that compile without spilling on every listed architecture; for sm_90 the fastest by `bench/aot.py`, none timed on a device yet.

Key: (architecture or "any", kernel, precision, width).  Value: (block_m, block_n, block_k, num_warps, num_stages).
`tests/aot` compiles every row.
"""

# Below this many frames the search takes 16 frames a block: 47 blocks for a clip of 10 s.
MANY_FRAMES = 4000

TABLE: dict[tuple[str, str, str, int], tuple[int, int, int, int, int]] = {
    ("any", "conv", "ieee", 16): (64, 16, 0, 4, 1),
    ("any", "conv", "ieee", 32): (64, 32, 0, 4, 1),
    ("any", "conv", "ieee", 64): (64, 64, 0, 4, 1),
    ("any", "conv", "ieee", 128): (64, 64, 0, 4, 1),
    ("any", "conv", "split", 16): (128, 16, 0, 4, 2),
    ("any", "conv", "split", 32): (128, 32, 0, 4, 2),
    ("any", "conv", "split", 64): (128, 64, 0, 8, 2),
    ("any", "conv", "split", 128): (64, 128, 0, 8, 2),
    # instructions of four warps, whose operands need not pass through registers
    ("sm_90", "conv", "split", 64): (128, 64, 0, 4, 2),
    ("sm_90", "conv", "split", 128): (128, 128, 0, 8, 2),
    ("sm_100", "conv", "split", 64): (128, 64, 0, 4, 2),
    ("sm_100", "conv", "split", 128): (128, 128, 0, 8, 2),
    ("any", "conv", "tf32", 16): (128, 16, 0, 4, 2),
    ("any", "conv", "tf32", 32): (128, 32, 0, 4, 2),
    ("any", "conv", "tf32", 64): (128, 64, 0, 4, 2),
    ("any", "conv", "tf32", 128): (128, 128, 0, 8, 2),
    # half the weights to read again
    ("sm_90", "conv", "tf32", 64): (256, 64, 0, 8, 2),
    ("sm_90", "conv", "tf32", 128): (256, 128, 0, 8, 3),
    ("any", "residual", "ieee", 32): (64, 32, 0, 4, 1),
    ("any", "residual", "ieee", 64): (64, 64, 0, 4, 1),
    ("any", "residual", "ieee", 128): (32, 128, 0, 4, 1),
    ("any", "residual", "ieee", 256): (16, 128, 0, 4, 1),
    ("any", "residual", "split", 32): (128, 32, 0, 4, 2),
    ("any", "residual", "split", 64): (64, 64, 0, 4, 2),
    ("any", "residual", "split", 128): (64, 128, 0, 8, 1),
    ("any", "residual", "split", 256): (32, 64, 0, 8, 1),
    # 160 KiB of shared memory
    ("sm_80", "residual", "split", 256): (32, 128, 0, 8, 1),
    ("sm_90", "residual", "split", 64): (128, 64, 0, 4, 2),
    ("sm_90", "residual", "split", 128): (128, 128, 0, 8, 2),
    ("sm_90", "residual", "split", 256): (128, 128, 0, 8, 2),
    ("sm_100", "residual", "split", 64): (128, 64, 0, 4, 2),
    ("sm_100", "residual", "split", 128): (128, 128, 0, 8, 2),
    ("any", "residual", "tf32", 32): (128, 32, 0, 4, 1),
    ("any", "residual", "tf32", 64): (128, 64, 0, 4, 1),
    ("any", "residual", "tf32", 128): (128, 128, 0, 8, 2),
    ("any", "residual", "tf32", 256): (64, 128, 0, 8, 1),
    ("sm_90", "residual", "tf32", 256): (128, 256, 0, 8, 1),
    ("any", "rvq_encode", "ieee", 0): (16, 64, 0, 8, 2),
    ("any", "rvq_encode", "ieee", 1): (64, 64, 0, 8, 2),
    # matrix cores: another shape of block could add in another order
    ("gfx942", "rvq_encode", "ieee", 0): (16, 64, 0, 4, 1),
    ("gfx942", "rvq_encode", "ieee", 1): (16, 64, 0, 4, 1),
    # 64 frames a block: 3.5 KiB of registers spilled
    ("sm_89", "rvq_encode", "ieee", 1): (32, 64, 0, 4, 2),
    ("any", "rvq_encode", "rerank", 0): (16, 64, 0, 8, 3),
    ("any", "rvq_encode", "rerank", 1): (32, 64, 0, 8, 3),
    ("any", "rvq_decode", "ieee", 0): (16, 0, 0, 8, 2),
    ("any", "lstm", "ieee", 0): (16, 32, 0, 8, 1),
    # 64 rows of weights: as many as fit the registers where one launch carries all steps
    ("any", "lstm", "split", 0): (16, 64, 0, 8, 1),
    ("any", "lstm", "tf32", 0): (16, 64, 0, 4, 1),
}

# In the place of a row above for compilers before triton 3.6: with 3.2 that one takes 256 KiB of shared memory.
BEFORE_3_6 = {("sm_90", "residual", "split", 256): (128, 64, 0, 8, 2)}
