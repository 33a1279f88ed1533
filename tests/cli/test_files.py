"""One file in, one file out; pipes; and a decode that goes on where it was."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

from encodec_fast import cli
from encodec_fast.audio import read_audio
from encodec_fast.audio.wav import made_of
from encodec_fast.cli.terminal import short_line
from encodec_fast.dataset.run import Summary
from encodec_fast.formats import ClipFailure
from encodec_fast.formats.folder import load_codes
from encodec_fast.wording import time_text
from support.command import run
from support.corpora import BANDWIDTH, RATE, put_clip, put_table, put_three
from support.models import config_48khz, pair

SMALL_48KHZ = {"num_filters": 4, "hidden_size": 8, "codebook_size": 16, "target_bandwidths": [3.0, 6.0]}


@pytest.fixture
def song(tmp_path):
    return put_clip(tmp_path / "song.wav", 5000)


@pytest.fixture
def options(model_folder):
    return ("--model", model_folder, "--bandwidth", BANDWIDTH)


def codes_of(model, path):
    return model.encode_batch([torch.from_numpy(read_audio(path, RATE, 1)[0])], BANDWIDTH)[0]


def audio_of(model, path):
    return model.decode_batch([codes_of(model, path)])[0].numpy()


@pytest.mark.parametrize(
    "given",
    [
        "--verify 1",
        "--check",
        "--retry-failed",
        "--engine local",
        "--shard 0/2",
        "--limit 1",
        "--listen 1",
        "--rows-per-shard 5",
        "--format npy",
    ],
)
def test_an_option_that_means_nothing_for_one_file_is_refused(song, options, tmp_path, capsys, given):
    code, _, err = run(capsys, "tokenize", song, "--out", tmp_path / "song.npy", *given.split(), *options)
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1
    assert f"--out is one file, for which {given.split()[0]} means nothing; name a folder" in err and not (tmp_path / "song.npy").exists()


def test_one_clip_is_read_by_the_limits_and_names_that_are_given(song, model, options, tmp_path, capsys, monkeypatch):
    out = tmp_path / "song.parquet"
    code, _, err = run(capsys, "tokenize", song, "--out", out, "--max-clip-bytes", 50, *options)
    assert code == cli.WRONG_ARGUMENT and "50 bytes" in err
    with monkeypatch.context() as patch, song.open("rb") as file:
        patch.setattr(sys, "stdin", io.TextIOWrapper(file))
        code, _, err = run(capsys, "tokenize", "-", "--out", out, "--max-clip-bytes", 50, *options)
    assert code == cli.WRONG_ARGUMENT and "50 bytes" in err and not out.exists()
    table = put_table(tmp_path / "table.parquet", song.parent, ["song"], "sound", text=["la"], take=[3])
    assert run(capsys, "tokenize", table, "--out", out, "--audio-column", "sound", "--columns", "text", *options)[0] == cli.OK
    (row,) = load_codes(out)
    assert row.columns == {"text": "la"} and np.array_equal(row.codes, codes_of(model, song).codes)
    assert run(capsys, "tokenize", table, "--out", out, "--audio-column", "sound", "--overwrite", *options)[0] == cli.OK
    (row,) = load_codes(out)
    assert row.columns == {"text": "la", "take": 3}
    code, _, err = run(capsys, "tokenize", table, "--out", tmp_path / "b.npy", "--audio-column", "sound", "--columns", "who", *options)
    assert code == cli.WRONG_ARGUMENT and "columns names 'who'; the sources have" in err


def test_embeddings_are_kept_on_request(model, song, options, tmp_path, capsys):
    out = tmp_path / "song.parquet"
    assert run(capsys, "tokenize", song, "--out", out, "--embeddings", *options)[0] == cli.OK
    assert run(capsys, "tokenize", song, "--out", tmp_path / "codes", "--embeddings", "--no-report", *options)[0] == cli.OK
    (clip,) = model.encode_batch([torch.from_numpy(read_audio(song, RATE, 1)[0])], BANDWIDTH, embeddings=True)
    for path in (out, tmp_path / "codes"):
        (row,) = load_codes(path)
        assert np.array_equal(row.embeddings, clip.embeddings.half()) and np.array_equal(row.codes, clip.codes)
    code, _, err = run(capsys, "tokenize", song, "--out", tmp_path / "codes", *options)
    assert code == cli.WRONG_ARGUMENT and "embeddings was True, is None" in err
    code, _, err = run(capsys, "tokenize", song, "--out", tmp_path / "song.npy", "--embeddings", *options)
    assert code == cli.WRONG_ARGUMENT and "holds codes alone; give NAME.parquet or a folder to --out" in err


def assert_is_audio(data, expected):
    samples, rate = soundfile.read(io.BytesIO(data) if isinstance(data, bytes) else data, always_2d=True)
    assert rate == RATE and samples.T.shape == expected.shape
    # 16 bits, and full scale at +-1.0
    np.testing.assert_allclose(samples.T, expected.clip(-1, 32767 / 32768), rtol=0, atol=1 / 32768)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_one_file_goes_to_codes_and_back(capsys, model, model_folder, song, options, tmp_path, suffix):
    out = tmp_path / f"song{suffix}"
    code, printed, err = run(capsys, "tokenize", song, "--out", out, *options)
    assert (code, err) == (cli.OK, "") and f"wrote {out}" in printed and "(chunks, levels, frames)" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["song.wav", out.name])
    if suffix == ".npy":
        assert np.array_equal(np.load(out), codes_of(model, song).codes.numpy())
    named = ["--model", model_folder] if suffix == ".npy" else []
    code, printed, err = run(capsys, "decode", out, "--out", tmp_path / "again.wav", *named)
    assert (code, err) == (cli.OK, "")
    samples = soundfile.read(tmp_path / "again.wav")[0]
    # a .npy says nothing of a last frame that is not whole
    assert len(samples) == 5000 if suffix == ".parquet" else 5000 <= len(samples) < 5000 + 4
    assert_is_audio(tmp_path / "again.wav", audio_of(model, song)) if suffix == ".parquet" else None
    # neither is replaced unasked
    assert run(capsys, "tokenize", song, "--out", out, *options)[0] == cli.WRONG_ARGUMENT
    assert run(capsys, "tokenize", song, "--out", out, *options, "--overwrite")[0] == cli.OK
    assert run(capsys, "decode", out, "--out", tmp_path / "again.wav", *named)[0] == cli.WRONG_ARGUMENT


@pytest.mark.parametrize("suffix", [".NPY", ".PARQUET"])
def test_a_file_of_codes_is_known_by_its_suffix_in_capitals_too(capsys, model_folder, song, options, tmp_path, suffix):
    out = tmp_path / f"song{suffix}"
    assert run(capsys, "tokenize", song, "--out", out, *options)[0] == cli.OK
    assert out.name in {path.name for path in tmp_path.iterdir()}
    code, _, err = run(capsys, "decode", out, "--out", tmp_path / "again.wav", "--model", model_folder)
    assert (code, err) == (cli.OK, "")


def test_a_dry_run_of_one_file_writes_nothing(capsys, song, options, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, printed, _ = run(capsys, "tokenize", song, "--out", tmp_path / "song.npy", "--dry-run", *options)
    assert code == cli.OK and printed.startswith("1 clip,") and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["song.npy", "song.parquet"])
def test_the_folder_of_one_file_is_made_as_that_of_a_wav_is(capsys, song, options, tmp_path, name):
    assert run(capsys, "tokenize", song, "--out", tmp_path / "new" / name, *options)[0] == cli.OK
    assert (tmp_path / "new" / name).is_file()


def test_an_id_of_a_file_that_has_none_is_refused(capsys, song, model_folder, options, tmp_path):
    run(capsys, "tokenize", song, "--out", tmp_path / "song.npy", *options)
    chosen = ("--id", "x", "--model", model_folder)
    code, _, err = run(capsys, "decode", tmp_path / "song.npy", "--out", tmp_path / "again.wav", *chosen)
    assert code == cli.WRONG_ARGUMENT and "--id is 'x'" in err and "leave out --id" in err


def test_a_clip_of_a_folder_is_chosen_by_its_id(capsys, model, options, tmp_path):
    corpus = put_three(tmp_path / "audio")
    run(capsys, "tokenize", corpus, "--out", tmp_path / "codes", *options)
    code, _, err = run(capsys, "decode", tmp_path / "codes", "--out", tmp_path / "b.wav")
    assert code == cli.WRONG_ARGUMENT and "holds 3 clips, and --out is one file; choose a clip with --id" in err
    code, _, err = run(capsys, "decode", tmp_path / "codes", "--out", tmp_path / "b.wav", "--id", "x.wav")
    assert code == cli.WRONG_ARGUMENT and "--id is 'x.wav'" in err and "'a.wav'" in err
    assert run(capsys, "decode", tmp_path / "codes", "--out", tmp_path / "b.wav", "--id", "b.wav")[0] == cli.OK
    assert_is_audio(tmp_path / "b.wav", audio_of(model, corpus / "b.wav"))
    assert run(capsys, "decode", tmp_path / "codes", "--out", tmp_path / "some", "--id", "b.wav")[0] == cli.OK
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["b.wav"]


def test_roundtrip_is_decode_after_encode(capsys, model, song, options, tmp_path):
    code, printed, err = run(capsys, "roundtrip", song, "--out", tmp_path / "out.wav", *options)
    assert (code, err) == (cli.OK, "") and f"wrote {tmp_path / 'out.wav'}" in printed and "kbps" in printed
    assert_is_audio(tmp_path / "out.wav", audio_of(model, song))


def test_pipes_carry_audio_and_codes_and_nothing_else(model, model_folder, song, options):
    """The real thing: processes, and their standard input and output."""
    start = [sys.executable, "-m", "encodec_fast"]
    named = [str(each) for each in options]
    trip = subprocess.run([*start, "roundtrip", "-", "-o", "-", *named], input=song.read_bytes(), capture_output=True)
    assert trip.returncode == 0, trip.stderr
    assert_is_audio(trip.stdout, audio_of(model, song))
    coded = subprocess.run([*start, "tokenize", "-", "-o", "-", *named], input=song.read_bytes(), capture_output=True)
    assert coded.returncode == 0, coded.stderr
    assert np.array_equal(np.load(io.BytesIO(coded.stdout)), codes_of(model, song).codes.numpy())
    assert b"codes [1," in coded.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tokenize", "SONG", "SONG", "--out", "a.npy"), "2 sources, and --out is one file"),
        (("tokenize", "FOLDER", "--out", "a.npy"), "holds 3 clips, and --out is one file"),
        (("tokenize", "gone.wav", "--out", "a.npy"), "gone.wav"),
        (("tokenize", "BROKEN", "--out", "a.npy"), "the file is empty"),
        (("tokenize", "SONG", "--out", "a.npy", "--devices", "cpu,cpu"), "--devices means nothing; name a folder"),
        (("roundtrip", "SONG", "--out", "a.mp3"), "a name that ends in .wav is needed"),
        (("decode", "a.npy", "--out", "a.wav"), "does not say which model made it; name it with --model"),
        (("decode", "a.npy", "--out", "wavs"), "give --out a name that ends in .wav"),
        (("decode", "BROKEN.npy", "--out", "a.wav", "--model", "MODEL"), "no codes that can be read"),
    ],
)
def test_what_one_file_can_not_be_is_said(capsys, song, model_folder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    folder = put_three(tmp_path / "audio")
    (tmp_path / "broken.wav").write_bytes(b"")
    (tmp_path / "broken.npy").write_bytes(b"x")
    places = {
        "SONG": song,
        "FOLDER": folder,
        "BROKEN": tmp_path / "broken.wav",
        "BROKEN.npy": tmp_path / "broken.npy",
        "MODEL": model_folder,
    }
    model = ("--model", model_folder, "--bandwidth", BANDWIDTH) if arguments[0] != "decode" else ()
    code, _, err = run(capsys, *(places.get(each, each) for each in arguments), *model)
    assert code == cli.WRONG_ARGUMENT and words in err and err.count("\n") == 1, err
    assert not (tmp_path / "a.npy").exists() and not (tmp_path / "a.wav").exists()


def test_a_npy_of_a_model_that_normalizes_is_refused_with_the_remedy(capsys, tmp_path):
    folder = tmp_path / "model"
    pair(config_48khz(**SMALL_48KHZ))[1].save_pretrained(folder)
    np.save(tmp_path / "a.npy", np.zeros((1, 2, 5), np.uint16))
    code, _, err = run(capsys, "decode", tmp_path / "a.npy", "--out", tmp_path / "a.wav", "--model", folder)
    assert code == cli.WRONG_ARGUMENT and "tokenize to a .parquet, and decode that" in err


# Going on


@pytest.fixture
def codes(capsys, options, tmp_path):
    corpus = put_three(tmp_path / "audio")
    (tmp_path / "audio" / "m.jsonl").write_text("".join(json.dumps({"path": f"{name}.wav", "text": name}) + "\n" for name in "abc"))
    assert run(capsys, "tokenize", corpus / "m.jsonl", "--out", tmp_path / "codes", *options)[0] == cli.OK
    return tmp_path / "codes"


def test_decode_goes_on_and_leaves_what_is_done_alone(capsys, codes, tmp_path):
    wavs = tmp_path / "wavs"
    assert run(capsys, "decode", codes, "--out", wavs)[0] == cli.OK
    whole = {path.name: path.read_bytes() for path in wavs.iterdir()}
    assert set(whole) == {"a.wav", "b.wav", "c.wav", "metadata.jsonl"}
    (wavs / "b.wav").unlink()
    (wavs / "metadata.jsonl").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in wavs.iterdir()}
    code, out, err = run(capsys, "decode", codes, "--out", wavs)
    assert (code, err) == (cli.OK, "") and "decoded before: 2 clips" in out and "wrote 1 WAV files" in out
    assert {path.name: path.read_bytes() for path in wavs.iterdir()} == whole
    assert all((wavs / name).stat().st_mtime_ns == before for name, before in times.items())


@pytest.mark.parametrize("other", ["subtype", "a file of others", "other codes", "metadata of others"])
def test_decode_takes_no_other_audio_for_its_own(capsys, codes, options, tmp_path, other):
    wavs = tmp_path / "wavs"
    assert run(capsys, "decode", codes, "--out", wavs)[0] == cli.OK
    more = ["--subtype", "FLOAT"] if other == "subtype" else []
    if other == "a file of others":
        soundfile.write(wavs / "b.wav", np.zeros(9), RATE)
    if other == "other codes":
        (wavs / "b.wav").write_bytes((wavs / "a.wav").read_bytes())
        assert made_of(wavs / "b.wav")
    if other == "metadata of others":
        (wavs / "metadata.jsonl").write_text('{"file_name": "z.wav"}\n')
    before = {path.name: path.read_bytes() for path in wavs.iterdir()}
    code, _, err = run(capsys, "decode", codes, "--out", wavs, *more)
    assert code == cli.WRONG_ARGUMENT and "exists already" in err and "choose another --out or add --overwrite" in err
    assert {path.name: path.read_bytes() for path in wavs.iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
def test_a_decode_that_was_killed_goes_on_to_the_same_files(capsys, options, tmp_path):
    corpus = tmp_path / "audio"
    for index in range(40):
        put_clip(corpus / f"{index:02d}.wav", 60_000, index)
    assert run(capsys, "tokenize", corpus, "--out", tmp_path / "codes", *options)[0] == cli.OK
    command = [sys.executable, "-m", "encodec_fast", "decode", tmp_path / "codes", "--out", tmp_path / "wavs", "--batch-seconds", "1"]
    process = subprocess.Popen([str(each) for each in command], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list((tmp_path / "wavs").glob("*.wav"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = len(list((tmp_path / "wavs").glob("*.wav")))
    code, out, err = run(capsys, *command[3:])
    assert (code, err) == (cli.OK, "") and f"wrote {40 - found} WAV files" in out
    assert run(capsys, "decode", tmp_path / "codes", "--out", tmp_path / "whole")[0] == cli.OK
    assert {path.name: path.read_bytes() for path in (tmp_path / "wavs").glob("*.wav")} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.wav")
    }


# What is shown


def test_a_long_run_s_line_fits_its_columns_and_keeps_the_time_left():
    summary = Summary(clips=1_234_567, seconds=4e7, wall_seconds=5e4, planned_clips=12_345_678, planned_seconds=3.6e8)
    summary.failures = [ClipFailure("a", "a", "b")] * 123
    for width in (20, 40, 68, 200):
        line = short_line(summary, width)
        assert len(line) <= width and line.startswith("111 h 06 min left")
    assert short_line(summary, 200).endswith("1234690/12345678 clips") and "123 errors" in short_line(summary, 68)
    assert short_line(Summary(), 68) == "0 x real time · 0.00 h · 0/0 clips"


def test_times_are_in_words_people_use():
    assert [time_text(seconds) for seconds in (0.4, 59, 61, 3599, 3600, 7500)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


@pytest.mark.parametrize("arguments", [("-h",), ("tokenize", "-h"), ("decode", "-h"), ("roundtrip", "-h")])
def test_h_is_help(capsys, arguments):
    code, out, _ = run(capsys, *arguments)
    assert code == cli.OK and "Usage" in out and "Exit codes" in out


@pytest.mark.parametrize("command", ["tokenize", "roundtrip", "verify"])
def test_a_wrong_bandwidth_is_said_before_the_model_is_loaded(capsys, song, model_folder, tmp_path, monkeypatch, command):
    monkeypatch.setattr("encodec_fast.pretrained._from_pretrained", None)
    out = {"tokenize": ["--out", tmp_path / "codes"], "roundtrip": ["--out", tmp_path / "a.wav"], "verify": []}[command]
    code, printed, err = run(capsys, command, song, "--model", model_folder, "--bandwidth", 7, *out)
    assert code == cli.WRONG_ARGUMENT and "bandwidth is 7; the model's are" in err and printed == ""


def test_the_first_line_says_what_runs_before_the_model_is_loaded(capsys, song, model_folder, options, tmp_path):
    code, out, _ = run(capsys, "tokenize", song, "--out", tmp_path / "codes", *options, "--backend", "torch", "--threads", 1)
    assert code == cli.OK and out.splitlines()[0] == f"model {model_folder}, device auto, backend torch, 1 thread"
    code, out, _ = run(capsys, "tokenize", song, "--out", tmp_path / "codes", *options, "--backend", "torch")
    assert code == cli.OK and "everything is up to date" in out and "0 clips" not in out
