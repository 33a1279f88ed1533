"""What a GPU can do in a cycle: vendors' figures, and rates that others have measured."""

from __future__ import annotations

from dataclasses import dataclass

# An SM has four partitions with pipes of their own; shared memory and the first-level cache serve all four.
PARTITIONS = 4


@dataclass(frozen=True)
class Gpu:
    """ghz: the highest clock, which the vendor's TFLOP/s are for.  fma, imad, alu, special: cycles that a warp's instruction keeps the
    pipe of a partition.  multiply_adds: of the matrix units of an SM in a cycle, by type of operand.  warp_matrix: share of that rate which
    instructions of one warp (mma) reach beside those of four (wgmma).  shared: bytes of an SM.  memory, l2: TB/s that copies reach.
    l2_bytes: what the second-level cache holds.  launch: microseconds from the end of a kernel to the start of the next in a CUDA graph.
    """

    name: str
    sms: int
    ghz: float
    fma: float
    imad: float
    alu: float
    special: float
    multiply_adds: dict[str, int]
    warp_matrix: float
    shared: int
    memory: float
    l2: float
    l2_bytes: int
    launch: float
    warps: int = 64
    blocks: int = 32
    registers: int = 65_536

    def resident(self, threads: int, registers: int, shared: int) -> int:
        """Blocks that fit on one SM."""
        warps = threads // 32
        # registers are given out 256 at a time, and the driver keeps 1 KiB of shared memory of every block
        per_warp = -(-registers * 32 // 256) * 256
        return max(1, min(self.blocks, self.warps // warps, self.registers // (per_warp * warps), self.shared // (shared + 1024)))


GPUS = {
    # 108 SMs: NVIDIA A100 whitepaper.  L2: 2.3 times V100's 2155 GB/s, by the same paper.
    "sm_80": Gpu(
        "A100 SXM 80 GB", 108, 1.41, fma=2, imad=2, alu=2, special=8,
        multiply_adds={"TF32": 512, "F16": 1024, "BF16": 1024}, warp_matrix=1.0,
        shared=167_936, memory=1.8, l2=4.5, l2_bytes=40 << 20, launch=1.5,
    ),
    # mma reaches 62 % of wgmma's rate: "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv 2402.13499
    "sm_90": Gpu(
        "H100 SXM", 132, 1.98, fma=1, imad=2, alu=2, special=8,
        multiply_adds={"TF32": 1024, "F16": 2048, "BF16": 2048}, warp_matrix=0.62,
        shared=233_472, memory=3.0, l2=5.5, l2_bytes=50 << 20, launch=1.3,
    ),
}  # fmt: skip
