"""The suite `kernels`: every stage of both networks by itself, beside transformers' own modules, as share of its floor."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench_lib import results
from bench_lib.cases import STAGE_SETS, Case, audio_of, codes_of, levels_of, stock_model, stock_modules
from bench_lib.check import WrongAnswer, check_codes, check_values
from bench_lib.harness import SETTLE_S, SHORTEST_RUN_S, timing
from bench_lib.machine import busy_seconds, environment, others_share
from bench_lib.results import Row
from bench_lib.roofline import MachineRates, Work, chunk_lengths, stage_work
from bench_lib.worker import CLOCKS
from encodec_fast.backends.registry import get_backend
from encodec_fast.plan.reader import read_plan
from encodec_fast.verify import Flip, code_flips


@dataclass(frozen=True)
class Stage:
    """One stage ready to run: its work, and a call without arguments per contender.  flips: of a search, judges its codes [K, B, F]."""

    work: Work
    calls: dict[str, Callable[[], Tensor]]
    flips: Callable[[Tensor, Tensor], list[Flip]] | None = None


def run(options: argparse.Namespace, console: Console) -> None:
    """Measures and prints every stage of the set's calls, on the CPU."""
    backends = [name for name in ("cpu", "torch") if get_backend(name).unavailable() is None]
    for threads in options.threads:
        about = {"suite": "kernels", "set": options.set, "environment": environment(threads, clock=options.clock)}
        kept = results.kept(options, about)
        for case in STAGE_SETS[options.set]:
            if any(
                f'"call": "{case.call}"' in key and f'"model": "{case.model}"' in key and f'"batch": {case.batch},' in key for key in kept
            ):
                console.print(f"{case}, {threads} threads: done before")
                continue
            rows = [{**about, **row} for row in measure(case, backends, options.rounds, threads, options.clock)]
            results.append(options.out, rows)
            table = Table("stage", "contender", "ms", "spread", "bound by", "share of floor", "", title=f"{case}, {threads} threads")
            for row in rows:
                cells = f"{1e3 * row['median']:.2f}", f"{row['spread']:.0%}", row["bound_by"], f"{row['share_of_floor']:.2f}"
                table.add_row(row["stage"], row["contender"], *cells, row["disturbed"] or "")
            console.print(table)


def stages(case: Case, backends: list[str]) -> Iterator[Stage]:
    """Yields the stages of a call in order; each gets the input that transformers gives it.  Chunked models run all full chunks at once."""
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
        exact, codebooks = x.double(), plan.quantizer.codebooks.double()

        def flips(ours: Tensor, theirs: Tensor) -> list[Flip]:
            # both search the same embeddings, so these have no error of their own
            return code_flips(ours.transpose(0, 1), theirs.transpose(0, 1), exact, torch.zeros(len(x)), codebooks)

        yield Stage(works["quantizer"], calls, flips)


def measure(case: Case, backends: list[str], rounds: int, threads: int, clock: str) -> Iterator[Row]:
    """Yields a row per stage and contender, interleaved in this process; answers are compared with transformers' first."""
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
            others = others_share(busy_seconds() - busy, time.process_time() - cpu, time.monotonic() - start)
            for name, runs in seconds.items():
                timed = timing(runs, stage.work, measured, others, clock)
                arithmetic = stage.work.flops / timed["flops"] > stage.work.bytes / timed["copy"]
                about = {"case": case.fields(), "stage": stage.work.name, "contender": name}
                yield {**about, **timed, "check": checks[name], "bound_by": "arithmetic" if arithmetic else "memory"}


def _prepare(stage: Stage) -> tuple[dict[str, int], dict[str, Row]]:
    """Returns runs per measurement, and how each answer compares.  Raises WrongAnswer."""
    times, checks, expected = {}, {}, stage.calls["hf"]()
    for name, call in stage.calls.items():
        answer = call()
        try:
            if stage.flips is None:
                checks[name] = check_values(answer, expected)
            else:
                sides = (codes.transpose(0, 1)[None] for codes in (answer, expected))
                checks[name] = check_codes(*sides, lambda answer=answer: stage.flips(answer, expected))
        except WrongAnswer as error:
            raise WrongAnswer(f"{stage.work.name}: {name}: {error}") from None
        times[name] = max(1, int(0.25 * SHORTEST_RUN_S / _seconds(call, 1, time.perf_counter)))
    return times, checks


def _seconds(call: Callable[[], Any], times: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times
