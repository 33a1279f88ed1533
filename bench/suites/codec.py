"""The suites `cpu` and `gpu`: whole calls of encode and decode."""

from __future__ import annotations

import argparse
import time

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench_lib import results
from bench_lib.cases import SETS, Case, is_slow_extra
from bench_lib.contenders import chosen
from bench_lib.harness import REFERENCE, Harness
from bench_lib.machine import environment
from bench_lib.results import Row

# Of one case: rounds after the third are made only within this time.
CASE_SECONDS = {"quick": 5.0, "readme": 30.0, "full": 120.0}


def run_cpu(options: argparse.Namespace, console: Console) -> None:
    """Measures whole calls on the CPU."""
    _run(options, console, "cpu")


def run_gpu(options: argparse.Namespace, console: Console) -> None:
    """Measures whole calls on the first GPU.  Raises ValueError where there is none."""
    if not torch.cuda.is_available():
        raise ValueError("--suite gpu: torch sees no GPU on this machine")
    _run(options, console, "cuda")


def _run(options: argparse.Namespace, console: Console, device: str) -> None:
    names, left_out = chosen(options.against.split(","), torch.device(device))
    for sentence in left_out:
        console.print(sentence)
    for threads in options.threads:
        about = {"suite": options.suite, "set": options.set, "environment": environment(threads, device, options.clock)}
        kept = results.kept(options, about)
        harness = Harness(threads, device, options.clock)
        try:
            for case in SETS[options.set]:
                wanted = [name for name in names if results.key({**about, "case": case.fields(), "contender": name}) not in kept]
                if options.set != "full" and not options.everywhere:
                    wanted = [name for name in wanted if not is_slow_extra(case, name)]
                if not wanted:
                    console.print(f"{case}, {threads} threads: done before")
                    continue
                if time.monotonic() > options.deadline:
                    console.print(f"{case}, {threads} threads: left out, --minutes are over")
                    continue
                rows = harness.measure(case, wanted, options.rounds, CASE_SECONDS[options.set])
                results.append(options.out, ({**about, **row} for row in rows))
                show(console, case, threads, rows)
        finally:
            harness.close()


def show(console: Console, case: Case, threads: int, rows: list[Row]) -> None:
    """Prints a table of a case's rows in 80 columns, and below it what disturbed a measurement or kept a contender out."""
    answer = "frames that differ" if case.call == "encode" else "largest error"
    table = Table(title=f"{case}, {threads} threads", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("contender", "x real time", "x hf", "spread", "share of floor", answer):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    reference = next((row["median"] for row in rows if row["contender"] == REFERENCE and "median" in row), None)
    notes = []
    for row in rows:
        if "failed" in row:
            notes.append(f"[red]{row['contender']}: {row['failed']}")
            continue
        if row["disturbed"]:
            notes.append(f"[yellow]* {row['contender']}: {row['disturbed']}")
        found = row["check"]
        table.add_row(
            row["contender"] + "*" * bool(row["disturbed"]),
            f"{row['x_real_time']:.1f}",
            f"{reference / row['median']:.2f}" if reference else "",
            f"{row['spread']:.0%}",
            f"{row['share_of_floor']:.2f}",
            f"{found['flips']} of {found['frames']}" if "flips" in found else f"{found['largest_error']:.0e}",
        )
    console.print(table)
    for note in notes:
        console.print(note)
