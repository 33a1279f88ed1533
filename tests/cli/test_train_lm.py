"""`encodec-fast train-lm`: from a folder of codes to a language model that codes them."""

import numpy as np
import pytest

from encodec_fast import cli
from encodec_fast.compression.language_model_coder import LanguageModelCoder
from encodec_fast.language_model.loading import load_lm
from support.command import run
from support.engine import engine
from support.rows import row, write

SMALL = ("--dim", 16, "--heads", 2, "--layers", 1, "--batch-size", 2, "--held-out", 0.5, "--device", "cpu", "--levels", 2)


def codes_folder(tmp_path):
    folder = tmp_path / "codes"
    folder.mkdir()
    write(folder, [row(index) for index in range(8)])
    return folder


def test_a_folder_of_codes_becomes_a_model_that_codes(capsys, tmp_path):
    engine()
    codes_folder(tmp_path)
    command = ("train-lm", tmp_path / "codes", "--out", tmp_path / "lm", "--steps", 2, *SMALL)
    code, out, err = run(capsys, *command)
    assert code == cli.OK, err
    # 75 frames for a second of audio
    assert "2 levels of 1024 codes, 75 frames a second, on cpu" in out and "2 steps, 2 of them now; the model is in" in out
    assert "bits per code, " in out and "fewer than the 10 of plain codes" in out
    code, out, _ = run(capsys, *command)
    assert code == cli.OK and "2 steps, 0 of them now" in out
    model = load_lm(tmp_path / "lm")
    assert (model.config.past_context, model.config.hidden, model.config.codebooks) == (262, 64, 2)
    codes = row(0).codes[0, :2]
    coder = LanguageModelCoder(model, 1)
    assert np.array_equal(coder.decode(coder.encode([codes]), [75], 2)[0], codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--heads", 3], "divisor of dim"),
        (["--held-out", 2], "held_out is 2"),
        (["--levels", 9], "levels is 9"),
        (["--codec", "demo"], "--codec is demo, which did not make these codes"),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, tmp_path, changes, message):
    code, _, err = run(capsys, "train-lm", codes_folder(tmp_path), "--out", tmp_path / "lm", *SMALL, *changes)
    assert code == cli.WRONG_ARGUMENT and message in err and err.count("\n") == 1, err


def test_a_folder_without_codes_is_one_line(capsys, tmp_path):
    code, _, err = run(capsys, "train-lm", tmp_path, "--out", tmp_path / "lm")
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1, err
