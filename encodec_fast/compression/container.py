"""Version 1 of `.ecdc`: segments that are framed, checked and found again one by one, and an index of them at the end.

A stream can be cut anywhere, and a damaged byte costs the segment that it lies in.
`docs/ecdc.md` has the format byte by byte.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from encodec_fast.compression.coders import Coder, RawCoder
from encodec_fast.compression.crc32c import crc32c
from encodec_fast.compression.header import MOST_SEGMENTS, Header, read_header
from encodec_fast.compression.segments import CompressedFileError, Segment

SEGMENT_MARKER, INDEX_MARKER = b"\xec\xdc\x5e\x67", b"\xec\xdc\x1d\x78"
# Number, samples that the codes cover, whether the header's coder coded them, bytes of codes
_HEAD = struct.Struct("!IIBI")
_CRC = struct.Struct("!I")
# Segments, samples of the clip
_INDEX_HEAD = struct.Struct("!IQ")
# Bytes of the whole index, and its checksum
_INDEX_TAIL = struct.Struct("!II")
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class StoredSegment:
    """A segment as it stands in the file, whole by its checksum.

    number: from 0.  start: its first sample in the clip.  samples: that its codes cover.  frames: F.
    scales: float32, one for each chunk; None where there are none.  coded: whether the header's coder coded it, else raw bits.
    payload: its codes.
    """

    number: int
    start: int
    samples: int
    frames: int
    scales: np.ndarray | None
    coded: bool
    payload: bytes


@dataclass(frozen=True)
class Lost:
    """Something that damage cost.

    start: the first sample that is missing.  samples: how many, as far as that is known; 0 where no sound is.
    reason: a sentence without its full stop.
    """

    start: int
    samples: int
    reason: str


class ContainerWriter:
    """Writes a file to a stream, which need not seek.

    file: its position is the file's beginning.
    header: of this coder. One without num_samples gets it at the end, where the stream can seek.
    size: bytes so far.
    """

    def __init__(self, file: IO[bytes], header: Header, coder: Coder):
        if (header.coder, header.coder_fingerprint) != (coder.name, coder.fingerprint):
            raise ValueError(f"header names the coder {header.coder!r}, coder is {coder.name!r}; make the header of this coder.")
        self.header = header
        self._begin = file.tell() if file.seekable() else None
        self._file, self._coder, self._raw = file, coder, RawCoder(header.codebook_size)
        self._sizes: list[int] = []
        self._end = 0
        self.size = file.write(header.to_bytes())

    @property
    def num_samples(self) -> int:
        """Samples of the clip so far."""
        return self._end

    def write(self, segments: Sequence[Segment]) -> None:
        """Adds the next segments, in the order of time.  Raises CompressedFileError for one that does not follow."""
        for number, segment in enumerate(segments, len(self._sizes)):
            self._check(segment, number)
            self._end = segment.start + segment.samples
        payloads = self._coder.encode([segment.codes for segment in segments])
        for segment, payload in zip(segments, payloads, strict=True):
            coded = True
            if len(payload) >= self._raw.size(*segment.codes.shape):
                (payload,), coded = self._raw.encode([segment.codes]), False
            scales = b"" if segment.scales is None else np.asarray(segment.scales, ">f4").tobytes()
            body = _HEAD.pack(len(self._sizes), segment.samples, coded, len(payload)) + scales + payload
            self._sizes.append(self._file.write(SEGMENT_MARKER + body + _CRC.pack(crc32c(body))))
            self.size += self._sizes[-1]

    def finish(self) -> None:
        """Writes what stands at the end.  Raises CompressedFileError where the header announced another length."""
        if self.header.num_samples not in (None, self._end) or not self._sizes:
            raise CompressedFileError(f"{self._end} samples were written, the header announces {self.header.num_samples}.")
        if self._begin is not None and self.header.num_samples is None:
            self.header = replace(self.header, num_samples=self._end)
            self._file.seek(self._begin)
            self._file.write(self.header.to_bytes())
            self._file.seek(self._begin + self.size)
        if self.header.indexed:
            body = _INDEX_HEAD.pack(len(self._sizes), self._end) + np.array(self._sizes, ">u4").tobytes()
            body += struct.pack("!I", len(INDEX_MARKER) + len(body) + _INDEX_TAIL.size)
            self.size += self._file.write(INDEX_MARKER + body + _CRC.pack(crc32c(body)))

    def _check(self, segment: Segment, number: int) -> None:
        header = self.header
        chunks = header.chunks_of(segment.samples)
        shape = (header.levels, header.frames_of(segment.samples))
        begin = number * header.segment_samples
        scales = 0 if segment.scales is None else len(segment.scales)
        # the last chunk of the segment before may reach into this one
        follows = number == 0 or begin <= self._end <= begin + header.most_samples - header.segment_samples
        fits = follows and 1 <= segment.samples <= header.most_samples
        if segment.start != begin or not fits or segment.codes.shape != shape or scales != header.normalize * len(chunks):
            raise CompressedFileError(
                f"segment {number} has codes {list(segment.codes.shape)}, {scales} scales and {segment.samples} samples from "
                f"{segment.start}; codes {list(shape)} from {begin} on are next."
            )
        if number >= MOST_SEGMENTS:
            raise CompressedFileError(f"a file holds {MOST_SEGMENTS} segments; choose longer ones.")
        if segment.codes.size and not 0 <= segment.codes.min() <= segment.codes.max() < header.codebook_size:
            raise CompressedFileError(f"segment {number} has codes outside 0 ... {header.codebook_size - 1}.")


class ContainerReader:
    """Reads a file lazily, from a stream that need not seek.

    file: at the beginning of the file; what lies before is not touched.
    header: what the file says of itself.
    num_samples: of the clip: by the header, by the index, or by what was read so far; this is known best at the end.
    Raises CompressedFileError for a file of another kind or version, and for a damaged header.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        begin = file.tell() if file.seekable() else None
        self.header = read_header(file)
        self._buffer = bytearray()
        self._consumed = len(self.header.to_bytes())
        self._expected = 0
        self.num_samples = self.header.num_samples or 0
        self._sizes = None if begin is None else self._indexed_sizes(begin)
        self._begin = begin

    @property
    def has_index(self) -> bool:
        """Whether a whole index was found, so that `seek` needs not read what it passes over."""
        return self._sizes is not None

    def seek(self, seconds: float) -> int:
        """Goes on with the segment that a time lies in, and returns its number.

        seconds: from the clip's start; its ends bound it.
        Without an index, `segments` reads what it passes over. A stream that can't seek goes forward only.
        """
        number = max(0, int(seconds * self.header.sampling_rate)) // self.header.segment_samples
        if self.num_samples:
            number = min(number, -(-self.num_samples // self.header.segment_samples) - 1)
        self._expected = number
        if self._begin is not None:
            self._buffer.clear()
            self._consumed = len(self.header.to_bytes()) + (sum(self._sizes[:number]) if self._sizes else 0)
            self._file.seek(self._begin + self._consumed)
        return number

    def segments(self) -> Iterator[StoredSegment | Lost]:
        """Yields what follows, in the order of time: segments, and what is lost between them."""
        damage = ""
        while self._fill(len(SEGMENT_MARKER)):
            if self._buffer.startswith(SEGMENT_MARKER):
                found = self._segment()
                if isinstance(found, StoredSegment):
                    if found.number >= self._expected:
                        yield from self._gap(found.number, damage)
                        self._expected, damage = found.number + 1, ""
                        self.num_samples = max(self.num_samples, found.start + found.samples)
                        yield found
                    continue
                damage = damage or found
            elif self._buffer.startswith(INDEX_MARKER):
                count = self._index()
                if count is not None:
                    yield from self._gap(count, damage)
                    yield from self._behind()
                    return
                damage = damage or f"the index is damaged at byte {self._consumed}"
            elif self.header.segments == self._expected and not self.header.indexed:
                break
            else:
                damage = damage or f"the file is damaged at byte {self._consumed}"
            self._skip_to_marker()
        yield from self._ending(damage)

    def _ending(self, damage: str) -> Iterator[Lost]:
        """Yields what is lost where the file ends without an index."""
        known = self.header.segments
        if known is not None and known > self._expected:
            yield from self._gap(known, damage or f"the file ends at byte {self._consumed}")
        elif self.header.indexed:
            if known is not None:
                reason = damage or "the file ends before its index"
            else:
                reason = f"{damage}; the file ends here without its index" if damage else "the file ends here, without its index"
            yield Lost(self.num_samples, 0, reason)
        elif damage:
            yield Lost(self.num_samples, 0, damage)
        else:
            yield from self._behind()

    def _gap(self, number: int, damage: str) -> Iterator[Lost]:
        """Yields the segments before `number` that did not come, as one; or the damage alone, where it cost none of them."""
        if number > self._expected:
            start, end = self._expected * self.header.segment_samples, number * self.header.segment_samples
            if self.num_samples > start:
                end = min(end, self.num_samples)
            yield Lost(start, end - start, damage or "segments are missing")
            self._expected = number
        elif damage:
            yield Lost(number * self.header.segment_samples, 0, f"{damage}, which cost no sound")

    def _behind(self) -> Iterator[Lost]:
        if self._fill(1):
            yield Lost(self.num_samples, 0, f"more stands behind the end, from byte {self._consumed} on")

    def _segment(self) -> StoredSegment | str:
        """Returns the segment whose marker is next and goes behind it; or what is wrong with it, and stays."""
        header, at = self.header, self._consumed
        place = len(SEGMENT_MARKER)
        if not self._fill(place + _HEAD.size):
            return f"the file ends at byte {at + len(self._buffer)}, inside a segment"
        number, samples, coded, size = _HEAD.unpack_from(self._buffer, place)
        start = number * header.segment_samples
        last = header.num_samples or number * header.segment_samples + header.most_samples
        if coded > 1 or not 1 <= samples <= header.most_samples or start + samples > last or number >= MOST_SEGMENTS:
            return f"a segment is damaged at byte {at}"
        frames, chunks = header.frames_of(samples), len(header.chunks_of(samples))
        if size > RawCoder(header.codebook_size).size(header.levels, frames):
            return f"a segment is damaged at byte {at}"
        scale_bytes = 4 * chunks if header.normalize else 0
        end = place + _HEAD.size + scale_bytes + size
        if not self._fill(end + _CRC.size):
            return f"the file ends at byte {at + len(self._buffer)}, inside a segment"
        body = bytes(self._buffer[place:end])
        if _CRC.pack(crc32c(body)) != self._buffer[end : end + _CRC.size]:
            return f"a segment is damaged between the bytes {at} and {at + end}"
        scales = np.frombuffer(body, ">f4", chunks, _HEAD.size).astype(np.float32) if header.normalize else None
        self._drop(end + _CRC.size)
        return StoredSegment(number, start, samples, frames, scales, bool(coded), body[_HEAD.size + scale_bytes :])

    def _index(self) -> int | None:
        """Returns how many segments the index has, sets the clip's length and goes behind it; None of a damaged one, and stays."""
        place = len(INDEX_MARKER)
        if not self._fill(place + _INDEX_HEAD.size):
            return None
        count, samples = _INDEX_HEAD.unpack_from(self._buffer, place)
        size = place + _INDEX_HEAD.size + 4 * count + _INDEX_TAIL.size
        if count > MOST_SEGMENTS or not self._fill(size) or self._parsed(bytes(self._buffer[:size])) is None:
            return None
        self._drop(size)
        self.num_samples = samples
        return count

    def _parsed(self, data: bytes) -> tuple[list[int], int] | None:
        """Returns (bytes of each segment, samples of the clip) of a whole index, or None."""
        place = len(INDEX_MARKER)
        if len(data) < place + _INDEX_HEAD.size + _INDEX_TAIL.size or not data.startswith(INDEX_MARKER):
            return None
        size, crc = _INDEX_TAIL.unpack(data[-_INDEX_TAIL.size :])
        count, samples = _INDEX_HEAD.unpack_from(data, place)
        counted = len(data) == size == place + _INDEX_HEAD.size + 4 * count + _INDEX_TAIL.size
        if not counted or crc32c(data[place : -_CRC.size]) != crc or not 0 < samples <= count * self.header.segment_samples:
            return None
        return np.frombuffer(data, ">u4", count, place + _INDEX_HEAD.size).tolist(), samples

    def _indexed_sizes(self, begin: int) -> list[int] | None:
        """Returns the bytes of each segment, by an index at the end of a file that can seek; None where there is none."""
        file, here = self._file, self._file.tell()
        try:
            end = file.seek(0, os.SEEK_END)
            if not self.header.indexed or end - here < _INDEX_TAIL.size:
                return None
            file.seek(end - _INDEX_TAIL.size)
            size, _ = _INDEX_TAIL.unpack(file.read(_INDEX_TAIL.size))
            if not 0 < size <= end - here:
                return None
            file.seek(end - size)
            found = self._parsed(file.read(size))
        finally:
            file.seek(here)
        if found is None or begin + self._consumed + sum(found[0]) + size != end:
            return None
        self.num_samples = found[1]
        return found[0]

    def _skip_to_marker(self) -> None:
        """Goes to the next place that a segment or the index may begin at, behind the present one."""
        self._drop(1)
        while True:
            places = [self._buffer.find(marker) for marker in (SEGMENT_MARKER, INDEX_MARKER)]
            found = [place for place in places if place >= 0]
            if found:
                self._drop(min(found))
                return
            # a marker may have come in part
            self._drop(max(0, len(self._buffer) - len(SEGMENT_MARKER) + 1))
            if not self._fill(len(self._buffer) + 1):
                return

    def _fill(self, size: int) -> bool:
        """Tells whether `size` bytes are there, having read on where they were not: never for more than have come."""
        while len(self._buffer) < size:
            # of a pipe, what has come; a read of a fixed size would wait
            read1 = getattr(self._file, "read1", None)
            part = self._file.read(size - len(self._buffer)) if read1 is None else read1(_READ_BYTES)
            if not part:
                return False
            self._buffer += part
        return True

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._consumed += count


def decode_segments(header: Header, coder: Coder, stored: Sequence[StoredSegment]) -> list[Segment | Lost]:
    """Returns the codes of segments, in one batch; what a coder can't read is lost.

    coder: the header's.  Raises ValueError for another one.
    """
    if (header.coder, header.coder_fingerprint) != (coder.name, coder.fingerprint):
        raise ValueError(f"the file was coded by {header.coder!r}, coder is {coder.name!r} or has other weights.")
    results: dict[int, Segment | Lost] = {}
    for by, coded in ((coder, True), (RawCoder(header.codebook_size), False)):
        group = [each for each in stored if each.coded is coded]
        for each, codes in zip(group, _decoded(by, group, header.levels), strict=True):
            if isinstance(codes, str):
                results[each.number] = Lost(each.start, min(each.samples, header.segment_samples), codes)
            else:
                results[each.number] = Segment(codes, each.scales, each.start, each.samples)
    return [results[each.number] for each in stored]


def _decoded(coder: Coder, group: Sequence[StoredSegment], levels: int) -> list[np.ndarray | str]:
    """Returns the codes of each, or why it has none."""
    try:
        return list(coder.decode([each.payload for each in group], [each.frames for each in group], levels))
    # of a language model's coder too, whose module knows no files
    except ValueError as error:
        if len(group) == 1:
            return [str(error).rstrip(".")]
        # one of them: the others are decoded by themselves
        return [codes for each in group for codes in _decoded(coder, [each], levels)]
