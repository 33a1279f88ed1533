"""Measures, on this machine, what the tables and plots of the documentation show.

    python bench/run.py --suite cpu --set readme             the table of the README: about a quarter of an hour on two cores
    python bench/run.py --quick                              two minutes, four cases
    python bench/run.py --against hf,openvino,ours-cpu --threads 1 2
    python bench/run.py --base main                          this tree against another revision: faster, slower or noise

Answers are compared with those of transformers first; a contender with another answer gets no time. Rows are appended to
bench/results/SUITE.jsonl (--out), and a run that was cut off goes on where it stopped (--again measures everything anew).
`python bench/report.py` turns the rows into docs/benchmarks.md, the README's table and the plots.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lengths
import results
import stages
import torch
from cases import SETS, Case
from contenders import chosen
from harness import REFERENCE, ContenderFailed, Harness, Row, environment
from rich.console import Console
from rich.table import Table

from encodec_fast.dispatch import executor

CPU_CONTENDERS = "hf,folded,compile,encodec,openvino,ours"
# Compiling takes a minute per shape on two cores, so in a short set only the cases of 10 s get it.
COMPILE_SECONDS = 10
SECONDS_PER_CASE = {"quick": 5.0, "readme": 40.0, "full": 120.0}
ROUNDS = {"quick": 3, "readme": 5, "full": 7}


def codec_suite(options: argparse.Namespace, console: Console, device: str) -> None:
    """Whole calls: the suites cpu and gpu."""
    names, left_out = chosen(options.against.split(","), torch.device(device))
    for sentence in left_out:
        console.print(sentence)
    for threads in options.threads:
        about = {"suite": options.suite, "set": options.set, "environment": environment(threads, device)}
        kept = _done(options, about)
        harness = Harness(threads, device)
        try:
            for case in SETS[options.set]:
                wanted = [name for name in names if results.key({**about, "case": case.fields(), "contender": name}) not in kept]
                if options.set != "full" and (case.seconds != COMPILE_SECONDS or case.bandwidth != 6):
                    wanted = [name for name in wanted if name != "compile" or options.compile]
                if not wanted:
                    console.print(f"{case}, {threads} threads: done before")
                    continue
                if time.monotonic() > options.deadline:
                    console.print(f"{case}, {threads} threads: left out, --minutes are over")
                    continue
                rows = harness.measure(case, wanted, options.rounds, SECONDS_PER_CASE[options.set])
                results.append(options.out, ({**about, **row} for row in rows))
                show(console, case, threads, rows)
        finally:
            harness.close()


def show(console: Console, case: Case, threads: int, rows: list[Row]) -> None:
    """One table per case."""
    table = Table(title=f"{case}, {threads} threads", title_justify="left")
    for heading in ("contender", "x real time", "x hf", "spread", "share of floor", "answer", ""):
        table.add_column(heading, justify="left" if heading in ("contender", "answer", "") else "right")
    reference = next((row["median"] for row in rows if row["contender"] == REFERENCE and "median" in row), None)
    for row in rows:
        if "failed" in row:
            table.add_row(row["contender"], *[""] * 5, f"[red]{row['failed']}")
            continue
        factor = f"{reference / row['median']:.2f}" if reference else ""
        found = row["check"]
        answer = f"{found['flips']} of {found['frames']} frames differ" if "flips" in found else f"error {found['largest_error']:.0e}"
        table.add_row(
            row["contender"],
            f"{row['x_real_time']:.1f}",
            factor,
            f"{row['spread']:.0%}",
            f"{row['share_of_floor']:.2f}",
            answer,
            f"[yellow]{row['disturbed']}" if row["disturbed"] else "",
        )
    console.print(table)


def cpu_suite(options: argparse.Namespace, console: Console) -> None:
    """Whole calls on the CPU."""
    codec_suite(options, console, "cpu")


def gpu_suite(options: argparse.Namespace, console: Console) -> None:
    """Whole calls on the first GPU."""
    if not torch.cuda.is_available():
        raise ValueError("--suite gpu: torch sees no GPU on this machine")
    codec_suite(options, console, "cuda")


def kernels_suite(options: argparse.Namespace, console: Console) -> None:
    """Every stage by itself, on the CPU."""
    backends = [name for name in ("cpu", "torch") if executor(name).unavailable() is None]
    for threads in options.threads:
        about = {"suite": "kernels", "set": options.set, "environment": environment(threads)}
        kept = _done(options, about)
        for case in stages.SETS[options.set]:
            if any(
                f'"call": "{case.call}"' in key and f'"model": "{case.model}"' in key and f'"batch": {case.batch},' in key for key in kept
            ):
                console.print(f"{case}, {threads} threads: done before")
                continue
            rows = [{**about, **row} for row in stages.measure(case, backends, options.rounds, threads)]
            results.append(options.out, rows)
            table = Table("stage", "contender", "ms", "spread", "bound by", "share of floor", "", title=f"{case}, {threads} threads")
            for row in rows:
                cells = f"{1e3 * row['median']:.2f}", f"{row['spread']:.0%}", row["bound_by"], f"{row['share_of_floor']:.2f}"
                table.add_row(row["stage"], row["contender"], *cells, row["disturbed"] or "")
            console.print(table)


def memory_suite(options: argparse.Namespace, console: Console) -> None:
    """Time and peak memory against length."""
    names, left_out = chosen(options.against.split(","), torch.device("cpu"))
    names = [name for name in names if name not in ("compile", "folded")]
    for sentence in left_out:
        console.print(sentence)
    for threads in options.threads:
        about = {"suite": "memory", "set": options.set, "environment": environment(threads)}
        kept = _done(options, about)
        for call in ("encode", "decode"):
            for name in names:
                if any(f'"call": "{call}"' in key and f'"contender": "{name}"' in key for key in kept):
                    console.print(f"{call}, {name}: done before")
                    continue
                for row in lengths.measure([name], [call], lengths.LENGTHS[options.set], threads):
                    results.append(options.out, [{**about, **row}])
                    words = f"{name} {call} {row['case']['seconds']:g} s: "
                    if "failed" in row:
                        console.print(words + row["failed"])
                    else:
                        memory = f"{row['peak_bytes'] / 2**20:.0f} MiB"
                        console.print(f"{words}{row['median']:.2f} s, {row['x_real_time']:.1f} x, {memory}  {row['disturbed'] or ''}")


def _done(options: argparse.Namespace, about: Row) -> set[str]:
    return set() if options.again else results.done(results.read(options.out), about["environment"]["revision"])


SUITES: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "cpu": cpu_suite,
    "gpu": gpu_suite,
    "kernels": kernels_suite,
    "memory": memory_suite,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), default="cpu")
    parser.add_argument(
        "--set", choices=list(SETS), default="readme", help="which cases; full is every combination, many hours on two cores"
    )
    parser.add_argument("--quick", action="store_true", help="the same as --set quick")
    parser.add_argument("--against", default=CPU_CONTENDERS, help="contenders, separated by commas; ours is every backend of ours")
    parser.add_argument("--compile", action="store_true", help="compile in every case, not only in those of 10 s and 6 kbps")
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1])
    parser.add_argument("--rounds", type=int, help="runs of each contender; at least 3 are made, more only while the case has time")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new case after this")
    parser.add_argument("--out", type=Path, help="default bench/results/SUITE.jsonl, for --quick the folder of temporary results")
    parser.add_argument("--again", action="store_true", help="measure what this revision has results for already")
    options = parser.parse_args()
    options.set = "quick" if options.quick else options.set
    options.rounds = options.rounds or ROUNDS[options.set]
    options.deadline = time.monotonic() + 60 * options.minutes
    # quick results are for the eye: the documentation must not be made of them
    folder = results.RESULTS if options.set != "quick" else results.RESULTS.parent / ".cache" / "quick"
    options.out = options.out or folder / f"{options.suite}.jsonl"
    return options


def main() -> None:
    options = arguments()
    console = Console(width=160 if not sys.stdout.isatty() else None)
    try:
        SUITES[options.suite](options, console)
    except (ValueError, ContenderFailed) as error:
        sys.exit(f"bench/run.py: {error}")


if __name__ == "__main__":
    main()
