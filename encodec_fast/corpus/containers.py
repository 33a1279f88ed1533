"""Audio inside other files: the members of WebDataset tar shards, the rows of Parquet and Arrow tables."""

from __future__ import annotations

import os
from collections.abc import Iterator

from encodec_fast.audio import AUDIO_SUFFIXES, utf8_name
from encodec_fast.audio.files import open_binary
from encodec_fast.corpus.tar import Damage, tar_members
from encodec_fast.corpus.tasks import Task

TAR_SUFFIXES = (".tar",)
TABLE_SUFFIXES = (".parquet", ".arrow")
CONTAINER_SUFFIXES = frozenset({*TAR_SUFFIXES, *TABLE_SUFFIXES})


def is_tar(path: str) -> bool:
    """Returns whether the name is that of a tar."""
    return path.lower().endswith(TAR_SUFFIXES)


def is_table(path: str) -> bool:
    """Returns whether the name is that of a table."""
    return path.lower().endswith(TABLE_SUFFIXES)


def tar_tasks(path: str, id: str) -> Iterator[Task]:
    """Yields a task per audio member; reads the headers only. Each damage is a task with its problem; what follows it is found."""
    try:
        with open_binary(path) as file:
            for found in tar_members(file):
                if isinstance(found, Damage):
                    problem = f"{found.reason}, at byte {found.offset}; what else is found in the archive is read."
                    yield Task(f"{id}@{found.offset}", path, problem=problem)
                elif os.path.splitext(found.name)[1].lower() in AUDIO_SUFFIXES:
                    name = utf8_name(found.name).replace("\0", "\\x00")
                    size = found.size if found.problem is None else None
                    yield Task(f"{id}/{name}", path, offset=found.offset, size=size, problem=found.problem)
    except (OSError, ValueError) as error:
        yield Task(id, path, problem=f"the archive can't be opened ({getattr(error, 'strerror', None) or error}).")
