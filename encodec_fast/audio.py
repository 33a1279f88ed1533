"""Audio files: finding them, reading them at a model's rate and channels, naming and writing decoded ones. No torch."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

# What libsndfile >= 1.1 reads. Folders are searched for these; a file named by the caller is tried whatever its name.
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64"})

# soxr's own default and librosa's: 20 bits of precision, below the noise of 16-bit sources, a third faster than VHQ.
RESAMPLE_QUALITY = "HQ"


class AudioError(ValueError):
    """A clip that can't be used; `reason` is one sentence for the person who owns the file."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


@dataclass(frozen=True)
class AudioFile:
    """A file to tokenize. id: unique in its run, the POSIX path below the source it was found in."""

    id: str
    path: Path


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says. duration in seconds, sampling_rate in Hz, num_samples per channel."""

    duration: float
    sampling_rate: int
    channels: int
    num_samples: int


def find_audio(sources: Iterable[str | os.PathLike[str]]) -> list[AudioFile]:
    """Audio files of the sources, each once, sorted by id.

    sources: files, folders (searched below, links followed, names starting with a dot left out) and glob patterns
    (`**` for any depth). An id is the file's path below its folder, below the fixed part of its pattern, or its bare
    name. Where two roots give the same id, as many of each root's last folders as are needed go before its ids; the
    order of the sources plays no part.
    Raises FileNotFoundError if a source doesn't exist or holds no audio file; the message names it.
    """
    root_of: dict[str, str] = {}
    for source in sources:
        for root, path in _expand(os.fspath(source)):
            # the outermost root wins where a file is named twice, so `corpus corpus/a.wav` is `corpus`
            if path not in root_of or len(root) < len(root_of[path]):
                root_of[path] = root
    return sorted((AudioFile(id, Path(path)) for id, path in _unique_ids(root_of)), key=lambda file: file.id)


def _expand(source: str) -> Iterator[tuple[str, str]]:
    """Pairs of absolute (root folder, file) for one source."""
    if os.path.isfile(source):
        path = os.path.abspath(source)
        yield os.path.dirname(path), path
    elif os.path.isdir(source):
        root = os.path.abspath(source)
        found = False
        for path in _walk(root):
            found = True
            yield root, path
        if not found:
            raise FileNotFoundError(f"{source}: no audio file in this folder (looked for {_suffixes()}).")
    elif has_magic(source):
        fixed = os.path.abspath(source[: next(i for i, char in enumerate(source) if char in "*?[")] + "x")
        found = False
        for path in glob(source, recursive=True):
            if os.path.isfile(path) and _is_audio_name(path):
                found = True
                yield os.path.dirname(fixed), os.path.abspath(path)
        if not found:
            raise FileNotFoundError(f"{source}: the pattern matches no audio file (looked for {_suffixes()}).")
    else:
        raise FileNotFoundError(f"{source}: no such file or folder.")


def _walk(root: str) -> Iterator[str]:
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _is_audio_name(name):
                yield os.path.join(folder, name)


def _is_audio_name(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def _suffixes() -> str:
    return " ".join(sorted(AUDIO_SUFFIXES))


def _unique_ids(root_of: dict[str, str]) -> list[tuple[str, str]]:
    """(id, path) for every path, ids distinct: paths are distinct, so enough leading folders always tell them apart."""
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
    """The name with bytes that are not UTF-8 written as \\xNN, so that every id can be stored as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """The file's header. Raises AudioError if the file is missing, empty or not audio."""
    import soundfile

    path = Path(path)
    _check_file(path)
    try:
        info = soundfile.info(_native(path))
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"not audio that libsndfile can read ({_sndfile_reason(error)}).") from error
    return AudioInfo(info.frames / info.samplerate, info.samplerate, info.channels, info.frames)


def read_audio(path: str | os.PathLike[str], sampling_rate: int, channels: int) -> tuple[np.ndarray, AudioInfo]:
    """The clip at the given rate and channels, and what its file says.

    Returns float32 [C, T], contiguous, full scale +-1.0, and the AudioInfo of the file itself.
    Channels are mixed first (see mix_channels), then the rate is changed by soxr at RESAMPLE_QUALITY.
    Raises AudioError if the file is missing, empty, not audio, damaged, cut short (seen in WAV, FLAC and MP3; other
    formats don't all say how long they should be), without samples, holds NaN or infinity, or has more channels than
    can be mixed.
    """
    import soundfile

    path = Path(path)
    _check_file(path)
    try:
        file = soundfile.SoundFile(_native(path))
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"not audio that libsndfile can read ({_sndfile_reason(error)}).") from error
    with file:
        declared, original_rate, original_channels = file.frames, file.samplerate, file.channels
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(path, f"the file is damaged or cut short ({_sndfile_reason(error)}).") from error
        if file.format in ("WAV", "WAVEX"):
            _check_riff_is_whole(path)
    num_samples = len(samples)
    if num_samples < declared:
        raise AudioError(path, f"the file is cut short: {declared} samples announced, {num_samples} there.")
    if num_samples == 0:
        raise AudioError(path, "the file holds no samples.")
    if not np.isfinite(samples).all():
        raise AudioError(path, f"{np.count_nonzero(~np.isfinite(samples))} samples are NaN or infinite.")
    try:
        mixed = mix_channels(samples.T, channels)
    except ValueError as error:
        raise AudioError(path, str(error)) from error
    resampled = resample(mixed, original_rate, sampling_rate)
    if resampled.shape[1] == 0:
        raise AudioError(path, f"{num_samples} samples at {original_rate} Hz are none at {sampling_rate} Hz.")
    return resampled, AudioInfo(num_samples / original_rate, original_rate, original_channels, num_samples)


