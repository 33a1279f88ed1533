"""Reads one clip from a file, a URL or bytes, whole or in blocks, at a model's rate and channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import numpy as np

from encodec_fast.audio.ffmpeg import FfmpegError, FfmpegFile, ffmpeg_program
from encodec_fast.audio.files import file_system, is_url
from encodec_fast.audio.opened import AudioError, AudioInfo, InMemory, LargeError, OpenAudio, copied, frames_at_once, open_regular, size_of
from encodec_fast.audio.samples import mix_channels, resample, resample_blocks
from encodec_fast.audio.sndfile import UnreadableError, check_declared, check_ogg, open_sndfile

# Manifests round durations: a part may end this many seconds after its file
PART_SLACK = 0.1
# Seconds that a container for ffmpeg may announce beyond its sound: the codecs' delay and a last frame
CONTAINER_SLACK = 0.25
# Float files in the scale of 32-bit integers exist. Sums of larger samples would overflow to infinity further on
MOST_AMPLITUDE = 2.0**32
# A clip of more bytes is refused: ten days of 16-bit stereo at 24 kHz. It also ends the reading of an endless stream
MAX_CLIP_BYTES = 64 << 30


def audio_info(source: str | os.PathLike[str] | bytes, name: str | None = None) -> AudioInfo:
    """Reads the header of a file, a URL or a file's bytes.  Raises AudioError if it is missing, empty or not audio."""
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
    max_bytes: int = MAX_CLIP_BYTES,
) -> tuple[np.ndarray, AudioInfo]:
    """Reads the clip at the given rate and channels, and what its file says.

    source: a file's path or URL, or its bytes.  name: for messages.  start, duration: of the part wanted, in seconds.
    channel: take this one only.  max_bytes: of the file.
    Returns float32 [C, T], contiguous, full scale +-1.0, and the AudioInfo of the file itself.
    Channels are mixed first (see mix_channels), then soxr changes the rate at RESAMPLE_QUALITY.
    All of the file is read, whatever length its header announces: every frame of an MP3, every stream chained in an Ogg.
    Raises AudioError if the file is missing, empty, not regular, too large, not audio, damaged, or made of several formats.
    Raises it if the file is cut short (where the format shows it), holds no samples, or ends before `start`.
    Raises it for NaN or infinity, for too many channels to mix, and for a `channel` that the file lacks.
    """
    with open_audio(source, name, max_bytes) as file:
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
    """Yields what `read_audio` returns, bit for bit, in blocks [C, T_i] of about block_seconds, none empty.

    Raises what `read_audio` raises, once the reading reaches it.
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
    """Yields mixed and checked blocks [C, T_i] at the file's own rate, with at least one sample in all."""
    rate = file.info.sampling_rate
    first, frames = round(start * rate), None if duration is None else round(duration * rate)
    total = 0
    for block in file.blocks(first, frames, block_frames):
        _check_samples(file.name, block)
        if channel is not None:
            if not 0 <= channel < block.shape[1]:
                raise AudioError(file.name, f"channel {channel} is asked for, the file has {block.shape[1]}.")
            block = block[:, channel : channel + 1]
        total += len(block)
        try:
            yield mix_channels(block.T, channels)
        except ValueError as error:
            raise AudioError(file.name, str(error)) from error
    if total == 0 and frames == 0:
        raise AudioError(file.name, f"the part that is asked for, {duration:g} s, is shorter than a sample.")
    if total == 0:
        raise AudioError(file.name, "the file holds no samples." if not first else f"the file ends before {start:g} s.")
    if frames is not None and total < frames - PART_SLACK * rate:
        missing = (frames - total) / rate
        shown = f"{missing:.2f}" if missing < 1e6 else f"{missing:g}"
        raise AudioError(file.name, f"the file ends {shown} s before the part that is asked for.")


def _check_samples(name: str, block: np.ndarray) -> None:
    # one comparison finds them all, since NaN compares as false
    if not (np.abs(block) <= MOST_AMPLITUDE).all():
        bad = np.count_nonzero(~np.isfinite(block))
        if bad:
            raise AudioError(name, f"{bad} samples are NaN or infinite.")
        raise AudioError(name, f"samples reach {np.abs(block).max():.3g}; full scale is 1, and more than {MOST_AMPLITUDE:.3g} is no audio.")


