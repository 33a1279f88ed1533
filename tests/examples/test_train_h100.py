"""The recipe for an H100, rehearsed on a CPU: its audio is packed as it says, and its config trains a toy model."""

import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from encodec_fast.training import read_config, train
from support.models import audio_like
from support.training_runs import ARCHITECTURE
from support.venvs import ROOT

FOLDER = ROOT / "examples" / "train_h100"


@pytest.fixture
def prepare(monkeypatch, capsys):
    """Runs prepare.py; returns its last words, or what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
        try:
            runpy.run_path(str(FOLDER / "prepare.py"), run_name="__main__")
        except SystemExit as end:
            return str(end.code)
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Eight recordings of 3 s in a subfolder: stereo at 48 kHz the first, mono at 8 kHz the rest."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "more").mkdir()
    for index in range(8):
        rate, channels = (48_000, 2) if index == 0 else (8000, 1)
        samples = audio_like(1, channels, 3 * rate, index)[0].T.numpy()
        soundfile.write(folder / "more" / f"{index}.wav", samples / np.abs(samples).max(), rate)
    return folder


def packed(folder):
    return {path.stem: soundfile.info(path) for path in folder.glob("*/*.flac")}


def test_recordings_become_mono_of_at_most_24_khz_and_none_is_in_both_folders(prepare, recordings, tmp_path):
    assert "minutes" in prepare(recordings, tmp_path, "--seconds", 2, "--validation-share", 0.25)
    found = packed(tmp_path)
    assert len(found) == 8 and len(list((tmp_path / "validation").iterdir())) == 2
    assert sorted(info.samplerate for info in found.values()) == [8000] * 7 + [24_000]
    assert all(info.channels == 1 and info.duration == pytest.approx(2) for info in found.values())


def test_no_more_megabytes_are_packed_than_were_asked_for(prepare, recordings, tmp_path):
    prepare(recordings, tmp_path, "--megabytes", 0.15, "--seconds", 2)
    sizes = [path.stat().st_size for path in tmp_path.glob("*/*.flac")]
    assert 2 < len(sizes) < 8 and sum(sizes) <= 150_000


def test_too_few_recordings_are_said(prepare, tmp_path):
    assert "0 recordings are too few" in prepare(tmp_path, tmp_path / "out")


def test_the_config_trains_a_toy_model_on_what_was_packed(prepare, recordings, tmp_path, monkeypatch):
    pytest.importorskip("tomllib", reason="Python 3.11")
    prepare(recordings, tmp_path / "data", "--validation-share", 0.25)
    monkeypatch.chdir(tmp_path)
    recipe = read_config(FOLDER / "h100.toml")
    assert (recipe.precision, recipe.schedule, recipe.device) == ("bf16", "cosine", "cuda")
    sizes = {"steps": 2, "batch_size": 2, "crop_seconds": 0.25, "discriminator_filters": 2, "mel_exponents": (5, 6), "workers": 0}
    toy = replace(recipe, device="cpu", architecture=ARCHITECTURE, validation_bandwidth=0.0, report_clips=0, **sizes)
    summary = train(toy, tmp_path / "run")
    assert summary.steps == 2 and summary.validation is not None and (summary.model / "model.safetensors").exists()
