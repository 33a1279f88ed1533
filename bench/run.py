"""Measures, on this machine, what the tables and plots of the documentation show.

    python bench/run.py --suite cpu --set readme             the table of the README: about a quarter of an hour on two cores
    python bench/run.py --quick                              two minutes, four cases
    python bench/run.py --against hf,openvino,ours-cpu --threads 1 2
    python bench/run.py --suite lm --threads 1               coding by a language model beside encodec 0.1.1: five minutes
    python bench/run.py --suite bars                         the least factors over transformers and OpenVINO: met or missed
    python bench/run.py --base main                          this tree against another revision: faster, slower or noise

Answers are compared with those of transformers first; a contender with another answer gets no time. Rows are appended to
bench/results/SUITE.jsonl (--out). A run that was cut off goes on where it stopped (--again measures everything anew).
`python bench/plot.py` draws the rows, `python bench/report.py` writes docs/benchmarks.md and the README's table from them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bench_lib import results
from bench_lib.cases import SETS
from bench_lib.check import WrongAnswer
from bench_lib.harness import ContenderFailed
from suites import bars, base, codec, dataset, kernels, language_model, memory

CPU_CONTENDERS = "hf,folded,compile,encodec,openvino,ours"
ROUNDS = {"quick": 3, "readme": 3, "full": 7}
BASE_ROUNDS = 9

SUITES: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "cpu": codec.run_cpu,
    "gpu": codec.run_gpu,
    "kernels": kernels.run,
    "memory": memory.run,
    "dataset": dataset.run,
    "bars": bars.run,
    "lm": language_model.run,
}


def arguments() -> argparse.Namespace:
    """Reads the command line.  `out` is the file of rows, `deadline` of time.monotonic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), default="cpu")
    parser.add_argument(
        "--set", choices=list(SETS), default="readme", help="which cases; full is every combination, many hours on two cores"
    )
    parser.add_argument("--quick", action="store_true", help="the same as --set quick")
    parser.add_argument("--against", default=CPU_CONTENDERS, help="contenders, separated by commas; ours is every backend of ours")
    parser.add_argument("--everywhere", action="store_true", help="all contenders in all cases; in short sets the slow ones run in few")
    parser.add_argument("--threads", type=int, nargs="+", help="one per core by default; of the suite bars 1 2")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: CPU time of one thread, for a machine that others use"
    )
    parser.add_argument("--rounds", type=int, help="runs of each contender; at least 3 are made, more only while the case has time")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new case after this")
    parser.add_argument("--out", type=Path, help="default bench/results/SUITE.jsonl, for --quick the folder of temporary results")
    parser.add_argument("--clips", type=Path, metavar="DIR", help="of the suite dataset: audio, in place of copies of the bundled clips")
    parser.add_argument("--base", metavar="REV", help="compare this tree with that revision; at least 6 rounds, 9 by default")
    parser.add_argument("--again", action="store_true", help="measure what this revision has results for already")
    options = parser.parse_args()
    options.threads = options.threads or ([1, 2] if options.suite == "bars" else [os.cpu_count() or 1])
    if options.clock == "cpu" and (options.threads != [1] or options.suite in ("gpu", "dataset", "bars")):
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
            base.run(options, console)
        else:
            SUITES[options.suite](options, console)
    except (ValueError, ContenderFailed, WrongAnswer) as error:
        sys.exit(f"bench/run.py: {error}")


if __name__ == "__main__":
    main()
