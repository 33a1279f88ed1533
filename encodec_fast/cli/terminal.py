"""What the command line prints: lines, progress, the list of failed clips."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from encodec_fast.wording import counted, time_text

if TYPE_CHECKING:
    from typing_extensions import Self

    from encodec_fast.dataset.run import Summary
    from encodec_fast.formats import ClipFailure

FAILURES_SHOWN = 20
# Columns that the bar itself takes at least
LEAST_BAR = 12
# Plain output, for logs: a line at most this often
SECONDS_BETWEEN_LINES = 10.0


def console() -> Console:
    """Returns standard output as it is now; made anew each time because tests and callers replace sys.stdout."""
    return Console(highlight=False)


def say(text: str) -> None:
    """Prints a line on standard output, never wrapped or coloured: it may hold a path that somebody copies."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Prints a line on standard error."""
    print(text, file=sys.stderr, flush=True)


class _Live:
    """A bar in a terminal; elsewhere a plain line from time to time."""

    def __init__(self, *columns: ProgressColumn, **task: Any):
        out = console()
        self._width = out.width - LEAST_BAR
        self._started = self._last_line = time.perf_counter()
        self._plain = not out.is_terminal
        self._bar = Progress(BarColumn(bar_width=None), *columns, console=out, transient=True, disable=self._plain)
        self._task = self._bar.add_task("", **task)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _line_is_due(self) -> bool:
        """Tells whether it is time for a plain line; the next one is then SECONDS_BETWEEN_LINES away."""
        now = time.perf_counter()
        due = self._plain and now - self._last_line >= SECONDS_BETWEEN_LINES
        self._last_line = now if due else self._last_line
        return due


class ProgressBar(_Live):
    """A count of things: how many of how many."""

    def __init__(self, total: int, things: str = "clips"):
        self._total, self._things = total, things
        columns = (MofNCompleteColumn(), TextColumn(f"{things}{{task.fields[note]}}  left"), TimeRemainingColumn())
        super().__init__(*columns, total=total, note="")

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Shows the state.  done: so far, failed ones included.  total: where it turns out to be another.  note: how it goes."""
        self._total = self._total if total is None else total
        note = f", {note}" if note else ""
        self._bar.update(self._task, completed=done, total=self._total, note=note)
        if done < self._total and self._line_is_due():
            left = (time.perf_counter() - self._started) / max(done, 1) * (self._total - done)
            say(f"{done}/{self._total} {self._things}{note}, about {left:.0f} s left")


class RunProgress(_Live):
    """A run of `tokenize`: clips, hours, x real time, errors, both rates, time left by audio."""

    def __init__(self) -> None:
        super().__init__(TextColumn("{task.fields[text]}"), total=None, text="")

    def update(self, summary: Summary) -> None:
        """Shows the run as it is now."""
        text = short_line(summary, self._width)
        self._bar.update(self._task, completed=summary.seconds, total=summary.planned_seconds or None, text=text)
        if self._line_is_due():
            say(progress_line(summary))


def seconds_left(summary: Summary) -> float | None:
    """Returns the time a run has yet to take, by its audio; None where that is not known."""
    if not summary.times_real_time or not summary.planned_seconds:
        return None
    return max(0.0, summary.planned_seconds - summary.seconds) / summary.times_real_time


def _hours_done(summary: Summary) -> str:
    """Returns `0.12/0.42 h`, or `0.12 h` where the whole is not known."""
    planned = f"/{summary.planned_seconds / 3600:.2f}" if summary.planned_seconds else ""
    return f"{summary.seconds / 3600:.2f}{planned} h"


def short_line(summary: Summary, width: int) -> str:
    """Returns how a run goes in at most `width` columns: the time left first, then what else has room."""
    left, errors = seconds_left(summary), len(summary.failures)
    parts = [
        f"{time_text(left)} left" if left is not None else "",
        counted(errors, "error") if errors else "",
        f"{summary.times_real_time:.0f} x real time",
        _hours_done(summary),
        f"{summary.clips + errors}/{summary.planned_clips} clips",
    ]
    line = ""
    for part in filter(None, parts):
        longer = f"{line} · {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


def progress_line(summary: Summary) -> str:
    """Returns `120/568 clips, 0.12/0.42 h, 95.1 x real time (encoder 97, readers 2400), 1 error, about 12 s left`."""
    errors, left = len(summary.failures), seconds_left(summary)
    rates = f" (encoder {summary.encoding:.0f}, readers {summary.reading:.0f})" if summary.busy else ""
    return (
        f"{summary.clips + errors}/{summary.planned_clips} clips, {_hours_done(summary)}, "
        f"{summary.times_real_time:.1f} x real time{rates}, {counted(errors, 'error')}"
        + ("" if left is None else f", about {time_text(left)} left")
    )


def left_out_line(left_out: Mapping[str, int]) -> str:
    """Returns the line about files of the source folders that are no audio by their names: how many, of which suffixes."""
    most = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{count} {suffix or 'without a suffix'}" for suffix, count in most[:4]]
    rest = sum(count for _, count in most[4:])
    named = ", ".join([*kinds, *([f"{rest} others"] if rest else [])])
    return f"left out: {counted(sum(left_out.values()), 'file')}, no audio by their names ({named})"


def summary_lines(summary: Summary, failures: int) -> Iterator[str]:
    """Yields lines about what a run did.  failures: of all runs into that folder."""
    if summary.clips or summary.failures or not summary.done_before:
        yield speed_line(summary)
    else:
        yield "everything is up to date"
    if summary.clips:
        waited = 100 * summary.waited / summary.wall_seconds if summary.wall_seconds else 0.0
        yield f"encoder {summary.encoding:.1f} x real time, readers {summary.reading:.0f}; the encoder waited {waited:.1f} % of the time"
    if summary.done_before:
        failed_before = failures > len(summary.failures)
        yield f"done{' or failed' * failed_before} before: {counted(summary.done_before, 'clip')}"
    if summary.left:
        yield f"left to other shards: {counted(summary.left, 'clip')}"
    if summary.left_out:
        yield left_out_line(summary.left_out)
    if failures:
        yield f"without codes: {counted(failures, 'clip')}, listed in .encodec_fast/errors.jsonl; --retry-failed tries again"
    if summary.verified is not None:
        counts = summary.verified
        verdict = "the same codec" if not counts["failed"] and not counts["changed"] else "NOT the same codec"
        yield (
            f"verified {counted(counts['clips'], 'clip')}, {counts['codes']} codes: {counts['flips']} frames differ from transformers "
            f"(its own float32 from float64: {counts['reference_flips']}), largest margin {counts['worst_margin']:.2f} of its bound, "
            f"{counts['changed']} stored frames differ from the clip alone: {verdict}"
        )


def shown(text: str) -> str:
    """Returns the text without what a terminal would obey: ids and file names come from data."""
    return "".join(char if char.isprintable() or char == " " else char.encode("unicode_escape").decode() for char in text)


def report_failures(failures: Sequence[ClipFailure]) -> None:
    """Prints the clips without a result and why, on standard error."""
    complain(f"{len(failures)} of the clips failed:")
    for failure in failures[:FAILURES_SHOWN]:
        complain(f"  {shown(failure.id)}: {shown(failure.reason)}")
    if len(failures) > FAILURES_SHOWN:
        complain(f"  and {len(failures) - FAILURES_SHOWN} more.")


def speed_line(summary: Summary) -> str:
    return (
        f"{counted(summary.clips, 'clip')}, {summary.seconds:.1f} s of audio in {summary.wall_seconds:.1f} s: "
        f"{summary.times_real_time:.1f} x real time"
    )
