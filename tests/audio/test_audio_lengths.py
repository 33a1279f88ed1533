"""All of a file is read, whatever length its header announces, or it is an error by name; and parts are those of the whole."""

import io
import struct

import numpy as np
import pytest
import soundfile

from encodec_fast.audio import AudioError, audio_blocks, audio_info, open_audio, read_audio
from encodec_fast.audio.mpeg import walk
from support.encoded_files import RATE, counted, encoded, joined, lively

MP3 = {
    "cbr": ["-b:a", "64k"],
    "vbr": ["-q:a", "5"],
    "cbr without Xing": ["-b:a", "64k", "-write_xing", "0"],
    "vbr without Xing": ["-q:a", "5", "-write_xing", "0"],
    "small frames": ["-b:a", "8k", "-write_xing", "0"],
}
OTHERS = {
    "mp2": ("a.mp2", ["-c:a", "mp2", "-b:a", "64k"]),
    "mp3 in wav": ("a.wav", ["-c:a", "libmp3lame", "-q:a", "5"]),
    "vorbis": ("a.ogg", ["-c:a", "libvorbis"]),
    "opus": ("a.opus", ["-c:a", "libopus", "-b:a", "16k"]),
    "flac in ogg": ("flac.ogg", ["-c:a", "flac"]),
    "adpcm": ("adpcm.wav", ["-c:a", "adpcm_ima_wav"]),
    "flac": ("a.flac", []),
}
ENCODINGS = {name: ("a.mp3", options) for name, options in MP3.items()} | OTHERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encodings")


@pytest.fixture(scope="module")
def made(folder):
    """Makes a file of 5 s of mono once for each encoding."""
    paths = {}

    def make(name):
        if name not in paths:
            file, options = ENCODINGS[name]
            (folder / name).mkdir()
            paths[name] = encoded(folder / name / file, lively(5), RATE, *options)
        return paths[name]

    return make


def read(path, **options):
    return read_audio(path, audio_info(path).sampling_rate, audio_info(path).channels, **options)[0]


# To the end


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name not in ("opus", "adpcm")])
def test_as_many_samples_are_read_as_ffmpeg_decodes(made, name):
    assert read(made(name)).shape[1] == counted(made(name))


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)], ids=["long frames first", "short frames first"])
def test_an_mp3_whose_first_frames_mislead_about_its_length_is_read_to_its_end(tmp_path, first, second):
    loud = encoded(tmp_path / "loud.mp3", lively(2), RATE, "-b:a", "160k", "-write_xing", "0")
    quiet = encoded(tmp_path / "quiet.mp3", lively(8), RATE, "-b:a", "16k", "-write_xing", "0")
    parts = [(loud, quiet)[first], (loud, quiet)[second]]
    path = joined(tmp_path / "both.mp3", *parts)
    assert read(path).shape[1] == sum(counted(part) for part in parts)


@pytest.mark.parametrize("second", ["cbr", "vbr without Xing", "cbr without Xing"])
def test_both_parts_of_a_concatenated_mp3_are_read(tmp_path, made, second):
    path = joined(tmp_path / "both.mp3", made("vbr"), b"ID3\4\0\0\0\0\0\7padding", made(second))
    samples, alone = read(path)[0], read(made(second))[0]
    # the second part's own padding is not cut off: silence, shorter than two frames
    tail = samples[-len(alone) - 1200 :]
    offset = int(np.argmax(np.correlate(tail, alone[1000:9000], "valid"))) - 1000
    assert np.allclose(tail[offset + 1000 : offset + len(alone)], alone[1000:], atol=1e-5)
    assert np.array_equal(samples[:100_000], read(made("vbr"))[0][:100_000])


def test_a_second_part_in_another_format_is_an_error_with_its_place(tmp_path, made):
    other = encoded(tmp_path / "other.mp3", lively(1, 44_100, 2), 44_100, "-write_xing", "0")
    with pytest.raises(AudioError, match=r"format changes after 5\.\d+ s from 24000 Hz, mono, layer 3 to 44100 Hz, stereo"):
        read(joined(tmp_path / "both.mp3", made("cbr"), other))


