"""`compress` and `decompress`: files, folders and pipes, and what they say of damage."""

import io
import os
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from encodec_fast import cli
from encodec_fast.audio import read_audio
from encodec_fast.audio.live import wav_header, wav_samples
from encodec_fast.codec.files import compress, decompress
from encodec_fast.compression.header import read_header
from encodec_fast.compression.tables import fit_tables
from encodec_fast.plan.weights import weights_sha256
from support.command import run
from support.corpora import BANDWIDTH, CHUNKED, RATE, put_clip, put_three, small_model
from support.engine import engine
from support.language_models import SMALL, drawn_language_model, saved_language_model


@pytest.fixture
def song(tmp_path):
    return put_clip(tmp_path / "song.wav", 5003)


@pytest.fixture
def to(model_folder):
    return ("--model", model_folder, "--bandwidth", BANDWIDTH)


def audio_of(model, path):
    clip, _ = read_audio(path, RATE, model.config.audio_channels)
    return model.decode_batch(model.encode_batch([clip], BANDWIDTH))[0].numpy()


def sound(path):
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


def test_a_file_comes_back_as_its_decoded_codes(capsys, tmp_path, model, model_folder, song, to):
    code, out, _ = run(capsys, "compress", song, *to)
    size = (tmp_path / "song.ecdc").stat().st_size
    assert code == cli.OK and f"2.1 s at 2.4 kbps: {size:,} bytes, {size * 8 / 1000 / (5003 / RATE):.2f} kbps" in out
    assert f"wrote {tmp_path / 'song.ecdc'}" in out and all(len(line) <= 120 for line in out.splitlines())
    assert (tmp_path / "song.ecdc").read_bytes() == compress(song, model, BANDWIDTH)
    code, out, _ = run(
        capsys, "decompress", tmp_path / "song.ecdc", "-o", tmp_path / "back.wav", "--subtype", "FLOAT", "--model", model_folder
    )
    assert code == cli.OK and f"2.1 s, wrote {tmp_path / 'back.wav'}" in out
    assert np.array_equal(sound(tmp_path / "back.wav"), audio_of(model, song))


def test_a_folder_keeps_its_names_and_goes_on_where_it_was(capsys, tmp_path, model, model_folder, to):
    put_three(tmp_path / "in")
    (tmp_path / "in" / "noise.wav").write_bytes(b"no audio")
    code, out, err = run(capsys, "compress", tmp_path / "in", "-o", tmp_path / "small", *to)
    assert code == cli.CLIPS_FAILED and "1 of the clips failed" in err and "noise.wav" in err and "wrote 3 files" in out
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["a.ecdc", "b.ecdc", "c.ecdc"]
    (tmp_path / "in" / "noise.wav").unlink()
    (tmp_path / "small" / "b.ecdc").unlink()
    code, out, _ = run(capsys, "compress", tmp_path / "in", "-o", tmp_path / "small", *to)
    assert code == cli.OK and "compressed before: 2 files" in out and "wrote 1 file" in out
    code, _, err = run(capsys, "compress", tmp_path / "in", "-o", tmp_path / "small", *to, "--coder", "raw")
    assert code == cli.WRONG_ARGUMENT and "a.ecdc exists already, and was not made like this" in err
    for line in ("wrote 3 WAV files", "decompressed before: 3 files"):
        code, out, _ = run(capsys, "decompress", tmp_path / "small", "-o", tmp_path / "wavs", "--subtype", "FLOAT", "--model", model_folder)
        assert code == cli.OK and line in out
    assert all(np.array_equal(sound(tmp_path / "wavs" / f"{name}.wav"), audio_of(model, tmp_path / "in" / f"{name}.wav")) for name in "abc")
    code, _, err = run(capsys, "decompress", tmp_path / "small", "-o", tmp_path / "wavs", "--model", model_folder)
    assert code == cli.WRONG_ARGUMENT and "was not made of" in err


