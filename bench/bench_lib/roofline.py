"""What the hardware allows: vendor figures of GPUs, measured rates of this machine, and the floor of a stage and of a whole call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from transformers import EncodecModel

from bench_lib.cases import Case, levels_of
from encodec_fast.demo import demo_config
from encodec_fast.plan import Plan, Stage, fused_bytes, multiply_adds, stage_weights
from encodec_fast.plan.geometry import chunks_of, encoded_length
from encodec_fast.plan.reader import read_plan

# Side of the square product, and floats of the copy: past the last-level cache of anything but the largest servers.
MATMUL_SIZE = 768
COPY_FLOATS = 32 << 20


class Peak(NamedTuple):
    """memory: TB/s.  flops: dense TFLOP/s of each precision of products; split is a third of tf32."""

    device: str
    memory: float
    flops: dict[str, float]

    def milliseconds(self, moved: float, flops: float, precision: str) -> float:
        """Returns the longer of the times for `moved` bytes and `flops` operations; nothing for launches or latency."""
        return max(moved / (self.memory * 1e9), flops / (self.flops[precision] * 1e9))


PEAKS = {
    "sm_80": Peak("A100 SXM 80 GB", 2.0, {"ieee": 19.5, "tf32": 156, "split": 52}),
    "sm_90": Peak("H100 SXM", 3.35, {"ieee": 67, "tf32": 495, "split": 165}),
    "sm_100": Peak("B200", 8.0, {"ieee": 75, "tf32": 1100, "split": 367}),
    "gfx942": Peak("MI300X", 5.3, {"ieee": 163, "tf32": 653}),
}


class MachineRates:
    """Measures torch's float32 matrix product and copy at the current number of threads."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = device, clock
        size = MATMUL_SIZE if device.type == "cpu" else 8192
        self.square = torch.full((size, size), 0.5, device=device)
        self.product = torch.empty_like(self.square)

    def measure(self) -> dict[str, float]:
        """Returns {"flops": FLOP/s, "copy": byte/s read and written}: the faster of three products and of two copies."""
        source = torch.ones(COPY_FLOATS, device=self.device)
        target = torch.zeros_like(source)
        copy = min(self._seconds(lambda: target.copy_(source)) for _ in range(2))
        return {"flops": self.flops(3), "copy": 2 * source.nbytes / copy}

    def flops(self, times: int = 1) -> float:
        """Returns the FLOP/s of the fastest of so many products."""
        product = min(self._seconds(lambda: torch.mm(self.square, self.square, out=self.product)) for _ in range(times))
        return 2 * self.square.shape[0] ** 3 / product

    def _seconds(self, call: Callable[[], object]) -> float:
        start = self.clock()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock() - start


@dataclass(frozen=True)
class Work:
    """Arithmetic and traffic of one stage, or of a whole call, over all clips and chunks.  flops: two per multiply-add."""

    name: str
    flops: float
    bytes: float

    def floor(self, flop_rate: float, byte_rate: float) -> float:
        """Returns seconds, the longer of arithmetic and traffic."""
        return max(self.flops / flop_rate, self.bytes / byte_rate)


@cache
def meta_plan(model: str) -> Plan:
    """Returns the plan of a built-in model's shapes, without weights."""
    with torch.device("meta"):
        return read_plan(EncodecModel(demo_config(model)))


def chunk_lengths(case: Case) -> list[int]:
    """Returns the samples of each chunk of one clip."""
    config = demo_config(case.model)
    return [length for length, _ in chunks_of(config, int(case.seconds * config.sampling_rate))]


def stage_work(case: Case) -> list[Work]:
    """Returns the stages of a call in order, each as if it read its input and weights once and wrote its output once."""
    config, plan = demo_config(case.model), meta_plan(case.model)
    network = plan.encoder if case.call == "encode" else plan.decoder
    totals: dict[str, tuple[float, float]] = {}
    for length in chunk_lengths(case):
        steps = length if case.call == "encode" else encoded_length(config, length)
        for stage in network.stages:
            flops, moved = totals.get(stage.name, (0.0, _weight_bytes(stage)))
            flops += 2.0 * case.batch * multiply_adds(stage, steps)
            moved += case.batch * (fused_bytes(stage, steps) - _weight_bytes(stage))
            totals[stage.name] = flops, moved
            steps = stage.output_length(steps)
    names = {stage.name: stage_label(stage) for stage in network.stages}
    work = [Work(names[name], *total) for name, total in totals.items()]
    quantizer = _quantizer_work(case, plan)
    return [*work, quantizer] if case.call == "encode" else [quantizer, *work]


def stage_label(stage: Stage) -> str:
    """Returns how a stage is called in rows of results, e.g. 'layers.3 Conv 32 -> 64'."""
    return f"{stage.name} {type(stage).__name__} {stage.in_channels} -> {stage.out_channels}"


def _weight_bytes(stage: Stage) -> int:
    return 4 * sum(weight.numel() for weight in stage_weights(stage))


def _quantizer_work(case: Case, plan: Plan) -> Work:
    """Search: one product with every entry of each level in use.  Sum of entries: one addition a value.  Codes are int64."""
    frames = case.batch * sum(encoded_length(demo_config(case.model), length) for length in chunk_lengths(case))
    levels, (_, entries, dim) = levels_of(case), plan.quantizer.codebooks.shape
    moved = 4 * frames * dim + 8 * frames * levels + 4 * levels * entries * dim
    if case.call == "encode":
        return Work("quantizer search", 2.0 * frames * levels * entries * dim, moved)
    return Work("quantizer sum", frames * levels * dim, moved)


def whole_work(case: Case) -> Work:
    """Returns the work of a call as if nothing but its audio, codes and weights ever left the caches: a bound for any implementation."""
    config, plan = demo_config(case.model), meta_plan(case.model)
    network = plan.encoder if case.call == "encode" else plan.decoder
    weights = sum(_weight_bytes(stage) for stage in network.stages) + 4 * levels_of(case) * plan.quantizer.codebooks[0].numel()
    frames = sum(encoded_length(config, length) for length in chunk_lengths(case))
    audio = 4 * case.batch * config.audio_channels * int(case.seconds * config.sampling_rate)
    codes = 8 * case.batch * frames * levels_of(case)
    return Work(str(case), sum(work.flops for work in stage_work(case)), weights + audio + codes)
