"""Files that are none, have no end or hold no numbers: an error by name, soon, and never codes."""

import os
import socket
import struct
import sys
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
import soundfile

from encodec_fast.audio import MAX_CLIP_BYTES, AudioError, audio_info, open_audio, read_audio
from encodec_fast.audio.files import open_binary
from encodec_fast.audio.opened import InMemory
from encodec_fast.audio.sndfile import UnreadableError, check_declared, open_sndfile
from encodec_fast.corpus import worker
from encodec_fast.corpus.reader import Reader, UnreadableClip
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tables import TableReader
from encodec_fast.corpus.tasks import Clip, Task, read_task
from encodec_fast.dataset import options
from support.encoded_files import RATE, joined, lively, needed_ffmpeg

posix = pytest.mark.skipif(os.name != "posix", reason="pipes with names, devices and sockets exist on POSIX only")


def soon(function, *arguments, **named):
    """What the function returns or raises; fails if it takes more than 30 s."""
    results = []

    def run():
        try:
            results.append(function(*arguments, **named))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert results, "it is waited for ever"
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def put(path, samples, **named):
    soundfile.write(path, samples, RATE, **named)
    return path


def fifo(folder):
    os.mkfifo(folder / "a.wav")
    return folder / "a.wav"


def bound_socket(folder, monkeypatch):
    monkeypatch.chdir(folder)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.wav")
    return folder / "a.wav"


SPECIAL = {
    "pipe": (lambda folder, _: fifo(folder), "a pipe"),
    "socket": (bound_socket, "a socket"),
    "endless device": (lambda *_: "/dev/zero", "a device"),
    "link to a device": (lambda folder, _: (folder / "b.wav").symlink_to("/dev/zero") or folder / "b.wav", "a device"),
}


@posix
@pytest.mark.parametrize("make, kind", SPECIAL.values(), ids=SPECIAL)
def test_a_special_file_is_refused_without_waiting_for_it(tmp_path, monkeypatch, make, kind):
    path = str(make(tmp_path, monkeypatch))
    reason = f"this is {kind}, not a regular file"
    for function in (audio_info, lambda path: read_audio(path, RATE, 1)):
        with pytest.raises(AudioError, match=reason):
            soon(function, path)
    (task,) = soon(scan_seconds, [Task("a", path)])
    assert task.problem == f"{reason}."
    with Reader(RATE, 1, workers=1) as reader:
        (clip,) = soon(lambda: list(reader.read([Task("a", path)])))
    assert clip == UnreadableClip(Task("a", path), f"{reason}.")


@posix
def test_a_special_file_that_is_named_as_a_source_is_refused_as_what_it_is(tmp_path):
    for source in (fifo(tmp_path), "/dev/zero"):
        with pytest.raises(ValueError, match="a pipe, socket or device"):
            soon(find_tasks, [source])
    with pytest.raises(AudioError, match="this is a pipe"):
        soon(read_task, Task("a", str(tmp_path / "a.wav"), offset=0, size=8), RATE, 1)


@posix
def test_a_pipe_that_takes_a_file_s_place_after_the_look_is_refused_without_waiting(tmp_path, monkeypatch):
    regular = os.stat(put(tmp_path / "regular.wav", lively(0.1)))
    pipe, stat = fifo(tmp_path), os.stat
    monkeypatch.setattr(os, "stat", lambda path, **named: regular if path == pipe else stat(path, **named))
    with pytest.raises(AudioError, match="this is a pipe"):
        soon(read_audio, pipe, RATE, 1)


@posix
def test_a_table_that_names_a_pipe_is_no_reason_to_wait(tmp_path):
    with pytest.raises(OSError, match="this is a pipe"), open_binary(str(fifo(tmp_path))):
        pass
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"audio": [{"bytes": None, "path": "a.wav"}]}), tmp_path / "t.parquet")
    with pytest.raises(AudioError, match="this is a pipe"):
        soon(TableReader("audio").audio, Task("a", str(tmp_path / "t.parquet"), row=0))


# Limits


