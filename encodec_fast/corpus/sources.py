"""From what a user names to tasks: audio files, folders, patterns, manifests, tar shards and tables, with unique ids."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from encodec_fast.audio import AUDIO_SUFFIXES, MAX_CLIP_BYTES, AudioError, AudioFile, find_audio
from encodec_fast.audio.files import is_url
from encodec_fast.audio.reading import OpenAudio
from encodec_fast.corpus.containers import CONTAINER_SUFFIXES, DamagedTable, TableError, TableReader, container_tasks, is_container
from encodec_fast.corpus.manifests import ManifestError, is_manifest, read_manifest
from encodec_fast.corpus.tasks import Task, open_task

# Where a run keeps its ledger, below its --out folder
RUN_FOLDER = "_encodec_fast"
SCAN_THREADS = 8
# Tasks given to the scanning threads at once
SCAN_WINDOW = 1024
# Seconds of audio held at once where a length has to be measured
MEASURED_SECONDS = 10


def find_tasks(sources: Iterable[str | os.PathLike[str]], audio_column: str = "audio") -> list[Task]:
    """A task per clip of the sources, ids unique, sorted by id.

    sources: audio files, manifests (.tsv .csv .jsonl .json), tar shards, Parquet and Arrow tables; folders and patterns
    of them. A folder is searched for audio files; for tar shards and tables if it holds none.
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
        tasks += _plain_tasks(plain, audio_column)
    return unique_ids(tasks)


def _manifest_tasks(file: AudioFile, named: bool) -> list[Task]:
    """Of one that can't be read its problem, unless it was named by itself."""
    try:
        return list(read_manifest(file.path))
    except ManifestError as error:
        if named:
            raise
        return [Task(file.id, file.path, problem=str(error).removeprefix(f"{file.path}: "))]


def _plain_tasks(sources: list[str], audio_column: str) -> list[Task]:
    tasks: list[Task] = []
    no_audio: list[TableError] = []
    named = {source if is_url(source) else os.path.abspath(source) for source in sources}
    for file in find_audio(sources, AUDIO_SUFFIXES | CONTAINER_SUFFIXES):
        # where codes are written beside their audio, what a run keeps for itself is no source
        if RUN_FOLDER in file.path.split(os.sep):
            continue
        if not is_container(file.path):
            tasks.append(Task(file.id, file.path))
            continue
        try:
            tasks += container_tasks(file.path, file.id, audio_column)
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
    """The tasks, sorted by id; of several with one id, or of one that is taken, the later ones with ~2, ~3, ... after it."""
    known = set(taken)
    unique = []
    for task in sorted(tasks, key=lambda task: (task.id, repr(task.key))):
        id, number = task.id, 1
        while id in known:
            number += 1
            id = f"{task.id}~{number}"
        known.add(id)
        unique.append(task if id == task.id else replace(task, id=id))
    return unique


def scan_seconds(
    tasks: Sequence[Task],
    audio_column: str = "audio",
    progress: Callable[[int], None] | None = None,
    max_bytes: int = MAX_CLIP_BYTES,
) -> list[Task]:
    """The tasks with their lengths, read from the headers of those that have none; or with the reason why they can't be read.

    A clip whose header has no length, as browsers record WebM, is decoded once: batches and memory are planned by lengths.
    progress: called with the tasks scanned so far. max_bytes: a file of more is refused.
    """
    tables = TableReader(audio_column)
    stopped = threading.Event()

    def measured(task: Task, file: OpenAudio) -> float:
        rate, samples = file.info.sampling_rate, 0
        frames = None if task.duration is None else round(task.duration * rate)
        for block in file.blocks(round(task.start * rate), frames, MEASURED_SECONDS * rate):
            samples += len(block)
            if stopped.is_set():
                break
        return samples / rate

    def scan(task: Task) -> Task:
        if task.problem is not None or task.seconds > 0:
            return task
        try:
            with open_task(task, None if task.row is None else tables.audio(task), max_bytes) as file:
                if not file.info.num_samples:
                    return replace(task, seconds=measured(task, file))
                left = max(0.0, file.info.duration - task.start)
        except AudioError as error:
            return replace(task, problem=error.reason)
        except (OSError, ValueError, MemoryError) as error:
            return replace(task, problem=f"the file can't be read ({type(error).__name__}: {error}).")
        return replace(task, seconds=left if task.duration is None else min(left, task.duration))

    def place(index: int) -> tuple[str, int]:
        row = tasks[index].row
        return ("", 0) if row is None else (tasks[index].path, row)

    # rows in the order of their tables, whatever their ids: a row group is read whole, and few are kept
    order = sorted(range(len(tasks)), key=place)
    scanned = list(tasks)
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        # in windows: map() would take up all tasks at once, and Ctrl-C would wait for them
        try:
            for at in range(0, len(order), SCAN_WINDOW):
                window = order[at : at + SCAN_WINDOW]
                for index, task in zip(window, pool.map(scan, [tasks[index] for index in window]), strict=True):
                    scanned[index] = task
                if progress is not None:
                    progress(at + len(window))
        finally:
            stopped.set()
    return scanned
