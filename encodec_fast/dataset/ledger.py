"""What a run's folder knows about itself, beside the shards, in `_encodec_fast/`:

    run.json                  what makes the codes: weights, bandwidth, options. A run with others is refused.
    schedule-NNN.arrow        the batches; a later one holds clips that were added, or are tried again
    ledger-I-of-N.jsonl       a line per shard on the disk: its file, its batches, the clips of them that failed
    lock, writer-I-of-N.lock  held while a process plans, or writes

A line is on the disk before the next shard is begun, and after its shard is. So whatever ends a process, a batch is either in a line
and in a shard, or in neither and done again: into the same file name, for a shard is named after its first batch.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from encodec_fast.corpus.sources import unique_ids
from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset.schedule import Schedule, write_schedule
from encodec_fast.formats import ClipFailure
from encodec_fast.formats.atomic import TEMPORARY_SUFFIX, sync_folder, write_atomically
from encodec_fast.formats.folder import SHARD_PATTERN, shard_paths
from encodec_fast.formats.npy import read_manifest
from encodec_fast.formats.parquet import ERRORS_FILE, write_errors

FOLDER = "_encodec_fast"


class LedgerError(ValueError):
    """A run that can't begin, or go on, in this folder; the message says why and what to do."""


@dataclass
class Record:
    """A line of the ledger. file: the shard, or None if no clip of the batches has codes. seconds: of audio.

    busy: that the encoder worked for it. paces: (Unix time, seconds of audio finished since the one before), every few seconds.
    verified: counts of the comparison with HF, if any.
    """

    file: str | None
    batches: list[int]
    clips: int = 0
    seconds: float = 0.0
    failures: list[ClipFailure] = field(default_factory=list)
    busy: float = 0.0
    paces: list[tuple[float, float]] = field(default_factory=list)
    verified: dict[str, Any] | None = None

    def to_json(self) -> str:
        failures = [[failure.id, failure.path, failure.reason] for failure in self.failures]
        return json.dumps({**asdict(self), "batches": _runs(self.batches), "failures": failures}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        stored = json.loads(line)
        batches = [batch for first, end, step in stored.pop("batches") for batch in range(first, end, step)]
        failures = [ClipFailure(*failure) for failure in stored.pop("failures")]
        return cls(batches=batches, failures=failures, **stored)


def _runs(numbers: list[int]) -> list[tuple[int, int, int]]:
    """Increasing numbers as few (first, end, step): a writer takes every n-th batch."""
    runs: list[tuple[int, int, int]] = []
    for number in numbers:
        if runs:
            first, end, step = runs[-1]
            if end - first == 1:
                runs[-1] = (first, number + 1, number - first)
                continue
            if number == end - 1 + step:
                runs[-1] = (first, number + 1, step)
                continue
        runs.append((number, number + 1, 1))
    return runs


class Ledger:
    """The ledger of a run's folder, for writer `index` of `count`."""

    def __init__(self, out: str | os.PathLike[str], index: int = 0, count: int = 1):
        if not 0 <= index < count:
            raise ValueError(f"shard is {index}/{count}; allowed are 0/{count} ... {count - 1}/{count}.")
        self.out = Path(out)
        self.folder = self.out / FOLDER
        self.index, self.count = index, count
        self._log: IO[bytes] | None = None

    # Who may write

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Only one process at a time is in here; the others wait."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        with _locked(self.folder / "lock", wait=True):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the right to write this writer's batches, after removing what a killed one left of them.

        Raises LedgerError if another process has it, or if processes are at work that split the batches otherwise.
        """
        path = self.folder / f"writer-{self.index}-of-{self.count}.lock"
        with ExitStack() as held:
            with self.planning():
                others = self.active_writers()
                for other in others:
                    if other == path.name or not other.endswith(f"-of-{self.count}.lock"):
                        holder = (self.folder / other).read_text(errors="replace")
                        raise LedgerError(f"{self.out} is being written by {holder}; wait for it, or choose another folder.")
                lock = held.enter_context(_locked(path))
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()} (shard {self.index}/{self.count})".encode())
                lock.flush()
                self._remove_leftovers(alone=not others)
                self._log = held.enter_context(self._open_log())
            try:
                yield
            finally:
                self._log = None

    def active_writers(self) -> list[str]:
        """Names of the locks that processes hold."""
        active = []
        for path in sorted(self.folder.glob("writer-*.lock")):
            try:
                with _locked(path):
                    pass
            except BlockingIOError:
                active.append(path.name)
        return active

    def _remove_leftovers(self, alone: bool) -> None:
        """Shards that no line vouches for, and temporary files: all, or those of this writer if others are at work."""
        vouched = {record.file for record in self.records()}
        for path in [*self.out.glob(SHARD_PATTERN), *self.out.glob(f".{SHARD_PATTERN}{TEMPORARY_SUFFIX}")]:
            number = path.name.lstrip(".").removeprefix("part-").partition(".")[0]
            mine = number.isdigit() and (alone or int(number) % self.count == self.index)
            if mine and path.name not in vouched:
                path.unlink()

    def _open_log(self) -> IO[bytes]:
        path = self.folder / f"ledger-{self.index}-of-{self.count}.jsonl"
        log = path.open("ab+")
        # a line that a power cut or a full disk left unfinished counts for nothing
        log.seek(0)
        log.truncate(log.read().rfind(b"\n") + 1)
        log.seek(0, os.SEEK_END)
        sync_folder(self.folder)
        return log

    # What makes the codes

    def identify(self, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        """Compares what makes the codes with what made those that are there; to be called while planning.

        Raises LedgerError that names each difference. overwrite: removes what is there instead.
        """
        path = self.folder / "run.json"
        # as it comes back from there: a tuple is a list then
        identity = json.loads(json.dumps(dict(identity)))
        if overwrite:
            self._remove_run()
        if path.exists():
            stored = json.loads(path.read_bytes())
            changed = [name for name in {**stored, **identity} if stored.get(name) != identity.get(name)]
            if changed:
                differences = "; ".join(f"{name} was {stored.get(name)!r}, is {identity.get(name)!r}" for name in changed)
                raise LedgerError(f"{self.out} holds codes made otherwise: {differences}. Choose another folder or add --overwrite.")
        elif shards := shard_paths(self.out):
            raise LedgerError(f"{self.out} holds {len(shards)} shards and no ledger of them; choose another folder or add --overwrite.")
        else:
            write_atomically(path, json.dumps(identity, indent=1, ensure_ascii=False).encode())

    def _remove_run(self) -> None:
        """Removes what a run wrote, in an order that leaves, wherever it ends, a run with nothing, or its first schedules, done."""
        if self.active_writers():
            raise LedgerError(f"{self.out} is being written by another process; wait for it, or choose another folder.")
        for path in self.folder.glob("ledger-*.jsonl"):
            path.unlink()
        # a line that a power cut brought back would vouch for a shard that is gone
        sync_folder(self.folder)
        for path in reversed(self._schedule_paths()):
            path.unlink()
        for path in shard_paths(self.out):
            if path.suffix == ".jsonl":
                for record in read_manifest(path):
                    (self.out / record["npy"]).unlink(missing_ok=True)
            path.unlink()
        for name in (ERRORS_FILE, "report.html", "info.json"):
            (self.out / name).unlink(missing_ok=True)
        sync_folder(self.out)
        # shards without it would be somebody else's
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "run.json"):
            if path.name != "lock":
                path.unlink()

    # What is to be done

    def schedules(self) -> list[Schedule]:
        """The schedules in the order they were made."""
        return [Schedule(path) for path in self._schedule_paths()]

    def _schedule_paths(self) -> list[Path]:
        return sorted(self.folder.glob("schedule-*.arrow"), key=_schedule_number)

    def add_schedule(self, tasks: Sequence[Task], batch_seconds: float, audio_column: str) -> None:
        """Schedules the tasks behind what is there; to be called while planning."""
        number = max((_schedule_number(path) + 1 for path in self._schedule_paths()), default=0)
        first_batch = max((schedule.end_batch for schedule in self.schedules()), default=0)
        write_schedule(self.folder / f"schedule-{number:03d}.arrow", tasks, batch_seconds, first_batch, audio_column)

    def new_tasks(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of the tasks that no schedule holds; an id that is taken gets ~2, ~3, ... after it."""
        keys, ids, problems = set(), set(), set()
        for schedule in self.schedules():
            for task in schedule.tasks():
                keys.add(task.key)
                ids.add(task.id)
                # a bad line of a manifest may be there without its number, which its problem names too
                problems.add((task.path, task.problem) if task.problem else None)
        return unique_ids([task for task in tasks if task.key not in keys and (task.path, task.problem) not in problems], ids)

    def failed_tasks(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of the clips that failed, and wait for no other attempt, to be tried again from the start. tasks: of the sources.

        What the sources don't hold any more, or hold with a problem, is no audio to be tried.
        """
        schedules, undone = self.schedules(), self.undone()
        failed = {failure.id for failure in self.failures()}
        # another attempt is to come: of a process that was killed, or of one that planned just before this one
        for schedule in schedules[1:]:
            for batch in undone[(undone >= schedule.first_batch) & (undone < schedule.end_batch)]:
                failed -= {task.id for task in schedule.tasks(int(batch))}
        known = {task.id: task for schedule in schedules for task in schedule.tasks() if task.id in failed}
        there = {task.key for task in tasks if task.problem is None} if known else set()
        return [replace(task, problem=None, seconds=task.duration or 0.0) for task in known.values() if task.key in there]

    # What is done

    def records(self) -> list[Record]:
        """Every line of every writer, in the order of their batches."""
        records = []
        for path in self.folder.glob("ledger-*.jsonl"):
            lines = path.read_bytes().split(b"\n")
            records += [Record.from_json(line.decode()) for line in lines[:-1]]
        return sorted(records, key=lambda record: record.batches[0])

    def undone(self) -> np.ndarray:
        """Numbers of the batches that no line holds, int64, increasing."""
        schedules = self.schedules()
        undone = np.ones(schedules[-1].end_batch if schedules else 0, bool)
        for record in self.records():
            undone[record.batches] = False
        return np.flatnonzero(undone)

    def failures(self) -> list[ClipFailure]:
        """The clips that have no codes after their last attempt, by id."""
        schedules, records = self.schedules(), self.records()
        own = [{failure.id: failure for failure in record.failures} for record in records]
        failed = {id: failure for failures in own for id, failure in failures.items()}
        # by batch and not by record: the batches of one may be of several schedules
        done = {batch: failures for record, failures in zip(records, own, strict=True) for batch in record.batches}
        # of the first one each clip is at its first attempt
        for schedule in schedules[1:] if failed else []:
            for batch in range(schedule.first_batch, schedule.end_batch):
                for task in schedule.tasks(batch) if batch in done else ():
                    if task.id not in failed:
                        continue
                    if task.id in done[batch]:
                        failed[task.id] = done[batch][task.id]
                    else:
                        del failed[task.id]
        return [failed[id] for id in sorted(failed)]

    def write_errors(self) -> Path | None:
        """The errors table, brought up to date for all writers."""
        with self.planning():
            return write_errors(self.out, self.failures())

    def append(self, record: Record) -> None:
        """Puts a line on the disk."""
        assert self._log is not None
        self._log.write(record.to_json().encode() + b"\n")
        self._log.flush()
        os.fsync(self._log.fileno())


def _schedule_number(path: Path) -> int:
    # names sort as text: 1000 before 101
    return int(path.stem.removeprefix("schedule-"))


@contextmanager
def _locked(path: Path, wait: bool = False) -> Iterator[IO[bytes]]:
    """The file, open, with a lock that ends with the process however it ends. Raises BlockingIOError if another has it."""
    try:
        import fcntl
    except ImportError:  # Windows: the file can't be locked, so that nobody is kept out
        fcntl = None  # type: ignore[assignment]
    with path.open("ab+") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file