def test_free_format_frames_are_read(tmp_path, made):
    content = bytearray(made("cbr without Xing").read_bytes())
    for at in range(0, len(content), 192):  # 64 kbit/s at 24 kHz, without a byte of padding
        content[at + 2] &= 0x0F
    path = joined(tmp_path / "free.mp3", bytes(content))
    assert np.array_equal(read(path), read(made("cbr without Xing")))


@pytest.mark.parametrize("name", ["vorbis", "opus"])
def test_streams_chained_in_an_ogg_are_read_one_after_the_other(tmp_path, made, name):
    options = ENCODINGS[name][1]
    second = encoded(tmp_path / ("b" + made(name).suffix), lively(1, seed=1), RATE, *options)
    path = joined(tmp_path / "both.ogg", made(name), second)
    whole = np.concatenate([read(made(name)), read(second)], 1)
    assert audio_info(path).num_samples == whole.shape[1]
    assert np.array_equal(read(path), whole)
    assert np.array_equal(read(path, start=4.9, duration=0.4), whole[:, 117_600:127_200])


def test_the_same_ogg_twice_is_read_twice(tmp_path, made):
    path = joined(tmp_path / "both.ogg", made("vorbis"), made("vorbis"))
    assert np.array_equal(read(path), np.tile(read(made("vorbis")), 2))


def test_a_stream_of_another_rate_chained_in_an_ogg_is_an_error(tmp_path, made):
    other = encoded(tmp_path / "b.ogg", lively(1, 16_000), 16_000, "-c:a", "libvorbis")
    with pytest.raises(AudioError, match="from VORBIS of 24000 Hz with 1 channel to VORBIS of 16000 Hz"):
        read(joined(tmp_path / "both.ogg", made("vorbis"), other))


def test_flac_files_in_one_are_an_error_and_not_the_first_of_them(tmp_path, made):
    with pytest.raises(AudioError, match=r"damaged or cut short|made of several"):
        read(joined(tmp_path / "both.flac", made("flac"), made("flac")))


@pytest.mark.parametrize("announced", [1, 50_000, 1_000_000])
def test_a_flac_that_announces_another_length_is_an_error(tmp_path, made, announced):
    content = bytearray(made("flac").read_bytes())
    content[22:26] = struct.pack(">I", announced)
    with pytest.raises(AudioError, match=f"{announced} samples announced"):
        read(joined(tmp_path / "a.flac", bytes(content)))


def test_a_flac_without_a_length_is_read_without_ffmpeg(tmp_path, made, monkeypatch):
    content = bytearray(made("flac").read_bytes())
    content[21], content[22:26] = content[21] & 0xF0, bytes(4)
    path = joined(tmp_path / "a.flac", bytes(content))
    monkeypatch.setattr("encodec_fast.audio.reading.ffmpeg_program", lambda: None)
    assert np.array_equal(read(path), read(made("flac")))
    assert np.array_equal(read(path, start=1.0, duration=1.0), read(made("flac"))[:, RATE : 2 * RATE])


def pcm(format, samples=1000):
    """The bytes of a file, and the place of its announced length."""
    file = io.BytesIO()
    soundfile.write(file, lively(samples / RATE), RATE, format=format, subtype="PCM_16")
    content = bytearray(file.getvalue())
    places = {"AU": (8, 4), "RF64": (28, 8), "W64": (content.find(b"data") + 16, 8), "AIFF": (content.find(b"SSND") + 4, 4)}
    at, size = places.get(format, (content.find(b"data") + 4, 8 if format == "CAF" else 4))
    return content, at, size


@pytest.mark.parametrize(
    "format, fill",
    [("WAV", 0), ("WAV", 255), ("RF64", 0), ("RF64", 255), ("AIFF", 0), ("AIFF", 255), ("AU", 0), ("AU", 255), ("W64", 0), ("CAF", 255)],
)
def test_a_file_from_a_pipe_that_never_knew_its_length_is_read(tmp_path, format, fill):
    content, at, size = pcm(format)
    whole = read(joined(tmp_path / "whole", bytes(content)))
    content[at : at + size] = bytes([fill]) * size
    assert np.array_equal(read(joined(tmp_path / "a", bytes(content))), whole)


