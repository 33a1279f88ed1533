"""The page of a run: what is heard in it is the start and the best model, and its curves are those of metrics.csv."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_fast import load_model
from encodec_fast.training import report, run, train
from support.models import pair, small_config
from support.training_runs import tiny_config, write_recordings

BANDWIDTHS = (1.2, 2.4, 4.8)
VERSION = re.compile(r'src="data:audio/flac;base64,([^"]+)"></audio><figcaption>([^<]+)')


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Fine-tunes a fitted model on recordings of 1 and 2 seconds, and validates on them."""
    folder = tmp_path_factory.mktemp("report")
    pair(small_config(target_bandwidths=list(BANDWIDTHS)))[1].save_pretrained(folder / "model")
    recordings = str(write_recordings(folder / "recordings", 2))
    settings = {"model": str(folder / "model"), "validation_audio": [recordings], "discriminator_filters": 0}
    return lambda **changes: tiny_config(recordings, **{**settings, "steps": 2, "validation_steps": 1, "report_clips": 3, **changes})


@pytest.fixture
def without_matplotlib(monkeypatch):
    """Pages without pictures, which take most of the time."""
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda _: None)


def heard(folder):
    """The audio of each version on the page, [T], by title, of the first clip."""
    found = {}
    for data, title in VERSION.findall((folder / "report.html").read_text(encoding="utf-8")):
        found.setdefault(title, soundfile.read(io.BytesIO(base64.b64decode(data)))[0])
    return found


def decoded(path, recording, bandwidth):
    """What the model in a folder makes of the first recording."""
    model = load_model(path)
    samples, _ = soundfile.read(recording, dtype="float32")
    (audio,) = model.decode_batch(model.encode_batch([samples[None]], bandwidth))
    return audio[0].clip(-1, 1).numpy()


@pytest.mark.usefixtures("without_matplotlib")
def test_the_page_has_the_start_and_the_trained_model_to_listen_to(config, tmp_path):
    settings = config()
    assert train(settings, tmp_path / "run").report == tmp_path / "run" / "report.html"
    found = heard(tmp_path / "run")
    assert list(found) == ["original", *(f"{each:g} kbps, {when}" for each in BANDWIDTHS for when in ("before", "after"))]
    for when, folder in (("before", Path(settings.model)), ("after", tmp_path / "run" / "model")):
        expected = decoded(folder, Path(settings.audio[0]) / "a.wav", 4.8)
        # half a step of 16 bits
        assert np.abs(found[f"4.8 kbps, {when}"] - expected).max() < 2e-5 and np.abs(expected).max() > 0.01
    assert np.abs(found["4.8 kbps, before"] - found["4.8 kbps, after"]).max() > 1e-3
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "a.wav" in text and "b.wav" in text and "http" not in text and "Before training" in text and "2 of 2" in text


@pytest.mark.usefixtures("without_matplotlib")
def test_a_run_that_went_on_shows_the_best_model_of_the_one_before(config, tmp_path, monkeypatch):
    train(config(), tmp_path / "run")
    before = heard(tmp_path / "run")
    monkeypatch.setattr(run, "validate", lambda *_: run.Validation(1e9, 0.0, None, (1.0,)))
    train(config(steps=3), tmp_path / "run")
    after = heard(tmp_path / "run")
    assert "3 of 3" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert before.keys() == after.keys() and all(np.array_equal(before[title], after[title]) for title in before)


def test_without_clips_to_report_there_is_no_page(config, tmp_path):
    train(config(steps=1, report_clips=0), tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_validation_has_curves_alone(config, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `report`")
    train(config(validation_audio=[]), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<audio" not in text and "Before" not in text
    assert re.findall("<h2>([^<]+)</h2><img", text) == ["Mel loss", "Time loss", "Commitment loss", "Perplexity of the codes"]


@pytest.mark.usefixtures("without_matplotlib")
def test_a_page_without_matplotlib_names_the_extra(config, tmp_path):
    train(config(steps=1), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in text and "<audio" in text and "pip install 'encodec-fast[report]'" in text


def test_each_version_has_its_spectrogram(config, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `report`")
    train(config(steps=1, report_clips=1), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('alt="Spectrogram, ') == text.count("<audio") == 7


def test_a_long_run_has_every_curve():
    pytest.importorskip("matplotlib", reason="the extra `report`")
    from encodec_fast.training.curves import CURVES, curves

    rows = [{"step": str(step), **dict.fromkeys(CURVES, str(1 / step)), "val_use_1": "", "val_use_2": ""} for step in range(1, 201)]
    rows[99] |= {"val_use_1": "0.5", "val_use_2": "0.25"}
    found = curves(rows)
    titles = [title for title, _ in found]
    assert titles == [*(title for title, _ in CURVES.values()), "Entries in use, validation at step 100"]
    assert len({data for _, data in found}) > 2 and all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in found)
    assert curves([]) == []


@pytest.mark.usefixtures("without_matplotlib")
def test_what_is_heard_is_spread_over_the_recordings(config, tmp_path):
    more = write_recordings(tmp_path / "more", 6)
    train(config(validation_audio=[str(more)], steps=1), tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert re.findall('class="clip">([^<]+)', text) == ["a.wav", "c.wav", "e.wav"]
