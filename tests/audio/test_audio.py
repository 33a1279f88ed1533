"""Finding, reading, mixing, naming and writing audio files."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from encodec_fast.audio import AudioError, audio_info, find_audio, mix_channels, read_audio, wav_paths, write_wav
from encodec_fast.audio.ffmpeg import ffmpeg_program

RATE = 24_000


def tone(samples: int, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(samples) / rate)).astype(np.float32)


def put(path, samples=None, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), tone(2400) if samples is None else samples, rate, **options)
    return path


def ids(sources):
    return [file.id for file in find_audio(sources)]


# Finding


def test_a_folder_is_searched_in_a_stable_order_without_hidden_and_other_files(tmp_path):
    for name in ("b.wav", "a/z.flac", "a/é ü.ogg", "B.WAV", ".hidden.wav", ".git/x.wav"):
        put(tmp_path / name, format=None if name != "B.WAV" else "WAV")
    (tmp_path / "readme.txt").write_text("no audio")
    assert ids([tmp_path]) == ["B.WAV", "a/z.flac", "a/é ü.ogg", "b.wav"]


def test_ids_below_a_pattern_start_at_its_first_wildcard(tmp_path):
    put(tmp_path / "x" / "a.wav")
    put(tmp_path / "y" / "b.wav")
    assert ids([str(tmp_path / "*" / "*.wav")]) == ["x/a.wav", "y/b.wav"]
    assert ids([str(tmp_path / "**" / "b.wav")]) == ["y/b.wav"]


def test_a_name_that_looks_like_a_pattern_is_a_file_first(tmp_path):
    put(tmp_path / "take[1].wav")
    put(tmp_path / "take1.wav")
    assert ids([str(tmp_path / "take[1].wav")]) == ["take[1].wav"]


def test_a_file_named_twice_is_read_once_under_the_folder_s_id(tmp_path):
    put(tmp_path / "in" / "a.wav")
    both = [tmp_path / "in" / "a.wav", tmp_path]
    assert ids(both) == ids(both[::-1]) == ["in/a.wav"]


def test_roots_with_equal_names_below_them_get_as_many_folders_as_tell_them_apart(tmp_path):
    for name in ("one/wavs/a.wav", "two/wavs/a.wav", "two/wavs/b.wav", "three/c.wav"):
        put(tmp_path / name)
    sources = [tmp_path / "one" / "wavs", tmp_path / "two" / "wavs", tmp_path / "three"]
    expected = ["c.wav", "one/wavs/a.wav", "two/wavs/a.wav", "two/wavs/b.wav"]
    assert ids(sources) == ids(sources[::-1]) == expected
    assert ids([tmp_path / "two", tmp_path / "one"]) == ["one/wavs/a.wav", "two/wavs/a.wav", "two/wavs/b.wav"]
    assert ids([tmp_path / "two" / "wavs" / "a.wav", tmp_path / "three" / "c.wav"]) == ["a.wav", "c.wav"]


def test_a_link_back_to_the_folder_above_ends_the_search(tmp_path):
    put(tmp_path / "deep" / "a.wav")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    assert len(ids([tmp_path])) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no UTF-8 exist on Linux only")
def test_a_name_that_is_no_utf8_gets_an_id_that_can_be_stored(tmp_path):
    path = put(tmp_path / "a.wav")
    os.rename(path, os.fsencode(tmp_path) + b"/\xff.wav")
    (file,) = find_audio([tmp_path])
    assert file.id == "\\xff.wav"
    assert audio_info(file.path).num_samples == 2400


@pytest.mark.parametrize("source", ["nothing", "empty", "*.wav"])
def test_a_source_without_audio_is_named(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=source.replace("*", r"\*")):
        find_audio([str(tmp_path / source)])


# Reading


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.wav", {}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {}),
    ],
)
def test_every_named_format_is_read_to_contiguous_float32(tmp_path, name, options):
    path = put(tmp_path / name, tone(RATE), **options)
    samples, info = read_audio(path, RATE, 1)
    assert samples.dtype == np.float32 and samples.flags["C_CONTIGUOUS"]
    assert samples.shape == (1, RATE) and (info.sampling_rate, info.channels) == (RATE, 1)
    # the lossy formats shift and colour the tone a little; its level stays
    assert abs(samples[0, 4000:-4000].std() - 0.5 / 2**0.5) < 0.02


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone_in_its_place(tmp_path, rate):
    path = put(tmp_path / "a.wav", tone(rate, rate), rate, subtype="FLOAT")
    samples, info = read_audio(path, RATE, 1)
    assert info.sampling_rate == rate and abs(samples.shape[1] - RATE) <= 1
    middle = slice(2000, 22_000)
    assert np.abs(samples[0, middle] - tone(RATE)[middle]).max() < 1e-3


def test_mono_is_the_mean_and_stereo_is_mono_twice(tmp_path):
    left, right = tone(1000), tone(1000, hz=1000.0)
    path = put(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT")
    assert np.allclose(read_audio(path, RATE, 1)[0][0], (left + right) / 2, atol=1e-7)
    assert np.array_equal(read_audio(path, RATE, 2)[0], np.stack([left, right]))
    mono = put(tmp_path / "m.wav", left, subtype="FLOAT")
    assert np.array_equal(read_audio(mono, RATE, 2)[0], np.stack([left, left]))


def test_surround_is_mixed_to_mono_and_refused_for_stereo(tmp_path):
    path = put(tmp_path / "a.wav", np.stack([tone(1000), 0 * tone(1000), tone(1000)], 1), subtype="FLOAT")
    assert np.allclose(read_audio(path, RATE, 1)[0][0], tone(1000) * 2 / 3, atol=1e-6)
    with pytest.raises(AudioError, match="3 channels can't be mixed to 2"):
        read_audio(path, RATE, 2)


def test_mixing_keeps_no_view_of_a_strided_input():
    interleaved = np.zeros((100, 2), np.float32)
    assert mix_channels(interleaved.T, 2).flags["C_CONTIGUOUS"]


def truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


def not_a_number(path, value):
    samples = tone(1000)
    samples[500] = value
    return put(path, samples, subtype="FLOAT")


BAD_FILES = {
    "missing": (lambda folder: folder / "a.wav", "can't be opened"),
    "a folder": (lambda folder: folder, "not a regular file"),
    "empty": (lambda folder: truncated(put(folder / "a.wav"), 0), r"empty \(0 bytes\)"),
    "no samples": (lambda folder: put(folder / "a.wav", tone(0)), "holds no samples"),
    "not audio": (lambda folder: truncated(put(folder / "a.wav"), 3), "not audio"),
    "a cut wav": (lambda folder: truncated(put(folder / "a.wav", tone(RATE)), 9000), "cut short: 48000 bytes .* 8956 there"),
    "a cut flac": (lambda folder: truncated(put(folder / "a.flac", tone(RATE)), 9000), "damaged or cut short"),
    "a cut mp3": (lambda folder: truncated(put(folder / "a.mp3", tone(10 * RATE)), 9000), "cut short"),
    "NaN": (lambda folder: not_a_number(folder / "a.wav", np.nan), "1 samples are NaN or infinite"),
    "infinity": (lambda folder: not_a_number(folder / "a.wav", np.inf), "1 samples are NaN or infinite"),
}


@pytest.mark.parametrize("make, reason", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_one_error_with_its_reason(tmp_path, make, reason):
    path = make(tmp_path)
    with pytest.raises(AudioError, match=reason) as caught:
        read_audio(path, RATE, 1)
    assert caught.value.path == str(path)
    assert caught.value.reason.endswith(".") and "\n" not in caught.value.reason


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF], ids=hex)
def test_a_wav_from_a_pipe_that_never_knew_its_length_is_read(tmp_path, length):
    path = put(tmp_path / "a.wav", tone(1000))
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", length)
    path.write_bytes(content)
    assert read_audio(path, RATE, 1)[0].shape == (1, 1000)


def test_a_flac_from_a_pipe_that_never_knew_its_length_is_read(tmp_path):
    if ffmpeg_program() is None:
        pytest.skip("ffmpeg is not installed")
    path, samples = tmp_path / "a.flac", np.sin(np.arange(30_000) / 20) / 2
    soundfile.write(str(path), samples, 1000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    # the last 36 of the 64 bits that also hold rate, channels and width
    data[21], data[22:26] = data[21] & 0xF0, bytes(4)
    path.write_bytes(data)
    read, info = read_audio(path, 1000, 1)
    assert read.shape == (1, 30_000) and np.allclose(read[0], samples, atol=1e-4) and info.duration == 0
    assert np.array_equal(read_audio(path, 1000, 1, start=2.0, duration=3.0)[0], read[:, 2000:5000])


def test_an_mp3_from_a_pipe_whose_length_is_guessed_is_read(tmp_path):
    program = ffmpeg_program()
    if program is None:
        pytest.skip("ffmpeg is not installed")
    soundfile.write(str(tmp_path / "a.wav"), np.sin(np.arange(48_000) / 20) / 2, 24_000)
    made = subprocess.run([program, "-v", "error", "-i", tmp_path / "a.wav", "-f", "mp3", "pipe:1"], capture_output=True, check=True)
    (tmp_path / "a.mp3").write_bytes(made.stdout)
    assert abs(read_audio(tmp_path / "a.mp3", 24_000, 1)[0].shape[1] - 48_000) < 3 * 1152
    (tmp_path / "cut.mp3").write_bytes(made.stdout[: len(made.stdout) // 2])
    assert audio_info(tmp_path / "cut.mp3").duration < 1.5


def test_one_sample_is_a_clip(tmp_path):
    assert read_audio(put(tmp_path / "a.wav", tone(1)), RATE, 1)[0].shape == (1, 1)


def test_a_clip_too_short_for_the_rate_says_so(tmp_path):
    with pytest.raises(AudioError, match="1 samples at 192000 Hz are none at 24000 Hz"):
        read_audio(put(tmp_path / "a.wav", tone(1), 192_000), RATE, 1)


# Writing


def test_wav_paths_keep_folders_and_never_meet():
    names = ["a.wav", "a.flac", "A.mp3", "a~2.wav", "x/y.wav/z.wav", "x/y.wav", "v1.2", "é.ogg"]
    paths = [str(path) for path in wav_paths(names)]
    assert paths == ["a.wav", "a~2.wav", "A~3.wav", "a~2~2.wav", "x/y.wav/z.wav", "x/y~2.wav", "v1.2.wav", "é.wav"]


@pytest.mark.parametrize(
    "id",
    ["../../etc/x", "/etc/x", "..\\..\\x", "C:\\x", "", "..", "a\0b", "con?<>|*.wav", "n" * 400, "/".join(["y" * 200] * 30), "z/" * 3000],
)
def test_wav_paths_stay_in_their_folder_and_fit_every_file_system(id):
    (path,) = wav_paths([id])
    assert "_" not in path.parts[:-1], "a step upwards is left out, not renamed"
    assert not path.is_absolute() and ".." not in path.parts
    assert not set('<>:"|?*\\\0') & set(str(path))
    assert all(len(part.encode()) <= 255 for part in path.parts) and len(str(path)) <= 1300


def test_a_wav_is_written_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b.wav"
    write_wav(path, np.stack([tone(100), -tone(100)]), RATE, "FLOAT")
    assert np.array_equal(soundfile.read(path, dtype="float32")[0].T, np.stack([tone(100), -tone(100)]))
    write_wav(path, 4 * tone(100)[None], RATE)
    assert soundfile.read(path)[0].max() <= 1.0 and soundfile.info(path).subtype == "PCM_16"
    assert [file.name for file in path.parent.iterdir()] == ["b.wav"]
    with pytest.raises(ValueError, match="PCM_16, PCM_24, FLOAT"):
        write_wav(path, tone(10)[None], RATE, "MP3")
