"""Vendor figures of the GPUs that projections and measurements are set beside."""

from __future__ import annotations

from typing import NamedTuple


class Peak(NamedTuple):
    """memory: TB/s.  flops: dense TFLOP/s of each precision of products; tf32x3 is a third of tf32."""

    device: str
    memory: float
    flops: dict[str, float]

    def milliseconds(self, moved: float, flops: float, precision: str) -> float:
        """The longer of the times for `moved` bytes and `flops` operations; nothing for launches or latency."""
        return max(moved / (self.memory * 1e9), flops / (self.flops[precision] * 1e9))


PEAKS = {
    "sm_80": Peak("A100 SXM 80 GB", 2.0, {"ieee": 19.5, "tf32": 156, "tf32x3": 52}),
    "sm_90": Peak("H100 SXM", 3.35, {"ieee": 67, "tf32": 495, "tf32x3": 165}),
    "sm_100": Peak("B200", 8.0, {"ieee": 75, "tf32": 1100, "tf32x3": 367}),
    "gfx942": Peak("MI300X", 5.3, {"ieee": 163, "tf32": 653}),
}
