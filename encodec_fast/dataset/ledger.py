"""What a run's folder knows about itself, beside the shards, in `.encodec_fast/`:

    run.json                  what makes the codes: weights, bandwidth, options. A run with others is refused. And which run it is, and
                              which columns of the sources its rows have
    schedule-NNN-CRC.arrow    the batches; a later one holds clips that were added, or are tried again
    ledger-I-of-N.jsonl       a line per shard on the disk: its file, its batches, the clips of them that failed
    begun/                    the name of each shard that is begun and that no line vouches for yet
    errors.jsonl              the clips without codes, for people
    set-aside/                shards that had no line, or a damaged one, and were made again
    removal.jsonl             what an --overwrite is removing
    lock, writer-I-of-N.lock  held while a process plans, or writes

A line is on the disk after its shard, and before the next shard is begun. So whatever ends a process, a batch is in a line and in a
shard, or in neither. Then it is done again, into the same file name: a shard is named after its first batch. A line that is damaged,
or whose shard is gone or cut, counts for nothing.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from encodec_fast.corpus.sources import OLD_RUN_FOLDER, RUN_FOLDER, run_folder, unique_ids
from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset.failures import OLD_FAILURES_FILE, is_old_table, write_failures
from encodec_fast.dataset.ownership import OLD_REPORT_FILE, REPORT_FILE, ForeignFile, OwnFiles, own_files, side_folders
from encodec_fast.dataset.records import Line, Record, checked_line, read_lines, void_line
from encodec_fast.dataset.schedule import MAX_BATCH_CLIPS, Schedule, is_sound, write_schedule
from encodec_fast.formats import ClipFailure
from encodec_fast.formats.atomic import locked, sync_folder, write_atomically
from encodec_fast.formats.folder import is_shard_name, shard_paths, shard_problem, shard_problem_inside

logger = logging.getLogger("encodec_fast")

FOLDER = RUN_FOLDER
_RESTORE = "Restore it, or choose another folder, or begin anew with --overwrite."
# In run.json, beside what makes the codes: which run it is; the columns of its rows; by earlier versions, whether its codes are packed.
_RUN, _COLUMNS, _PACKED = "run", "columns", "packed"


class LedgerError(ValueError):
    """A run that can't begin, or go on, in this folder; the message says why and what to do."""


