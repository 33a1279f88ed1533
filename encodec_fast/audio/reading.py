"""Reading one clip: from a file, a URL or bytes, whole or in blocks, at a model's rate and channels."""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from encodec_fast.audio.ffmpeg import FfmpegError, FfmpegFile, ffmpeg_program
from encodec_fast.audio.files import file_system, is_url
from encodec_fast.audio.samples import mix_channels, resample, resample_blocks

# Manifests round durations; a part that ends this many seconds after its file is taken as ending with it
PART_SLACK = 0.1


class AudioError(ValueError):
    """A clip that can't be used; `reason` is one sentence for the person who owns the file."""

    def __init__(self, path: Path | str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says. duration in seconds, sampling_rate in Hz, num_samples per channel.

    duration and num_samples are 0 where the header doesn't say.
    """

    duration: float
    sampling_rate: int
    channels: int
    num_samples: int


class OpenAudio(Protocol):
    """An open file. name: for messages."""

    name: str
    info: AudioInfo

    def blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        """`frames` samples from `first` on (None: all), float32 [T, C'], in blocks (None: one). Raises AudioError."""


def audio_info(source: str | os.PathLike[str] | bytes, name: str | None = None) -> AudioInfo:
    """The header of a file, a URL or a file's bytes. Raises AudioError if it is missing, empty or not audio."""
    with open_audio(source, name) as file:
        return file.info


def read_audio(
    source: str | os.PathLike[str] | bytes,
    sampling_rate: int,
    channels: int,
    *,
    name: str | None = None,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
) -> tuple[np.ndarray, AudioInfo]:
    """The clip at the given rate and channels, and what its file says.

    source: a file's path or URL, or its bytes; name: what messages call it. start, duration: of the part wanted, in
    seconds. channel: take this one only.
    Returns float32 [C, T], contiguous, full scale +-1.0, and the AudioInfo of the file itself.
    Channels are mixed first (see mix_channels), then the rate is changed by soxr at RESAMPLE_QUALITY.
    Raises AudioError if the file is missing, empty, not audio, damaged, cut short (seen in WAV, FLAC and MP3; other
    formats don't all say how long they should be), without samples, holds NaN or infinity, has more channels than
    can be mixed, or ends before `start`.
    """
    with open_audio(source, name) as file:
        blocks = list(_native_blocks(file, channels, start, duration, channel, None))
        samples = resample(np.concatenate(blocks, axis=1), file.info.sampling_rate, sampling_rate)
        if samples.shape[1] == 0:
            raise _too_short(file, blocks, sampling_rate)
        return samples, file.info


def audio_blocks(
    file: OpenAudio,
    sampling_rate: int,
    channels: int,
    block_seconds: float,
    *,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
) -> Iterator[np.ndarray]:
    """What read_audio gives for the same file, bit for bit, in blocks [C, T_i] of about block_seconds, none empty.

    Raises what read_audio raises, where the reading meets it.
    """
    block_frames = max(1, round(block_seconds * file.info.sampling_rate))
    natives = _native_blocks(file, channels, start, duration, channel, block_frames)
    empty = True
    for block in resample_blocks(natives, file.info.sampling_rate, sampling_rate):
        if block.shape[1]:
            empty = False
            yield block
    if empty:
        raise _too_short(file, [], sampling_rate)


def _native_blocks(
    file: OpenAudio, channels: int, start: float, duration: float | None, channel: int | None, block_frames: int | None
) -> Iterator[np.ndarray]:
    """Mixed and checked blocks [C, T_i] at the file's own rate; at least one sample in all."""
    rate = file.info.sampling_rate
    first, frames = round(start * rate), None if duration is None else round(duration * rate)
    total = 0
    for block in file.blocks(first, frames, block_frames):
        if not np.isfinite(block).all():
            raise AudioError(file.name, f"{np.count_nonzero(~np.isfinite(block))} samples are NaN or infinite.")
        if channel is not None:
            if channel >= block.shape[1]:
                raise AudioError(file.name, f"channel {channel} is asked for, the file has {block.shape[1]}.")
            block = block[:, channel : channel + 1]
        total += len(block)
        try:
            yield mix_channels(block.T, channels)
        except ValueError as error:
            raise AudioError(file.name, str(error)) from error
    if total == 0:
        raise AudioError(file.name, "the file holds no samples." if not first else f"the file ends before {start:g} s.")
    if frames is not None and total < frames - PART_SLACK * rate:
        raise AudioError(file.name, f"the file ends {(frames - total) / rate:.2f} s before the part that is asked for.")


def _too_short(file: OpenAudio, blocks: list[np.ndarray], sampling_rate: int) -> AudioError:
    samples = sum(block.shape[1] for block in blocks) or file.info.num_samples
    return AudioError(file.name, f"{samples} samples at {file.info.sampling_rate} Hz are none at {sampling_rate} Hz.")


@contextmanager
def open_audio(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Iterator[OpenAudio]:
    """The opened file: by libsndfile, or else by ffmpeg where that is installed.

    Raises AudioError if it is missing, empty or nothing that either can read, and says what would read it.
    """
    import soundfile

    name = name or ("bytes" if isinstance(source, bytes) else os.fspath(source))
    with ExitStack() as stack:
        opened = _open_binary(source, name, stack)
        try:
            sound = stack.enter_context(soundfile.SoundFile(_native(opened) if isinstance(opened, Path) else opened))
        except soundfile.LibsndfileError as error:
            reason = f"not audio that libsndfile can read ({_sndfile_reason(error)})"
        else:
            if sound.frames < UNKNOWN_FRAMES:
                yield _SoundFile(name, sound, opened)
                return
            # such as a FLAC that was written to a pipe: libsndfile can't seek in it, not even to where it is
            reason = "not audio that libsndfile can read (its header doesn't say how long it is)"
        program = ffmpeg_program()
        if program is None:
            raise AudioError(name, f"{reason}; ffmpeg, which may read it, is not installed.")
        try:
            yield _FfmpegFile(name, FfmpegFile(program, opened if isinstance(opened, Path) else _copied(opened, stack)))
        except FfmpegError as error:
            raise AudioError(name, f"{reason}, nor ffmpeg ({error}).") from error


def _open_binary(source: str | os.PathLike[str] | bytes, name: str, stack: ExitStack) -> Path | BinaryIO:
    """The path of a local file, or an open file that can seek."""
    if isinstance(source, bytes):
        if not source:
            raise AudioError(name, "the file is empty (0 bytes).")
        return io.BytesIO(source)
    if not is_url(source):
        _check_file(Path(source), name)
        return Path(source)
    files, path = file_system(os.fspath(source))
    try:
        remote = stack.enter_context(files.open(path, "rb"))
        if not remote.read(1):
            raise AudioError(name, "the file is empty (0 bytes).")
        remote.seek(0)
    except OSError as error:
        raise AudioError(name, f"the file can't be opened ({error or type(error).__name__}).") from error
    return remote


def _check_file(path: Path, name: str) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(name, f"the file can't be opened ({error.strerror}).") from error
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(name, "this is a folder that can't be listed, not a regular file.")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(name, "this is not a regular file.")
    if status.st_size == 0:
        raise AudioError(name, "the file is empty (0 bytes).")
    if not os.access(path, os.R_OK):
        raise AudioError(name, "the file can't be opened (no permission to read it).")


def _copied(file: BinaryIO, stack: ExitStack) -> str:
    """A copy on the disk, for ffmpeg, which has to seek in MP4."""
    copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="encodec_fast-"))
    file.seek(0)
    while data := file.read(1 << 20):
        copy.write(data)
    copy.flush()
    return copy.name


# What libsndfile says of a length it does not know is near 2^63.
UNKNOWN_FRAMES = 1 << 62
# An MP3 without a Xing header has its length guessed from its bytes, and some encoder's delay in the guess: two of its frames.
MP3_SLACK_FRAMES = 2 * 1152


class _SoundFile:
    """An OpenAudio of libsndfile."""

    def __init__(self, name: str, file: Any, opened: Path | BinaryIO):
        self.name, self._file, self._opened = name, file, opened
        self.info = AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels, file.frames)

    def blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        import soundfile

        declared = self._file.frames
        left = max(0, declared - first) if frames is None else min(frames, max(0, declared - first))
        try:
            if first and left:
                self._file.seek(first)
            while left:
                block = self._file.read(left if block_frames is None else min(left, block_frames), dtype="float32", always_2d=True)
                if not len(block):
                    if self._file.format == "MP3" and left <= MP3_SLACK_FRAMES:
                        break
                    raise AudioError(self.name, f"the file is cut short: {declared} samples announced, {self._file.tell()} there.")
                left -= len(block)
                yield block
        except soundfile.LibsndfileError as error:
            raise AudioError(self.name, f"the file is damaged or cut short ({_sndfile_reason(error)}).") from error
        if self._file.format in ("WAV", "WAVEX"):
            self._check_riff_is_whole()

    def _check_riff_is_whole(self) -> None:
        """Raises AudioError if a WAV's data chunk is longer than the file, which libsndfile passes over in silence."""
        with ExitStack() as stack:
            file = stack.enter_context(self._opened.open("rb")) if isinstance(self._opened, Path) else self._opened
            missing = _missing_bytes(file)
        if missing is not None:
            raise AudioError(self.name, f"the file is cut short: {missing[0]} bytes of audio announced, {missing[1]} there.")


