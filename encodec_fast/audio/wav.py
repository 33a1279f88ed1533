"""Decoded clips as WAV files: safe names, writing them whole or not at all, and recognising them later."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from encodec_fast.audio.files import AUDIO_SUFFIXES

# Longer paths lose their folders: systems allow 4096 bytes for a path, with everything before it
_MAX_PATH_BYTES = 1024


def wav_paths(ids: Sequence[str]) -> list[PurePosixPath]:
    """Returns a relative path for each id's WAV file: its folders kept, its suffix replaced, safe on every file system.

    No two are equal, even where case is ignored: a later one gets ~2, ~3, ... before its suffix.
    No path leaves the folder that it is put in.
    """
    wanted = [_safe_path(id) for id in ids]
    # a file must not take the name of another clip's folder
    used = {str(folder).casefold() for path in wanted for folder in path.parents}
    paths = []
    # the last number taken per name: many clips may share one
    numbers: dict[str, int] = {}
    for path in wanted:
        unique, number = path, numbers.get(str(path).casefold(), 1)
        while str(unique).casefold() in used:
            number += 1
            unique = path.with_name(f"{path.stem}~{number}.wav")
        used.add(str(unique).casefold())
        numbers[str(path).casefold()] = number
        paths.append(unique)
    return paths


def _safe_path(id: str) -> PurePosixPath:
    *folders, name = [part for part in re.split(r"[/\\]", id) if part not in ("", ".", "..")] or ["clip"]
    stem, suffix = os.path.splitext(name)
    path = PurePosixPath(*map(_safe_name, folders), _safe_name(stem if suffix.lower() in AUDIO_SUFFIXES else name) + ".wav")
    return path if len(str(path).encode()) <= _MAX_PATH_BYTES else PurePosixPath(path.name)


def _safe_name(name: str) -> str:
    """Returns the name without what Windows forbids, short enough for every file system: 255 bytes with its additions."""
    name = re.sub(r'[<>:"|?*\x00-\x1f\x7f]', "_", name).rstrip(". ") or "_"
    if len(name.encode()) > 200:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = name.encode()[:180].decode(errors="ignore") + "-" + digest
    return name


WAV_SUBTYPES = ("PCM_16", "PCM_24", "FLOAT")
# Marks the header of every file written here: no other may be replaced.
_SOFTWARE = "encodec_fast"


def put_wav(target: Path | IO[bytes], samples: np.ndarray, sampling_rate: int, subtype: str = "PCM_16") -> None:
    """Writes as `write_wav`, to a file or to a stream that can't be sought in, such as standard output."""
    if isinstance(target, Path):
        write_wav(target, samples, sampling_rate, subtype)
        return
    held = io.BytesIO()
    _write(held, [samples], samples.shape[0], sampling_rate, subtype, "")
    target.write(held.getbuffer())


def write_wav(path: Path, samples: np.ndarray, sampling_rate: int, subtype: str = "PCM_16", made_of: str = "") -> None:
    """Writes float32 [C, T] as a WAV file, whole or not at all; integer subtypes clip at full scale, +-1.0.

    made_of: a note in the header, which `made_of` returns.  Raises ValueError for a subtype that is not in WAV_SUBTYPES.
    """
    write_wav_blocks(path, [samples], samples.shape[0], sampling_rate, subtype, made_of)


def write_wav_blocks(
    path: Path, blocks: Iterable[np.ndarray], channels: int, sampling_rate: int, subtype: str = "PCM_16", made_of: str = ""
) -> int:
    """Writes blocks [C, T_i] as `write_wav` does the whole, and returns how many samples they had.  channels: C."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        # x: an existing name, even a link, is an error
        with temporary.open("x+b") as file:
            count = _write(file, blocks, channels, sampling_rate, subtype, made_of)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write(file: Any, blocks: Iterable[np.ndarray], channels: int, sampling_rate: int, subtype: str, made_of: str) -> int:
    import soundfile

    if subtype not in WAV_SUBTYPES:
        raise ValueError(f"subtype is {subtype!r}; allowed are {', '.join(WAV_SUBTYPES)}.")
    count, kept = 0, _KeepsError(file)
    try:
        with soundfile.SoundFile(kept, "w", sampling_rate, channels, subtype=subtype, format="WAV") as wav:
            wav.software = _SOFTWARE
            if made_of:
                wav.comment = made_of
            for block in blocks:
                wav.write(block.T)
                count += block.shape[1]
    except (AssertionError, soundfile.LibsndfileError):
        # what it makes of a write that failed
        if kept.error is None:
            raise
    if kept.error is not None:
        raise kept.error
    return count


class _KeepsError:
    """A file whose first failed write is kept: libsndfile calls it from C, which no exception passes through."""

    def __init__(self, file: Any):
        self._file = file
        self.error: OSError | None = None
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def write(self, data: bytes) -> int:
        try:
            return int(self._file.write(data))
        except OSError as error:
            self.error = self.error or error
            return 0

    def flush(self) -> None:
        """Does nothing: the file is flushed when it is closed."""


def is_own_wav(path: Path) -> bool:
    """Tells by the header whether `write_wav` wrote the file; not through a link."""
    return made_of(path) is not None


def made_of(path: Path) -> str | None:
    """Returns the note in the header of a file that `write_wav` wrote, "" for none; None for any other file, and for a link."""
    import soundfile

    if path.is_symlink() or not path.is_file():
        return None
    try:
        with soundfile.SoundFile(path) as wav:
            return wav.comment if wav.software.startswith(_SOFTWARE) else None
    except (OSError, soundfile.LibsndfileError):
        return None


def wav_targets(out: Path, ids: Sequence[str], overwrite: bool = False) -> list[Path]:
    """Returns the path of each id's WAV file in a folder.

    Raises ValueError for an existing file that `write_wav` did not write: none such is replaced.
    """
    targets = [out / path for path in wav_paths(ids)]
    for target in targets:
        if os.path.lexists(target) and not is_own_wav(target):
            if not overwrite:
                raise ValueError(f"{target} exists already; choose another --out or add --overwrite.")
            raise ValueError(
                f"{target} is not replaced: it does not say that `encodec-fast decode` wrote it (an earlier version's does not); "
                "move it, or choose another --out."
            )
    return targets
