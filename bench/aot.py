"""Prints what every kernel takes on GPUs that need not be there: python bench/aot.py [--arch sm_90 ...] [--precision ieee ...]

Registers, shared memory and instructions are read from compiled machine code. Times are PROJECTIONS from bytes and FLOPs
of a perfectly fused stage; nothing here has run on a GPU.
"""

from __future__ import annotations

import argparse
import os

import torch
from encodec_fast.kernels import aot
from rich.console import Console
from rich.table import Table
from roofline import PEAKS
from transformers import EncodecConfig, EncodecModel

from encodec_fast.executors.triton_launches import model_launches
from encodec_fast.plan import fused_bytes, multiply_adds
from encodec_fast.plan_reader import read_plan

# The work that the projections are for.
CLIPS, SECONDS = 32, 10


def projected_milliseconds(config: EncodecConfig, arch: str, precision: str) -> dict[str, float]:
    """The longer of memory and arithmetic time of each stage, and nothing for launches, latency or imperfect overlap."""
    peak, times = PEAKS[arch], {}
    with torch.device("meta"):
        plan = read_plan(EncodecModel(config))
    for part, network, length in (
        ("encoder", plan.encoder, SECONDS * config.sampling_rate),
        ("decoder", plan.decoder, plan.encoder.output_length(SECONDS * config.sampling_rate)),
    ):
        for stage in network.stages:
            moved, flops = CLIPS * fused_bytes(stage, length), 2 * CLIPS * multiply_adds(stage, length)
            times[f"{part}.{stage.name}"] = peak.milliseconds(moved, flops, precision)
            length = stage.output_length(length)
    return times


def report(arch: str, precision: str, workers: int) -> Table:
    config = EncodecConfig()
    search = "ieee" if arch.startswith("gfx") else "rerank"
    found = model_launches(config, arch, precision, search)
    compiled = aot.compile_all([launch for _, launch in found], arch, workers)
    times = projected_milliseconds(config, arch, precision)
    table = Table(title=f"{arch} {precision}, projected for {CLIPS} clips of {SECONDS} s on {PEAKS[arch].device}")
    for heading in ("stage", "kernel", "registers", "stack B", "shared KiB", "instructions", "compile s", "PROJECTED ms"):
        table.add_column(heading, justify="left" if heading in ("stage", "kernel", "instructions") else "right")
    shown: set[str] = set()
    for (stage, launch), needs in zip(found, compiled, strict=True):
        if isinstance(needs, Exception):
            raise needs
        name = stage.split(" ")[0]
        time = f"{times[name]:.2f}" if name in times and name not in shown else ""
        shown.add(name)
        counts = " ".join(f"{kind} {count}" for kind, count in needs.instructions.items() if count)
        kernel = launch.name.removeprefix("_").removesuffix("_kernel")
        over = "[red]" if needs.stack or needs.shared > aot.SHARED_LIMITS[arch] else ""
        memory = f"{over}{needs.stack}", f"{over}{needs.shared / 1024:.0f}"
        table.add_row(stage, kernel, str(needs.registers), *memory, counts, f"{needs.seconds:.1f}", time)
    encoder, decoder = _sum(times, "encoder"), _sum(times, "decoder")
    table.caption = f"PROJECTED: encoder {encoder:.1f} ms, decoder {decoder:.1f} ms, without launches and the latency of the LSTM"
    return table


def _sum(times: dict[str, float], part: str) -> float:
    return sum(time for name, time in times.items() if name.startswith(part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90"], choices=list(PEAKS))
    parser.add_argument("--precision", nargs="+", default=["ieee"], choices=["ieee", "tf32", "tf32x3"])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    console = Console(width=200)
    for arch in arguments.arch:
        for precision in arguments.precision:
            if precision in PEAKS[arch].flops:
                console.print(report(arch, precision, arguments.workers))
            else:
                console.print(f"{arch} has no {precision}")


if __name__ == "__main__":
    main()