def mix_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    """The same sound in `channels` channels: float32 [C, T], contiguous.

    samples: [C', T]. To mono: the mean of all channels. Mono to stereo: the channel twice.
    Raises ValueError for anything else, since a surround layout can't be told from the file.
    """
    if samples.shape[0] == channels:
        return np.ascontiguousarray(samples, dtype=np.float32)
    if channels == 1:
        return np.ascontiguousarray(samples.mean(axis=0, keepdims=True, dtype=np.float32))
    if samples.shape[0] == 1:
        return np.repeat(samples.astype(np.float32, copy=False), channels, axis=0)
    raise ValueError(
        f"{samples.shape[0]} channels can't be mixed to {channels}: mono or {channels} channels are needed; mix the file down first."
    )


def resample(samples: np.ndarray, original_rate: int, sampling_rate: int) -> np.ndarray:
    """float32 [C, T] at sampling_rate, by soxr at RESAMPLE_QUALITY; the input itself where the rates are equal."""
    if original_rate == sampling_rate:
        return samples
    import soxr

    return np.ascontiguousarray(soxr.resample(samples.T, original_rate, sampling_rate, quality=RESAMPLE_QUALITY).T)


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(path, f"the file can't be opened ({error.strerror}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(path, "this is not a regular file.")
    if status.st_size == 0:
        raise AudioError(path, "the file is empty (0 bytes).")
    if not os.access(path, os.R_OK):
        raise AudioError(path, "the file can't be opened (no permission to read it).")


def _native(path: Path) -> str | bytes:
    """The name as libsndfile takes it: bytes where names are bytes, since not all of them are UTF-8."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def _sndfile_reason(error: Any) -> str:
    """libsndfile's own words, without its `Error :` and full stop. error: soundfile.LibsndfileError."""
    return str(error.error_string).removeprefix("Error : ").rstrip(".")


def _check_riff_is_whole(path: Path) -> None:
    """Raises AudioError if a WAV's data chunk is longer than the file, which libsndfile passes over in silence."""
    size = path.stat().st_size
    with path.open("rb") as file:
        riff = file.read(12)
        if riff[:4] not in (b"RIFF", b"RIFX") or riff[8:] != b"WAVE":
            return
        header = struct.Struct(">4sI" if riff[:4] == b"RIFX" else "<4sI")
        while len(chunk := file.read(8)) == 8:
            name, length = header.unpack(chunk)
            start = file.tell()
            if name == b"data":
                # programs that write to a pipe can't go back to fill in the length, and leave one near 2^31 or 2^32
                if length < 0x7FFFF000 and start + length > size:
                    raise AudioError(path, f"the file is cut short: {length} bytes of audio announced, {size - start} there.")
                return
            file.seek(start + length + length % 2)


def wav_paths(ids: Sequence[str]) -> list[PurePosixPath]:
    """A relative path for each id's WAV file: its folders kept, its suffix replaced, safe on every file system.

    No two are equal, also where case is ignored: a later one gets ~2, ~3, ... before its suffix. None leaves the folder
    it is put in.
    """
    wanted = [_safe_path(id) for id in ids]
    # a file must not stand where another clip's folder has to be
    used = {str(folder).casefold() for path in wanted for folder in path.parents}
    paths = []
    for path in wanted:
        unique, number = path, 1
        while str(unique).casefold() in used:
            number += 1
            unique = path.with_name(f"{path.stem}~{number}.wav")
        used.add(str(unique).casefold())
        paths.append(unique)
    return paths


def _safe_path(id: str) -> PurePosixPath:
    *folders, name = [part for part in re.split(r"[/\\]", id) if part not in ("", ".", "..")] or ["clip"]
    stem, suffix = os.path.splitext(name)
    name = stem if suffix.lower() in AUDIO_SUFFIXES else name
    return PurePosixPath(*map(_safe_name, folders), _safe_name(name) + ".wav")


def _safe_name(name: str) -> str:
    """The name without what Windows forbids, and short enough for every file system (255 bytes with what is added)."""
    name = re.sub(r'[<>:"|?*\x00-\x1f\x7f]', "_", name).rstrip(". ") or "_"
    if len(name.encode()) > 200:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = name.encode()[:180].decode(errors="ignore") + "-" + digest
    return name


WAV_SUBTYPES = ("PCM_16", "PCM_24", "FLOAT")


def write_wav(path: Path, samples: np.ndarray, sampling_rate: int, subtype: str = "PCM_16") -> None:
    """Writes float32 [C, T] as a WAV file, whole or not at all; integer subtypes clip at full scale, +-1.0.

    Raises ValueError for a subtype that is not in WAV_SUBTYPES.
    """
    import soundfile

    if subtype not in WAV_SUBTYPES:
        raise ValueError(f"subtype is {subtype!r}; allowed are {', '.join(WAV_SUBTYPES)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        soundfile.write(str(temporary), samples.T, sampling_rate, subtype=subtype, format="WAV")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
