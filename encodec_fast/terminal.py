"""What the command line prints: lines, a progress bar, the list of failed clips."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from encodec_fast.dataset import Summary
    from encodec_fast.formats import ClipFailure

FAILURES_SHOWN = 20
# Plain output, for logs: a line at most this often
SECONDS_BETWEEN_LINES = 10.0


def console() -> Console:
    """Standard output as it is now; made anew each time because tests and callers replace sys.stdout."""
    return Console(highlight=False)


def say(text: str) -> None:
    """A line on standard output, never wrapped or coloured: it may hold a path that somebody copies."""
    print(text, flush=True)


def complain(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


class ProgressBar:
    """Clips, times real time and time left: a bar in a terminal, else a plain line now and then."""

    def __init__(self, total: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._total = total
        self._last_line = time.perf_counter()
        out = console()
        self._bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("clips  {task.fields[speed]:>6.1f} x real time  left"),
            TimeRemainingColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._plain = not out.is_terminal
        self._task = self._bar.add_task("", total=total, speed=0.0)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, speed: float, wall_seconds: float) -> None:
        """done: clips so far, failed ones included."""
        self._bar.update(self._task, completed=done, speed=speed)
        now = time.perf_counter()
        if self._plain and done < self._total and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = wall_seconds / max(done, 1) * (self._total - done)
            say(f"{done}/{self._total} clips, {speed:.1f} x real time, about {left:.0f} s left")


def report_failures(failures: Sequence[ClipFailure]) -> None:
    """The clips without a result and why, on standard error."""
    complain(f"{len(failures)} of the clips failed:")
    for failure in failures[:FAILURES_SHOWN]:
        complain(f"  {failure.id}: {failure.reason}")
    if len(failures) > FAILURES_SHOWN:
        complain(f"  and {len(failures) - FAILURES_SHOWN} more.")


def speed_line(summary: Summary) -> str:
    return (
        f"{summary.clips} clips, {summary.seconds:.1f} s of audio in {summary.wall_seconds:.1f} s: "
        f"{summary.times_real_time:.1f} x real time"
    )
