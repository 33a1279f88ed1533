"""One clip to tokenize: where its audio lies, and how to open it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from encodec_fast.audio import MAX_CLIP_BYTES, AudioError, audio_blocks, open_audio, read_audio, utf8_name
from encodec_fast.audio.files import file_system, is_url, open_binary
from encodec_fast.audio.reading import OpenAudio

# Half a character: what JSON may hold and no file's name, and what stands for bytes that are no UTF-8.
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
# What a column of a manifest or table holds for a clip.
Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Task:
    """A clip to tokenize, small enough to exist a million times and to be sent to another process.

    id: unique in its data set. path: file or URL; of the container where offset (and size, in bytes: a tar member) or row is not None:
    of a table, where group is its row group, or with a problem the line of a manifest. start, duration: the part wanted, in seconds;
    None: to the end. channel: only this one. seconds: length of the clip as far as known; 0.0 else. problem: why it can't be read, if
    that is known already. columns: what its manifest or table says of it besides; see corpus.columns.
    """

    id: str
    path: str
    offset: int | None = None
    size: int | None = None
    row: int | None = None
    group: int | None = None
    start: float = 0.0
    duration: float | None = None
    channel: int | None = None
    seconds: float = 0.0
    problem: str | None = None
    columns: Mapping[str, Scalar] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> tuple[str | int | float | None, ...]:
        """What makes it this clip, whatever its id."""
        return (self.path, self.offset, self.row, self.start, self.duration, self.channel)

    @property
    def shown_path(self) -> str:
        """The path as text that can be stored."""
        return utf8_name(self.path)


def valid_text(value: Any, name: str) -> str:
    """Returns the value as text. Raises ValueError for what is none that can be stored, or name a file. name: for the message."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is a {type(value).__name__}; text is needed.")
    text = str(value)
    if "\0" in text or HALF_CHARACTER.search(text):
        raise ValueError(f"{name} holds a NUL or half a character; no file has such a name.")
    return text


@dataclass(frozen=True)
class Clip:
    """A clip ready for the model. samples: float32 [C, T] at the model's rate. original_rate: the file's, Hz."""

    task: Task
    samples: np.ndarray
    original_rate: int

    @property
    def num_samples(self) -> int:
        return self.samples.shape[1]


@contextmanager
def open_task(task: Task, data: bytes | None = None, max_bytes: int = MAX_CLIP_BYTES) -> Iterator[OpenAudio]:
    """Opens the task's audio. data: its file's bytes where the caller has them (a row of a table). Raises AudioError."""
    with open_audio(_source(task, data), task.shown_path, max_bytes) as file:
        yield file


def read_task(task: Task, sampling_rate: int, channels: int, data: bytes | None = None, max_bytes: int = MAX_CLIP_BYTES) -> Clip:
    """Reads the whole clip. Raises AudioError."""
    samples, info = read_audio(
        _source(task, data),
        sampling_rate,
        channels,
        name=task.shown_path,
        start=task.start,
        duration=task.duration,
        channel=task.channel,
        max_bytes=max_bytes,
    )
    return Clip(task, samples, info.sampling_rate)


def read_task_blocks(task: Task, file: OpenAudio, sampling_rate: int, channels: int, block_seconds: float) -> Iterator[np.ndarray]:
    """Reads the clip in blocks [C, T_i] that make up what read_task gives. Raises AudioError."""
    return audio_blocks(file, sampling_rate, channels, block_seconds, start=task.start, duration=task.duration, channel=task.channel)


def _source(task: Task, data: bytes | None) -> bytes | str:
    if data is not None:
        return data
    return task.path if task.offset is None else _member(task)


def _member(task: Task) -> bytes:
    """Reads the bytes of a tar's member."""
    assert task.offset is not None and task.size is not None
    if is_url(task.path):
        files, path = file_system(task.path)
        data = files.cat_file(path, start=task.offset, end=task.offset + task.size)
    else:
        try:
            with open_binary(task.path) as file:
                file.seek(task.offset)
                data = file.read(task.size)
        except OSError as error:
            raise AudioError(task.shown_path, f"the file can't be opened ({error.strerror}).") from error
    if len(data) < task.size:
        raise AudioError(task.shown_path, f"the archive is cut short: {task.size} bytes announced, {len(data)} there.")
    return data
