"""The frames of MPEG audio (MP3, MP2, MP1), counted in the bytes because the announced length is often a guess."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from encodec_fast.audio.tags import before_tags, is_beginning, no_audio, read_at

# kbit/s by the header's four bits 1..14, ISO/IEC 11172-3 2.4.2.3 and 13818-3.
# Version 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5.
_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG1_BITRATES = {
    1: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_MPEG2_BITRATES = {1: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256), 2: _LOW, 3: _LOW}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}

_CHUNK = 1 << 20
# Junk allowed before the first frame besides tags: the rest of a frame in a recorded stream, or a program's padding.
_FEW_LEADING_BYTES, _MOST_LEADING_BYTES = 1 << 14, 1 << 17
# A free-format frame is longer than at any bitrate in the table, but no longer than decoders accept
_LONGEST_FREE_FRAME = 8192
# Samples that libmpg123, like every decoder, adds to the delay that an encoder reports
DECODER_DELAY = 529


class MpegError(ValueError):
    """Bytes that can't be read to their end; the message is a sentence without its full stop."""


@dataclass(frozen=True)
class Format:
    """What all frames of a stream have in common.  version, layer: as in the table of bitrates.  rate: Hz."""

    version: int
    layer: int
    rate: int
    mono: bool

    @property
    def samples(self) -> int:
        """Samples per channel and frame."""
        return 384 if self.layer == 1 else 576 if self.layer == 3 and self.version != 3 else 1152

    @property
    def side_bytes(self) -> int:
        """Bytes of layer III's side information, which precedes the sound."""
        return (17 if self.mono else 32) if self.version == 3 else (9 if self.mono else 17)

    def __str__(self) -> str:
        return f"{self.rate} Hz, {'mono' if self.mono else 'stereo'}, layer {self.layer}"


@dataclass(frozen=True)
class Announced:
    """Content of a Xing, Info or VBRI header.

    frames: of sound.  size: in bytes, with the header's own frame, or 0.
    delay, padding: in samples; None if absent.
    """

    frames: int
    size: int = 0
    delay: int | None = None
    padding: int = 0


@dataclass(frozen=True)
class MpegStream:
    """The frames of sound.

    offsets: where each starts in the file.  spans: (offset, bytes) of unbroken runs of them.
    skip: samples of codec delay at the start.  samples: per channel, without delay and padding.  free: in free format.
    """

    format: Format
    offsets: array[int]
    spans: list[tuple[int, int]]
    skip: int
    samples: int
    free: bool


@dataclass(frozen=True)
class Beginning:
    """Where the frames start and end, and what the first one announces."""

    format: Format
    first: int
    end: int
    free_size: int
    announced: Announced | None
    # length of the announcing frame, which holds no sound
    header_bytes: int


