"""Finds audio in files, folders and patterns, and names an id for each.

Each may be local or behind a URL that fsspec understands.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO

from encodec_fast.audio.opened import AudioError, open_regular

# What libsndfile >= 1.1 reads, and what ffmpeg reads besides. Folders are searched for these.
# A file that the caller names is tried whatever its suffix.
SNDFILE_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .mp2 .mp1 .mpga .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .voc .avr .paf .pvf .8svx".split()
)
FFMPEG_SUFFIXES = frozenset(
    ".m4a .m4b .m4r .m4v .aac .mp4 .mov .webm .mkv .mka .wma .wmv .asf .avi .flv .mpg .mpeg .ogv .3gp .3g2 .amr .awb .ac3 .eac3 .dts "
    ".ape .wv .tta .tak .mpc .spx .ra .rm .dsf .dff .shn .gsm".split()
)
AUDIO_SUFFIXES = SNDFILE_SUFFIXES | FFMPEG_SUFFIXES

# Protocols that only fetch bytes from where the URL says. Any other must be allowed by name
PROTOCOLS = frozenset(
    {"file", "local", "memory", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"},
)
_added: set[str] = set()


@dataclass(frozen=True)
class AudioFile:
    """A file to tokenize.

    id: unique in its run, the POSIX path below the source that holds it.  path: or URL.
    """

    id: str
    path: str


def find_audio(
    sources: Iterable[str | os.PathLike[str]], suffixes: frozenset[str] = AUDIO_SUFFIXES, left_out: Counter[str] | None = None
) -> list[AudioFile]:
    """Returns the audio files of the sources, each once, sorted by id.

    sources: files, folders and glob patterns (`**` for any depth). Each may also be a URL (s3://, gs://, hf://, ...) for fsspec.
    Folders are searched recursively. Links are followed, and names that start with a dot are left out.
    An id is the file's path below its folder, below the fixed part of its pattern, or its bare name.
    Where two roots give the same id, as many of each root's last folders as needed are put before it.
    The order of the sources plays no part.
    A folder that can't be listed is returned as a file, so that reading it reports the error.
    left_out: gets, by suffix, how many files of the folders and patterns are none of these.
    Raises FileNotFoundError if a source doesn't exist or holds no audio file.
    Raises ValueError for a pipe or device. The message names the source.
    """
    root_of: dict[str, str] = {}
    others: Counter[str] = Counter() if left_out is None else left_out

    def wanted(path: str) -> bool:
        found = _has_suffix(path, suffixes)
        if not found and not os.path.basename(path).startswith("."):
            others[os.path.splitext(path)[1].lower()] += 1
        return found

    for source in sources:
        expand = _expand_url if is_url(source) else _expand
        for root, path in expand(os.fspath(source), wanted):
            # the outermost root wins where a file is named twice, so `corpus corpus/a.wav` is `corpus`
            if path not in root_of or len(root) < len(root_of[path]):
                root_of[path] = root
    return sorted((AudioFile(id, path) for id, path in _unique_ids(root_of)), key=lambda file: file.id)


def is_url(source: str | os.PathLike[str]) -> bool:
    """Tells whether the source is a URL, as in s3://bucket/folder."""
    return "://" in os.fspath(source)


def allow_protocols(names: Iterable[str]) -> None:
    """Allows URLs of these protocols too, in this process."""
    _added.update(names)


def added_protocols() -> tuple[str, ...]:
    """Returns the protocols given to `allow_protocols`, sorted, for the processes that read for this one."""
    return tuple(sorted(_added))


def check_url(url: str) -> None:
    """Raises ValueError unless the URL is a plain one of an allowed protocol.

    URLs come from data, and fsspec has protocols that run what a URL holds, alone or in chains with `::`.
    """
    protocol = url.partition("://")[0]
    if "::" in url:
        raise ValueError(f"{url}: a chain of URLs (`::`) is not opened; fetch the file first, or write %3A%3A for a plain `::`.")
    if protocol not in PROTOCOLS and protocol not in _added:
        raise ValueError(
            f"{url}: {protocol}:// is not opened, only {', '.join(sorted(PROTOCOLS))}; "
            f"--allow-protocol {protocol} adds it, for sources that you trust."
        )


def file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL, and the path in it.

    Raises ValueError for a URL that `check_url` refuses.
    Raises it too if fsspec or the protocol's package is missing, and says what to install.
    """
    check_url(url)
    protocol = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url}: {error}; pip install 'encodec-fast[fsspec]' 'fsspec[{protocol}]'.") from error


@contextmanager
def open_binary(source: str) -> Iterator[BinaryIO]:
    """Opens a file, local or behind a URL, for reading.  Raises OSError, also for a pipe or a device."""
    if is_url(source):
        files, path = file_system(source)
        with files.open(path, "rb") as remote:
            yield remote
    else:
        try:
            local = open_regular(source, source, empty=True)
        except AudioError as error:
            raise OSError(0, error.reason.rstrip(".")) from error
        with io.BufferedReader(local) as buffered:
            yield buffered


def _expand(source: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yields pairs of absolute (root folder, file) for one source."""
    if os.path.isfile(source):
        path = os.path.abspath(source)
        yield os.path.dirname(path), path
    elif os.path.isdir(source):
        root = os.path.abspath(source)
        yield from _at_least_one(((root, path) for path in _walk(root, wanted)), source, "no audio file in this folder")
    elif has_magic(source):
        fixed = os.path.dirname(os.path.abspath(source[: _first_magic(source)] + "x"))
        found = (os.path.abspath(path) for path in glob(source, recursive=True) if os.path.isfile(path) and wanted(path))
        yield from _at_least_one(((fixed, path) for path in found), source, "the pattern matches no audio file")
    elif os.path.exists(source):
        raise ValueError(f"{source}: a pipe, socket or device, which is not read; copy what it gives to a file.")
    else:
        raise FileNotFoundError(f"{source}: no such file or folder.")


def _expand_url(source: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yields pairs of (root folder, file) for one source, both as URLs."""
    files, path = file_system(source)

    def pairs(root: str, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
        return ((files.unstrip_protocol(root), files.unstrip_protocol(each)) for each in paths)

    if files.isfile(path):
        yield from pairs(os.path.dirname(path), [path])
    elif files.isdir(path):
        found = [each for each in files.find(path) if wanted(each) and "/." not in each[len(path) :]]
        yield from _at_least_one(pairs(path.rstrip("/"), found), source, "no audio file in this folder")
    elif has_magic(path):
        found = [each for each in files.glob(path) if wanted(each)]
        yield from _at_least_one(
            pairs(os.path.dirname(path[: _first_magic(path)] + "x"), found), source, "the pattern matches no audio file"
        )
    else:
        raise FileNotFoundError(f"{source}: no such file or folder.")


def _first_magic(pattern: str) -> int:
    return next(index for index, char in enumerate(pattern) if char in "*?[")


def _at_least_one(pairs: Iterable[tuple[str, str]], source: str, complaint: str) -> Iterator[tuple[str, str]]:
    found = False
    for pair in pairs:
        found = True
        yield pair
    if not found:
        raise FileNotFoundError(f"{source}: {complaint} (looked for {' '.join(sorted(AUDIO_SUFFIXES))}).")


def _walk(root: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    """Yields the files below the folder, then the folders that can't be listed or vanish meanwhile."""
    seen = set()
    closed: list[str] = []
    for folder, folders, names in os.walk(root, followlinks=True, onerror=lambda error: closed.append(error.filename)):
        try:
            status = os.stat(folder)
        except OSError:
            closed.append(folder)
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if wanted(name):
                yield os.path.join(folder, name)
    yield from closed


def _has_suffix(path: str, suffixes: frozenset[str]) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def _unique_ids(root_of: dict[str, str]) -> list[tuple[str, str]]:
    """Returns (id, path) for every path, with distinct ids. Paths are distinct, so enough leading folders always tell them apart."""
    depth = dict.fromkeys(root_of.values(), 0)
    while True:
        paths_of: dict[str, list[str]] = {}
        for path, root in root_of.items():
            prefix = Path(root).parts[-depth[root] :] if depth[root] else ()
            paths_of.setdefault(utf8_name("/".join([*prefix, *Path(path).relative_to(root).parts])), []).append(path)
        clashes = {root_of[path] for paths in paths_of.values() if len(paths) > 1 for path in paths}
        if not clashes:
            return [(id, paths[0]) for id, paths in paths_of.items()]
        for root in clashes:
            depth[root] += 1


def utf8_name(name: str) -> str:
    """Returns the name with bytes that are not UTF-8 written as \\xNN. So every id can be stored as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
