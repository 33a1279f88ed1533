"""Audio that libsndfile doesn't read (AAC, M4A, WebM, WMA, ...), decoded by the ffmpeg program if it is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np

# Sun's AU: magic, bytes before the samples, their length, encoding (6: float32, big-endian), rate, channels.
# It is the one format with a fixed header that ffmpeg can write to a pipe.
_AU_HEADER = struct.Struct(">4sIIIII")
_DURATION = re.compile(rb"Duration: (\d+):(\d+):([\d.]+)")
_DEMUXER = re.compile(rb"Input #0, ([\w,]+), from ")
_STREAM = re.compile(rb"Stream #0:\d+\S*: .*")
_CUT_SHORT = b"File ended prematurely"
# Timeout for reading a header, in seconds
_PROBE_SECONDS = 60
# Containers that hold what they play.
# Playlists, scripts, name patterns and protocols are left out, because they make ffmpeg open other files or addresses.
# MP4 and Matroska can name others too, which ffmpeg follows only on request.
_DEMUXERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,loas,m4a,mp4,mov,3gp,3g2,mj2,matroska,webm,mp3,mpc,mpc8,"
    "mpeg,mpegts,ogg,oma,qcp,rm,tak,truehd,tta,voc,w64,wav,wv"
)


class FfmpegError(ValueError):
    """ffmpeg can't read the file; the message is its own last line."""


def ffmpeg_program() -> str | None:
    """Returns the ffmpeg on the PATH, or the one in the package imageio-ffmpeg; None if there is neither."""
    found = shutil.which("ffmpeg")
    if found is None and importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        found = imageio_ffmpeg.get_ffmpeg_exe()
    return found


class FfmpegFile:
    """A file's first audio stream.

    rate: Hz.  seconds: as the container says, 0.0 where it doesn't or only guesses.
    exact: whether the seconds are those of the sound, and not of a film around it.  demuxer: ffmpeg's name of the container.
    """

    def __init__(self, program: str, path: str | os.PathLike[str]):
        self._program, self._path = program, os.fspath(path)
        # only the info level prints the duration
        with self._start("info", ["-t", "0"], subprocess.PIPE) as process:
            try:
                output, errors = process.communicate(timeout=_PROBE_SECONDS)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise FfmpegError(f"no answer in {_PROBE_SECONDS} s") from error
        if len(output) < _AU_HEADER.size:
            raise FfmpegError(_last_line(errors))
        *_, self.rate, self.channels = _AU_HEADER.unpack_from(output)
        duration = _DURATION.search(errors)
        hours, minutes, seconds = (float(part) for part in duration.groups()) if duration else (0.0, 0.0, 0.0)
        demuxer = _DEMUXER.search(errors)
        self.demuxer = demuxer[1].decode() if demuxer else ""
        guessed = b"Estimating duration from bitrate" in errors
        self.seconds = 0.0 if guessed else 3600 * hours + 60 * minutes + seconds
        streams = _STREAM.findall(errors.partition(b"Output #0")[0])
        self.exact = self.seconds > 0 and all(b": Audio:" in stream or b"(attached pic)" in stream for stream in streams)

    def blocks(self, block_frames: int) -> Iterator[np.ndarray]:
        """Yields the samples, float32 [T, C], block_frames at a time.  Raises FfmpegError for a damaged file."""
        # messages go to a file: nobody would read a pipe meanwhile, and a full one would block ffmpeg for ever
        with tempfile.TemporaryFile() as errors, self._start("error", ["-xerror"], errors) as process:
            assert process.stdout is not None
            try:
                header = process.stdout.read(_AU_HEADER.size)
                if len(header) == _AU_HEADER.size:
                    process.stdout.read(_AU_HEADER.unpack(header)[1] - _AU_HEADER.size)
                    yield from self._read(process.stdout, block_frames)
                failed = process.wait() != 0
                errors.seek(0)
                said = errors.read()
                if failed:
                    raise FfmpegError(_last_line(said))
                if _CUT_SHORT in said:  # its exit status is 0 all the same
                    raise FfmpegError("the file is cut short: it ends in the middle of an element")
            finally:
                process.kill()

    def _read(self, stream: IO[bytes], block_frames: int) -> Iterator[np.ndarray]:
        while data := stream.read(4 * self.channels * block_frames):
            yield np.frombuffer(data, ">f4").astype(np.float32).reshape(-1, self.channels)

    def _start(self, level: str, options: list[str], errors: int | IO[bytes]) -> subprocess.Popen[bytes]:
        command = [self._program, "-nostdin", "-nostats", "-hide_banner", "-v", level]
        command += ["-protocol_whitelist", "file", "-format_whitelist", _DEMUXERS, "-i", f"file:{self._path}", "-map", "0:a:0"]
        command += [*options, "-c:a", "pcm_f32be", "-f", "au", "-"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)


def _last_line(errors: bytes) -> str:
    if b"whitelist" in errors:
        return "a playlist, or a format that is not among those of audio; name the files themselves that it names"
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no reason given"