def test_a_file_of_more_bytes_than_allowed_is_refused(tmp_path):
    path = put(tmp_path / "a.wav", lively(1))
    size = path.stat().st_size
    assert read_audio(path, RATE, 1, max_bytes=size)[0].shape == (1, RATE)
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioError, match=f"more than {size - 1} bytes, which is set as the most"):
            read_audio(source, RATE, 1, max_bytes=size - 1)
    (task,) = scan_seconds([Task("a", str(path))], max_bytes=100)
    assert "more than 100 bytes" in task.problem
    with Reader(RATE, 1, workers=1, max_clip_bytes=100) as reader:
        (clip,) = reader.read([Task("a", str(path))])
    assert "more than 100 bytes" in clip.reason


class Endless:
    """What a server sends that doesn't say how much that is: it can't be sought in."""

    sent = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def seekable(self):
        return False

    def read(self, size):
        Endless.sent += size
        return bytes(size)


def test_a_stream_that_never_ends_is_read_up_to_the_limit(monkeypatch):
    pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "open", lambda *arguments, **named: Endless())
    Endless.sent = 0
    with pytest.raises(AudioError, match="more than 5000000 bytes"):
        soon(read_audio, "memory://endless.wav", RATE, 1, max_bytes=5_000_000)
    assert Endless.sent < 10_000_000


