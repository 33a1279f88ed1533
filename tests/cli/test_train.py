"""`encodec-fast train`: from a config to a model, and what goes wrong in one line."""

import os
import signal
import subprocess
import sys

import pytest

from encodec_fast import cli
from support.command import run
from support.training_runs import tiny_config, write_recordings

pytest.importorskip("tomllib", reason="Python 3.11")


@pytest.fixture
def config(tmp_path):
    """The path of a config."""
    recordings = write_recordings(tmp_path / "recordings")
    path = tmp_path / "run.toml"
    path.write_text(tiny_config(recordings, validation_audio=[str(recordings)], steps=2).to_toml(), encoding="utf-8")
    return path


def test_a_config_becomes_a_model_that_other_commands_take(capsys, config, tmp_path):
    code, out, err = run(capsys, "train", config, "--out", tmp_path / "run")
    assert code == cli.OK, err
    assert "2 steps, 2 of them now; the model is in" in out and "validation: mel " in out
    code, out, err = run(capsys, "train", config, "--out", tmp_path / "run", "--steps", 3)
    assert code == cli.OK and "3 steps, 1 of them now" in out and "steps = 3\n" in (tmp_path / "run" / "config.toml").read_text()
    code, _, err = run(
        capsys, "roundtrip", tmp_path / "recordings" / "a.wav", "--out", tmp_path / "b.wav", "-m", tmp_path / "run" / "model", "-b", 4.8
    )
    assert code == cli.OK and (tmp_path / "b.wav").stat().st_size > 1000, err


def test_other_ranks_than_the_first_say_nothing(capsys, config, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, "train", config, "--out", tmp_path / "run") == (cli.OK, "", "")


def test_the_printed_config_is_one(capsys, config, tmp_path):
    code, out, _ = run(capsys, "train", "--print-config")
    assert code == cli.OK
    config.write_text(out, encoding="utf-8")
    code, _, err = run(capsys, "train", config, "--out", tmp_path / "run")
    assert code == cli.WRONG_ARGUMENT and "audio is empty" in err


@pytest.mark.parametrize(
    "line, message",
    [("stepz = 1\n", "'stepz' is no key"), ('steps = "x"\n', "steps is 'x'; a whole number is needed"), ("?", "not a TOML file")],
)
def test_a_wrong_config_is_one_line(capsys, tmp_path, line, message):
    (tmp_path / "run.toml").write_text('audio = ["x"]\n' + line)
    code, out, err = run(capsys, "train", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert code == cli.WRONG_ARGUMENT and message in err and err.count("\n") == 1 and not out


def test_a_missing_config_is_one_line(capsys, tmp_path):
    code, _, err = run(capsys, "train", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert code == cli.WRONG_ARGUMENT and "run.toml: No such file" in err


def test_help_names_the_files_of_the_folder(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, "train", "--help")
    assert code == cli.OK and all(name in out for name in ("config.toml", "checkpoint.pt", "metrics.csv", "model/", "--print-config"))


def test_sigterm_ends_with_a_checkpoint_and_the_code_of_an_interrupt(config, tmp_path):
    text = config.read_text().replace("steps = 2\n", "steps = 1000000\n")
    config.write_text(text)
    command = [sys.executable, "-m", "encodec_fast", "train", config, "--out", tmp_path / "run"]
    child = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"}
    )
    try:
        while not (tmp_path / "run" / "metrics.csv").exists() or (tmp_path / "run" / "metrics.csv").read_text().count("\n") < 3:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.02)
        assert not (tmp_path / "run" / "checkpoint.pt").exists()
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == cli.INTERRUPTED and "interrupted. What was finished is kept" in err
    assert (tmp_path / "run" / "checkpoint.pt").exists() and (tmp_path / "run" / "model" / "config.json").exists()
