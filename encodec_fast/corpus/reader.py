"""Clips in the order of their tasks, read ahead by processes."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from encodec_fast.audio import MAX_CLIP_BYTES, AudioError
from encodec_fast.audio.files import added_protocols, allow_protocols
from encodec_fast.corpus import worker
from encodec_fast.corpus.reading_process import ANSWER_SECONDS, ReadingProcess, Tables
from encodec_fast.corpus.tables import TableReader
from encodec_fast.corpus.tasks import Clip, Task
from encodec_fast.corpus.worker import Block, Failed, ReadClip

THREAD_NAME = "encodec_fast reader"
# Blocks of a long clip that wait to be taken
WAITING_BLOCKS = 3


@dataclass(frozen=True)
class UnreadableClip:
    """A clip without samples, and why."""

    task: Task
    reason: str


class LongClip:
    """A clip that comes in blocks: iterating gives float32 [C, T_i] and raises AudioError where the file turns out damaged.

    It has to be iterated to its end, or closed, before the reader's next clip comes.
    """

    def __init__(self, task: Task, original_rate: int, blocks: Iterator[np.ndarray]):
        self.task, self.original_rate = task, original_rate
        self._blocks = blocks
        self.num_samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.num_samples += block.shape[1]
            yield block

    def close(self) -> None:
        """Reads on without using it."""
        for _ in self._blocks:
            pass


@dataclass
class ReadingRates:
    """audio_seconds: read. busy_seconds: that the processes worked for it. waited_seconds: that the consumer waited."""

    audio_seconds: float = 0.0
    busy_seconds: float = 0.0
    waited_seconds: float = 0.0
    workers: int = 1

    @property
    def times_real_time(self) -> float:
        """What all workers together could read, had they nothing to wait for."""
        return self.workers * self.audio_seconds / self.busy_seconds if self.busy_seconds else 0.0


class Reader:
    """Reads clips at a model's rate and channels by `workers` processes; 0: in the calling thread.

    At most prefetch_seconds of audio (and one clip) are read ahead, so memory is bounded. A clip longer than long_seconds
    comes as LongClip, in blocks of block_seconds. A clip, or a block of a long one, that takes a process longer than clip_timeout
    seconds can't be read; nor a file of more than max_clip_bytes.
    As a context manager it ends its processes. audio_column: of tables. protocols: of URLs, besides the usual ones.
    """

    def __init__(
        self,
        sampling_rate: int,
        channels: int,
        *,
        workers: int = 2,
        prefetch_seconds: float = 240.0,
        long_seconds: float = math.inf,
        block_seconds: float = 30.0,
        audio_column: str = "audio",
        clip_timeout: float = worker.CLIP_TIMEOUT,
        max_clip_bytes: int = MAX_CLIP_BYTES,
        protocols: tuple[str, ...] = (),
    ):
        if workers < 0:
            raise ValueError(f"workers is {workers}; 0 or more.")
        if not clip_timeout > 0:
            raise ValueError(f"clip_timeout is {clip_timeout:g} s; more than 0.")
        allow_protocols(protocols)
        self.clip_timeout, self.max_clip_bytes = clip_timeout, max_clip_bytes
        self.sampling_rate, self.channels = sampling_rate, channels
        self.prefetch_seconds, self.long_seconds, self.block_seconds = prefetch_seconds, long_seconds, block_seconds
        self.rates = ReadingRates(workers=max(1, workers))
        self._tables = Tables(audio_column) if workers else TableReader(audio_column)
        self._processes = [ReadingProcess() for _ in range(workers)]
        self._reads: list[_Ahead] = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is being read, and the processes."""
        # the threads first: a pipe that one of them reads can't be closed
        for ahead in list(self._reads):
            ahead.end()
        for process in self._processes:
            process.end()
        if isinstance(self._tables, Tables):
            self._tables.close()

    def read(self, tasks: Iterable[Task]) -> Iterator[Clip | LongClip | UnreadableClip]:
        """Yields the clip of each task, in order."""
        return self._read_ahead(iter(tasks)) if self._processes else (self._read_here(task) for task in tasks)

    def _read_here(self, task: Task) -> Clip | LongClip | UnreadableClip:
        return _first(task, self._results(task, worker.replies))

    def _results(self, task: Task, ask: Any) -> Iterator[Block | Failed | np.ndarray]:
        """Yields what a reading process answers for the task: a Block, its samples, a Block, ... or at some point Failed."""
        if task.problem is not None:
            yield Failed(task.problem)
            return
        try:
            data = None if task.row is None else self._tables.audio(task)
        except AudioError as error:
            yield Failed(error.reason)
            return
        block_seconds = self.block_seconds if task.seconds > self.long_seconds else None
        request = ReadClip(
            self.clip_timeout, added_protocols(), task, self.sampling_rate, self.channels, block_seconds, data, self.max_clip_bytes
        )
        replies = ask(request)
        for result in replies:
            if isinstance(result, Failed) or result[0].last:
                # to their end, behind which the next request's come; nobody asks this generator for more
                for _ in replies:
                    pass
            if isinstance(result, Failed):
                yield result
                return
            block, samples = result
            self.rates.busy_seconds += block.busy
            self.rates.audio_seconds += samples.shape[1] / self.sampling_rate
            yield block
            yield samples

    def _read_ahead(self, tasks: Iterator[Task]) -> Iterator[Clip | LongClip | UnreadableClip]:
        self._processes = [ReadingProcess() if process.given_up else process for process in self._processes]
        if isinstance(self._tables, Tables):
            self._tables.resume()
        ahead = _Ahead(tasks, self)
        self._reads.append(ahead)
        try:
            ahead.start(self._processes)
            yield from ahead.results()
        finally:
            ahead.end()
            self._reads.remove(ahead)


