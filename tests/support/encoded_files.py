"""Audio as other programs write it, for the tests of how it is read: made by ffmpeg, and changed by hand."""

from __future__ import annotations

import os
import struct
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


def quicktime_reference(path: Path, other: Path, frames: int) -> Path:
    """A QuickTime file whose samples, 16-bit mono at RATE, lie behind the header of another file, a WAV, that it names by an alias."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        data = b"".join(parts)
        return struct.pack(">I4s", 8 + len(data), kind) + data

    def words(*numbers: int) -> bytes:
        return struct.pack(f">{len(numbers)}I", *numbers)

    full, name = str(other).encode(), other.name.encode()
    volume = bytes(10) + bytes([4]) + b"root".ljust(27, b"\0") + bytes(12)
    alias = volume + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    for kind in (2, 18):  # the path from the root, and as POSIX has it
        alias += struct.pack(">hH", kind, len(full)) + full + bytes(len(full) % 2)
    reference = box(b"dref", words(0, 1), box(b"alis", words(0), alias, struct.pack(">hH", -1, 0)))
    sound = bytes(6) + struct.pack(">HHHIHHHHI", 1, 0, 0, 0, 1, 16, 0, 0, RATE << 16)
    table = [
        box(b"stsd", words(0, 1), box(b"sowt", sound)),
        box(b"stts", words(0, 1, frames, 1)),
        box(b"stsc", words(0, 1, 1, frames, 1)),
        box(b"stsz", words(0, 2, frames)),
        box(b"stco", words(0, 1, 44)),
    ]
    information = box(b"minf", box(b"smhd", bytes(8)), box(b"dinf", reference), box(b"stbl", *table))
    handler = box(b"hdlr", words(0), b"mhlrsoun", bytes(13))
    media = box(b"mdia", box(b"mdhd", words(0, 0, 0, RATE, frames, 0)), handler, information)
    track = box(b"trak", box(b"tkhd", words(1, 0, 0, 1, 0, frames), bytes(60)), media)
    matrix = words(1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    header = box(b"mvhd", words(0, 0, 0, RATE, frames, 1 << 16), struct.pack(">H", 256), bytes(10), matrix, bytes(24), words(2))
    path.write_bytes(box(b"ftyp", b"qt  ", bytes(4), b"qt  ") + box(b"moov", header, track))
    return path
