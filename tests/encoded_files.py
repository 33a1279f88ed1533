"""Audio as other programs write it, for the tests of how it is read: made by ffmpeg, and changed by hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_fast.audio.ffmpeg import ffmpeg_program

RATE = 24_000


def needed_ffmpeg() -> str:
    """The program. Skips the test where there is none; with CI=true it fails."""
    program = ffmpeg_program()
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("ffmpeg is not installed")
    return program


def lively(seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """float32 [T, C] of a gliding tone, and noise in every other half second: encoders choose blocks and bitrates anew all the time."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal((len(time), channels)) * (np.sin(2 * np.pi * time) > 0)[:, None]
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)[:, None] + 0.1 * noise).astype(np.float32)


def encoded(path: Path, samples: np.ndarray, rate: int, *options: str) -> Path:
    """The file that ffmpeg writes of the samples [T, C] with these options."""
    source = path.with_name(path.name + ".source.wav")
    soundfile.write(source, samples, rate)
    bare = ["-map_metadata", "-1", "-id3v2_version", "0"] if path.suffix == ".mp3" else []
    subprocess.run([needed_ffmpeg(), "-v", "error", "-nostdin", "-y", "-i", source, *bare, *options, path], check=True)
    source.unlink()
    return path


def counted(path: Path) -> int:
    """Samples per channel that ffmpeg decodes."""
    command = [needed_ffmpeg(), "-v", "quiet", "-nostdin", "-i", path, "-map", "0:a:0", "-ac", "1", "-c:a", "pcm_s16le", "-f", "s16le", "-"]
    return len(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) // 2


def joined(path: Path, *parts: Path | bytes) -> Path:
    """One file of the parts' bytes, one after the other."""
    path.write_bytes(b"".join(part if isinstance(part, bytes) else part.read_bytes() for part in parts))
    return path
