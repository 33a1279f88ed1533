"""The header of a container file: which model and coder made it, and how its time is cut."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import IO

from encodec_fast.compression.crc32c import crc32c
from encodec_fast.compression.segments import CompressedFileError

MAGIC = b"ECDC"
VERSION = 1
# Magic, version, bytes that follow; version 0 begins the same, so that its readers name the version they lack
PREFIX = struct.Struct("!4sBI")
_FIXED = struct.Struct("!IIQIIHHIIIBBf32s32sB")
_CRC = struct.Struct("!I")
MOST_BYTES = 1 << 10
_NORMALIZE, _INDEXED = 1, 2
CODER_NUMBERS = {"raw": 0, "static": 1, "adaptive": 2, "lm": 3}
_CODER_NAMES = {number: name for name, number in CODER_NUMBERS.items()}
# Bounds of what is read from a file
MOST_RATE, MOST_CHANNELS, MOST_LEVELS, MOST_ENTRIES, MOST_HOP = 1 << 24, 1 << 10, 1 << 8, 1 << 16, 1 << 16
MOST_SEGMENT_FRAMES = 1 << 16
MOST_SAMPLES = 1 << 48
MOST_SEGMENTS = 1 << 24


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    model: its name, a hint; "" where it has none that others know.  weights_sha256: of the model's weights, in hex; this decides.
    sampling_rate: Hz, the model's.  channels: of the audio.  hop_length: samples in a frame.
    codebook_size: entries.  levels: codebooks in use.  bandwidth: kbps of the codes before they were coded.
    chunk_length, chunk_stride: samples, None of a model without chunks.  normalize: whether each chunk has a scale.
    segment_samples: from the start of a segment to that of the next.
    original_rate: Hz, of the source.  num_samples: of the clip at the model's rate; None where it was not known yet.
    coder: a name of CODER_NUMBERS.  coder_fingerprint: SHA-256 of its weights or tables; zeros where it needs none.
    """

    model: str
    weights_sha256: str
    sampling_rate: int
    channels: int
    hop_length: int
    codebook_size: int
    levels: int
    bandwidth: float
    chunk_length: int | None
    chunk_stride: int | None
    normalize: bool
    segment_samples: int
    original_rate: int
    num_samples: int | None
    coder: str
    coder_fingerprint: bytes

    def __post_init__(self) -> None:
        for name, most in _BOUNDS.items():
            _check(name, getattr(self, name), 1, most)
        if self.num_samples is not None:
            _check("num_samples", self.num_samples, 1, min(MOST_SAMPLES, MOST_SEGMENTS * self.segment_samples))
        if (self.chunk_length is None) != (self.chunk_stride is None):
            raise CompressedFileError(f"chunk_length is {self.chunk_length}, chunk_stride {self.chunk_stride}; both or none is needed.")
        if self.chunk_length is not None and self.chunk_stride is not None:
            _check("chunk_stride", self.chunk_stride, 1, self.chunk_length)
            _check("chunk_length", self.chunk_length, 1, 2 * self.chunk_stride)
        unit = self.chunk_stride or self.hop_length
        if self.segment_samples % unit or self.frames_of(self.most_samples) > MOST_SEGMENT_FRAMES:
            raise CompressedFileError(
                f"segment_samples is {self.segment_samples}; a multiple of {unit} with {MOST_SEGMENT_FRAMES} frames at most is needed."
            )
        if self.coder not in CODER_NUMBERS:
            raise CompressedFileError(f"coder is {self.coder!r}; allowed are {', '.join(CODER_NUMBERS)}.")
        if not 0 < self.bandwidth < math.inf:
            raise CompressedFileError(f"bandwidth is {self.bandwidth}; kbps are needed.")

    @property
    def indexed(self) -> bool:
        """Whether an index stands at the end: not behind a single segment of known length, which needs none."""
        return self.num_samples is None or self.num_samples > self.segment_samples

    @property
    def segments(self) -> int | None:
        """How many segments the clip has; None where its length was not known."""
        return None if self.num_samples is None else -(-self.num_samples // self.segment_samples)

    @property
    def most_samples(self) -> int:
        """Samples that a segment's codes cover at most: its last chunk reaches into the next segment."""
        return self.segment_samples + (self.chunk_length or 0) - (self.chunk_stride or 0)

    def chunks_of(self, samples: int) -> list[int]:
        """Returns the samples of each chunk of a segment that covers `samples`; all of them for a model without chunks."""
        if self.chunk_length is None or self.chunk_stride is None:
            return [samples]
        starts = range(0, min(samples, self.segment_samples), self.chunk_stride)
        return [min(self.chunk_length, samples - start) for start in starts]

    def frames_of(self, samples: int) -> int:
        """Returns the frames of a segment that covers `samples`."""
        return sum(-(-length // self.hop_length) for length in self.chunks_of(samples))

    def to_bytes(self) -> bytes:
        """Returns the header as it stands in the file."""
        name = self.model.encode()[:255].decode(errors="ignore").encode()
        fixed = _FIXED.pack(
            self.sampling_rate,
            self.original_rate,
            self.num_samples or 0,
            self.hop_length,
            self.codebook_size,
            self.channels,
            self.levels,
            self.chunk_length or 0,
            self.chunk_stride or 0,
            self.segment_samples,
            CODER_NUMBERS[self.coder],
            _NORMALIZE * self.normalize + _INDEXED * self.indexed,
            self.bandwidth,
            bytes.fromhex(self.weights_sha256),
            self.coder_fingerprint,
            len(name),
        )
        data = PREFIX.pack(MAGIC, VERSION, len(fixed) + len(name) + _CRC.size) + fixed + name
        return data + _CRC.pack(crc32c(data))


_BOUNDS = {
    "sampling_rate": MOST_RATE,
    "original_rate": MOST_RATE,
    "channels": MOST_CHANNELS,
    "hop_length": MOST_HOP,
    "codebook_size": MOST_ENTRIES,
    "levels": MOST_LEVELS,
    "segment_samples": MOST_SEGMENT_FRAMES * MOST_HOP,
}


def read_header(file: IO[bytes]) -> Header:
    """Returns the header at the file's position, and leaves the position behind it.

    Raises CompressedFileError for a file of another kind or version.
    Raises it too for a header that is damaged or out of bounds.
    """
    prefix = read_exactly(file, PREFIX.size)
    magic, version, size = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise CompressedFileError(f"it begins with {magic!r}; compressed files begin with {MAGIC!r}.")
    if version != VERSION:
        raise CompressedFileError(f"it has version {version}; {VERSION} is read here.")
    if not _FIXED.size + _CRC.size <= size <= MOST_BYTES:
        raise CompressedFileError(f"its header is said to have {size} bytes; {MOST_BYTES} are allowed.")
    body = read_exactly(file, size)
    if _CRC.pack(crc32c(prefix + body[: -_CRC.size])) != body[-_CRC.size :]:
        raise CompressedFileError("its header is damaged: the checksum is another.")
    fields = _FIXED.unpack(body[: _FIXED.size])
    rate, original, samples, hop, entries, channels, levels, length, stride, segment, coder, flags, kbps, weights, tables, named = fields
    try:
        name = body[_FIXED.size : -_CRC.size].decode()
    except UnicodeDecodeError as error:
        raise CompressedFileError(f"its model's name is no text ({error}).") from error
    if len(body) != _FIXED.size + named + _CRC.size or coder not in _CODER_NAMES or flags > (_NORMALIZE | _INDEXED):
        raise CompressedFileError(f"its header has {size} bytes, coder {coder}, flags {flags}; a newer version wrote it.")
    header = Header(
        model=name,
        weights_sha256=weights.hex(),
        sampling_rate=rate,
        channels=channels,
        hop_length=hop,
        codebook_size=entries,
        levels=levels,
        bandwidth=kbps,
        chunk_length=length or None,
        chunk_stride=stride or None,
        normalize=bool(flags & _NORMALIZE),
        segment_samples=segment,
        original_rate=original,
        num_samples=samples or None,
        coder=_CODER_NAMES[coder],
        coder_fingerprint=tables,
    )
    if header.indexed != bool(flags & _INDEXED):
        raise CompressedFileError("its header contradicts itself about an index at the end.")
    return header


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """Returns the next `size` bytes, read as they come: a size that is announced and not there takes no memory.

    Raises CompressedFileError where the file ends before.
    """
    parts: list[bytes] = []
    missing = size
    while missing:
        part = file.read(min(missing, 1 << 20))
        if not part:
            raise CompressedFileError(f"the file is cut short: {missing} of {size} bytes are missing.")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise CompressedFileError(f"{name} is {value}; {least} ... {most} is allowed.")
