"""Decoded clips as WAV files: safe names for them, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from encodec_fast.audio.files import AUDIO_SUFFIXES


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
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        # x: a name that is there already, a link too, is an error
        with temporary.open("x+b") as file:
            soundfile.write(file, samples.T, sampling_rate, subtype=subtype, format="WAV")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