def test_a_caf_of_unknown_length_is_read_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr("encodec_fast.audio.reading.ffmpeg_program", lambda: None)
    content, at, size = pcm("CAF")
    whole = read(joined(tmp_path / "whole", bytes(content)))
    content[at : at + size] = b"\xff" * size
    assert np.array_equal(read(joined(tmp_path / "a", bytes(content))), whole)


def test_a_wav_without_samples_but_with_a_chunk_behind_them_holds_none(tmp_path):
    content, at, _ = pcm("WAV")
    path = joined(tmp_path / "a.wav", bytes(content[:at]), bytes(4), b"LIST", struct.pack("<I", 12), b"INFOISFT\0\0\0\0")
    with pytest.raises(AudioError, match="holds no samples"):
        read(path)


@pytest.mark.parametrize("format", ["WAV", "RF64", "AIFF", "AU", "W64", "CAF"])
def test_a_file_that_is_cut_short_is_an_error(tmp_path, format):
    content, _, _ = pcm(format)
    with pytest.raises(AudioError, match="cut short"):
        read(joined(tmp_path / "a", bytes(content[:-100])))


@pytest.mark.parametrize("format", ["WAV", "RF64", "AIFF", "AU", "W64"])
def test_two_files_in_one_are_an_error(tmp_path, format):
    content, _, _ = pcm(format)
    with pytest.raises(AudioError, match="made of several"):
        read(joined(tmp_path / "a", bytes(content), bytes(content)))


SEVERAL = {
    "wav": ["wav", "mp3", "m4a"],
    "mp3": ["wav", "ogg", "m4a", "flac"],
    "ogg": ["wav", "mp3", "flac"],
    "flac": ["flac", "mp3"],
    "au": ["mp3", "au"],
    "m4a": ["m4a", "wav", "mp3"],
    "webm": ["webm", "mp3", "m4a"],
}


@pytest.mark.parametrize("first, second", [(first, second) for first, others in SEVERAL.items() for second in others])
def test_a_file_of_another_format_behind_the_first_is_an_error(folder, tmp_path, first, second):
    parts = []
    for suffix in (first, second):
        path = folder / f"short.{suffix}"
        rate = 48_000 if suffix == "webm" else RATE
        parts.append(path if path.exists() else encoded(path, lively(2, rate), rate))
    assert read(parts[0]).shape[1] > 0
    with pytest.raises(AudioError, match=r"another file|made of several|stand behind|damaged|cut short"):
        read(joined(tmp_path / f"both.{first}", *parts))


# What is missing, and what is too much


@pytest.mark.parametrize("keep, reason", [(0.5, "cut short"), (-1, "cut short: the last frame has|cut short: .* MPEG frames announced")])
@pytest.mark.parametrize("name", MP3)
def test_an_mp3_that_ends_inside_a_frame_is_an_error(tmp_path, made, name, keep, reason):
    content = made(name).read_bytes()
    cut = int(len(content) * keep) + 5 if keep > 0 else keep
    with pytest.raises(AudioError, match=reason):
        read(joined(tmp_path / "a.mp3", content[:cut]))


@pytest.mark.parametrize("frames", [1, 50])
def test_an_mp3_that_ends_between_frames_has_fewer_than_it_announces(tmp_path, made, frames):
    content = made("vbr").read_bytes()
    offsets = walk(io.BytesIO(content), 0, len(content)).offsets
    with pytest.raises(AudioError, match=f"cut short: {len(offsets)} MPEG frames announced, {len(offsets) - frames} there"):
        read(joined(tmp_path / "a.mp3", content[: offsets[-frames]]))


def test_bytes_between_frames_that_are_none_are_an_error(tmp_path, made):
    content = made("vbr without Xing").read_bytes()
    at = walk(io.BytesIO(content), 0, len(content)).offsets[40]
    with pytest.raises(AudioError, match=f"300 bytes at {at} are no MPEG frame, 40 frames came before and more come after"):
        read(joined(tmp_path / "a.mp3", content[:at], b"x" * 300, content[at:]))


