"""From what a user names to tasks: audio files, folders, patterns, manifests, tar shards and tables, with unique ids."""

from __future__ import annotations

import itertools
import os
import queue
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from encodec_fast.audio import AUDIO_SUFFIXES, MAX_CLIP_BYTES, AudioFile, find_audio
from encodec_fast.audio.files import added_protocols, is_url
from encodec_fast.corpus.containers import CONTAINER_SUFFIXES, is_table, is_tar, tar_tasks
from encodec_fast.corpus.manifests import ManifestError, is_manifest, read_manifest
from encodec_fast.corpus.reading_process import TABLE_TIMEOUT, ReadingProcess, Tables
from encodec_fast.corpus.tables import DamagedTable, TableError
from encodec_fast.corpus.tasks import Task
from encodec_fast.corpus.worker import CLIP_TIMEOUT, Failed, ScanTasks

# Where a run keeps its ledger, below its --out folder: readers of data sets pass over a name with a dot.
RUN_FOLDER = ".encodec_fast"
# By earlier versions; the next run renames it.
OLD_RUN_FOLDER = "_encodec_fast"
# Processes that read headers, at most
SCAN_PROCESSES = 4
# What one of them is given at once: files, or rows of one table
SCAN_FILES = 64
SCAN_ROWS = 4096


def run_folder(out: Path) -> Path:
    """Returns where the run of an --out folder keeps its ledger, which need not be there yet."""
    folder, old = out / RUN_FOLDER, out / OLD_RUN_FOLDER
    return old if not folder.exists() and (old / "lock").is_file() and not old.is_symlink() else folder


def find_tasks(
    sources: Iterable[str | os.PathLike[str]],
    audio_column: str = "audio",
    left_out: Counter[str] | None = None,
    columns: tuple[str, ...] | None = None,
) -> list[Task]:
    """Returns a task per clip of the sources, ids unique, sorted by id.

    sources: audio files, manifests (.tsv .csv .jsonl .json, Kaldi's .scp), tar shards, Parquet and Arrow tables; folders and patterns
    of them. A folder is searched for audio files, tar shards and tables; what else lies there, tables without audio too, is left out.
    left_out: gets, by suffix, how many files of the folders are none of that by their names.
    columns: of tables, that go with the clips; None: all that hold scalars. Those of manifests do anyway.
    Of several clips with one id, the later ones get ~2, ~3, ... after it, in the order of what they are.
    Raises FileNotFoundError for a source that doesn't exist or holds nothing, and the errors of manifests and tables.
    """
    tasks: list[Task] = []
    plain: list[str] = []
    for source in [os.fspath(source) for source in sources]:
        if is_manifest(source):
            suffix = frozenset({os.path.splitext(source)[1].lower()})
            tasks += [task for file in find_audio([source], suffix) for task in _manifest_tasks(file, source == file.path)]
        else:
            plain.append(source)
    if plain:
        tasks += _plain_tasks(plain, audio_column, left_out, columns)
    return unique_ids(tasks)


def _manifest_tasks(file: AudioFile, named: bool) -> list[Task]:
    """Returns the tasks of a manifest; of one that can't be read its problem, unless it was named by itself."""
    try:
        return list(read_manifest(file.path))
    except ManifestError as error:
        if named:
            raise
        return [Task(file.id, file.path, problem=str(error).removeprefix(f"{file.path}: "))]


def _plain_tasks(sources: list[str], audio_column: str, left_out: Counter[str] | None, columns: tuple[str, ...] | None) -> list[Task]:
    tasks: list[Task] = []
    no_audio: list[TableError] = []
    named = {source if is_url(source) else os.path.abspath(source) for source in sources}
    with Tables(audio_column) as tables:
        for file in find_audio(sources, AUDIO_SUFFIXES | CONTAINER_SUFFIXES, left_out):
            # where codes are written beside their audio, what a run keeps for itself is no source
            if not {RUN_FOLDER, OLD_RUN_FOLDER}.isdisjoint(file.path.split(os.sep)):
                continue
            if is_tar(file.path):
                tasks += tar_tasks(file.path, file.id)
                continue
            if not is_table(file.path):
                tasks.append(Task(file.id, file.path))
                continue
            try:
                tasks += tables.tasks(file.path, file.id, columns)
            except DamagedTable as error:
                if len(sources) == 1 and file.path in named:
                    raise
                tasks.append(Task(file.id, file.path, problem=str(error).removeprefix(f"{file.path}: ")))
            except TableError as error:
                # a table that lies in a folder may hold anything, such as the labels of the audio beside it
                if file.path in named:
                    raise
                no_audio.append(error)
    if not tasks and no_audio:
        raise no_audio[0]
    if not tasks:
        raise FileNotFoundError(f"{', '.join(sources)}: no audio in these archives.")
    return tasks


