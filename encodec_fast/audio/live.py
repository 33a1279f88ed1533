"""WAV that comes and goes through pipes, while it is recorded or played: nothing is held but a block."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from encodec_fast.audio.opened import AudioError
from encodec_fast.audio.samples import mix_channels, resample_blocks

_READ_BYTES = 1 << 16
# Chunks before the sound, such as tags, may have this many bytes
_MOST_CHUNK = 1 << 20
# Lengths from here on are what writers put where they don't know: ffmpeg 2**32 - 1, sox 2**31 - 1 and less by its header
_UNKNOWN_LENGTH = 0x7FFFF000
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# (format, bits): the dtype of a sample, and full scale; of 24 bits the four bytes that each is made of
_SAMPLES = {
    (_PCM, 16): ("<i2", 1 << 15),
    (_PCM, 24): ("<i4", 1 << 31),
    (_PCM, 32): ("<i4", 1 << 31),
    (_FLOAT, 32): ("<f4", 1),
    (_FLOAT, 64): ("<f8", 1),
}


@dataclass(frozen=True)
class LiveWav:
    """What the header of a WAV stream says.

    sampling_rate: Hz.  channels: how many.  bits: of a sample.  length: bytes of sound, None where the header doesn't know.
    """

    sampling_rate: int
    channels: int
    kind: int
    bits: int
    length: int | None


def read_wav_header(file: IO[bytes], name: str) -> LiveWav:
    """Reads a stream up to its first sample.  name: for messages.  Raises AudioError for what is no WAV of whole samples."""
    head = _read(file, 12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        raise AudioError(name, f"it begins with {head[:4]!r}; a WAV stream is needed, as `ffmpeg -f wav -` gives.")
    found: tuple[int, int, int, int] | None = None
    while True:
        chunk = _read(file, 8)
        if len(chunk) < 8:
            raise AudioError(name, "the stream ends before its sound.")
        kind, size = struct.unpack("<4sI", chunk)
        if kind == b"data":
            break
        if size > _MOST_CHUNK:
            raise AudioError(name, f"a chunk {kind!r} of {size} bytes stands before the sound.")
        body = _read(file, size + size % 2)
        if len(body) < size:
            raise AudioError(name, "the stream ends before its sound.")
        if kind == b"fmt " and size >= 16:
            code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            if code == _EXTENSIBLE and len(body) >= 26:
                (code,) = struct.unpack("<H", body[24:26])
            found = (code, channels, rate, bits)
    if found is None or (found[0], found[3]) not in _SAMPLES or not found[1] or not found[2]:
        raise AudioError(name, f"its samples are {found}; PCM of 16, 24 or 32 bits, or floats, are read from a pipe.")
    code, channels, rate, bits = found
    return LiveWav(rate, channels, code, bits, None if size == 0 or size >= _UNKNOWN_LENGTH else size)


def live_blocks(file: IO[bytes], wav: LiveWav, sampling_rate: int, channels: int, name: str) -> Iterator[np.ndarray]:
    """Yields the sound behind a header as it comes, float32 [C, T_i] at the given rate and channels, none empty.

    Raises AudioError for a stream that ends before its header says, that has no samples, and for NaN and infinity.
    """
    empty = True
    for block in resample_blocks(_native(file, wav, channels, name), wav.sampling_rate, sampling_rate):
        if block.shape[1]:
            empty = False
            yield block
    if empty:
        raise AudioError(name, "the stream holds no samples.")


def _native(file: IO[bytes], wav: LiveWav, channels: int, name: str) -> Iterator[np.ndarray]:
    dtype, scale = _SAMPLES[wav.kind, wav.bits]
    width = wav.bits // 8 * wav.channels
    left, rest = wav.length, b""
    # of a pipe, what has come
    read: Any = getattr(file, "read1", file.read)
    while left is None or left > 0:
        part = read(_READ_BYTES if left is None else min(_READ_BYTES, left))
        if not part:
            if left is not None:
                raise AudioError(name, f"the stream is cut short: {left} bytes of sound are missing.")
            break
        left = None if left is None else left - len(part)
        rest += part
        whole = len(rest) // width * width
        data, rest = rest[:whole], rest[whole:]
        if wav.bits == 24:
            # as the upper bytes of 32
            three = np.frombuffer(data, np.uint8).reshape(-1, 3)
            data = np.pad(three, ((0, 0), (1, 0))).tobytes()
        samples = np.frombuffer(data, dtype).reshape(-1, wav.channels).astype(np.float32) / np.float32(scale)
        if not np.isfinite(samples).all():
            raise AudioError(name, "samples are NaN or infinite.")
        try:
            yield mix_channels(samples.T, channels)
        except ValueError as error:
            raise AudioError(name, str(error)) from error


def wav_header(sampling_rate: int, channels: int, subtype: str, samples: int | None) -> bytes:
    """Returns the header of a WAV stream.

    subtype: PCM_16, PCM_24 or FLOAT.  samples: per channel; None where it is not known, as of what is still to come.
    """
    kind, bits = {"PCM_16": (_PCM, 16), "PCM_24": (_PCM, 24), "FLOAT": (_FLOAT, 32)}[subtype]
    width = channels * bits // 8
    size = None if samples is None or samples * width >= _UNKNOWN_LENGTH else samples * width
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, sampling_rate, sampling_rate * width, width, bits)
    riff = 0xFFFFFFFF if size is None else 4 + len(fmt) + 8 + size
    return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + fmt + struct.pack("<4sI", b"data", 0xFFFFFFFF if size is None else size)


def wav_samples(block: np.ndarray, sampling_rate: int, subtype: str) -> bytes:
    """Returns samples [C, T] as they stand in a WAV stream: as `write_wav` writes them."""
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, block.T, sampling_rate, subtype=subtype, format="RAW", endian="LITTLE")
    return held.getvalue()


def _read(file: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (part := file.read(size - len(data))):
        data += part
    return data
