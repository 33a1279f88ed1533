"""`encodec-fast quality` as a person meets it: the table, the page to listen to, and its errors."""

import base64
import importlib.util
import io
import json
import re

import numpy as np
import pytest
import soundfile
import torch

from encodec_fast import cli
from encodec_fast.quality import measure
from support.command import run
from support.models import audio_like, pair, small_config


@pytest.fixture(scope="module")
def model():
    return pair(small_config(codebook_size=16, target_bandwidths=[1.2, 2.4, 4.8]))[1]


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three clips at the model's rate, the last of them 12 s long."""
    folder = tmp_path_factory.mktemp("corpus")
    for index, samples in enumerate([4000, 5001, 28_800]):
        soundfile.write(folder / f"{index}.wav", audio_like(1, 1, samples, index)[0, 0].numpy(), 2400, "FLOAT")
    return folder


@pytest.fixture(autouse=True)
def without_pesq(monkeypatch):
    monkeypatch.setattr("encodec_fast.quality.metrics.missing_packages", lambda: {"pesq": "the package pesq is not installed"})


def samples_of(path, count):
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0][None, :count])


def test_the_table_is_that_of_the_library(capsys, corpus, model, model_folder):
    code, out, err = run(capsys, "quality", corpus, "--model", model_folder, "--seconds", "1.5")
    assert (code, err) == (cli.OK, "")
    _, _, table = str(measure(model, [samples_of(path, 3600) for path in sorted(corpus.glob("*.wav"))])).partition("\n")
    assert out.endswith(f"{model_folder}\n{table}\n")
    assert "3 clips, 4.5 s at 2400 Hz" in out and "PESQ: left out, the package pesq is not installed" in out


def test_json_alone_is_on_standard_output(capsys, corpus, model, model_folder):
    code, out, err = run(capsys, "quality", corpus, "--model", model_folder, "--clips", "2", "-b", "4.8", "-b", "1.2", "--json")
    assert code == cli.OK and "model" in err
    found, expected = (
        json.loads(out),
        measure(model, [samples_of(corpus / name, None) for name in ("0.wav", "1.wav")], [1.2, 4.8]).to_json(),
    )
    assert found["bandwidths"] == expected["bandwidths"] and found["codebooks"] == expected["codebooks"] and found["clips"] == 2


def test_the_page_has_every_version_of_ten_seconds_the_table_and_no_link(capsys, corpus, model_folder, tmp_path):
    page = tmp_path / "quality.html"
    code, out, err = run(capsys, "quality", corpus, "--model", model_folder, "-b", "1.2", "-b", "4.8", "--page", page)
    assert (code, err) == (cli.OK, "")
    assert f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)" in out
    text = page.read_text()
    found = re.findall(r'src="data:audio/flac;base64,([^"]+)"></audio><figcaption>([^<]+)', text)
    assert [name for _, name in found] == ["original", "1.2 kbps", "4.8 kbps"] * 3
    sounds = [soundfile.read(io.BytesIO(base64.b64decode(data)))[0] for data, _ in found]
    assert [len(sound) for sound in sounds] == [4000] * 3 + [5001] * 3 + [24_000] * 3
    assert np.abs(sounds[0] - samples_of(corpus / "0.wav", None)[0].numpy()).max() < 2**-15
    assert len({sound.tobytes() for sound in sounds}) == 9
    assert text.count("data:image/png;base64,") == 9 and "http" not in text
    assert "<th>SI-SNR dB</th>" in text and "0.wav" in text


def test_a_page_without_matplotlib_names_the_extra(capsys, corpus, model_folder, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find_spec(name, *more))
    page = tmp_path / "quality.html"
    assert run(capsys, "quality", corpus, "--model", model_folder, "--clips", "1", "-b", "1.2", "--page", page)[0] == cli.OK
    text = page.read_text()
    assert "data:image" not in text and text.count("<audio") == 2 and "encodec-fast[report]" in text


def test_a_clip_that_can_not_be_read_is_named_and_costs_only_itself(capsys, corpus, model_folder, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF and nothing")
    code, out, err = run(capsys, "quality", tmp_path, corpus, "--model", model_folder, "-b", "1.2")
    assert code == cli.CLIPS_FAILED and "3 clips" in out
    assert err.splitlines()[0] == "1 of the clips failed:" and "broken.wav" in err
    code, out, err = run(capsys, "quality", tmp_path, "--model", model_folder)
    assert code == cli.CLIPS_FAILED and "kbps" not in out and "broken.wav" in err


WRONG = {
    "no source": (["quality"], "Missing argument"),
    "missing source": (["quality", "nowhere", "--model", "MODEL"], "nowhere: no such file or folder."),
    "bandwidth": (["quality", "CORPUS", "--model", "MODEL", "-b", "1.2", "-b", "7"], "bandwidth is 7; the model's are 1.2, 2.4, 4.8 kbps."),
    "no seconds": (["quality", "CORPUS", "--model", "MODEL", "--seconds", "0"], "--seconds is 0; a number above 0 is needed."),
    "endless seconds": (["quality", "CORPUS", "--model", "MODEL", "--seconds", "inf"], "--seconds is inf; a number"),
    "no clips": (["quality", "CORPUS", "--model", "MODEL", "--clips", "0"], "--clips"),
    "page in no folder": (["quality", "CORPUS", "--model", "MODEL", "--page", "nowhere/x.html"], "its folder is not there"),
    "page that is there": (["quality", "CORPUS", "--model", "MODEL", "--page", "CORPUS/0.wav"], "exists already"),
}


@pytest.mark.parametrize("arguments, message", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys, corpus, model_folder, arguments, message):
    arguments = [each.replace("CORPUS", str(corpus)).replace("MODEL", str(model_folder)) for each in arguments]
    code, _, err = run(capsys, *arguments)
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1 and message in err


def test_the_help_says_what_is_measured(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, "quality", "--help")
    assert code == cli.OK
    assert all(word in out for word in ("SI-SNR", "STOI", "PESQ", "--bandwidth", "--page", "--json", "--clips", "--seconds"))
