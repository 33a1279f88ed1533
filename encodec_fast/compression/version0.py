"""Version 0 of `.ecdc`: the files that `encodec` 0.1.1 writes and reads.

A header of JSON, then segments back to back: a scale where the model normalizes, and codes of 10 bits, frame by frame.
There is no length, index or checksum: a position is computed. Behind a language model it can't be: such files are read from the front.
`docs/ecdc.md` has it byte by byte.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from encodec_fast.compression.bits import pack_bits, packed_size, unpack_bits
from encodec_fast.compression.header import MAGIC, PREFIX, read_exactly
from encodec_fast.compression.segments import CompressedFileError, Segment
from encodec_fast.compression.stock_language_model import StockLanguageModelCoder

_SCALE = struct.Struct("!f")
CODE_BITS = 10
HOP_LENGTH = 320
# Its own writers need about 60 bytes
MOST_HEADER_BYTES = 1 << 12
# Longer than a year at 48 kHz; files of such lengths don't exist
MOST_SAMPLES = 1 << 41


@dataclass(frozen=True)
class Version0Model:
    """What version 0 knows of a model by its name.

    sampling_rate: Hz.  channels: of the audio.  levels: codebooks at most.
    chunk_length, chunk_stride: samples of its chunks, None where it has none.  normalize: whether each chunk has a scale.
    """

    sampling_rate: int
    channels: int
    levels: int
    chunk_length: int | None
    chunk_stride: int | None
    normalize: bool


# Both have 1,024 entries in a codebook, and 320 samples in a frame
VERSION0_MODELS = {
    "encodec_24khz": Version0Model(24_000, 1, 32, None, None, False),
    "encodec_48khz": Version0Model(48_000, 2, 16, 48_000, 47_520, True),
}


@dataclass(frozen=True)
class Version0Header:
    """The header of a version 0 file.

    model: a name of VERSION0_MODELS.  num_samples: of the clip.  levels: codebooks in use.
    language_model: whether the codes are coded by the language model of `encodec`.
    """

    model: str
    num_samples: int
    levels: int
    language_model: bool = False

    def __post_init__(self) -> None:
        if self.model not in VERSION0_MODELS:
            raise CompressedFileError(f"the model is {self.model!r}; version 0 knows {' and '.join(VERSION0_MODELS)}.")
        _check_number("num_samples", self.num_samples, MOST_SAMPLES)
        _check_number("levels", self.levels, self.geometry.levels)
        if type(self.language_model) is not bool:
            raise CompressedFileError(f"language_model is {self.language_model!r}; true or false is needed.")

    @property
    def geometry(self) -> Version0Model:
        """The model's rate, channels and chunks."""
        return VERSION0_MODELS[self.model]

    @property
    def segments(self) -> int:
        """How many segments the file has: one, or one for each chunk."""
        stride = self.geometry.chunk_stride
        return 1 if stride is None else -(-self.num_samples // stride)

    def segment_samples(self, index: int) -> tuple[int, int]:
        """Returns (start, samples) of a segment."""
        geometry = self.geometry
        if geometry.chunk_length is None or geometry.chunk_stride is None:
            return 0, self.num_samples
        start = index * geometry.chunk_stride
        return start, min(geometry.chunk_length, self.num_samples - start)

    def segment_bytes(self, index: int) -> tuple[int, int]:
        """Returns (offset, size) of a segment, from the end of the header; without a language model."""
        whole = 0 if index == 0 else self._size(self.segment_samples(0)[1])
        # all but the last two are of full chunks
        first_short = index if self.geometry.chunk_length is None else min(index, max(0, self.segments - 2))
        offset = first_short * whole + sum(self._size(self.segment_samples(each)[1]) for each in range(first_short, index))
        return offset, self._size(self.segment_samples(index)[1])

    @property
    def payload_bytes(self) -> int:
        """Bytes of all segments; without a language model."""
        offset, size = self.segment_bytes(self.segments - 1)
        return offset + size

    def _size(self, samples: int) -> int:
        scale = _SCALE.size if self.geometry.normalize else 0
        return scale + packed_size(frames_of(samples) * self.levels, CODE_BITS)

    def to_bytes(self) -> bytes:
        """Returns the header as `encodec` 0.1.1 writes it."""
        fields = {"m": self.model, "al": self.num_samples, "nc": self.levels, "lm": self.language_model}
        text = json.dumps(fields).encode()
        return PREFIX.pack(MAGIC, 0, len(text)) + text


def frames_of(samples: int) -> int:
    """Returns the frames of `samples` samples."""
    return -(-samples // HOP_LENGTH)


def frames_by_encodec(samples: int, sampling_rate: int) -> int:
    """Returns the frames that the reader of `encodec` 0.1.1 expects: in one of twenty lengths of whole frames, one too many.

    It divides by the rate before it multiplies, and the rounding of that can exceed a whole number.
    """
    return math.ceil(samples / sampling_rate * (sampling_rate // HOP_LENGTH))


def readable_by_encodec(header: Version0Header) -> bool:
    """Tells whether `encodec` 0.1.1 can read such a file. Its own files of these lengths it can't read either."""
    # all chunks but the last two are of full length, which is none of them
    last = range(max(0, header.segments - 2), header.segments)
    lengths = [header.segment_samples(index)[1] for index in last]
    return all(frames_by_encodec(samples, header.geometry.sampling_rate) == frames_of(samples) for samples in lengths)


def write_version0(header: Version0Header, segments: Sequence[Segment], lm: StockLanguageModelCoder | None = None) -> bytes:
    """Returns the file: byte for byte that of `encodec` 0.1.1 for the same codes; behind a language model in the same process.

    segments: all of the clip, in order.  lm: where the header says so; such a file holds as `where_it_holds` says.
    Raises CompressedFileError for segments that are none of such a clip. Raises NotReproducible as `StockLanguageModelCoder.encode` does.
    """
    if header.language_model != (lm is not None):
        raise CompressedFileError(f"the header says language_model {header.language_model}; lm must be given if and only if it does.")
    if len(segments) != header.segments:
        raise CompressedFileError(f"{len(segments)} segments came, a clip of {header.num_samples} samples has {header.segments}.")
    return header.to_bytes() + b"".join(_segment_bytes(header, index, segment, lm) for index, segment in enumerate(segments))


def _segment_bytes(header: Version0Header, index: int, segment: Segment, lm: StockLanguageModelCoder | None) -> bytes:
    codes, scales = segment.codes, segment.scales
    shape = [header.levels, frames_of(header.segment_samples(index)[1])]
    if list(codes.shape) != shape or (codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << CODE_BITS):
        raise CompressedFileError(f"segment {index}: codes {list(codes.shape)} must be {shape}, each 0 ... {(1 << CODE_BITS) - 1}.")
    if (scales is not None and len(scales) == 1) != header.geometry.normalize:
        raise CompressedFileError(f"segment {index}: {header.model} needs {'one scale' if header.geometry.normalize else 'no scale'}.")
    scale = b"" if scales is None else _SCALE.pack(float(scales[0]))
    return scale + (pack_bits(codes.T, CODE_BITS) if lm is None else lm.encode(codes))


_NEEDS_LANGUAGE_MODEL = (
    "its codes are coded by the language model of `encodec`; give that as --lm. "
    "It can be read on the machine that wrote it, with the same thread count and torch."
)


class Version0File:
    """Reads a version 0 file lazily: the header at once, segments where they are asked for.

    file: at the beginning of the file; what lies before is not touched. Only a file that can seek can be read out of order.
    lm: that its codes were coded with, where they were. Then a segment is found by reading all before it.
    header: what the file says of itself.
    Raises CompressedFileError for a file of another kind or version, a damaged header, and one cut short.
    Raises it too where the language model is missing.
    """

    def __init__(self, file: IO[bytes], lm: StockLanguageModelCoder | None = None):
        self._file, self._lm = file, lm
        self._next = 0
        # of a language model's segments: the last that was read
        self._coded: tuple[int, Segment] | None = None
        self.header = read_header(file)
        if self.header.language_model and lm is None:
            raise CompressedFileError(_NEEDS_LANGUAGE_MODEL)
        self._begin = None
        if file.seekable():
            self._begin = file.tell()
            there = file.seek(0, os.SEEK_END) - self._begin
            if not self.header.language_model and there != self.header.payload_bytes:
                relation = "is cut short" if there < self.header.payload_bytes else "is longer than its header says"
                raise CompressedFileError(f"the file {relation}: {self.header.payload_bytes} bytes of codes announced, {there} there.")
            file.seek(self._begin)

    @property
    def can_seek(self) -> bool:
        """Whether segments can be read out of order."""
        return self._begin is not None

    def __len__(self) -> int:
        return self.header.segments

    def __iter__(self) -> Iterator[Segment]:
        for index in range(len(self)):
            yield self.segment(index)

    def index_at(self, seconds: float) -> int:
        """Returns the segment that a time lies in.  seconds: from the clip's start; the ends of the clip bound it."""
        stride = self.header.geometry.chunk_stride
        sample = max(0, int(seconds * self.header.geometry.sampling_rate))
        return 0 if stride is None else min(sample // stride, len(self) - 1)

    def segment(self, index: int) -> Segment:
        """Returns a segment, whole.  Raises IndexError for another index, CompressedFileError where the file ends inside it."""
        _, samples = self._located(index)
        return self.frames(index, 0, frames_of(samples))

    def frames(self, index: int, first: int, stop: int) -> Segment:
        """Returns the frames first ... stop - 1 of a segment, of which only those bytes are read.

        Its `start` and `samples` are those of the frames.
        Raises IndexError for frames that the segment lacks, CompressedFileError where the file ends inside it.
        """
        start, samples = self._located(index)
        if not 0 <= first <= stop <= frames_of(samples):
            raise IndexError(f"frames {first} ... {stop}; segment {index} has {frames_of(samples)}.")
        header = self.header
        if self._lm is not None and header.language_model:
            coded = self._coded_segment(self._lm, index)
            return _part(coded.codes[:, first:stop], coded.scales, start, samples, first)
        offset, size = header.segment_bytes(index)
        scale_size = _SCALE.size if header.geometry.normalize else 0
        bits = CODE_BITS * header.levels
        begin = first * bits // 8
        end = size - scale_size if stop == frames_of(samples) else packed_size(stop, bits)
        whole = begin == 0 and end == size - scale_size
        if self._begin is None and not (whole and index == self._next):
            raise CompressedFileError("this stream can't seek; read whole segments, one after the other.")
        if self._begin is not None:
            self._file.seek(self._begin + offset)
        scales = self._scale(index)
        if begin:
            self._file.seek(begin, os.SEEK_CUR)
        data = read_exactly(self._file, end - begin)
        self._next = index + 1
        # bits before the first frame's, within its byte
        count, lead = (stop - first) * header.levels, first * bits - 8 * begin
        values = unpack_bits(data, CODE_BITS, count, lead)
        codes = values.reshape(stop - first, header.levels).T.astype(np.int64)
        return _part(codes, scales, start, samples, first)

    def _scale(self, index: int) -> np.ndarray | None:
        """Returns the scale at the file's position, where the model has some."""
        if not self.header.geometry.normalize:
            return None
        scales = np.array(_SCALE.unpack(read_exactly(self._file, _SCALE.size)), np.float32)
        if not np.isfinite(scales).all():
            raise CompressedFileError(f"segment {index}: its scale is {scales[0]}; a finite number is needed.")
        return scales

    def _coded_segment(self, lm: StockLanguageModelCoder, index: int) -> Segment:
        """Returns a segment behind a language model, having read all before it."""
        if self._coded is not None and self._coded[0] == index:
            return self._coded[1]
        if index < self._next:
            if self._begin is None:
                raise CompressedFileError("this stream can't seek; read segments one after the other.")
            self._file.seek(self._begin)
            self._next = 0
        while self._next <= index:
            start, samples = self.header.segment_samples(self._next)
            scales = self._scale(self._next)
            try:
                codes = lm.decode(self._file, frames_of(samples), self.header.levels)
            except CompressedFileError as error:
                # whoever asks again begins at the front
                self._next = len(self)
                raise CompressedFileError(f"segment {self._next}: {str(error).rstrip('.')}. {_NOT_HERE}") from error
            self._coded = self._next, Segment(codes, scales, start, samples)
            self._next += 1
        if self._next == len(self) and self._file.read(1):
            raise CompressedFileError(f"the file goes on behind its last code. {_NOT_HERE}")
        assert self._coded is not None
        return self._coded[1]

    def _located(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"segment {index}; the file has {len(self)}.")
        return self.header.segment_samples(index)


_NOT_HERE = (
    "It is damaged, or was written with another language model, machine, thread count or torch: with the language model, "
    "files of encodec 0.1.1 hold where they were written."
)


def _part(codes: np.ndarray, scales: np.ndarray | None, start: int, samples: int, first: int) -> Segment:
    """Returns the frames `first` and more of a segment.  start, samples: of the segment."""
    begin, end = first * HOP_LENGTH, (first + codes.shape[1]) * HOP_LENGTH
    return Segment(codes, scales, start + begin, min(samples, end) - min(samples, begin))


def read_version0(data: bytes, lm: StockLanguageModelCoder | None = None) -> tuple[Version0Header, list[Segment]]:
    """Returns the header and all segments of a file's bytes.  Raises CompressedFileError as `Version0File` does."""
    file = Version0File(io.BytesIO(data), lm)
    return file.header, list(file)


def read_header(file: IO[bytes]) -> Version0Header:
    """Returns the header at the file's position, and leaves the position behind it.  Raises CompressedFileError."""
    magic, version, size = PREFIX.unpack(read_exactly(file, PREFIX.size))
    if magic != MAGIC:
        raise CompressedFileError(f"it begins with {magic!r}; files of this kind begin with {MAGIC!r}.")
    if version != 0:
        raise CompressedFileError(f"it has version {version}; 0 is read here.")
    if not 1 < size <= MOST_HEADER_BYTES:
        raise CompressedFileError(f"its header is said to have {size} bytes; {MOST_HEADER_BYTES} are allowed.")
    try:
        fields: Any = json.loads(read_exactly(file, size))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CompressedFileError):
            raise
        raise CompressedFileError(f"its header is no JSON ({error}).") from error
    names = ("m", "al", "nc", "lm")
    if not isinstance(fields, dict) or not all(name in fields for name in names) or not isinstance(fields["m"], str):
        raise CompressedFileError(f"its header is {str(fields)[:200]!r}; an object with {', '.join(names)} is needed.")
    return Version0Header(*(fields[name] for name in names))


def _check_number(name: str, value: Any, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise CompressedFileError(f"{name} is {value!r}; a whole number of 1 ... {most} is needed.")
