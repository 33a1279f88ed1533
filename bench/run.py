"""Measures, on this machine, what the tables and plots of the documentation show.

    python bench/run.py --suite cpu --set readme             the table of the README: about a quarter of an hour on two cores
    python bench/run.py --quick                              two minutes, four cases
    python bench/run.py --against hf,openvino,ours-cpu --threads 1 2
    python bench/run.py --base main                          this tree against another revision: faster, slower or noise

Answers are compared with those of transformers first; a contender with another answer gets no time. Rows are appended to
bench/results/SUITE.jsonl (--out), and a run that was cut off goes on where it stopped (--again measures everything anew).
`python bench/plot.py` draws the rows, `python bench/report.py` writes docs/benchmarks.md and the README's table from them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

import files
import lengths
import results
import revisions
import stages
from cases import SETS, Case, is_slow_extra
from contenders import OURS, chosen
from encodec_fast.backends.registry import get_backend
from harness import REFERENCE, ContenderFailed, Harness, Row, environment

CPU_CONTENDERS = "hf,folded,compile,encodec,openvino,ours"
SECONDS_PER_CASE = {"quick": 5.0, "readme": 30.0, "full": 120.0}
ROUNDS = {"quick": 3, "readme": 3, "full": 7}
BASE_ROUNDS = 9


def codec_suite(options: argparse.Namespace, console: Console, device: str) -> None:
    """Whole calls: the suites cpu and gpu."""
    names, left_out = chosen(options.against.split(","), torch.device(device))
    for sentence in left_out:
        console.print(sentence)
    for threads in options.threads:
        about = {"suite": options.suite, "set": options.set, "environment": environment(threads, device, options.clock)}
        kept = _done(options, about)
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
                rows = harness.measure(case, wanted, options.rounds, SECONDS_PER_CASE[options.set])
                results.append(options.out, ({**about, **row} for row in rows))
                show(console, case, threads, rows)
        finally:
            harness.close()


def compare_revisions(options: argparse.Namespace, console: Console) -> None:
    """This tree against --base, on the cases of the set, in the backends of ours that --against names."""
    names, _ = chosen([name for name in options.against.split(",") if name == "ours" or name in OURS], torch.device("cpu"))
    rounds = max(options.rounds, revisions.LEAST_ROUNDS)
    with TemporaryDirectory() as folder:
        head, base = revisions.build_head(Path(folder) / "head"), revisions.build_base(options.base, Path(folder) / "base")
        for threads in options.threads:
            variants = {f"{name} {side}": (name, path) for name in names for side, path in (("base", base), ("head", head))}
            about = {"suite": "base", "set": options.set, "base": options.base, "environment": environment(threads, clock=options.clock)}
            harness = Harness(threads, clock=options.clock, variants=variants)
            try:
                for case in SETS[options.set]:
                    rows = harness.measure(case, list(variants), rounds, rounds * SECONDS_PER_CASE["full"])
                    found = {row["contender"]: row for row in rows}
                    for name in names:
                        sides = found[f"{name} base"], found[f"{name} head"]
                        failed = [row["failed"] for row in sides if "failed" in row]
                        said = "; ".join(failed) or str(revisions.verdict(*(row["seconds"] for row in sides)))
                        marks = "; ".join(row["disturbed"] for row in sides if row.get("disturbed"))
                        console.print(f"{case}, {threads} threads, {name}: {said}  {marks}")
                        results.append(options.out, ({**about, **row, "verdict": said} for row in sides))
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
    backends = [name for name in ("cpu", "torch") if get_backend(name).unavailable() is None]
    for threads in options.threads:
        about = {"suite": "kernels", "set": options.set, "environment": environment(threads, clock=options.clock)}
        kept = _done(options, about)
        for case in stages.SETS[options.set]:
            if any(
                f'"call": "{case.call}"' in key and f'"model": "{case.model}"' in key and f'"batch": {case.batch},' in key for key in kept
            ):
                console.print(f"{case}, {threads} threads: done before")
                continue
            rows = [{**about, **row} for row in stages.measure(case, backends, options.rounds, threads, options.clock)]
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
        about = {"suite": "memory", "set": options.set, "environment": environment(threads, clock=options.clock)}
        kept = _done(options, about)
        for call in ("encode", "decode"):
            for name in names:
                if any(f'"call": "{call}"' in key and f'"contender": "{name}"' in key for key in kept):
                    console.print(f"{call}, {name}: done before")
                    continue
                for row in lengths.measure([name], [call], lengths.LENGTHS[options.set], threads, options.clock):
                    results.append(options.out, [{**about, **row}])
                    words = f"{name} {call} {row['case']['seconds']:g} s: "
                    if "failed" in row:
                        console.print(words + row["failed"])
                    else:
                        memory = f"{row['peak_bytes'] / 2**20:.0f} MiB"
                        console.print(f"{words}{row['median']:.2f} s, {row['x_real_time']:.1f} x, {memory}  {row['disturbed'] or ''}")


def dataset_suite(options: argparse.Namespace, console: Console) -> None:
    """Folders of files to codes on disk, as whole processes."""
    for threads in options.threads:
        about = {"suite": "dataset", "set": options.set, "environment": environment(threads)}
        for row in files.measure(files.COPIES[options.set], options.rounds, threads):
            results.append(options.out, [{**about, **row}])
            case, check = row["case"], row["check"]
            what = f"{case['files']} files of {case['audio_seconds']:.0f} s in all, {threads} threads, {row['contender']}"
            found = f"{row['median']:.1f} s, {row['x_real_time']:.1f} x real time; {check['flips']} of {check['frames']} frames differ"
            console.print(f"{what}: {found}")


def _done(options: argparse.Namespace, about: Row) -> set[str]:
    return set() if options.again else results.done(results.read(options.out), about["environment"]["revision"])


SUITES: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "cpu": cpu_suite,
    "gpu": gpu_suite,
    "kernels": kernels_suite,
    "memory": memory_suite,
    "dataset": dataset_suite,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), default="cpu")
    parser.add_argument(
        "--set", choices=list(SETS), default="readme", help="which cases; full is every combination, many hours on two cores"
    )
    parser.add_argument("--quick", action="store_true", help="the same as --set quick")
    parser.add_argument("--against", default=CPU_CONTENDERS, help="contenders, separated by commas; ours is every backend of ours")
    parser.add_argument("--everywhere", action="store_true", help="all contenders in all cases; in short sets the slow ones run in few")
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1])
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: CPU time of one thread, for a machine that others use"
    )
    parser.add_argument("--rounds", type=int, help="runs of each contender; at least 3 are made, more only while the case has time")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new case after this")
    parser.add_argument("--out", type=Path, help="default bench/results/SUITE.jsonl, for --quick the folder of temporary results")
    parser.add_argument("--base", metavar="REV", help="compare this tree with that revision; at least 6 rounds, 9 by default")
    parser.add_argument("--again", action="store_true", help="measure what this revision has results for already")
    options = parser.parse_args()
    if options.clock == "cpu" and (options.threads != [1] or options.suite in ("gpu", "dataset")):
        parser.error("--clock cpu measures one thread of one process: add --threads 1, and take the suite cpu, kernels or memory")
    options.set = "quick" if options.quick else options.set
    options.rounds = options.rounds or (BASE_ROUNDS if options.base else ROUNDS[options.set])
    options.deadline = time.monotonic() + 60 * options.minutes
    # quick results are for the eye: the documentation must not be made of them
    folder = results.RESULTS if options.set != "quick" else results.RESULTS.parent / ".cache" / "quick"
    options.out = options.out or folder / f"{'base' if options.base else options.suite}.jsonl"
    return options


def main() -> None:
    options = arguments()
    console = Console(width=160 if not sys.stdout.isatty() else None)
    try:
        if options.base:
            compare_revisions(options, console)
        else:
            SUITES[options.suite](options, console)
    except (ValueError, ContenderFailed) as error:
        sys.exit(f"bench/run.py: {error}")


if __name__ == "__main__":
    main()
