"""This tree against another revision: both built with the same compiler, each in a process of its own, run in turn.

The statistic: the median over rounds of (time of this tree / time of the base), each round a pair of runs next to each other, with
the interval that holds the true median with 95 % probability whatever the distribution of the times (order statistics: of 9 rounds
the second smallest and second largest ratio, 96.1 %). Faster or slower is said where the whole interval lies more than 1 % to one
side of equal; everything else is noise.
"""

from __future__ import annotations

import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import ROOT

CONFIDENCE = 0.95
SMALLEST_EFFECT = 0.01
# Fewer rounds have no interval of that confidence: of 5 rounds, the extremes hold the median with 93.75 %.
LEAST_ROUNDS = 6


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
    """Faster, slower or noise, from the times of as many rounds of both.  Raises ValueError for under LEAST_ROUNDS rounds."""
    if len(base) != len(head) or len(base) < LEAST_ROUNDS:
        raise ValueError(f"{len(base)} and {len(head)} rounds: both need the same number, at least {LEAST_ROUNDS}")
    ratios = sorted(ours / theirs for ours, theirs in zip(head, base))
    cut = outside(len(ratios))
    low, high = ratios[cut], ratios[-1 - cut]
    word = "faster" if high < 1 - SMALLEST_EFFECT else "slower" if low > 1 + SMALLEST_EFFECT else "noise"
    return Verdict(word, statistics.median(ratios), low, high)


def outside(rounds: int) -> int:
    """How many of the sorted ratios to leave out at each end, so that what remains holds the median with CONFIDENCE."""
    # the median lies below the k-th smallest of n values where at most k - 1 of n coin tosses are heads
    cut, tail = 0, 0.5**rounds
    while 2 * (tail + math.comb(rounds, cut + 1) * 0.5**rounds) <= 1 - CONFIDENCE:
        cut += 1
        tail += math.comb(rounds, cut) * 0.5**rounds
    return cut


def build_head(folder: Path) -> Path:
    """The packages of this tree as it is now, uncommitted edits included."""
    return _install(ROOT, folder)


def build_base(revision: str, folder: Path) -> Path:
    """The packages of a revision, from a git worktree that is gone afterwards.  Raises ValueError for an unknown revision."""
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
