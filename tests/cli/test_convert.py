"""`encodec-fast convert`: both directions, what it refuses, and that nothing half-written is left."""

import re

import pytest
import soundfile
import torch

from encodec_fast import EncodecModel, cli
from encodec_fast.checkpoints import writing
from encodec_fast.cli.app import EXIT_CODES
from encodec_fast.plan.weights import weights_sha256
from encodec_fast.pretrained import load_model
from support.command import run
from support.models import audio_like, small_config
from support.original_model import OriginalModel


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.th"
    torch.save(OriginalModel(n_filters=4, dimension=16).weights(), path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".th", ".pt", ".bin"])
def test_a_checkpoint_becomes_a_folder_and_a_checkpoint_again(capsys, tmp_path, checkpoint, suffix):
    code, out, err = run(capsys, "convert", checkpoint, "--out", tmp_path / "folder")
    assert (code, err) == (cli.OK, "") and out == f"wrote {tmp_path / 'folder'}: 24 kHz, mono, 1.5, 3, 6, 12, 24 kbps\n"
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(names(tmp_path / "folder"))
    back = tmp_path / f"back{suffix}"
    assert run(capsys, "convert", tmp_path / "folder", "--out", back)[0] == cli.OK
    first, second = (torch.load(path, weights_only=True) for path in (checkpoint, back))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert names(tmp_path) == sorted([back.name, "folder", "model.th"])


def test_every_command_takes_a_checkpoint_as_its_model(capsys, tmp_path, checkpoint):
    soundfile.write(tmp_path / "a.wav", audio_like(1, 1, 9000, 0)[0, 0].numpy(), 24_000)
    code, _, err = run(capsys, "tokenize", tmp_path / "a.wav", "--out", tmp_path / "codes", "--model", checkpoint, "-b", "7")
    assert code == cli.WRONG_ARGUMENT and "are 1.5, 3, 6, 12, 24 kbps" in err
    assert run(capsys, "tokenize", tmp_path / "a.wav", "--out", tmp_path / "codes", "--model", checkpoint, "-b", "3")[0] == cli.OK
    assert run(capsys, "decode", tmp_path / "codes", "--out", tmp_path / "wavs")[0] == cli.OK
    assert soundfile.info(tmp_path / "wavs" / "a.wav").frames == 9000


@pytest.mark.parametrize("name", ["folder", "other.th"])
def test_what_is_there_is_replaced_only_when_asked(capsys, tmp_path, checkpoint, name):
    assert run(capsys, "convert", checkpoint, "--out", tmp_path / name)[0] == cli.OK
    before = weights_sha256(load_model(tmp_path / name))
    torch.save(OriginalModel(n_filters=4, dimension=16).weights(), checkpoint)
    code, _, err = run(capsys, "convert", checkpoint, "--out", tmp_path / name)
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1 and "exists already; choose another --out or add --overwrite" in err
    assert weights_sha256(load_model(tmp_path / name)) == before
    assert run(capsys, "convert", checkpoint, "--out", tmp_path / name, "--overwrite")[0] == cli.OK
    assert weights_sha256(load_model(tmp_path / name)) == weights_sha256(load_model(checkpoint)) != before
    assert names(tmp_path) == sorted([name, "model.th"])


def test_a_name_of_safetensors_is_refused_for_a_folder_that_holds_them(capsys, tmp_path, checkpoint):
    code, _, err = run(capsys, "convert", checkpoint, "--out", tmp_path / "x.safetensors")
    assert code == cli.WRONG_ARGUMENT and f"safetensors come in a folder, with their config: --out {tmp_path / 'x'}." in err
    assert names(tmp_path) == ["model.th"]


def test_a_folder_with_anything_else_in_it_is_never_replaced(capsys, tmp_path, checkpoint):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    code, _, err = run(capsys, "convert", checkpoint, "--out", tmp_path / "mine", "--overwrite")
    assert code == cli.WRONG_ARGUMENT and "holds more than a model (notes.txt), and is not replaced" in err
    assert names(tmp_path / "mine") == ["notes.txt"]


@pytest.mark.parametrize("name", ["folder", "other.th"])
def test_an_end_in_the_middle_leaves_what_was_there(capsys, tmp_path, checkpoint, monkeypatch, name):
    assert run(capsys, "convert", checkpoint, "--out", tmp_path / name)[0] == cli.OK
    before = weights_sha256(load_model(tmp_path / name))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(writing.EncodecModel, "save_pretrained", full)
    code, _, err = run(capsys, "convert", checkpoint, "--out", tmp_path / name, "--overwrite")
    assert code == cli.STOPPED and err.count("\n") == 1 and "No space left on device" in err
    assert weights_sha256(load_model(tmp_path / name)) == before and names(tmp_path) == sorted([name, "model.th"])


WRONG = {
    "no source": (["nowhere.th", "--out", "OUT"], "nowhere.th: no such file"),
    "no such folder": (["MODEL", "--out", "OUT/deep/model"], "deep: no such folder; make it first"),
    "a folder named as a file": (
        ["MODEL", "--out", "FOLDER.th", "--overwrite"],
        "is a folder; names that end in .th",
    ),
    "a file named as a folder": (["MODEL", "--out", "FILE", "--overwrite"], "is a file; names that end in .th"),
    "untellable": (["SMALL", "--out", "OUT.th"], "is read with sampling_rate = 24000; this model has 2400. Convert it to a folder."),
    "no checkpoint": (["FILE", "--out", "OUT"], "no checkpoint that torch can read"),
}


@pytest.mark.parametrize("arguments, message", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys, tmp_path, checkpoint, arguments, message):
    (tmp_path / "folder.th").mkdir()
    (tmp_path / "file").write_text("text")
    if "SMALL" in arguments:
        EncodecModel(small_config(codebook_size=1024)).save_pretrained(tmp_path / "small")
    places = {"MODEL": checkpoint, "FOLDER.th": tmp_path / "folder.th", "FILE": tmp_path / "file", "SMALL": tmp_path / "small"}
    places |= {name: tmp_path / name.lower() for name in ("OUT", "OUT/deep/model", "OUT.th")}
    code, _, err = run(capsys, "convert", *(places.get(argument, argument) for argument in arguments))
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1 and message in err
    assert not [name for name in names(tmp_path) if name.startswith((".", "out"))]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_fits_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = run(capsys, "convert", "--help")
    assert (code, err) == (cli.OK, "") and max(map(len, out.splitlines())) <= int(columns)
    assert "\n encodec-fast convert encodec_24khz-d7cc33bc.th --out my-model" in out
    assert [int(code) for code in re.findall(r"^ (\d+): ", out, re.MULTILINE)] == list(EXIT_CODES)