def parse_header(header: bytes) -> tuple[Format, int] | None:
    """Returns a frame's format and its length in bytes (0: free format), or None if these are no frame's first four bytes."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate == 15 or rate == 3:
        return None
    form = Format(version, layer, _RATES[version][rate], header[3] >> 6 == 3)
    return form, _frame_bytes(form, bitrate, header[2] >> 1 & 1) if bitrate else 0


def _frame_bytes(form: Format, bitrate: int, padding: int) -> int:
    bits = 1000 * (_MPEG1_BITRATES if form.version == 3 else _MPEG2_BITRATES)[form.layer][bitrate - 1]
    return 4 * (12 * bits // form.rate + padding) if form.layer == 1 else form.samples // 8 * bits // form.rate + padding


@lru_cache(maxsize=64)
def _sizes(form: Format, free_size: int) -> dict[bytes, int]:
    """Returns the frame length for the first three bytes of each header of this format.

    free_size: without padding, or 0.
    """
    sizes = {}
    for second in range(0xE0, 0x100):
        for third in range(0x100):
            parsed = parse_header(bytes((0xFF, second, third, 0xC0 if form.mono else 0)))
            if parsed is not None and parsed[0] == form and bool(parsed[1]) != bool(free_size):
                padding = (third >> 1 & 1) * (4 if form.layer == 1 else 1)
                sizes[bytes((0xFF, second, third))] = parsed[1] or free_size + padding
    return sizes


def find_beginning(file: BinaryIO, start: int, end: int) -> Beginning:
    """Finds the first frame between the two offsets, and what it announces.  Raises MpegError if there is none."""
    end = before_tags(file, start, end)
    at = start
    while skipped := no_audio(file, at, end):
        at += skipped
    # most files start with a frame, so the second, larger read never happens
    for size in (_FEW_LEADING_BYTES, _MOST_LEADING_BYTES):
        data = read_at(file, at, min(size, end - at))
        offset = data.find(b"\xff")
        while offset >= 0:
            beginning = _beginning(file, data, offset, at, end)
            if beginning is not None:
                return beginning
            offset = data.find(b"\xff", offset + 1)
    raise MpegError("no MPEG frame is found in it")


def _beginning(file: BinaryIO, data: bytes, offset: int, base: int, end: int) -> Beginning | None:
    """Returns the beginning if a frame starts at `offset` in the data, and a frame or nothing follows.

    base: where the data starts in the file.
    """
    parsed = parse_header(data[offset : offset + 4])
    if parsed is None:
        return None
    form, size = parsed
    free_size = 0 if size else _free_bytes(data, offset, form)
    if not size:
        size = free_size and free_size + _padding(data, offset, form)
    if not size or not _continues(file, base + offset + size, end, form):
        return None
    announced = _announced(data[offset : offset + size], form)
    return Beginning(form, base + offset, end, free_size, announced, size if announced is not None else 0)


def walk(file: BinaryIO, start: int, end: int) -> MpegStream:
    """Walks all frames between the two offsets and skips the tags between them.

    Raises MpegError if there is no frame, if the format changes, or if anything but a tag lies between frames.
    Raises it too if there are fewer frames than announced, or part of one.
    """
    beginning = find_beginning(file, start, end)
    form, end = beginning.format, beginning.end
    sizes = _sizes(form, beginning.free_size)
    offsets: array[int] = array("q")
    spans: list[tuple[int, int]] = []
    at = beginning.first + beginning.header_bytes
    while at < end:
        stop = _run(file, at, end, sizes, form.mono, offsets)
        if stop > at:
            spans.append((at, stop - at))
            if stop > end:
                size = stop - offsets[-1]
                raise MpegError(f"the file is cut short: the last frame has {end - offsets[-1]} of {size} bytes")
        at = stop
        while at < end and (skipped := no_audio(file, at, end)):
            at += skipped
        if at < end and not _is_frame(read_at(file, at, 4), sizes, form.mono):
            _check_tail(file, at, beginning, len(offsets))
            break
    _check_announced(beginning, len(offsets))
    announced = beginning.announced
    skip = 0 if announced is None or announced.delay is None else announced.delay + DECODER_DELAY
    # in a file that goes on past its announced end, the padding lies somewhere in the middle
    ends_there = announced is not None and announced.frames == len(offsets)
    padding = max(0, announced.padding - DECODER_DELAY) if announced is not None and ends_there and announced.delay is not None else 0
    samples = max(0, len(offsets) * form.samples - skip - padding)
    return MpegStream(form, offsets, spans, skip, samples, bool(beginning.free_size))


def estimate_samples(file: BinaryIO, beginning: Beginning, places: int = 16) -> int:
    """Estimates the number of samples from a few frames at many places.

    If the header's announced size fits, its count is returned instead.
    """
    announced, form = beginning.announced, beginning.format
    there = beginning.end - beginning.first
    if announced is not None and announced.frames and abs(announced.size - there) <= beginning.header_bytes:
        delay = 0 if announced.delay is None else announced.delay + DECODER_DELAY + max(0, announced.padding - DECODER_DELAY)
        return max(0, announced.frames * form.samples - delay)
    sizes = _sizes(form, beginning.free_size)
    # a short file is read whole
    window, places = (_CHUNK // places, places) if there > _CHUNK else (there, 1)
    frames = seen = 0
    for place in range(places):
        at = beginning.first + (there - window) * place // max(1, places - 1)
        data = read_at(file, at, window)
        offset = _find_frame(data, 0, sizes, form.mono)
        found: array[int] = array("q")
        if offset >= 0:
            seen += min(len(data), _count(data, offset, len(data), 0, sizes, form.mono, found)) - offset
            frames += len(found)
    return round(frames * form.samples * there / seen) if seen else 0


def patched_start(file: BinaryIO, stream: MpegStream, frame: int) -> tuple[int, bytes] | None:
    """Returns (first frame, bytes of it and the next frames) to decode before `frame`.

    `frame` then decodes as if all frames were decoded.
    A frame of layer III keeps part of its bits in the frames before it. Frames whose part is not at hand are silenced here.
    A decoder that misses bits skips a frame's synthesis, which would change the order of its later sums.
    That order recurs every 16 frames.  None: start at the file's beginning.
    """
    form = stream.format
    if stream.free or len(stream.spans) != 1:
        return None
    needed = 0 if form.layer != 3 else 511 if form.version == 3 else 255
    for first in range((frame - 8) // 16 * 16, 0, -16):
        silent, held, at = bytearray(), 0, first
        while held < needed and at < frame:
            data = read_at(file, stream.offsets[at], stream.offsets[at + 1] - stream.offsets[at])
            if not data[1] & 1:  # the checksum covers the side information too
                return None
            # the frame keeps only its back reference to main data, `begin` bytes: libmpg123 holds no more of earlier frames
            begin = min(needed, held)
            side = bytes((begin >> 1, (begin & 1) << 7) if form.version == 3 else (begin,)).ljust(form.side_bytes, b"\0")
            silent += data[:4] + side[: form.side_bytes] + data[4 + form.side_bytes :]
            held, at = held + len(data) - 4 - form.side_bytes, at + 1
        if held >= needed and at + 6 <= frame:
            return first, bytes(silent)
    return None


def _run(file: BinaryIO, at: int, end: int, sizes: dict[bytes, int], mono: bool, offsets: array[int]) -> int:
    """Returns where the frames from `at` on end, which may lie past `end`; appends where each starts."""
    while at + 4 <= end:
        data = read_at(file, at, min(_CHUNK, end - at))
        stop = at + _count(data, 0, len(data), at, sizes, mono, offsets)
        if stop < at + len(data) - 3 or len(data) < 4:
            return stop
        at = stop
    return at


def _count(data: bytes, at: int, limit: int, base: int, sizes: dict[bytes, int], mono: bool, offsets: array[int]) -> int:
    """Returns where in the data the frames from `at` on end: at something else, in its last three bytes or past them."""
    last, size_of, append = limit - 3, sizes.get, offsets.append
    while at < last:
        size = size_of(data[at : at + 3])
        if size is None or (data[at + 3] >= 0xC0) is not mono:
            break
        append(base + at)
        at += size
    return at


def _is_frame(header: bytes, sizes: dict[bytes, int], mono: bool) -> bool:
    return len(header) == 4 and header[:3] in sizes and (header[3] >= 0xC0) is mono


def _find_frame(data: bytes, at: int, sizes: dict[bytes, int], mono: bool) -> int:
    """Returns where the next frame starts that another one follows, or -1."""
    at = data.find(b"\xff", at)
    while at >= 0:
        if _is_frame(data[at : at + 4], sizes, mono):
            follows = at + sizes[data[at : at + 3]]
            if _is_frame(data[follows : follows + 4], sizes, mono):
                return at
        at = data.find(b"\xff", at + 1)
    return -1


def _check_tail(file: BinaryIO, at: int, beginning: Beginning, frames: int) -> None:
    """Raises MpegError for the data at `at`, which is neither a frame of the format nor a tag.

    Unknown data passes if all announced frames came before.
    """
    form, end = beginning.format, beginning.end
    parsed = parse_header(read_at(file, at, 4))
    if parsed is not None and parsed[0] != form and parsed[1] and _continues(file, at + parsed[1], end, parsed[0]):
        seconds = frames * form.samples / form.rate
        raise MpegError(
            f"the format changes after {seconds:.2f} s from {form} to {parsed[0]}: the file is made of several; "
            "convert each of them, or all to one format, first"
        )
    sizes = _sizes(form, beginning.free_size)
    junk = _distance(file, at, end, sizes, form.mono)
    if junk is not None:
        raise MpegError(f"the file is damaged: {junk} bytes at {at} are no MPEG frame, {frames} frames came before and more come after")
    # an MP4 starts with three zeros, which pass for padding
    if parsed is not None or is_beginning(read_at(file, at, 8)) or is_beginning(read_at(file, at - 3, 8)):
        raise MpegError(f"another file begins at byte {at}: the file is made of several; split them, or convert them to one")
    if beginning.announced is None or beginning.announced.frames != frames:
        raise MpegError(f"the file is damaged or cut short: its last {end - at} bytes are no MPEG frame, {frames} frames came before")


def _distance(file: BinaryIO, at: int, end: int, sizes: dict[bytes, int], mono: bool) -> int | None:
    """Returns the bytes from `at` to the next frame, or None."""
    for chunk in range(at, end, _CHUNK):
        # overlaps by the longest pair of frames
        found = _find_frame(read_at(file, chunk, min(_CHUNK + 4 * _LONGEST_FREE_FRAME, end - chunk)), 0, sizes, mono)
        if found >= 0:
            return chunk + found - at
    return None


def _check_announced(beginning: Beginning, frames: int) -> None:
    announced = beginning.announced
    if announced is None or not announced.frames or frames >= announced.frames:
        return
    there = beginning.end - beginning.first
    # some encoders count the header's frame as one of sound; then no byte is missing
    if frames == announced.frames - 1 and announced.size and announced.size <= there:
        return
    raise MpegError(f"the file is cut short: {announced.frames} MPEG frames announced, {frames} there")


def _continues(file: BinaryIO, at: int, end: int, form: Format) -> bool:
    """Tells whether a frame of this format follows, or a tag, or nothing at all."""
    if at >= end:
        return True
    parsed = parse_header(read_at(file, at, 4))
    return (parsed is not None and parsed[0] == form) or no_audio(file, at, end) > 0


def _padding(data: bytes, at: int, form: Format) -> int:
    return (data[at + 2] >> 1 & 1) * (4 if form.layer == 1 else 1)


def _free_bytes(data: bytes, at: int, form: Format) -> int:
    """Returns the length of free-format frames without padding, or 0.

    That is the distance to the next header like this one, if the header after it confirms it.
    """
    follows = data.find(data[at : at + 2], at + 4)
    while 0 <= follows <= at + _LONGEST_FREE_FRAME:
        size = follows - at - _padding(data, at, form)
        third = follows + size + (_padding(data, follows, form) if follows + 4 <= len(data) else 0)
        if all(_is_free(data[place : place + 4], form) for place in (follows, third)):
            return size
        follows = data.find(data[at : at + 2], follows + 1)
    return 0


def _is_free(header: bytes, form: Format) -> bool:
    parsed = parse_header(header)
    return parsed is not None and parsed == (form, 0)


def _announced(frame: bytes, form: Format) -> Announced | None:
    """Returns the content of the frame's Xing, Info or VBRI header; None if it has none."""
    if form.layer != 3 or len(frame) < 4:
        return None
    if frame[36:40] == b"VBRI":
        return Announced(int.from_bytes(frame[50:54], "big"), int.from_bytes(frame[46:50], "big"))
    at = 4 + form.side_bytes
    if frame[at : at + 4] not in (b"Xing", b"Info"):
        at += 2  # a checksum may precede it
        if frame[1] & 1 or frame[at : at + 4] not in (b"Xing", b"Info"):
            return None
    flags, at = int.from_bytes(frame[at + 4 : at + 8], "big"), at + 8
    frames = size = 0
    if flags & 1:
        frames, at = int.from_bytes(frame[at : at + 4], "big"), at + 4
    if flags & 2:
        size, at = int.from_bytes(frame[at : at + 4], "big"), at + 4
    at += 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    gapless = frame[at + 21 : at + 24]
    if len(gapless) < 3:
        return Announced(frames, size)
    return Announced(frames, size, gapless[0] << 4 | gapless[1] >> 4, (gapless[1] & 15) << 8 | gapless[2])
