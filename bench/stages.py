"""The suite `kernels`: every stage of both networks by itself, beside transformers' own modules, as share of its floor."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cases import Case, audio_of, codes_of, levels_of, stock_model
from encodec_fast.backends.registry import get_backend
from encodec_fast.plan.reader import read_plan
from harness import AUDIO_ERROR, FLIPS_SHARE, FLIPS_SLACK, SETTLE_S, SHORTEST_RUN_S, Row, WrongAnswer, busy_seconds, disturbance
from roofline import MachineRates, Work, chunk_lengths, stage_work
from worker import CLOCKS

SETS = {
    "quick": (Case("demo", "encode", 1, 1, 6), Case("demo", "decode", 1, 1, 6)),
    # 0.99 s of the 48 kHz model are one chunk, a second is two
    "readme": tuple(
        Case(model, call, 4, 0.99 if "48" in model else 10, 6) for model in ("demo", "demo-48khz") for call in ("encode", "decode")
    ),
}
SETS["full"] = (*SETS["readme"], *(Case("demo", call, 1, 10, 6) for call in ("encode", "decode")))


@dataclass(frozen=True)
class Stage:
    """One stage ready to run: its work, and a call without arguments per contender."""

    work: Work
    calls: dict[str, Callable[[], Tensor]]


def stages(case: Case, backends: list[str]) -> Iterator[Stage]:
    """The stages of a call in order; each one's input is what transformers gives it.  Chunked models run all full chunks at once."""
    model = stock_model(case.model)
    plan, works = read_plan(model), {work.name.split(" ")[0]: work for work in stage_work(case)}
    network, modules = (plan.encoder, model.encoder) if case.call == "encode" else (plan.decoder, model.decoder)
    if len(set(chunk_lengths(case))) != 1:
        raise ValueError(f"{case}: stages are measured on clips of whole chunks")
    if case.call == "encode":
        x = audio_of(case)
    else:
        codes = codes_of(case, levels_of(case))[0][0].transpose(0, 1)
        x = model.quantizer.decode(codes)
        calls = {"hf": lambda: model.quantizer.decode(codes)}
        for name in backends:
            quantizer = get_backend(name).prepare_quantizer(plan.quantizer)
            calls[f"ours-{name}"] = lambda q=quantizer: q.decode(codes)
        yield Stage(works["quantizer"], calls)
    for stage in network.stages:
        stock = stock_modules(modules, stage.name)
        calls = {"hf": lambda x=x, stock=stock: stock(x)}
        for name in backends:
            program = get_backend(name).prepare((stage,))
            calls[f"ours-{name}"] = lambda x=x, program=program: program.run(x)
        yield Stage(works[stage.name], calls)
        x = stock(x)
    if case.call == "encode":
        calls = {"hf": lambda: model.quantizer.encode(x, case.bandwidth)}
        for name in backends:
            quantizer = get_backend(name).prepare_quantizer(plan.quantizer)
            calls[f"ours-{name}"] = lambda q=quantizer: q.encode(x, levels_of(case))
        yield Stage(works["quantizer"], calls)


def stock_modules(network: Any, name: str) -> nn.Sequential:
    """transformers' modules of a stage: its layer, after the ELU that the plan counts to it."""
    index = int(name.removeprefix("layers."))
    before = network.layers[index - 1] if index else None
    return nn.Sequential(*([before] if isinstance(before, nn.ELU) else []), network.layers[index])


def measure(case: Case, backends: list[str], rounds: int, threads: int, clock: str) -> Iterator[Row]:
    """One row per stage and contender, in this process, interleaved; answers are compared with transformers' first."""
    torch.set_num_threads(threads)
    rates = MachineRates(torch.device("cpu"), CLOCKS[clock])
    with torch.no_grad():
        for stage in stages(case, backends):
            times, checks = _prepare(stage)
            seconds: dict[str, list[float]] = {name: [] for name in stage.calls}
            measured, busy, cpu, start = [], busy_seconds(), time.process_time(), time.monotonic()
            for number in range(rounds):
                for name in stage.calls if number % 2 == 0 else reversed(stage.calls):
                    time.sleep(SETTLE_S)
                    seconds[name].append(_seconds(stage.calls[name], times[name], CLOCKS[clock]))
                measured.append(rates.measure())
            core_seconds = (time.monotonic() - start) * (os.cpu_count() or 1)
            others = max(0.0, busy_seconds() - busy - (time.process_time() - cpu)) / core_seconds
            flops, copy = (statistics.median(rate[key] for rate in measured) for key in ("flops", "copy"))
            for name, runs in seconds.items():
                median = statistics.median(runs)
                yield {
                    "case": case.fields(),
                    "stage": stage.work.name,
                    "contender": name,
                    "seconds": runs,
                    "median": median,
                    "spread": (max(runs) - min(runs)) / median,
                    "check": checks[name],
                    "flops": flops,
                    "copy": copy,
                    "floor_seconds": stage.work.floor(flops, copy),
                    "bound_by": "arithmetic" if stage.work.flops / flops > stage.work.bytes / copy else "memory",
                    "share_of_floor": stage.work.floor(flops, copy) / median,
                    "others_share": others,
                    "disturbed": disturbance(others if clock == "wall" else 0.0, [rate["flops"] for rate in measured]),
                }


def _prepare(stage: Stage) -> tuple[dict[str, int], dict[str, Row]]:
    """Runs per measurement, and how each answer compares.  Raises WrongAnswer."""
    times, checks, expected = {}, {}, stage.calls["hf"]()
    for name, call in stage.calls.items():
        answer = call()
        if answer.dtype == torch.int64:
            flips, frames = int((answer != expected).any(0).sum()), expected[0].numel()
            wrong = flips > FLIPS_SLACK + FLIPS_SHARE * frames
            checks[name] = {"frames": frames, "flips": flips}
        else:
            error = ((answer - expected).abs().max() / expected.abs().max()).item()
            wrong = not error <= AUDIO_ERROR
            checks[name] = {"largest_error": error}
        if wrong:
            raise WrongAnswer(f"{stage.work.name}: {name} gives another answer than transformers: {checks[name]}")
        times[name] = max(1, int(0.25 * SHORTEST_RUN_S / _seconds(call, 1, time.perf_counter)))
    return times, checks


def _seconds(call: Callable[[], Any], times: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times
