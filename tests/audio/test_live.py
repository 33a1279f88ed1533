"""WAV through pipes: the samples that soundfile reads and writes, as they come."""

import io
import struct

import numpy as np
import pytest
import soundfile

from encodec_fast.audio import AudioError, read_audio, write_wav
from encodec_fast.audio.live import live_blocks, read_wav_header, wav_header, wav_samples

SOUND = np.random.default_rng(0).uniform(-1, 1, (2, 5000)).astype(np.float32)


class Pipe(io.RawIOBase):
    """Gives some bytes at a time, and can't seek."""

    def __init__(self, data, step=77):
        self.data, self.position, self.step = data, 0, step

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(self.step, len(buffer), len(self.data) - self.position)
        buffer[:size] = self.data[self.position : self.position + size]
        self.position += size
        return size


def stored(subtype, container="WAV", channels=2):
    held = io.BytesIO()
    soundfile.write(held, SOUND[:channels].T, 2400, subtype=subtype, format=container)
    return held.getvalue()


def read(data, rate=2400, channels=2):
    file = Pipe(data)
    return np.concatenate(list(live_blocks(file, read_wav_header(file, "pipe"), rate, channels, "pipe")), axis=1)


@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_samples_are_those_that_files_have(subtype, container):
    data = stored(subtype, container)
    assert np.array_equal(read(data), read_audio(data, 2400, 2)[0])


@pytest.mark.parametrize("rate, channels", [(2400, 1), (4800, 2), (1000, 1)])
def test_rate_and_channels_are_changed_as_those_of_files(rate, channels):
    data = stored("PCM_16")
    assert np.array_equal(read(data, rate, channels), read_audio(data, rate, channels)[0])


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_length_that_nobody_knows_goes_to_the_streams_end(length):
    data = stored("PCM_16")
    at = data.index(b"data") + 4
    found = read(data[:at] + struct.pack("<I", length) + data[at + 4 :])
    assert np.array_equal(found, read_audio(data, 2400, 2)[0])


def test_a_block_comes_before_the_stream_goes_on():
    file = Pipe(stored("PCM_16"), step=400)
    next(live_blocks(file, read_wav_header(file, "pipe"), 2400, 2, "pipe"))
    assert file.position <= 800


@pytest.mark.parametrize(
    "data, message",
    [
        (b"fLaC" + bytes(40), "begins with b'fLaC'"),
        (stored("PCM_16")[:30], "ends before its sound"),
        (stored("PCM_16")[:-1], "cut short: 1 bytes"),
        (stored("PCM_U8"), "PCM of 16, 24 or 32 bits"),
        (stored("ULAW"), "PCM of 16, 24 or 32 bits"),
        (wav_header(2400, 2, "PCM_16", None), "holds no samples"),
        (wav_header(2400, 2, "FLOAT", 1) + np.full(2, np.nan, "<f4").tobytes(), "NaN"),
        (wav_header(2400, 6, "PCM_16", 1) + bytes(12), "6 channels can't be mixed"),
        (b"RIFF" + bytes(4) + b"WAVE" + b"LIST" + struct.pack("<I", 1 << 30), "stands before the sound"),
    ],
)
def test_what_is_no_stream_of_samples_is_named(data, message):
    with pytest.raises(AudioError, match=message):
        read(data)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_written_stream_has_the_samples_of_a_written_file(subtype, tmp_path):
    sound = SOUND * 1.2
    write_wav(tmp_path / "a.wav", sound, 2400, subtype)
    blocks = [wav_samples(sound[:, at : at + 999], 2400, subtype) for at in range(0, 5000, 999)]
    expected = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    known = wav_header(2400, 2, subtype, 5000) + b"".join(blocks)
    assert np.array_equal(soundfile.read(io.BytesIO(known), dtype="float32")[0], expected)
    assert np.array_equal(read(wav_header(2400, 2, subtype, None) + b"".join(blocks)).T, expected)
