"""Audio that libsndfile reads, to its real end: in some formats libsndfile guesses the length or sees only a part."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from encodec_fast.audio import mpeg, ogg
from encodec_fast.audio.declared import declared
from encodec_fast.audio.opened import AudioError, AudioInfo, OpenAudio, copied, frames_at_once, size_of, undisturbed
from encodec_fast.audio.spans import Spans
from encodec_fast.audio.tags import before_tags, before_zeros, is_beginning, read_at, skip_tags

# libsndfile reports an unknown length as a number near 2^63.
UNKNOWN_FRAMES = 1 << 62
# Subtypes in which a seek yields the same samples as reading up to it.
# The decoders of Vorbis, Opus and the ADPCMs carry state, so they don't.
_EXACT_SEEKS = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
# FLAC's length has 36 bits
_MOST_FLAC_FRAMES = (1 << 36) - 1


class UnreadableError(ValueError):
    """libsndfile doesn't read the file; the message is its own reason."""


def open_sndfile(name: str, file: BinaryIO, stack: ExitStack) -> OpenAudio:
    """Opens the file by libsndfile.

    Raises UnreadableError if libsndfile doesn't read it, and AudioError if it reads only a part.
    """
    size = size_of(file)
    try:
        sound = _open(file, stack)
    except UnreadableError:
        sound = _repaired(file, size, stack) or _behind_junk(file, size, stack)
        if sound is None:
            raise
    if sound.subtype.startswith("MPEG_LAYER"):
        return _MpegFile(name, sound, file, size, stack)
    if sound.format == "OGG":
        return _OggFile(name, sound, file, size, stack)
    if sound.format == "FLAC":
        return _FlacFile(name, sound, file, size, stack)
    if sound.frames == 0:
        sound = _repaired(file, size, stack) or sound
    return _SoundFile(name, sound, file, size, stack)


def _repaired(file: BinaryIO, size: int, stack: ExitStack) -> Any:
    """Opens the file with the length filled in, if its header calls it unknown; else returns None."""
    with undisturbed(file):
        found = declared(file, size)
    if found is None or found.repair is None:
        return None
    at, repair = found.repair
    return _open(_buffered(Spans(file, [(0, at), repair, (at + len(repair), size - at - len(repair))])), stack)


def _behind_junk(file: BinaryIO, size: int, stack: ExitStack) -> Any:
    """Opens an MP3 from its first frame on, if something other than a tag comes before; else returns None."""
    with undisturbed(file):
        # other formats may hold such frames, and know better which of them are sound
        if is_beginning(read_at(file, 0, 8)):
            return None
        try:
            mpeg.walk(file, 0, size)
            first = mpeg.find_beginning(file, 0, size).first
        except mpeg.MpegError:
            return None
    return _open(_buffered(Spans(file, [(first, size - first)])), stack)


def check_ogg(name: str, file: BinaryIO) -> list[ogg.Link]:
    """Returns `ogg.links` of the file, or none if it is no Ogg.  Raises AudioError."""
    with undisturbed(file):
        file.seek(0)
        if file.read(4) != b"OggS":
            return []
        try:
            return ogg.links(file, size_of(file))
        except ogg.OggError as error:
            raise AudioError(name, f"{error}.") from error


def check_declared(name: str, file: BinaryIO) -> None:
    """Raises AudioError if a WAV, AIFF, AU, W64 or CAF announces more than there is, or another file follows it."""
    with undisturbed(file):
        found = declared(file, size_of(file))
        problem = None if found is None else found.problem(file)
    if problem is not None:
        raise AudioError(name, f"{problem}.")