TAGS = {
    "ID3v1": b"TAG" + bytes(125),
    "ID3v1 and an extended one": b"TAG+" + bytes(223) + b"TAG" + bytes(125),
    "APE": b"APETAGEX" + struct.pack("<IIII", 2000, 48, 1, 1 << 31 | 1 << 29) + bytes(16) + b"\xff\xfb\x90\0" * 2
    + b"APETAGEX" + struct.pack("<IIII", 2000, 48, 1, 1 << 31) + bytes(8),
    "lyrics": b"LYRICSBEGIN" + b"\xff\xf3\x84\xc0" * 5 + b"000031LYRICS200",
    "zeros": bytes(5000),
}  # fmt: skip


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("name", ["vbr", "vbr without Xing"])
def test_tags_behind_an_mp3_are_no_part_of_it(tmp_path, made, name, tag):
    assert np.array_equal(read(joined(tmp_path / "a.mp3", made(name), tag)), read(made(name)))


def test_an_id3_tag_and_padding_before_an_mp3_are_no_part_of_it(tmp_path, made):
    path = joined(tmp_path / "a.mp3", b"ID3\4\0\0\0\0\2\0", b"\xff\xfb\x90\0" * 64, bytes(300), made("vbr without Xing"))
    assert read(path).shape == read(made("vbr without Xing")).shape


@pytest.mark.parametrize("name", ["vbr", "vbr without Xing"])
def test_the_rest_of_a_frame_before_an_mp3_is_no_part_of_it(tmp_path, made, monkeypatch, name):
    monkeypatch.setattr("encodec_fast.audio.reading.ffmpeg_program", lambda: None)
    path = joined(tmp_path / "a.mp3", made(name).read_bytes()[3000:3050], made(name))
    assert np.array_equal(read(path), read(made(name)))
    assert np.array_equal(read(path, start=2.0, duration=1.0), read(made(name))[:, 2 * RATE : 3 * RATE])


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), bytes(5000), bytes(3)], ids=["ID3v1", "zeros", "three zeros"])
def test_tags_and_zeros_behind_a_flac_are_no_part_of_it(tmp_path, made, tail):
    assert np.array_equal(read(joined(tmp_path / "a.flac", made("flac"), tail)), read(made("flac")))


def pages(content):
    """Where the pages of an Ogg start, and its end."""
    starts, at = [], 0
    while at < len(content):
        starts.append(at)
        at += 27 + content[at + 26] + sum(content[at + 27 : at + 27 + content[at + 26]])
    return [*starts, at]


@pytest.mark.parametrize("name", ["vorbis", "opus", "flac in ogg"])
def test_an_ogg_with_a_flipped_bit_a_missing_page_or_no_end_is_an_error(tmp_path, made, name):
    content = made(name).read_bytes()
    starts = pages(content)
    flipped = bytearray(content)
    flipped[starts[-1] - 5] ^= 4
    missing = content[: starts[-3]] + content[starts[-2] :]
    cases = {
        "checksum of the page": bytes(flipped),
        "pages are missing": missing,
        "doesn't say that it ends": content[: starts[-2]],
        "its last page.* is not whole": content[:-10],
    }
    for reason, damaged in cases.items():
        with pytest.raises(AudioError, match=reason):
            read(joined(tmp_path / "a.ogg", damaged))


@pytest.mark.parametrize("name", ["vorbis", "opus", "flac in ogg"])
def test_an_ogg_whose_pages_say_early_that_it_ends_is_read_to_its_end(tmp_path, made, name):
    content = made(name).read_bytes()
    path = tmp_path / made(name).name

    def ending(page):
        page[5] |= 4

    path.write_bytes(changed_pages(content, ending))
    assert path.read_bytes() != content
    assert np.array_equal(read(path), read(made(name)))
    assert np.array_equal(read(path, start=2.0, duration=1.5), read(made(name), start=2.0, duration=1.5))