def test_a_remote_file_whose_length_is_not_known_is_read(tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    path = put(tmp_path / "a.wav", lively(1))

    class Unseekable(Endless):
        def __init__(self):
            self.file = path.open("rb")

        def read(self, size):
            return self.file.read(size)

    monkeypatch.setattr(MemoryFileSystem, "open", lambda *arguments, **named: Unseekable())
    assert np.array_equal(read_audio("memory://a.wav", RATE, 1)[0], read_audio(path, RATE, 1)[0])


def test_a_remote_mp3_is_read_to_its_end(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    path = put(tmp_path / "a.mp3", lively(3))
    with fsspec.open("memory://remote.mp3", "wb") as file:
        file.write(path.read_bytes())
    assert np.array_equal(read_audio("memory://remote.mp3", RATE, 1)[0], read_audio(path, RATE, 1)[0])


@pytest.mark.skipif(worker.TOOK_TOO_LONG is None, reason="no clock that ends a process on this system")
def test_a_clip_that_takes_too_long_is_an_error_and_the_next_one_is_read(tmp_path, monkeypatch):
    # an ffmpeg that never answers, and ends with the process that started it
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nwhile kill -0 $PPID 2>/dev/null; do sleep 0.05; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    tasks = [Task("a", str(joined(tmp_path / "a.m4a", b"no audio"))), Task("b", str(put(tmp_path / "b.wav", lively(1))))]
    with Reader(RATE, 1, workers=1, clip_timeout=2.0) as reader:
        slow, good = soon(lambda: list(reader.read(tasks)))
    assert slow == UnreadableClip(tasks[0], "reading it, or a block of it, took longer than 2 s (clip_timeout).")
    assert isinstance(good, Clip) and good.num_samples == RATE


@pytest.mark.skipif(worker.TOOK_TOO_LONG is None, reason="no clock that ends a process on this system")
def test_the_time_that_a_clip_waits_to_be_taken_does_not_count(tmp_path):
    path = put(tmp_path / "a.wav", lively(20))
    with Reader(RATE, 1, workers=1, clip_timeout=1.0, long_seconds=1.0, block_seconds=0.5) as reader:
        for clip in reader.read(scan_seconds([Task("a", str(path))])):
            blocks = iter(clip)
            samples = next(blocks).shape[1]
            deadline = time.monotonic() + 2.5
            while time.monotonic() < deadline:
                threading.Event().wait(0.1)
            assert samples + sum(block.shape[1] for block in blocks) == 20 * RATE


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_limit_is_more_than_nothing(seconds):
    with pytest.raises(ValueError, match=r"clip_timeout is .* s; more than 0"):
        Reader(RATE, 1, workers=0, clip_timeout=seconds)


def test_the_limits_are_the_same_wherever_they_stand():
    assert (options.CLIP_TIMEOUT, options.MAX_CLIP_BYTES) == (worker.CLIP_TIMEOUT, MAX_CLIP_BYTES)


# Numbers


@pytest.mark.parametrize(
    "value, reason", [(np.nan, "1 samples are NaN or infinite"), (-np.inf, "NaN or infinite"), (1e38, "samples reach 1e.38")]
)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [RATE, 16_000])
def test_what_is_no_number_or_would_overflow_is_an_error(tmp_path, value, reason, channels, rate):
    samples = lively(0.1, channels=channels)
    samples[500, -1] = value
    path = put(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(AudioError, match=reason):
        read_audio(path, rate, 1)


def test_float_files_in_the_scale_of_integers_are_read(tmp_path):
    samples = (lively(0.1) * 2.0**31).astype(np.float32)
    assert np.array_equal(read_audio(put(tmp_path / "a.wav", samples, subtype="FLOAT"), RATE, 1)[0][0], samples[:, 0])


@pytest.mark.parametrize("channel", [-3, -1, 2, 1 << 70])
def test_a_channel_that_is_not_there_is_an_error(tmp_path, channel):
    path = put(tmp_path / "a.wav", lively(0.1, channels=2))
    with pytest.raises(AudioError, match=f"channel {channel} is asked for, the file has 2"):
        read_audio(path, RATE, 1, channel=channel)
    assert np.array_equal(read_audio(path, RATE, 1, channel=1)[0], read_audio(path, RATE, 2)[0][1:])


# Headers that lie


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's own memory from /proc")
def test_a_length_that_no_memory_holds_is_not_asked_for(tmp_path):
    content = bytearray(put(tmp_path / "whole.flac", lively(1)).read_bytes())
    content[21], content[22:26] = content[21] | 0x0F, struct.pack(">I", 0xFFFFFFF0)
    with pytest.raises(AudioError, match=r"68719476720 samples announced, 24000 there"):
        read_audio(joined(tmp_path / "a.flac", bytes(content)), RATE, 1)
    with pytest.raises(AudioError):
        read_audio(joined(tmp_path / "b.flac", bytes(content)), RATE, 1, start=0.5, duration=1e6)


def test_a_rate_that_is_none_asks_for_no_memory(tmp_path):
    needed_ffmpeg()
    content = bytearray(put(tmp_path / "a.caf", lively(0.5), subtype="PCM_16").read_bytes())
    content[20] = 0x60  # of the float64 rate, which libsndfile then refuses and ffmpeg does not
    with open_audio(joined(tmp_path / "b.caf", bytes(content))) as file:
        assert file.info.sampling_rate > RATE
        assert sum(len(block) for block in file.blocks(0, None, 1 << 50)) == RATE // 2


@pytest.mark.parametrize("format", ["WAV", "RF64", "AIFF", "AU", "W64", "CAF"])
def test_a_flipped_bit_in_a_header_is_an_error_by_name_or_none(tmp_path, format):
    path = put(tmp_path / "whole", lively(0.05), format=format, subtype="PCM_16")
    content = path.read_bytes()
    for bit in range(8 * 120):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            check_declared("a", InMemory(bytes(damaged)))
            with ExitStack() as stack:
                open_sndfile("a", InMemory(bytes(damaged)), stack)
        except (AudioError, UnreadableError) as error:
            assert str(error)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "aiff", "au", "caf"])
def test_a_damaged_file_is_an_error_by_name_or_the_whole_length(tmp_path, suffix):
    path = put(tmp_path / f"whole.{suffix}", lively(0.5))
    content, whole = path.read_bytes(), read_audio(path, RATE, 1)[0].shape[1]
    random = np.random.default_rng(7)
    for _ in range(25):
        damaged = bytearray(content)
        for at in random.integers(len(damaged) // 10, len(damaged), 3):
            damaged[at] ^= 1 << random.integers(8)
        try:
            with open_audio(bytes(damaged)) as file:
                samples = sum(len(block) for block in file.blocks(0, None, None))
        except AudioError as error:
            assert error.reason.endswith(".")
        else:
            assert samples == whole
