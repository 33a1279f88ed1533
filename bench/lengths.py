"""The suite `memory`: time and peak memory of one clip against its length, up to an hour.

Each contender stops at the length for which this machine has no memory; the row says what it would need. The answer of a long clip
is compared with that of transformers on as much of the clip's beginning as transformers can take: the 24 kHz model is causal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cases import Case, stock_bytes, weights_file
from harness import HUNGRY, ContenderFailed, Process, Row, WrongAnswer, check, disturbance, room

LENGTHS = {"quick": (1, 2), "readme": (1, 10, 60, 300, 3600), "full": (1, 10, 60, 300, 600, 1800, 3600)}
BANDWIDTH = 6
# Of a decoded beginning, what the frames after it would have changed.
TAIL_SAMPLES = 640


def measure(names: list[str], calls: list[str], lengths: tuple[int, ...], threads: int, clock: str) -> Iterator[Row]:
    """One row per contender, call and length."""
    weights_file("demo")
    with TemporaryDirectory() as scratch:
        for call in calls:
            cases = [Case("demo", call, 1, seconds, BANDWIDTH) for seconds in lengths]
            fits = [case for case in cases if case.seconds <= 60 and stock_bytes(case) < room()]
            longest = fits[-1]
            reference = Process("hf", "hf", threads, "cpu")
            expected_path = Path(scratch) / "expected.pt"
            reference.ask(do="answer_in_pieces", case=longest.fields(), clips=1, path=str(expected_path))
            reference.close()
            for name in names:
                expected = torch.load(expected_path)
                yield from _contender_rows(name, cases, expected, longest, threads, clock, Path(scratch) / "answer.pt")


def _contender_rows(
    name: str, cases: list[Case], expected: torch.Tensor, longest: Case, threads: int, clock: str, path: Path
) -> Iterator[Row]:
    for case in cases:
        needed = stock_bytes(case)
        if name in HUNGRY and needed > room():
            reason = f"not run: it needs about {needed / 2**30:.0f} GiB of memory"
            yield {"case": case.fields(), "contender": name, "failed": reason}
            continue
        # a process of its own: what the allocator kept of a shorter clip would hide part of the peak
        process = Process(name, name, threads, "cpu", clock)
        try:
            reply = process.ask(do="once", case=case.fields(), path=str(path))
            found = check(case, *beginnings(case, torch.load(path), expected))
        except (ContenderFailed, WrongAnswer) as error:
            yield {"case": case.fields(), "contender": name, "failed": str(error)}
            continue
        finally:
            process.close()
        others = max(0.0, reply["busy_seconds"] - reply["cpu_seconds"]) / (reply["wall_seconds"] * (os.cpu_count() or 1))
        yield {
            "case": case.fields(),
            "contender": name,
            "seconds": [reply["seconds"]],
            "median": reply["seconds"],
            "x_real_time": case.seconds / reply["seconds"],
            "peak_bytes": reply["peak_bytes"],
            "check": {**found, "checked_seconds": min(case.seconds, longest.seconds)},
            "others_share": others,
            "disturbed": disturbance(others if clock == "wall" else 0.0, [1.0]),
        }


def beginnings(case: Case, answer: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both answers, cut to the part in which they must agree."""
    shorter = min(answer.shape[-1], expected.shape[-1])
    if answer.shape[-1] != expected.shape[-1] and case.call == "decode":
        shorter -= TAIL_SAMPLES
    return answer[..., :shorter], expected[..., :shorter]