class _FfmpegFile:
    """An OpenAudio of ffmpeg."""

    def __init__(self, name: str, file: FfmpegFile):
        self.name, self._file = name, file
        self.info = AudioInfo(file.seconds, file.rate, file.channels, round(file.seconds * file.rate))

    def blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        at, end = 0, None if frames is None else first + frames
        for block in self._file.blocks(block_frames or 10 * self._file.rate):
            part = block[max(0, first - at) : None if end is None else max(0, end - at)]
            if len(part):
                yield part
            at += len(block)
            if end is not None and at >= end:
                return


def _missing_bytes(file: BinaryIO) -> tuple[int, int] | None:
    """(announced, there) of a WAV whose data chunk is cut short, else None."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    riff = file.read(12)
    if riff[:4] not in (b"RIFF", b"RIFX") or riff[8:] != b"WAVE":
        return None
    header = struct.Struct(">4sI" if riff[:4] == b"RIFX" else "<4sI")
    while len(chunk := file.read(8)) == 8:
        name, length = header.unpack(chunk)
        start = file.tell()
        if name == b"data":
            # programs that write to a pipe can't go back to fill in the length, and leave one near 2^31 or 2^32
            return (length, size - start) if length < 0x7FFFF000 and start + length > size else None
        file.seek(start + length + length % 2)
    return None


def _native(path: Path) -> str | bytes:
    """The name as libsndfile takes it: bytes where names are bytes, since not all of them are UTF-8."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def _sndfile_reason(error: Any) -> str:
    """libsndfile's own words, without its `Error :` and full stop. error: soundfile.LibsndfileError."""
    return str(error.error_string).removeprefix("Error : ").rstrip(".")