class _SoundFile:
    """An OpenAudio of libsndfile, for formats whose announced length is that of the sound."""

    def __init__(self, name: str, sound: Any, file: BinaryIO, size: int, stack: ExitStack):
        self.name, self._sound, self._file, self._size, self._stack = name, sound, file, size, stack
        self.info = AudioInfo(sound.frames / sound.samplerate, sound.samplerate, sound.channels, sound.frames)

    def blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        try:
            yield from self._blocks(first, frames, block_frames)
        except _error_type() as error:
            raise AudioError(self.name, f"the file is damaged or cut short ({_reason(error)}).") from error
        except UnreadableError as error:  # a part of the file, or all of it with another header
            raise AudioError(self.name, f"the file is damaged or cut short ({error}).") from error
        self._check_end()

    def _blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        yield from self._read([(self._sound, self._sound.frames)], first, frames, block_frames)

    def _read(self, sounds: list[tuple[Any, int]], first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        """Yields the part from `first` on of consecutive sounds, each with its length.  Raises AudioError if one is shorter."""
        left = sum(length for _, length in sounds) - first
        left = max(0, left if frames is None else min(left, frames))
        most = frames_at_once(block_frames, self.info.channels)
        for sound, length in sounds:
            if first >= length or not left:
                first -= length
                continue
            at = self._skip(sound, first)
            first = 0
            while left and at < length:
                block = sound.read(min(left, most, length - at), dtype="float32", always_2d=True)
                if not len(block):
                    raise AudioError(self.name, f"the file is cut short: {length} samples announced, {at} there.")
                at += len(block)
                left -= len(block)
                yield block

    def _skip(self, sound: Any, first: int) -> int:
        """Advances to sample `first` and returns the position reached."""
        if first and sound.subtype.startswith(_EXACT_SEEKS):
            return int(sound.seek(first))
        at = 0
        while at < first:
            skipped = len(sound.read(min(first - at, frames_at_once(None, self.info.channels)), dtype="float32", always_2d=True))
            if not skipped:
                raise AudioError(self.name, f"the file is cut short: {sound.frames} samples announced, {at} there.")
            at += skipped
        return at

    def _bring_here(self) -> None:
        """Copies a file behind a URL, for formats that are read twice: the first time to find where they end."""
        if not isinstance(self._file, (io.FileIO, io.BytesIO)):
            self._file, _ = copied(self._file, self._stack)
            self._sound = _open(self._file, self._stack)

    def _check_end(self) -> None:
        check_declared(self.name, self._file)


class _FlacFile(_SoundFile):
    """FLAC, read to its real end. A header without a length, as from a pipe, does no harm."""

    def __init__(self, name: str, sound: Any, file: BinaryIO, size: int, stack: ExitStack):
        super().__init__(name, sound, file, size, stack)
        self._known = sound.frames < UNKNOWN_FRAMES
        if not self._known:
            self.info = replace(self.info, duration=0.0, num_samples=0)

    def _blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        if self._known and (first or frames is not None):
            yield from super()._blocks(first, frames, block_frames)
            return
        at, end = 0, _MOST_FLAC_FRAMES if frames is None else first + frames
        try:
            for block in self._to_the_end(self._end(), end, block_frames):
                part, at = block[max(0, first - at) :], at + len(block)
                if self._known and at > self._sound.frames:
                    break
                if len(part):
                    yield part
        except _error_type():
            if at != self._sound.frames or not self._zeros_follow():
                raise
        if self._known and at != self._sound.frames:
            there = f"{at}" if at < self._sound.frames else "more"
            raise AudioError(
                self.name,
                f"the file is cut short, or made of several: {self._sound.frames} samples announced, {there} there; "
                "split it, or convert it to one.",
            )

    def _end(self) -> int:
        """Returns where the tags after the sound start."""
        with undisturbed(self._file) as file:
            return before_tags(file, 0, self._size)

    def _to_the_end(self, end: int, frames: int, block_frames: int | None) -> Iterator[np.ndarray]:
        """Yields all there is up to byte `end`, at most `frames` samples, in blocks.

        libsndfile stops at the announced length, so the header is changed to announce more than any file can hold.
        """
        with undisturbed(self._file) as file:
            start = skip_tags(file, self._size)
            file.seek(start)
            head = bytearray(file.read(26))
        # the length is the last 36 of 64 bits that also hold rate, channels and width
        head[21], head[22:26] = head[21] | 0x0F, b"\xff" * 4
        sound = _open(_buffered(Spans(self._file, [bytes(head), (start + 26, end - start - 26)])), self._stack)
        at, known, most = 0, self._sound.frames, frames_at_once(block_frames, self.info.channels)
        while at < frames:
            # a read across the announced end would lose the samples before an error
            size = min(most, frames - at, known - at if at < known else most)
            block = sound.read(size, dtype="float32", always_2d=True)
            if not len(block):
                return
            at += len(block)
            yield block

    def _zeros_follow(self) -> bool:
        """Tells whether only zeros follow the announced samples, which the decoder takes for damage."""
        end = self._end()
        with undisturbed(self._file) as file:
            zeros = before_zeros(file, 0, end)
        # the last frame's checksum may itself end in zeros
        for last in range(zeros, min(zeros + 3, end)):
            try:
                if sum(map(len, self._to_the_end(last, _MOST_FLAC_FRAMES, None))) == self._sound.frames:
                    return True
            except _error_type():
                pass
        return False


class _OggFile(_SoundFile):
    """Ogg: the streams chained in it, one after the other."""

    def __init__(self, name: str, sound: Any, file: BinaryIO, size: int, stack: ExitStack):
        super().__init__(name, sound, file, size, stack)
        with undisturbed(file):
            first, last = ogg.last_serial(file, size)
        if first != last and len(links := check_ogg(name, file)) > 1:
            samples = sum(length for _, length in self._sounds(links))
            self.info = replace(self.info, duration=samples / sound.samplerate, num_samples=samples)

    def _blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        self._bring_here()
        links = check_ogg(self.name, self._file)
        whole = len(links) == 1 and not links[0].early_ends and not links[0].begins_early
        sounds = [(self._sound, self._sound.frames)] if whole else self._sounds(links)
        yield from self._read(sounds, first, frames, block_frames)

    def _sounds(self, links: list[ogg.Link]) -> list[tuple[Any, int]]:
        sounds: list[tuple[Any, int]] = []
        for link in links:
            sound = self._sound_of(link)
            kind, wanted = ((each.subtype, each.samplerate, each.channels) for each in (sound, self._sound))
            if kind != wanted:
                raise AudioError(
                    self.name,
                    f"the format changes at byte {link.start} from {_format(wanted)} to {_format(kind)}: the file is made of several; "
                    "convert each of them, or all to one format, first.",
                )
            sounds.append((sound, self._counted(link) if link.begins_early else sound.frames))
        return sounds

    def _sound_of(self, link: ogg.Link) -> Any:
        try:
            return _open(_buffered(Spans(self._file, ogg.parts(self._file, link))), self._stack)
        except UnreadableError as error:
            raise AudioError(self.name, f"the stream chained in it at byte {link.start} can't be read ({error}).") from error

    def _counted(self, link: ogg.Link) -> int:
        """Returns the samples that a link decodes to."""
        sound, size = self._sound_of(link), frames_at_once(None, self.info.channels)
        return sum(iter(lambda: len(sound.read(size, dtype="float32", always_2d=True)), 0))


class _MpegFile(_SoundFile):
    """MP3, also inside WAV. Its frames are counted before it is read."""

    def __init__(self, name: str, sound: Any, file: BinaryIO, size: int, stack: ExitStack):
        super().__init__(name, sound, file, size, stack)
        self._start, self._end = 0, size
        with undisturbed(file):
            found = declared(file, size)
            if found is not None:
                self._start, self._end = found.start, found.start + min(found.there, found.announced or found.there)
            try:
                samples = mpeg.estimate_samples(file, mpeg.find_beginning(file, self._start, self._end))
            except mpeg.MpegError as error:
                raise AudioError(name, f"{error}.") from error
        self.info = replace(self.info, duration=samples / sound.samplerate, num_samples=samples)

    def _blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        self._bring_here()
        with undisturbed(self._file):
            try:
                stream = mpeg.walk(self._file, self._start, self._end)
            except mpeg.MpegError as error:
                raise AudioError(self.name, f"{error}.") from error
        rate = self._sound.samplerate
        self.info = replace(self.info, duration=stream.samples / rate, num_samples=stream.samples)
        if not first and self._sound.frames == stream.samples and len(stream.spans) == 1:
            yield from self._read([(self._sound, stream.samples)], 0, frames, block_frames)
            return
        left = max(0, stream.samples - first if frames is None else min(stream.samples - first, frames))
        if not left:
            return
        start, sound = self._positioned(stream, first)
        skip = stream.skip + first - start
        yield from self._read([(sound, skip + left)], skip, left, block_frames)

    def _positioned(self, stream: mpeg.MpegStream, first: int) -> tuple[int, Any]:
        """Returns a sound that starts at or before sample `first`, and its start; both count the codecs' delay."""
        per_frame = stream.format.samples
        patch = mpeg.patched_start(self._file, stream, (stream.skip + first) // per_frame)
        parts: list[tuple[int, int] | bytes] = list(stream.spans)
        start = 0
        if patch is not None:
            start, silent = patch
            at = stream.offsets[start] + len(silent)
            parts = [silent, (at, sum(stream.spans[0]) - at)]
        size = sum(len(part) if isinstance(part, bytes) else part[1] for part in parts)
        # libsndfile guesses the frame count from the first frames' length: the longest is 180 times the shortest
        return start * per_frame, _open(_buffered(Spans(self._file, parts, 200 * size + (1 << 16))), self._stack)


def _format(kind: tuple[str, int, int]) -> str:
    return f"{kind[0]} of {kind[1]} Hz with {kind[2]} channel{'s' * (kind[2] != 1)}"


@lru_cache(maxsize=1)
def _reader_type() -> Any:
    import soundfile

    class Sound(soundfile.SoundFile):
        """A SoundFile that doesn't seek to its position after each read: in MP3 even that seek changes samples."""

        def seekable(self) -> bool:
            return False

    return Sound


def _error_type() -> Any:
    import soundfile

    return soundfile.LibsndfileError


def _open(file: BinaryIO | io.BufferedReader, stack: ExitStack) -> Any:
    # opened by its descriptor, because the name may mean another file meanwhile
    native = os.name == "posix" and isinstance(file, io.FileIO)
    try:
        if native:
            file.seek(0)
        return stack.enter_context(_reader_type()(file.fileno() if native else file, closefd=False))
    except _error_type() as error:
        raise UnreadableError(_reason(error)) from error


def _buffered(spans: Spans) -> io.BufferedReader:
    return io.BufferedReader(spans, 1 << 16)


def _reason(error: Any) -> str:
    """Returns libsndfile's own words, without its `Error :` and full stop.  error: soundfile.LibsndfileError."""
    return str(error.error_string).removeprefix("Error : ").rstrip(".")