class Ledger:
    """The ledger of a run's folder, for writer `index` of `count`.  run: which run it is to be; None: the one that is there."""

    def __init__(self, out: str | os.PathLike[str], index: int = 0, count: int = 1, run: str | None = None):
        if not 0 <= index < count:
            raise ValueError(f"shard is {index}/{count}; allowed are 0/{count} ... {count - 1}/{count}.")
        self.out = Path(out)
        self.folder = run_folder(self.out)
        self.index, self.count = index, count
        # which run it is: a run that another one replaced meanwhile must not write
        self.run = run
        # name to type: of the rows' columns that come from the sources; known once the run is identified
        self.columns: dict[str, str] = {}
        self.own = OwnFiles(self.out, self.folder)
        self._log: IO[bytes] | None = None
        # whose bytes were looked at
        self._sound_schedules: set[Path] = set()

    # Who may write

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Keeps other processes waiting while this one plans."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._adopt_older()
        if self.folder.is_symlink():
            raise LedgerError(f"{self.folder} is a link; a run writes and removes files in its own folder only. Choose another folder.")
        self.folder.mkdir(exist_ok=True)
        with locked(self.folder / "lock", wait=True):
            yield

    def _adopt_older(self) -> None:
        """Takes over the folder of a run by an earlier version, whose files readers took for codes.

        Raises LedgerError while a process of that version is at work.
        """
        if self.folder.name != OLD_RUN_FOLDER:
            return
        if run_folder(self.out) == self.folder:
            with locked(self.folder / "lock", wait=True):
                # another process may have done it meanwhile
                if run_folder(self.out) == self.folder:
                    self._rename_older()
        self.folder = self.out / FOLDER
        self.own = OwnFiles(self.out, self.folder)

    def _rename_older(self) -> None:
        if others := self.active_writers():
            holder = (self.folder / others[0]).read_text(errors="replace")
            raise LedgerError(f"{self.out} is being written by {holder}, of an earlier version; wait for it, or choose another folder.")
        table, report = self.out / OLD_FAILURES_FILE, self.out / OLD_REPORT_FILE
        if is_old_table(table):
            table.unlink()
        if report.is_file() and not os.path.lexists(self.out / REPORT_FILE):
            report.rename(self.out / REPORT_FILE)
        self.folder.rename(self.out / FOLDER)
        sync_folder(self.out)
        logger.warning("%s was written by an earlier version: its ledger is now in %s", self.out, self.out / FOLDER)

    @contextmanager
    def writing(self, check: bool = False) -> Iterator[None]:
        """Holds the right to write this writer's batches, after removing what a killed one left of them.

        Looks at what its lines vouch for: a shard that is gone, cut or of another size is made again.  check: reads all of it.
        Raises LedgerError if another process has it, or if processes are at work that split the batches otherwise. Also if another run
        has taken the folder since this one planned.
        """
        path = self.folder / f"writer-{self.index}-of-{self.count}.lock"
        with ExitStack() as held:
            with self.planning():
                self.own.finish_removal()
                self._check_run()
                others = self.active_writers()
                for other in others:
                    if other == path.name or not other.endswith(f"-of-{self.count}.lock"):
                        holder = (self.folder / other).read_text(errors="replace")
                        raise LedgerError(f"{self.out} is being written by {holder}; wait for it, or choose another folder.")
                lock = held.enter_context(locked(path))
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()} (shard {self.index}/{self.count})".encode())
                lock.flush()
                self._log = held.enter_context(self._open_log())
                self._drop_unsound(thoroughly=check)
                self._remove_leftovers(alone=not others)
            try:
                yield
            finally:
                self._log = None

    def active_writers(self) -> list[str]:
        """Returns the names of the locks that processes hold."""
        active = []
        for path in sorted(self.folder.glob("writer-*.lock")):
            try:
                with locked(path):
                    pass
            except BlockingIOError:
                active.append(path.name)
        return active

    def _check_run(self) -> None:
        path = self.folder / "run.json"
        there = json.loads(path.read_bytes()).get(_RUN) if path.exists() else None
        if self.run is not None and there != self.run:
            raise LedgerError(f"{self.out} was taken by another run, with --overwrite, since this one began; start it again.")

    def _is_mine(self, number: int, alone: bool) -> bool:
        return alone or number % self.count == self.index

    def _drop_unsound(self, thoroughly: bool) -> None:
        """Voids the lines whose shards are not what they vouch for; names a damaged line, which vouches for nothing."""
        for path in self._ledger_paths():
            for number in read_lines(path)[1]:
                logger.warning("%s: line %d is damaged and counts for nothing; its batches are done again", path, number)
        for line in self._sound_lines():
            record = line.record
            assert record is not None
            if record.file is None:
                continue
            path = self.out / record.file
            problem = shard_problem(path, record.clips, record.size)
            if problem is None and thoroughly:
                problem = shard_problem_inside(path, record.clips, record.file_crc32)
            if problem is None:
                continue
            logger.warning("%s; its clips are done again", problem)
            # marked before its line counts no more: whatever ends this process, the name stays one of ours
            if os.path.lexists(path):
                self.own.claim(record.file)
            self._write(void_line(line.crc, problem))

    def _remove_leftovers(self, alone: bool) -> None:
        """Removes shards that were begun and that no line vouches for, and temporary files: all, or this writer's if others are at work.

        Raises LedgerError for shards that nobody named, unless they are what this run is to make again: those are set aside.
        """
        vouched = {record.file for record in self.records()}
        begun = self.own.begun()
        for name in begun:
            if self._is_mine(_number(name), alone):
                if name not in vouched:
                    self.own.remove(name)
                self.own.settle(name)
        if alone:
            self.own.remove_temporaries()
            self._settle_strangers([path for path in shard_paths(self.out) if path.name not in vouched])

    def _settle_strangers(self, shards: Sequence[Path]) -> None:
        if not shards:
            return
        undone = set(self.undone().tolist())
        # its line was lost, or a version that marked nothing was killed: the run is about to give it the same name again
        lost = [path for path in shards if is_shard_name(path.name) and _number(path.name) in undone and self.own.made(path)]
        if len(lost) < len(shards):
            names = ", ".join(path.name for path in shards if path not in lost)
            raise LedgerError(
                f"{self.out}: {names}: this run did not make them, and they would be read as its codes; move them to another folder."
            )
        for path in lost:
            logger.warning("%s has no line in the ledger; it is made again, and kept as %s", path, self.own.set_aside(path))

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

    def identify(self, identity: Mapping[str, Any], overwrite: bool = False, columns: Mapping[str, str] | None = None) -> None:
        """Compares what makes the codes with what made those that are there; to be called while planning.

        overwrite: removes what is there instead.  columns: of the rows, name to type, where nothing is there; else `columns` is set to
        those that are. Raises LedgerError that names each difference.
        """
        path = self.folder / "run.json"
        # as it comes back from there: a tuple is a list then
        identity = json.loads(json.dumps(dict(identity)))
        replaced = self.own.finish_removal()
        if overwrite and self.active_writers():
            raise LedgerError(f"{self.out} is being written by another process; wait for it, or choose another folder.")
        if overwrite and path.exists():
            self._remove_run()
            replaced = True
        if not path.exists():
            # where the run before had its codes, they are gone now, and what is left is the user's
            self._refuse_strangers([*own_files(identity), *([] if replaced else side_folders(identity))])
            self.run = secrets.token_hex(8)
            self.columns = dict(columns or {})
            self._write_run({**identity, _RUN: self.run, **({_COLUMNS: self.columns} if self.columns else {})})
            return
        try:
            stored = json.loads(path.read_bytes())
            self.run = stored.pop(_RUN, None)
            packed = stored.pop(_PACKED, False)
            self.columns = dict(stored.pop(_COLUMNS, {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise LedgerError(f"{path} is damaged ({error}); restore it, or choose another folder.") from error
        changed = [name for name in {**stored, **identity} if stored.get(name) != identity.get(name)]
        if packed:
            raise LedgerError(
                f"{self.out} holds packed codes of an earlier version. They can be read, but not added to: choose another folder, or "
                "begin anew with --overwrite."
            )
        if changed:
            differences = "; ".join(f"{name} was {stored.get(name)!r}, is {identity.get(name)!r}" for name in changed)
            raise LedgerError(f"{self.out} holds codes made otherwise: {differences}. Choose another folder or add --overwrite.")
        if self.run is None:
            # of an earlier version
            self.run = secrets.token_hex(8)
            self._write_run({**stored, _RUN: self.run})

    def _write_run(self, stored: Mapping[str, Any]) -> None:
        write_atomically(self.folder / "run.json", json.dumps(stored, indent=1, ensure_ascii=False).encode())

    def _refuse_strangers(self, names: Sequence[str]) -> None:
        """Raises LedgerError if the folder of a first run holds files that it would replace, or read as its codes."""
        if shards := shard_paths(self.out):
            raise LedgerError(f"{self.out} holds {len(shards)} shards and no ledger of them; choose another folder.")
        taken = [name for name in names if os.path.lexists(self.out / name)]
        if taken:
            raise LedgerError(f"{self.out} holds {', '.join(taken)}, which this run did not make and would replace; choose another folder.")

    def _remove_run(self) -> None:
        """Removes what a run wrote and nothing else; wherever it ends, the next process goes on with that."""
        named = {record.file for record in self.records() if record.file is not None}
        for name in self.own.begun():
            if name not in named:
                self.own.remove(name)
        self.own.begin_removal(named, own_files(json.loads((self.folder / "run.json").read_bytes())))
        self.own.finish_removal()

    # What is to be done

    def schedules(self) -> list[Schedule]:
        """Returns the schedules in the order they were made. Raises LedgerError where one is damaged or missing."""
        schedules = []
        end = 0
        for path in self._schedule_paths():
            if path not in self._sound_schedules and not is_sound(path):
                raise LedgerError(f"{path} is damaged: its bytes are not those that its name says. {_RESTORE}")
            self._sound_schedules.add(path)
            schedules.append(Schedule(path))
            if schedules[-1].first_batch != end:
                raise LedgerError(f"{self.folder}: the schedule before {path.name} is gone. {_RESTORE}")
            end = schedules[-1].end_batch
        return schedules

    def _schedule_paths(self) -> list[Path]:
        return sorted(self.folder.glob("schedule-*.arrow"), key=_schedule_number)

    def add_schedule(self, tasks: Sequence[Task], batch_seconds: float, most_clips: int = MAX_BATCH_CLIPS) -> None:
        """Schedules the tasks after what is there, in batches of so many seconds and clips; to be called while planning."""
        number = max((_schedule_number(path) + 1 for path in self._schedule_paths()), default=0)
        first_batch = max((schedule.end_batch for schedule in self.schedules()), default=0)
        # else the clips of the new one would count as done
        self._check_records(first_batch)
        write_schedule(self.folder / f"schedule-{number:03d}.arrow", tasks, batch_seconds, first_batch, most_clips)

    def new_tasks(self, tasks: Sequence[Task]) -> list[Task]:
        """Returns the tasks that no schedule holds; an id that is taken gets ~2, ~3, ... after it."""
        keys, ids, problems = set(), set(), set()
        for schedule in self.schedules():
            for task in schedule.tasks():
                keys.add(task.key)
                ids.add(task.id)
                # a bad line of a manifest may be there without its number, which its problem names too
                problems.add((task.path, task.problem) if task.problem else None)
        return unique_ids([task for task in tasks if task.key not in keys and (task.path, task.problem) not in problems], ids)

    def failed_tasks(self, tasks: Sequence[Task]) -> list[Task]:
        """Returns the tasks of the clips that failed and wait for no other attempt, to be tried again.  tasks: of the sources.

        A clip that the sources don't hold any more, or hold with a problem, is left out.
        """
        schedules, undone = self.schedules(), self.undone()
        failed = {failure.id for failure in self.failures()}
        # another attempt is to come: of a process that was killed, or of one that planned just before this one
        for schedule in schedules[1:]:
            for batch in undone[(undone >= schedule.first_batch) & (undone < schedule.end_batch)]:
                failed -= {task.id for task in schedule.tasks(int(batch))}
        known = {task.id: task for schedule in schedules for task in schedule.tasks() if task.id in failed}
        there = {task.key: task for task in tasks if task.problem is None} if known else {}
        return [
            replace(task, problem=None, seconds=task.duration or 0.0, group=there[task.key].group)
            for task in known.values()
            if task.key in there
        ]

    # What is done

    def records(self) -> list[Record]:
        """Returns every line of every writer that counts, in the order of their batches."""
        records = [line.record for line in self._sound_lines() if line.record is not None]
        return sorted(records, key=lambda record: record.batches[0])

    def _ledger_paths(self) -> list[Path]:
        return sorted(self.folder.glob("ledger-*.jsonl"))

    def _sound_lines(self) -> list[Line]:
        """Returns the lines that hold a record and that no other line voids."""
        lines = [line for path in self._ledger_paths() for line in read_lines(path)[0]]
        void = {line.void for line in lines}
        return [line for line in lines if line.record is not None and line.crc not in void]

    def undone(self) -> np.ndarray:
        """Returns the numbers of the batches that no line holds, int64, increasing."""
        schedules = self.schedules()
        undone = np.ones(schedules[-1].end_batch if schedules else 0, bool)
        for record in self._check_records(len(undone)):
            undone[record.batches] = False
        return np.flatnonzero(undone)

    def _check_records(self, end_batch: int) -> list[Record]:
        """Returns the records. Raises LedgerError if one is of a batch that no schedule holds."""
        records = self.records()
        if last := [batch for record in records for batch in record.batches if batch >= end_batch]:
            raise LedgerError(f"{self.folder}: the schedule of batch {last[0]}, which is done, is gone. {_RESTORE}")
        return records

    def failures(self) -> list[ClipFailure]:
        """Returns the clips that have no codes after their last attempt, by id."""
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

    def write_failures(self) -> Path | None:
        """Brings the list of failures up to date for all writers; returns its path, or None if no clip failed."""
        with self.planning():
            return write_failures(self.folder, self.failures())

    def begin(self, name: str) -> None:
        """Marks a shard, before it is begun and before it gets its name. Raises LedgerError if somebody else's file has the name."""
        try:
            self.own.begin(name)
        except ForeignFile as error:
            raise LedgerError(str(error)) from error

    def append(self, record: Record) -> None:
        """Puts a line on the disk: its shard is there."""
        self._write(checked_line(record.to_json()))
        if record.file is not None:
            self.own.settle(record.file)

    def _write(self, line: bytes) -> None:
        assert self._log is not None
        self._log.write(line)
        self._log.flush()
        os.fsync(self._log.fileno())


def _number(shard: str) -> int:
    """Returns the first batch of a shard, by its name."""
    return int(shard.removeprefix("part-").partition(".")[0])


def _schedule_number(path: Path) -> int:
    # names sort as text: 1000 before 101
    return int(path.stem.split("-")[1])