def _too_short(file: OpenAudio, blocks: list[np.ndarray], sampling_rate: int) -> AudioError:
    samples = sum(block.shape[1] for block in blocks) or file.info.num_samples
    return AudioError(file.name, f"{samples} samples at {file.info.sampling_rate} Hz are none at {sampling_rate} Hz.")


@contextmanager
def open_audio(source: str | os.PathLike[str] | bytes, name: str | None = None, max_bytes: int = MAX_CLIP_BYTES) -> Iterator[OpenAudio]:
    """Opens the file by libsndfile, or else by ffmpeg if that is installed.

    Raises AudioError if it is missing, empty, not regular, larger than max_bytes, or readable by neither.
    The message then says what would read it.
    """
    name = name or ("bytes" if isinstance(source, bytes) else os.fspath(source))
    with ExitStack() as stack:
        file = _open_binary(source, name, max_bytes, stack)
        try:
            sound = open_sndfile(name, file, stack)
        except UnreadableError as error:
            reason = f"not audio that libsndfile can read ({error})"
            # a file cut short may be the reason, and ffmpeg would decode what is there
            check_declared(name, file)
        else:
            yield sound
            return
        program = ffmpeg_program()
        if program is None:
            raise AudioError(name, f"{reason}; ffmpeg, which may read it, is not installed.")
        if isinstance(source, bytes) or is_url(source):
            # ffmpeg must be able to seek in MP4
            file, path = copied(file, stack)
        else:
            path = os.fspath(source)
        try:
            yield _FfmpegFile(name, FfmpegFile(program, path), file)
        except FfmpegError as error:
            raise AudioError(name, f"{reason}, nor ffmpeg ({error}).") from error


def _open_binary(source: str | os.PathLike[str] | bytes, name: str, max_bytes: int, stack: ExitStack) -> BinaryIO:
    """Opens the source as a seekable file, a local one without a buffer."""
    file: BinaryIO
    if isinstance(source, bytes):
        if not source:
            raise AudioError(name, "the file is empty (0 bytes).")
        file = InMemory(source)
    elif not is_url(source):
        file = stack.enter_context(open_regular(source, name))
    else:
        file = _open_remote(os.fspath(source), name, max_bytes, stack)
    if size_of(file) > max_bytes:
        raise _too_large(name, max_bytes)
    return file


def _open_remote(url: str, name: str, max_bytes: int, stack: ExitStack) -> BinaryIO:
    files, path = file_system(url)
    try:
        remote = stack.enter_context(files.open(path, "rb"))
        if not remote.seekable():
            # the server doesn't tell its length; it may never end
            remote, _ = copied(remote, stack, max_bytes)
        if not remote.read(1):
            raise AudioError(name, "the file is empty (0 bytes).")
        remote.seek(0)
    except LargeError as error:
        raise _too_large(name, max_bytes) from error
    except OSError as error:
        raise AudioError(name, f"the file can't be opened ({error or type(error).__name__}).") from error
    return remote


def _too_large(name: str, max_bytes: int) -> AudioError:
    return AudioError(name, f"the file has more than {max_bytes} bytes, which is set as the most that one clip may have (max_bytes).")


class _FfmpegFile:
    """An OpenAudio of ffmpeg.  file: for checks of what ffmpeg ignores."""

    def __init__(self, name: str, opened: FfmpegFile, file: BinaryIO):
        self.name, self._opened, self._file = name, opened, file
        self.info = AudioInfo(opened.seconds, opened.rate, opened.channels, round(opened.seconds * opened.rate))

    def blocks(self, first: int, frames: int | None, block_frames: int | None) -> Iterator[np.ndarray]:
        check_ogg(self.name, self._file)
        at, end = 0, None if frames is None else first + frames
        for block in self._opened.blocks(frames_at_once(block_frames, self._opened.channels)):
            part = block[max(0, first - at) : None if end is None else max(0, end - at)]
            if len(part):
                yield part
            at += len(block)
            if end is not None and at >= end:
                break
        else:
            self._check_whole(at)

    def _check_whole(self, samples: int) -> None:
        seconds = samples / self._opened.rate
        if self._opened.exact and seconds < self._opened.seconds - CONTAINER_SLACK:
            raise AudioError(self.name, f"the file is cut short: {self._opened.seconds:.2f} s announced, {seconds:.2f} s there.")
