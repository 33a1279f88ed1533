"""The processes that read for this one: started here, asked, and started anew when a file ends them."""

from __future__ import annotations

import pickle
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from encodec_fast import processes
from encodec_fast.audio import AudioError
from encodec_fast.audio.files import added_protocols
from encodec_fast.corpus import worker
from encodec_fast.corpus.tables import DamagedTable, TableError
from encodec_fast.corpus.tasks import Task
from encodec_fast.corpus.worker import Block, Done, Failed, ListTable, ReadClip, ReadRow, Request, ScanTasks

# When reading ends, a process that takes longer than this to answer is killed: at a URL that stalls, for instance
ANSWER_SECONDS = 2.0
# Seconds that a part of a table may take
TABLE_TIMEOUT = 600.0


class ReadingProcess:
    """A process that runs corpus.worker; started anew when it has died, unless it was given up."""

    def __init__(self) -> None:
        self._popen = self._start()
        self.given_up = False

    def ask(self, request: Request) -> Iterator[Any]:
        """Yields what the request is answered by.

        Failed is the last answer: where it takes too long, where two processes die of it, or where one dies that answered in part.
        """
        started, reason = False, "the reader was closed"
        for _ in range(2):
            if self.given_up:
                break
            try:
                for reply in self._replies(request):
                    started = True
                    yield reply
                return
            except (EOFError, OSError, pickle.UnpicklingError):
                code = self._restart()
                if code == worker.TOOK_TOO_LONG:
                    option = " (clip_timeout)" if isinstance(request, ReadClip | ScanTasks) else ""
                    reason = f"reading it, or a block of it, took longer than {request.timeout:g} s{option}"
                    break
                reason = f"reading it ended the reading process ({processes.how_it_ended(code)})"
                if started:
                    break
        yield Failed(f"{reason}.")

    def _replies(self, request: Request) -> Iterator[Any]:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        worker.send(self._popen.stdin, request)
        while not isinstance(message := pickle.load(self._popen.stdout), Done):
            if not isinstance(message, Block):
                yield message
                continue
            samples = np.empty(message.shape, np.float32)
            if self._popen.stdout.readinto(samples.data.cast("B")) != samples.nbytes:  # type: ignore[attr-defined]
                raise EOFError
            yield message, samples

    def abandon(self) -> None:
        """Ends what it was asked for, whatever is left of it."""
        self._restart()

    def _restart(self) -> int:
        """Starts a new process in the place of this one, unless it was given up; returns the old one's exit code."""
        code = self.end()
        if not self.given_up:
            self._popen = self._start()
        return code

    def give_up(self) -> None:
        """Kills it, so that a thread that waits for it comes back; it is not started anew."""
        self.given_up = True
        self._popen.kill()

    def end(self) -> int:
        """Ends the process and returns its exit code. No other thread may be reading from it: the pipe's lock would be held."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        try:
            self._popen.stdin.close()
        except OSError:
            pass  # it died with a request on its way
        self._popen.stdout.close()
        try:
            return self._popen.wait(timeout=ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        # one thread each: there are as many processes as cores are to be used
        return processes.start("encodec_fast.corpus.worker", {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})


class Tables:
    """Parquet and Arrow tables, read by a process that a damaged one may end; any thread may ask. As a context manager it ends it."""

    def __init__(self, audio_column: str):
        self._audio_column = audio_column
        self._lock = threading.Lock()
        self._process: ReadingProcess | None = None
        self._stopped = False

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def tasks(self, path: str, id: str, columns: tuple[str, ...] | None = None) -> list[Task]:
        """Returns a task per row.  id: of the table.  columns, and what it raises: as tables.table_tasks."""
        tasks: list[Task] = []
        for reply in self._ask(ListTable(TABLE_TIMEOUT, added_protocols(), path, id, self._audio_column, columns)):
            if isinstance(reply, TableError):
                raise reply
            if isinstance(reply, Failed):
                raise DamagedTable(f"{path}: not a table that can be read ({reply.reason.rstrip('.')}).")
            tasks += reply
        return tasks

    def audio(self, task: Task) -> bytes:
        """Returns the audio file in the task's row. Raises AudioError where there is none."""
        reply = self._ask(ReadRow(TABLE_TIMEOUT, added_protocols(), task, self._audio_column))[0]
        if isinstance(reply, Failed):
            raise AudioError(task.shown_path, reply.reason)
        return reply

    def _ask(self, request: Request) -> list[Any]:
        with self._lock:
            # by now: who waited for the lock meanwhile must not ask what others were given up for
            if self._stopped:
                return [Failed("the reader was closed.")]
            if self._process is None or self._process.given_up:
                self._process = ReadingProcess()
            return list(self._process.ask(request))

    def give_up(self) -> None:
        """Kills the process, so that threads that wait for it come back; whoever asks is refused until `resume`."""
        self._stopped = True
        if (process := self._process) is not None:
            process.give_up()

    def resume(self) -> None:
        """Answers again, by a new process."""
        self._stopped = False

    def close(self) -> None:
        """Ends the process."""
        self.give_up()
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None