def test_damage_is_silence_and_its_time_is_named(capsys, tmp_path, model, model_folder, song, to):
    (tmp_path / "in").mkdir()
    for name in ("whole", "hurt", "headless", "cut"):
        data = bytearray(compress(song, model, BANDWIDTH, segment=0.5))
        data[{"hurt": len(data) // 2, "headless": 40}.get(name, 0)] ^= 1 if name in ("hurt", "headless") else 0
        (tmp_path / "in" / f"{name}.ecdc").write_bytes(data[:-90] if name == "cut" else data)
    code, out, err = run(capsys, "decompress", tmp_path / "in", "-o", tmp_path / "out", "--subtype", "FLOAT", "--model", model_folder)
    assert code == cli.CLIPS_FAILED and "wrote 3 WAV files" in out
    assert "hurt.ecdc: 0.50 s to 1.00 s are lost: a segment is damaged" in err
    assert "cut.ecdc: " in err and "the file ends" in err and "2 files with damage: what is lost is silence." in err
    assert "headless.ecdc: its header is damaged" in err
    hurt = sound(tmp_path / "out" / "hurt.wav")
    assert hurt.shape == (1, 5003) and not hurt[:, 1200:2400].any() and hurt[:, 2400:].any()


def test_a_pipe_is_written_and_played_while_it_comes(tmp_path, model, model_folder, song):
    clip = np.tile(sound(song), 4)
    command = [sys.executable, "-m", "encodec_fast"]
    options = ["--model", str(model_folder), "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pack = subprocess.Popen(
        [*command, "compress", "-", "-o", "-", "-b", str(BANDWIDTH), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    )
    unpack = subprocess.Popen(
        [*command, "decompress", "-", "-o", "-", "--subtype", "FLOAT", *options], stdin=pack.stdout, stdout=subprocess.PIPE, env=env
    )
    assert pack.stdin and pack.stdout and unpack.stdout
    pack.stdout.close()
    # 1.1 s are there, and no more comes: the first segment of a second is played
    pack.stdin.write(wav_header(RATE, 1, "FLOAT", None) + wav_samples(clip[:, : RATE + RATE // 10], RATE, "FLOAT"))
    pack.stdin.flush()
    header = wav_header(RATE, 1, "FLOAT", None)
    first = unpack.stdout.read(len(header) + 4 * RATE // 2)
    assert len(first) == len(header) + 4 * RATE // 2
    pack.stdin.write(wav_samples(clip[:, RATE + RATE // 10 :], RATE, "FLOAT"))
    pack.stdin.close()
    rest = unpack.stdout.read()
    assert (pack.wait(), unpack.wait()) == (cli.OK, cli.OK)
    played = np.frombuffer((first + rest)[len(header) :], "<f4")[None]
    assert np.array_equal(played, model.decode_batch(model.encode_batch([clip], BANDWIDTH))[0].numpy())


def piped(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))


def test_a_pipe_that_ends_early_is_named(capsys, monkeypatch, tmp_path, model, model_folder, song, to):
    piped(monkeypatch, song.read_bytes()[:-100])
    code, _, err = run(capsys, "compress", "-", "-o", tmp_path / "a.ecdc", *to)
    assert code == cli.CLIPS_FAILED and "cut short" in err and not (tmp_path / "a.ecdc").exists()
    piped(monkeypatch, compress(song, model, BANDWIDTH)[:150])
    code, _, err = run(capsys, "decompress", "-", "-o", tmp_path / "a.wav", "--model", model_folder)
    assert code == cli.CLIPS_FAILED and "standard input: 0.00 s to 2.08 s are lost: the file ends" in err
    assert not sound(tmp_path / "a.wav").any()


def test_segments_and_coders_are_those_asked_for(capsys, tmp_path, model, song, to):
    tables = fit_tables([model.encode_batch([sound(song)], BANDWIDTH)[0].codes[0].numpy()], 16, weights_sha256(model))
    (tmp_path / "t").write_bytes(tables.to_bytes())
    for name in ("raw", "static", "adaptive"):
        options = ("--coder", name, "--segment", 0.5, "--tables", tmp_path / "t", "-o", tmp_path / f"{name}.ecdc")
        assert run(capsys, "compress", song, *to, *options)[0] == cli.OK
        with (tmp_path / f"{name}.ecdc").open("rb") as file:
            header = read_header(file)
        assert (header.coder, header.segment_samples, header.num_samples) == (name, 1200, 5003)
    code, _, err = run(capsys, "decompress", tmp_path / "static.ecdc", "--model", to[1])
    assert code == cli.CLIPS_FAILED and f"the tables of SHA-256 {tables.fingerprint.hex()[:16]}" in err
    code, _, _ = run(capsys, "decompress", tmp_path / "static.ecdc", "--model", to[1], "--tables", tmp_path / "t")
    assert code == cli.OK and (tmp_path / "static.wav").exists()


def test_a_language_model_codes_and_is_needed_to_decode(capsys, tmp_path, model, song, to):
    engine()
    config = replace(SMALL, codebooks=4, codebook_size=model.config.codebook_size)
    for seed, name in enumerate(("lm", "another")):
        saved_language_model(drawn_language_model(config, seed), tmp_path / name)
    file, lm = tmp_path / "song.ecdc", ("--lm", tmp_path / "lm")
    assert run(capsys, "compress", song, *to, *lm, "--segment", 0.5)[0] == cli.OK
    with file.open("rb") as opened:
        assert read_header(opened).coder == "lm"
    for options, message in (((), "the language model of SHA-256"), (("--lm", tmp_path / "another"), "those given have")):
        code, _, err = run(capsys, "decompress", file, "-o", tmp_path / "b.wav", "--model", to[1], *options)
        assert code == cli.CLIPS_FAILED and message in err
    assert run(capsys, "decompress", file, "-o", tmp_path / "b.wav", "--subtype", "FLOAT", "--model", to[1], *lm)[0] == cli.OK
    assert np.array_equal(sound(tmp_path / "b.wav"), audio_of(model, song))
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    code, _, err = run(capsys, "decompress", file, "-o", tmp_path / "c.wav", "--model", to[1], *lm)
    assert code == cli.CLIPS_FAILED and "silence" in err


def test_a_part_is_decompressed_by_itself(capsys, tmp_path, model, model_folder, song):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.ecdc").write_bytes(compress(song, model, BANDWIDTH, segment=0.25))
    options = ("--subtype", "FLOAT", "--model", model_folder, "--start", 1.5, "--duration", 0.5)
    expected, _ = decompress(tmp_path / "in" / "a.ecdc", model, start=1.5, duration=0.5)
    for line in ("1.0 s, wrote 2 WAV files", "decompressed before: 2 files"):
        code, out, _ = run(capsys, "decompress", tmp_path / "in", "-o", tmp_path / "out", *options)
        assert code == cli.OK and line in out
    assert expected.shape == (1, RATE // 2) and np.array_equal(sound(tmp_path / "out" / "b.wav"), expected)
    code, _, err = run(capsys, "decompress", tmp_path / "in", "-o", tmp_path / "out", *options[:-1], 0.25)
    assert code == cli.WRONG_ARGUMENT and "was not made of" in err
    code, _, err = run(capsys, "decompress", tmp_path / "in" / "a.ecdc", "-o", tmp_path / "c.wav", *options[:4], "--start", 9)
    assert code == cli.CLIPS_FAILED and "the clip ends before 9 s" in err and not (tmp_path / "c.wav").exists()


def test_a_file_of_another_model_fails_by_itself(capsys, tmp_path, model, model_folder, song):
    (tmp_path / "in").mkdir()
    other = small_model(num_filters=6)
    for name, made_by in (("a", model), ("b", other)):
        (tmp_path / "in" / f"{name}.ecdc").write_bytes(compress(song, made_by, BANDWIDTH))
    code, out, err = run(capsys, "decompress", tmp_path / "in", "-o", tmp_path / "out", "--model", model_folder)
    assert code == cli.CLIPS_FAILED and "wrote 1 WAV file" in out and "b.ecdc: it was made by a local model with weights" in err


def test_a_file_of_another_model_sends_nothing_through_a_pipe(capfdbinary, monkeypatch, tmp_path, model_folder, song):
    piped(monkeypatch, compress(song, small_model(num_filters=6), BANDWIDTH))
    assert cli.main(["decompress", "-", "-o", "-", "--model", str(model_folder)]) == cli.CLIPS_FAILED
    out, err = capfdbinary.readouterr()
    assert out == b"" and b"it was made by a local model with weights" in err


def test_chunks_and_their_volumes_come_back(capsys, tmp_path):
    model = small_model(**CHUNKED)
    model.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (9000, 2)), RATE)
    assert run(capsys, "compress", tmp_path / "a.wav", "--model", tmp_path / "model", "-b", BANDWIDTH, "--segment", 2)[0] == cli.OK
    arguments = ("-o", tmp_path / "b.wav", "--model", tmp_path / "model", "--subtype", "FLOAT")
    assert run(capsys, "decompress", tmp_path / "a.ecdc", *arguments)[0] == cli.OK
    assert np.array_equal(sound(tmp_path / "b.wav"), audio_of(model, tmp_path / "a.wav"))


def test_other_weights_than_made_the_file_are_refused(capsys, tmp_path, model, song):
    (tmp_path / "a.ecdc").write_bytes(compress(song, model, BANDWIDTH))
    small_model(num_filters=6).save_pretrained(tmp_path / "other")
    code, _, err = run(capsys, "decompress", tmp_path / "a.ecdc", "--model", tmp_path / "other")
    assert code == cli.CLIPS_FAILED and "give the model that made it" in err
    code, _, err = run(capsys, "decompress", tmp_path / "a.ecdc")
    assert code == cli.WRONG_ARGUMENT and "does not say which model made it; name that with --model" in err


def test_wrong_arguments_are_named_before_weights_are_loaded(capsys, tmp_path, monkeypatch, song, to):
    monkeypatch.setattr("encodec_fast.pretrained.load_model", lambda *_: pytest.fail("loaded"))
    (tmp_path / "x.ecdc").write_bytes(b"RIFF" + bytes(50))
    (tmp_path / "there.ecdc").write_bytes(b"")
    put_clip(tmp_path / "second.wav", 100)
    for arguments, message in (
        (("compress", song, "--coder", "zip"), "--coder is 'zip'; allowed are auto, raw"),
        (("compress", song, "--coder", "static"), "--coder is static, which needs --tables"),
        (("compress", song, "--coder", "lm"), "--coder is lm, which needs --lm"),
        (("compress", song, "--segment", 0), "--segment is 0"),
        (("compress", song, "--tables", song), "no tables of codes"),
        (("compress", song, "-o", song), "which is no folder"),
        (("compress", song, "-o", tmp_path / "there.ecdc"), "there.ecdc exists already"),
        (("compress", "-", song), "give it alone"),
        (("compress", "-"), "a name that ends in .ecdc is needed"),
        (("compress", song, tmp_path / "second.wav"), "2 files need a folder"),
        (("compress", song, "--version-0", "--coder", "adaptive"), "coder is 'adaptive'; version 0 has raw and lm"),
        (("compress", song, "--version-0", "--segment", 1), "--version-0 has no segments"),
        (("compress", tmp_path / "none.wav"), "none.wav"),
        (("compress", song, "-b", 5, "-m", to[1]), "5"),
        (("decompress", tmp_path / "none.ecdc"), "none.ecdc"),
        (("decompress", "-"), "a name that ends in .wav is needed"),
        (("decompress", song, "--subtype", "MP3"), "--subtype is MP3"),
        (("decompress", song, "--start", -1), "start is -1"),
        (("decompress", song, "--duration", 0), "duration is 0"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == cli.WRONG_ARGUMENT and message in err, (arguments, err)
    code, _, err = run(capsys, "decompress", tmp_path / "x.ecdc")
    assert code == cli.CLIPS_FAILED and "it begins with b'RIFF'" in err


def test_version_0_warns_of_lengths_that_encodec_cannot_read(capsys, tmp_path):
    from encodec_fast.demo import demo_model
    from support.models import audio_like

    soundfile.write(tmp_path / "a.wav", audio_like(1, 1, 6720, 0)[0, 0].numpy(), 24_000, subtype="FLOAT")
    code, _, err = run(capsys, "compress", tmp_path / "a.wav", "-m", "demo", "--version-0")
    assert code == cli.OK and "encodec 0.1.1 can't read a file of 6720 samples" in err
    audio, rate = decompress(tmp_path / "a.ecdc", demo_model("demo"))
    assert (tmp_path / "a.ecdc").read_bytes()[:5] == b"ECDC\0" and audio.shape == (1, 6720) and rate == 24_000


def test_version_0_by_a_language_model_says_where_it_holds(capsys, tmp_path):
    from support.models import audio_like

    soundfile.write(tmp_path / "a.wav", audio_like(1, 1, 3000, 0)[0, 0].numpy(), 24_000, subtype="FLOAT")
    config = replace(SMALL, codebooks=2, codebook_size=1024)
    lm = ("--lm", saved_language_model(drawn_language_model(config), tmp_path / "lm"))
    code, _, err = run(capsys, "compress", tmp_path / "a.wav", "-m", "demo", "-b", 1.5, "--version-0", "--coder", "lm", *lm)
    assert code == cli.OK and "It can be read on this machine, with 1 thread and torch" in err
    code, _, err = run(capsys, "decompress", tmp_path / "a.ecdc", "-m", "demo", *lm, "-o", tmp_path / "b.wav")
    assert code == cli.OK and sound(tmp_path / "b.wav").shape == (1, 3000)
    code, _, err = run(capsys, "compress", tmp_path / "a.wav", "-m", "demo", "-b", 1.5, "--version-0", *lm, "-o", tmp_path / "c.ecdc")
    assert code == cli.WRONG_ARGUMENT and "only where coder is 'lm'" in err