def unique_ids(tasks: Iterable[Task], taken: Iterable[str] = ()) -> list[Task]:
    """Returns the tasks, sorted by id. Where ids are equal or taken, the later ones get ~2, ~3, ... after theirs."""
    known = set(taken)
    # up to which all are taken: a million clips may have one id
    numbers: dict[str, int] = {}
    unique = []
    for task in sorted(tasks, key=lambda task: (task.id, repr(task.key))):
        id, number = task.id, numbers.get(task.id, 1)
        while id in known:
            number += 1
            id = f"{task.id}~{number}"
        known.add(id)
        numbers[task.id] = number
        unique.append(task if id == task.id else replace(task, id=id))
    return unique


def scan_seconds(
    tasks: Sequence[Task],
    audio_column: str = "audio",
    progress: Callable[[int], None] | None = None,
    max_bytes: int = MAX_CLIP_BYTES,
    timeout: float = CLIP_TIMEOUT,
) -> list[Task]:
    """Returns the tasks with their lengths, or with why they can't be read. Processes read the headers of those that have none.

    progress: called with the tasks scanned so far. max_bytes: a file of more is refused. timeout: seconds that one may take.
    """
    scanned = list(tasks)
    parts = _parts([index for index, task in enumerate(tasks) if task.problem is None and task.seconds <= 0], tasks)
    done = len(tasks) - sum(map(len, parts))
    if progress is not None:
        progress(done)
    count = min(len(parts), SCAN_PROCESSES, os.cpu_count() or 1)
    processes = [ReadingProcess() for _ in range(count)]
    free: queue.SimpleQueue[ReadingProcess] = queue.SimpleQueue()
    for process in processes:
        free.put(process)

    def scan_part(part: Sequence[int]) -> list[Task]:
        process = free.get()
        try:
            return _scan_part(process, [tasks[index] for index in part], audio_column, max_bytes, timeout)
        finally:
            free.put(process)

    pool = ThreadPoolExecutor(max(1, count))
    try:
        futures = {pool.submit(scan_part, part): part for part in parts}
        finished: queue.SimpleQueue[Future[list[Task]]] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(finished.put)
        for _ in futures:
            future = _next(finished)
            for index, task in zip(futures[future], future.result(), strict=True):
                scanned[index] = task
            done += len(futures[future])
            if progress is not None:
                progress(done)
    finally:
        # an interrupt waits for no file
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.give_up()
        pool.shutdown()
        for process in processes:
            process.end()
    return scanned


def _next(finished: queue.SimpleQueue[Future[list[Task]]]) -> Future[list[Task]]:
    """Returns the next item; in short waits, for some libraries make waiting calls go on after an interrupt."""
    while True:
        try:
            return finished.get(timeout=0.5)
        except queue.Empty:
            pass


def _parts(wanted: Sequence[int], tasks: Sequence[Task]) -> list[list[int]]:
    """Returns indices of tasks by what one process scans at once. Rows of a table stay in order: a row group is read whole."""
    files = [index for index in wanted if tasks[index].row is None]
    parts = [files[at : at + SCAN_FILES] for at in range(0, len(files), SCAN_FILES)]
    rows = sorted((index for index in wanted if tasks[index].row is not None), key=lambda index: (tasks[index].path, tasks[index].row))
    for _, group in itertools.groupby(rows, key=lambda index: tasks[index].path):
        table = list(group)
        parts += [table[at : at + SCAN_ROWS] for at in range(0, len(table), SCAN_ROWS)]
    return parts


def _scan_part(process: ReadingProcess, tasks: list[Task], audio_column: str, max_bytes: int, timeout: float) -> list[Task]:
    """Yields the tasks as the process scans them. Where it dies, each one left is scanned alone, to find which it dies of."""
    scanned: list[Task] = []
    # a row's header comes with the whole row group
    timeout = timeout if tasks[0].row is None else max(timeout, TABLE_TIMEOUT)
    for reply in process.ask(ScanTasks(timeout, added_protocols(), tasks, audio_column, max_bytes)):
        if isinstance(reply, Failed):
            left = tasks[len(scanned) :]
            if len(tasks) == 1 or process.given_up:
                scanned += [replace(task, problem=reply.reason) for task in left]
            else:
                scanned += [one for task in left for one in _scan_part(process, [task], audio_column, max_bytes, timeout)]
        else:
            scanned.append(reply)
    return scanned