def test_an_ogg_whose_sound_begins_before_the_time_zero_is_read_to_its_end(tmp_path):
    made = encoded(tmp_path / "made.ogg", lively(5), RATE, "-c:a", "libvorbis", "-page_duration", "50000")

    def earlier(page):
        page[6:14] = (int.from_bytes(page[6:14], "little", signed=True) - 2900).to_bytes(8, "little", signed=True)

    path = tmp_path / "early.ogg"
    path.write_bytes(changed_pages(made.read_bytes(), earlier))
    decoded, samples = soundfile.read(path, dtype="float32")[0], read(path)
    # as libvorbis has it, which loses what it has decoded where the times begin
    assert read(made).shape[1] - 2900 <= len(decoded) < audio_info(path).num_samples
    assert np.array_equal(samples[0], decoded)
    assert np.array_equal(read(path, start=2.0, duration=1.5)[0], decoded[2 * RATE : 2 * RATE + 3 * RATE // 2])
    damaged = path.read_bytes()[: pages(path.read_bytes())[-2]]
    with pytest.raises(AudioError, match="doesn't say that it ends"):
        read(joined(path, damaged))


def changed_pages(content, change):
    """The pages of an Ogg, all but the two of headers changed in place, with their checksums."""
    *starts, end = pages(content)
    parts = [bytearray(content[first:behind]) for first, behind in zip(starts, [*starts[1:], end])]
    for page in parts[2:]:
        change(page)
        page[22:26] = bytes(4)
        page[22:26] = ogg_checksum(page).to_bytes(4, "little")
    return b"".join(parts)


def ogg_checksum(page):
    """The checksum of RFC 3533, bit by bit."""
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum & 0x80000000 else 0)) & 0xFFFFFFFF
    return checksum


@pytest.mark.parametrize("suffix, options", [("m4a", []), ("webm", ["-c:a", "libopus"]), ("mka", ["-c:a", "aac"]), ("avi", [])])
def test_what_ffmpeg_reads_is_not_read_when_it_is_cut_short(tmp_path, suffix, options):
    path = encoded(tmp_path / f"a.{suffix}", lively(3), RATE, *options)
    assert read(path).shape[1] >= 3 * RATE
    content = path.read_bytes()
    for keep in (0.5, 0.97):
        with pytest.raises(AudioError):
            read(joined(path, content[: int(keep * len(content))]))


# Parts


@pytest.mark.parametrize("name", ENCODINGS)
def test_parts_and_blocks_are_those_of_the_whole_bit_for_bit(made, name):
    path = made(name)
    whole = read(path)
    with open_audio(path) as file:
        assert np.array_equal(np.concatenate(list(audio_blocks(file, RATE, 1, 0.05)), 1), whole)
    random = np.random.default_rng(1)
    for first in [0, 1, *random.integers(2, whole.shape[1] - 3000, 12).tolist(), whole.shape[1] - 1]:
        frames = min(3000, whole.shape[1] - first)
        assert np.array_equal(read(path, start=first / RATE, duration=frames / RATE), whole[:, first : first + frames]), first


@pytest.mark.parametrize("name", ["vbr", "vbr without Xing", "vorbis", "opus"])
def test_bytes_give_what_a_file_gives(made, name):
    assert np.array_equal(read(made(name).read_bytes()), read(made(name)))


# Before reading


def test_the_length_of_an_mp3_is_about_right_before_it_is_read_and_exact_after(tmp_path):
    loud = encoded(tmp_path / "loud.mp3", lively(10), RATE, "-b:a", "160k", "-write_xing", "0")
    quiet = encoded(tmp_path / "quiet.mp3", lively(40), RATE, "-b:a", "16k", "-write_xing", "0")
    path = joined(tmp_path / "both.mp3", loud, quiet)
    with open_audio(path) as file:
        assert file.info.num_samples == pytest.approx(counted(path), rel=0.1)
        samples = sum(len(block) for block in file.blocks(0, None, None))
        assert file.info.num_samples == samples == counted(path)


def test_the_length_of_an_mp3_that_announces_it_is_exact_before_it_is_read(made):
    assert audio_info(made("vbr")).num_samples == counted(made("vbr"))


def test_an_adts_file_has_no_length_before_it_is_read_since_ffmpeg_only_guesses_it(tmp_path):
    assert audio_info(encoded(tmp_path / "a.aac", lively(1), RATE)).num_samples == 0