def _first(task: Task, results: Iterator[Block | Failed | np.ndarray]) -> Clip | LongClip | UnreadableClip:
    first = next(results)
    if isinstance(first, Failed):
        return UnreadableClip(task, first.reason)
    assert isinstance(first, Block)
    samples = next(results)
    assert isinstance(samples, np.ndarray)
    if first.last:
        return Clip(task, samples, first.original_rate)
    return LongClip(task, first.original_rate, _samples(task, samples, results))


def _samples(task: Task, first: np.ndarray, results: Iterator[Block | Failed | np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    for result in results:
        if isinstance(result, Failed):
            raise AudioError(task.shown_path, result.reason)
        if isinstance(result, np.ndarray):
            yield result


@dataclass(eq=False)
class _Ahead:
    """What the threads of one `Reader.read` share. held: seconds of audio taken and not given out."""

    tasks: Iterator[Task]
    reader: Reader
    changed: threading.Condition = field(default_factory=threading.Condition)
    ready: dict[int, Clip | LongClip | UnreadableClip | BaseException] = field(default_factory=dict)
    costs: dict[int, float] = field(default_factory=dict)
    taken: int = 0
    held: float = 0.0
    stopped: bool = False
    exhausted: bool = False
    threads: list[tuple[threading.Thread, ReadingProcess]] = field(default_factory=list)

    def start(self, processes: Sequence[ReadingProcess]) -> None:
        """Starts a thread for each process."""
        for process in processes:
            thread = threading.Thread(target=self.work, args=(process,), name=THREAD_NAME, daemon=True)
            self.threads.append((thread, process))
            thread.start()

    def work(self, process: ReadingProcess) -> None:
        """Reads tasks until none is left; run by one thread per process."""
        while True:
            with self.changed:
                # tasks are taken in order, so the one that the consumer waits for never waits here
                self.changed.wait_for(lambda: self.stopped or self.exhausted or self.held <= self.reader.prefetch_seconds)
                if self.stopped or self.exhausted:
                    return
                try:
                    task = next(self.tasks)
                except StopIteration:
                    self.exhausted = True
                    self.changed.notify_all()
                    return
                except BaseException as error:
                    self.exhausted = True
                    self._put(self.taken, error)
                    self.taken += 1
                    return
                index, self.taken = self.taken, self.taken + 1
                # of a long clip, only some blocks are held
                self.costs[index] = min(task.seconds, self.reader.long_seconds)
                self.held += self.costs[index]
            try:
                self._read(index, task, process)
            except BaseException as error:  # raised where the reader is iterated
                with self.changed:
                    self._put(index, error)

    def _read(self, index: int, task: Task, process: ReadingProcess) -> None:
        results = self.reader._results(task, process.ask)
        waiting: queue.Queue[Any] = queue.Queue(WAITING_BLOCKS)
        clip = _first(task, results)
        if isinstance(clip, LongClip):
            blocks = clip._blocks
            clip._blocks = self._taken_over(waiting)
        with self.changed:
            if isinstance(clip, Clip):
                # the task's length is what a header or a table says, and that may be wrong
                self.held -= self.costs[index]
                self.costs[index] = clip.num_samples / self.reader.sampling_rate
                self.held += self.costs[index]
            self._put(index, clip)
        if isinstance(clip, LongClip):
            try:
                for block in blocks:
                    if not self._hand_over(waiting, block):
                        process.abandon()
                        return
                self._hand_over(waiting, None)
            except BaseException as error:  # raised where the clip is iterated
                self._hand_over(waiting, error)

    def _hand_over(self, waiting: queue.Queue[Any], item: Any) -> bool:
        """Hands the item over; returns whether somebody still wants it."""
        while not self.stopped:
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def _taken_over(self, waiting: queue.Queue[Any]) -> Iterator[np.ndarray]:
        while True:
            try:
                item = waiting.get(timeout=0.1)
            except queue.Empty:
                if self.stopped:
                    raise RuntimeError("the reader went on, or was closed, before this clip was read to its end") from None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _put(self, index: int, result: Clip | LongClip | UnreadableClip | BaseException) -> None:
        self.ready[index] = result
        self.changed.notify_all()

    def results(self) -> Iterator[Clip | LongClip | UnreadableClip]:
        """Yields what was read, in the order of the tasks."""
        index = 0
        while True:
            start = time.perf_counter()
            with self.changed:
                while index not in self.ready and not self.stopped and not (self.exhausted and index >= self.taken):
                    self.changed.wait()
                if self.stopped:
                    raise RuntimeError("the reader was closed before its clips were read to their end")
                if index not in self.ready:
                    return
                result = self.ready.pop(index)
                self.held -= self.costs.pop(index, 0.0)
                self.changed.notify_all()
            self.reader.rates.waited_seconds += time.perf_counter() - start
            if isinstance(result, BaseException):
                raise result
            yield result
            index += 1

    def end(self) -> None:
        """Ends the threads after what they are reading; what takes longer than ANSWER_SECONDS is given up."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        self._join()
        waiting = [(thread, process) for thread, process in self.threads if thread.is_alive()]
        for _, process in waiting:
            process.give_up()
        if waiting and isinstance(self.reader._tables, Tables):
            self.reader._tables.give_up()
        self._join()
        for thread, process in waiting:
            if not thread.is_alive():
                process.end()

    def _join(self) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        for thread, _ in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
