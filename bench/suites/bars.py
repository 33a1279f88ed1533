"""The suite `bars`: whether the cpu backend is as much faster as it has to be, beside transformers and OpenVINO.

Both sides run in turn in this process, in float32 and with the same threads; answers are compared first. A bar is the least factor at
which it is met. "Asks" is the share of the floor that the least factor would take: above 1, the other side alone is too close to the
floor. OpenVINO runs the graphs of `export`. `--against ours-torch` asks the torch backend, which has to be no slower than transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console

from bench_lib import results
from bench_lib.cases import Case, stock_model
from bench_lib.check import STRICT_SHARE, check
from bench_lib.contenders import CONTENDERS
from bench_lib.harness import BENCH, REFERENCE, SETTLE_S
from bench_lib.machine import environment
from bench_lib.results import Row
from bench_lib.roofline import MachineRates, stage_work
from encodec_fast.plan.reader import read_plan

CPU = torch.device("cpu")
# Seconds to load and pack the 24 kHz model, and MB of an hour's encode beyond model, input and codes, at most.
LOAD_SECONDS, HOUR_MEGABYTES = 0.5, 300


@dataclass(frozen=True)
class Bar:
    """factors: the least one at each number of threads.  shares: the least share of the floor.  against: the other contender."""

    case: Case
    factors: dict[int, float]
    shares: dict[int, float] = field(default_factory=dict)
    against: str = REFERENCE


BARS = (
    Bar(Case("demo", "encode", 8, 10, 6), {1: 3.8, 2: 5.0}, shares={1: 0.90}),
    Bar(Case("demo", "decode", 8, 10, 6), {1: 3.8, 2: 5.0}),
    Bar(Case("demo", "encode", 1, 10, 6), {1: 2.2, 2: 2.8}),
    Bar(Case("demo", "decode", 1, 10, 6), {1: 2.2, 2: 2.8}),
    Bar(Case("demo", "encode", 16, 2, 6), {2: 4.0}),
    Bar(Case("demo", "encode", 8, 10, 24), {2: 4.0}),
    Bar(Case("demo-48khz", "encode", 1, 10, 6), {1: 2.5, 2: 2.5}),
    Bar(Case("demo-48khz", "decode", 1, 10, 6), {1: 2.5, 2: 2.5}),
    Bar(Case("demo", "encode", 1, 60, 6), {2: 4.5}),
    Bar(Case("demo", "decode", 1, 60, 6), {2: 4.5}),
    Bar(Case("demo", "encode", 8, 10, 6), {1: 1.3, 2: 1.3}, against="openvino"),
    Bar(Case("demo", "encode", 1, 10, 6), {1: 1.3, 2: 1.3}, against="openvino"),
    Bar(Case("demo", "encode", 16, 2, 6), {2: 1.3}, against="openvino"),
    Bar(Case("demo", "encode", 1, 60, 6), {2: 1.3}, against="openvino"),
    Bar(Case("demo-48khz", "encode", 1, 10, 6), {1: 1.3, 2: 1.3}, against="openvino"),
)


def run(options: argparse.Namespace, console: Console) -> None:
    """Measures and prints every bar, then the time of loading and the memory of an hour.  Raises WrongAnswer."""
    ours = "ours-torch" if "ours-torch" in options.against.split(",") else "ours-cpu"
    no_openvino = CONTENDERS["openvino"].missing(CPU)
    if no_openvino and ours == "ours-cpu":
        console.print(f"openvino is left out: {no_openvino}")
    with torch.no_grad():
        for bar in BARS:
            if bar.against == "openvino" and (no_openvino or ours == "ours-torch"):
                continue
            if options.set == "quick":
                bar = replace(bar, case=replace(bar.case, seconds=max(1, bar.case.seconds / 5)))
            for threads in sorted(set(options.threads) & set(bar.factors)):
                about = {"suite": "bars", "set": options.set, "environment": environment(threads)}
                row = {**about, **measure(bar, ours, threads, options.rounds)}
                results.append(options.out, [row])
                console.print(sentence(bar, threads, row))
    if ours == "ours-cpu":
        console.print(f"load and pack the 24 kHz model: {load_seconds():.2f} s (at most {LOAD_SECONDS})")
        if options.set != "quick":
            console.print(f"peak memory of encoding an hour: {hour_megabytes():.0f} MB (at most {HOUR_MEGABYTES})")


def sentence(bar: Bar, threads: int, row: Row) -> str:
    """Returns a row in words."""
    share = f"{row['share_of_floor']:.2f} of the floor" + (f" (at least {row['least_share']:.2f})" if row["least_share"] else "")
    words = f"{bar.case}, {threads} threads: {row['x_real_time']:.1f} x real time, {row['factor']:.2f} x {row['against']}"
    words += f" (at least {row['least_factor']:g}), {share}, asks {row['share_asked']:.2f}, spread {row['spread']:.0%}"
    return words if row["met"] else f"{words}  [red]missed"


def measure(bar: Bar, name: str, threads: int, rounds: int) -> Row:
    """Returns the medians of both sides' runs, and whether the bar is met.  Raises WrongAnswer.

    name: of the contender of ours.
    """
    torch.set_num_threads(threads)
    case, theirs, ours = bar.case, CONTENDERS[bar.against](CPU), CONTENDERS[name](CPU)
    calls = theirs.prepare(case), ours.prepare(case)
    answers = (side.answer(case, call()) for side, call in zip((ours, theirs), reversed(calls), strict=True))
    found = check(case, *answers, share=STRICT_SHARE, slack=0)
    their_times, our_times, rate = race(*calls, rounds)
    median, factor = statistics.median(our_times), statistics.median(a / b for a, b in zip(their_times, our_times, strict=True))
    # what holds for the cpu backend; another one has to be no slower
    least_factor, least_share = (bar.factors[threads], bar.shares.get(threads)) if name == "ours-cpu" else (1.0, None)
    share = sum(stage.flops for stage in stage_work(case)) / rate / median
    return {
        "case": case.fields(),
        "contender": name,
        "against": bar.against,
        "seconds": our_times,
        "their_seconds": their_times,
        "median": median,
        "spread": (max(our_times) - min(our_times)) / median,
        "x_real_time": case.audio_seconds / median,
        "factor": factor,
        "least_factor": least_factor,
        "share_of_floor": share,
        "least_share": least_share,
        "share_asked": least_factor * share / factor,
        "met": factor >= least_factor and (least_share is None or share >= least_share),
        "check": found,
    }


def race(theirs: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[list[float], list[float], float]:
    """Returns their seconds, ours, and the FLOP/s of torch.mm between the runs."""
    machine = MachineRates(CPU)
    times: tuple[list[float], list[float]] = [], []
    rates = []
    for _ in range(rounds):
        for runs, call in zip(times, (theirs, ours), strict=True):
            runs.append(seconds_of(call))
            rates.append(machine.flops())
    return *times, statistics.median(rates)


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the seconds of one run, after the idle threads of the one before."""
    time.sleep(SETTLE_S)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def load_seconds() -> float:
    """Returns the seconds that reading the plan of the 24 kHz model and packing it take."""
    from encodec_fast.backends.cpu_backend import CpuBackend

    model = stock_model("demo")

    def load() -> None:
        plan, backend = read_plan(model), CpuBackend()
        backend.prepare(plan.encoder.stages)
        backend.prepare(plan.decoder.stages)
        backend.prepare_quantizer(plan.quantizer)

    return min(seconds_of(load) for _ in range(3))


def hour_megabytes() -> float:
    """Returns the peak memory of encoding an hour beyond model, input and codes, in a process of its own (Linux)."""
    command = [sys.executable, str(BENCH / "tools" / "long_clip.py"), "--hours", "1", "--encode-only", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "ENCODEC_FAST_BACKEND": "cpu"})
    return json.loads(done.stdout)["bytes_above"] / 1e6
