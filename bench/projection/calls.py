"""Whole calls of encode and decode: their launches, what each costs, and beside them the floor of a perfectly fused stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench_lib.roofline import PEAKS, meta_plan
from encodec_fast.backends.triton_backend import MODES
from encodec_fast.demo import demo_config
from encodec_fast.plan import Network, fused_bytes, multiply_adds
from encodec_fast.plan.geometry import encoded_length
from projection import compile_ahead
from projection.cost import Cost, launch_cost, launch_key
from projection.hardware import GPUS
from projection.launches import model_launches

PARTS = {"encode": ("encoder.", "quantizer.encode"), "decode": ("quantizer.decode", "decoder.", "overlap_add")}
# Chunks of a second that 10 s of the 48 kHz model have: the next begins 0.99 s later.
CHUNKS = 11


class Case(NamedTuple):
    """model: 'demo' (24 kHz) or 'demo-48khz'.  clips of 10 s.  precision: 'parity' or 'fast'."""

    model: str
    clips: int
    precision: str

    def __str__(self) -> str:
        rate = demo_config(self.model).sampling_rate // 1000
        return f"{rate} kHz, {self.clips} x 10 s, 6 kbps, {self.precision}"

    @property
    def batch(self) -> int:
        """Returns the rows of the batch that runs: clips, or chunks of all clips."""
        return self.clips if demo_config(self.model).chunk_length is None else self.clips * CHUNKS

    @property
    def samples(self) -> int:
        config = demo_config(self.model)
        return config.chunk_length or 10 * config.sampling_rate


CASES = tuple(
    Case(model, clips, precision) for model, clips in (("demo", 32), ("demo", 1), ("demo-48khz", 8)) for precision in ("parity", "fast")
)


@dataclass(frozen=True)
class StageCost:
    """One launch of a call.  times: how often it is made.  floor: ms of the whole stage if perfectly fused, at its first launch only."""

    stage: str
    times: int
    cost: Cost
    floor: float | None

    def milliseconds(self, launch: float) -> float:
        """Returns the time of all its launches.  launch: microseconds between two of them."""
        return self.times * (self.cost.time + launch / 1000)


@dataclass(frozen=True)
class Projection:
    """A case on an architecture of GPUS."""

    case: Case
    arch: str
    stages: tuple[StageCost, ...]

    def part(self, call: str) -> list[StageCost]:
        """Returns the launches of 'encode' or 'decode'."""
        return [stage for stage in self.stages if stage.stage.startswith(PARTS[call])]

    def milliseconds(self, call: str) -> float:
        return sum(stage.milliseconds(GPUS[self.arch].launch) for stage in self.part(call))

    def floor(self, call: str) -> float:
        return sum(stage.floor or 0.0 for stage in self.part(call))

    def launches(self, call: str) -> int:
        return sum(stage.times for stage in self.part(call))

    def rows(self) -> Iterable[dict[str, Any]]:
        """Yields a row for each launch of each call, as plain data."""
        about = {"arch": self.arch, "gpu": GPUS[self.arch].name, **self.case._asdict()}
        for call in PARTS:
            for stage in self.part(call):
                cost = stage.cost
                pipes = {name: round(stage.times * time, 4) for name, time in cost.milliseconds.items()}
                yield {
                    **about,
                    "call": call,
                    "stage": stage.stage,
                    "kernel": cost.kernel,
                    "times": stage.times,
                    "blocks": cost.blocks,
                    "ms": round(stage.milliseconds(GPUS[self.arch].launch), 4),
                    "floor_ms": None if stage.floor is None else round(stage.floor, 4),
                    "bound": cost.bound,
                    "by": pipes,
                }


def project(case: Case, arch: str, workers: int | None = None) -> Projection:
    """Compiles every launch of a case.  Raises what the compiler raises."""
    config = demo_config(case.model)
    levels = 8 if case.model == "demo" else 4  # 6 kbps
    launches = model_launches(config, arch, MODES[case.precision], "rerank", case.batch, case.samples, num_quantizers=levels)
    floors = _floors(case, arch)
    # encoder and decoder have launches in common, the recurrence among them, whose blocks run longest
    keys = [launch_key(launch, arch) for _, launch, _ in launches]
    distinct = dict(zip(keys, (launch for _, launch, _ in launches), strict=True))
    costs = dict(zip(distinct, compile_ahead.for_each(list(distinct.values()), arch, launch_cost, workers), strict=True))
    stages = []
    for (stage, _, times), key in zip(launches, keys, strict=True):
        cost = costs[key]
        if isinstance(cost, Exception):
            raise RuntimeError(f"{arch}: no cost of {stage}") from cost
        stages.append(StageCost(stage, times, cost, floors.pop(stage.split(" ")[0], None)))
    return Projection(case, arch, tuple(stages))


def _floors(case: Case, arch: str) -> dict[str, float]:
    """The longer of memory and arithmetic time of each stage, at the vendor's figures."""
    plan, peak, times = meta_plan(case.model), PEAKS[arch], {}
    steps = encoded_length(demo_config(case.model), case.samples)
    networks: tuple[tuple[str, Network, int], ...] = (("encoder", plan.encoder, case.samples), ("decoder", plan.decoder, steps))
    for part, network, length in networks:
        for stage in network.stages:
            moved, flops = case.batch * fused_bytes(stage, length), 2 * case.batch * multiply_adds(stage, length)
            times[f"{part}.{stage.name}"] = peak.milliseconds(moved, flops, MODES[case.precision])
            length = stage.output_length(length)
    return times
