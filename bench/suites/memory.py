"""The suite `memory`: time and peak memory of one clip against its length, up to an hour.

Each contender stops at the length for which this machine has no memory; the row says what it would need. The answer of a long clip
is compared with that of transformers on as much of the beginning as transformers can take: the 24 kHz model is causal.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from bench_lib import results
from bench_lib.cases import MEMORY_LENGTHS, Case, stock_bytes, weights_file
from bench_lib.check import WrongAnswer, check
from bench_lib.contenders import chosen
from bench_lib.harness import HUNGRY, REFERENCE, ContenderFailed, Process
from bench_lib.machine import disturbance, environment, others_share, room
from bench_lib.results import Row

BANDWIDTH = 6
# The longest beginning that is compared.
CHECKED_SECONDS = 60
# Of a decoded beginning, what the frames after it would have changed.
TAIL_SAMPLES = 640
# These hold as much as transformers itself does.
LEFT_OUT = ("compile", "folded")


def run(options: argparse.Namespace, console: Console) -> None:
    """Measures and prints every contender, call and length."""
    names, left_out = chosen(options.against.split(","), torch.device("cpu"))
    names = [name for name in names if name not in LEFT_OUT]
    for sentence in left_out:
        console.print(sentence)
    for threads in options.threads:
        about = {"suite": "memory", "set": options.set, "environment": environment(threads, clock=options.clock)}
        kept = results.kept(options, about)
        for call in ("encode", "decode"):
            for name in names:
                if any(f'"call": "{call}"' in key and f'"contender": "{name}"' in key for key in kept):
                    console.print(f"{call}, {name}: done before")
                    continue
                for row in measure(name, call, MEMORY_LENGTHS[options.set], threads, options.clock):
                    results.append(options.out, [{**about, **row}])
                    words = f"{name} {call} {row['case']['seconds']:g} s: "
                    if "failed" in row:
                        console.print(words + row["failed"])
                    else:
                        memory = f"{row['peak_bytes'] / 2**20:.0f} MiB"
                        console.print(f"{words}{row['median']:.2f} s, {row['x_real_time']:.1f} x, {memory}  {row['disturbed'] or ''}")


def measure(name: str, call: str, lengths: tuple[int, ...], threads: int, clock: str) -> Iterator[Row]:
    """Yields a row per length of one contender's calls."""
    weights_file("demo")
    cases = [Case("demo", call, 1, seconds, BANDWIDTH) for seconds in lengths]
    longest = [case for case in cases if case.seconds <= CHECKED_SECONDS and stock_bytes(case) < room()][-1]
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "answer.pt"
        reference = Process(REFERENCE, REFERENCE, threads, "cpu")
        reference.ask(do="answer_in_pieces", case=longest.fields(), clips=1, path=str(path))
        reference.close()
        expected = torch.load(path)
        for case in cases:
            about = {"case": case.fields(), "contender": name}
            needed = stock_bytes(case)
            if name in HUNGRY and needed > room():
                yield {**about, "failed": f"not run: it needs about {needed / 2**30:.0f} GiB of memory"}
                continue
            try:
                yield {**about, **measure_length(case, name, expected, longest.seconds, threads, clock, path)}
            except (ContenderFailed, WrongAnswer) as error:
                yield {**about, "failed": str(error)}


def measure_length(case: Case, name: str, expected: torch.Tensor, checked: float, threads: int, clock: str, path: Path) -> Row:
    """Returns time, peak memory and check of one call.  expected: of transformers, on the first `checked` seconds."""
    # a process of its own: what the allocator kept of a shorter clip would hide part of the peak
    process = Process(name, name, threads, "cpu", clock)
    try:
        reply = process.ask(do="once", case=case.fields(), path=str(path))
    finally:
        process.close()
    checked = min(case.seconds, checked)
    found = check(replace(case, seconds=checked), *beginnings(case, torch.load(path), expected))
    others = others_share(reply["busy_seconds"], reply["cpu_seconds"], reply["wall_seconds"])
    return {
        "seconds": [reply["seconds"]],
        "median": reply["seconds"],
        "x_real_time": case.seconds / reply["seconds"],
        "peak_bytes": reply["peak_bytes"],
        "check": {**found, "checked_seconds": checked},
        "others_share": others,
        "disturbed": disturbance(others if clock == "wall" else 0.0, [1.0]),
    }


def beginnings(case: Case, answer: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both answers, cut to the part in which they must agree."""
    shorter = min(answer.shape[-1], expected.shape[-1])
    if answer.shape[-1] != expected.shape[-1] and case.call == "decode":
        shorter -= TAIL_SAMPLES
    return answer[..., :shorter], expected[..., :shorter]
