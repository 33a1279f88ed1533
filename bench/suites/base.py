"""The suite `base`: this tree against another revision, both built with the same compiler, each in its own process, run in turn.

A round is a pair of runs next to each other. The statistic is the median over rounds of (time of this tree / time of the base).
Its interval holds the true median with 95 % probability, whatever the distribution of the times. By order statistics that is, of 9
rounds, the second smallest and second largest ratio (96.1 %). Faster or slower is said where the whole interval lies more than 1 %
to one side of equal; everything else is noise.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from bench_lib import results
from bench_lib.cases import SETS
from bench_lib.contenders import OURS, chosen
from bench_lib.harness import Harness
from bench_lib.machine import ROOT, environment

CONFIDENCE = 0.95
SMALLEST_EFFECT = 0.01
# Fewer rounds have no interval of that confidence: of 5 rounds, the extremes hold the median with 93.75 %.
LEAST_ROUNDS = 6
# Of one case, for each round: enough for every round to be made.
ROUND_SECONDS = 120.0


def run(options: argparse.Namespace, console: Console) -> None:
    """Compares the cases of the set, in the backends of ours that --against names."""
    names, _ = chosen([name for name in options.against.split(",") if name == "ours" or name in OURS], torch.device("cpu"))
    rounds = max(options.rounds, LEAST_ROUNDS)
    with TemporaryDirectory() as folder:
        head, base = build_head(Path(folder) / "head"), build_base(options.base, Path(folder) / "base")
        for threads in options.threads:
            variants = {f"{name} {side}": (name, path) for name in names for side, path in (("base", base), ("head", head))}
            about = {"suite": "base", "set": options.set, "base": options.base, "environment": environment(threads, clock=options.clock)}
            harness = Harness(threads, clock=options.clock, variants=variants)
            try:
                for case in SETS[options.set]:
                    rows = harness.measure(case, list(variants), rounds, rounds * ROUND_SECONDS)
                    found = {row["contender"]: row for row in rows}
                    for name in names:
                        sides = found[f"{name} base"], found[f"{name} head"]
                        failed = [row["failed"] for row in sides if "failed" in row]
                        said = "; ".join(failed) or str(verdict(*(row["seconds"] for row in sides)))
                        marks = "; ".join(row["disturbed"] for row in sides if row.get("disturbed"))
                        console.print(f"{case}, {threads} threads, {name}: {said}  {marks}")
                        results.append(options.out, ({**about, **row, "verdict": said} for row in sides))
            finally:
                harness.close()


@dataclass(frozen=True)
class Verdict:
    """What two revisions' paired times say.  ratio: of this tree's time to the base's, median; low, high: its interval."""

    word: str
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.word}: {self.ratio:.3f} of the base's time, {CONFIDENCE:.0%} interval {self.low:.3f} to {self.high:.3f}"


def verdict(base: Sequence[float], head: Sequence[float]) -> Verdict:
    """Returns faster, slower or noise, from the times of as many rounds of both.  Raises ValueError for under LEAST_ROUNDS rounds."""
    if len(base) != len(head) or len(base) < LEAST_ROUNDS:
        raise ValueError(f"{len(base)} and {len(head)} rounds: both need the same number, at least {LEAST_ROUNDS}")
    ratios = sorted(ours / theirs for ours, theirs in zip(head, base))
    cut = outside(len(ratios))
    low, high = ratios[cut], ratios[-1 - cut]
    word = "faster" if high < 1 - SMALLEST_EFFECT else "slower" if low > 1 + SMALLEST_EFFECT else "noise"
    return Verdict(word, statistics.median(ratios), low, high)


def outside(rounds: int) -> int:
    """Returns how many of the sorted ratios to leave out at each end, so that what remains holds the median with CONFIDENCE."""
    # the median lies below the k-th smallest of n values where at most k - 1 of n coin tosses are heads
    cut, tail = 0, 0.5**rounds
    while 2 * (tail + math.comb(rounds, cut + 1) * 0.5**rounds) <= 1 - CONFIDENCE:
        cut += 1
        tail += math.comb(rounds, cut) * 0.5**rounds
    return cut


def build_head(folder: Path) -> Path:
    """Builds the packages of this tree as it is now, uncommitted edits included."""
    return _install(ROOT, folder)


def build_base(revision: str, folder: Path) -> Path:
    """Builds the packages of a revision, from a git worktree that is gone afterwards.  Raises ValueError for an unknown revision."""
    tree = folder.with_name(folder.name + "-tree")
    done = subprocess.run(["git", "worktree", "add", "--detach", str(tree), revision], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"--base {revision}: {done.stderr.strip().splitlines()[-1]}")
    try:
        return _install(tree, folder)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True, capture_output=True)


def _install(tree: Path, folder: Path) -> Path:
    """Lays a tree's packages out as setup.py maps them and compiles the engine there."""
    nothing_built = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(tree / "encodec_fast", folder / "encodec_fast", ignore=nothing_built)
    shutil.copytree(tree / "kernels", folder / "encodec_fast" / "kernels", ignore=nothing_built)
    subprocess.run([sys.executable, str(folder / "encodec_fast" / "kernels" / "cpu" / "build.py")], check=True, capture_output=True)
    return folder
