"""A format of which the package has never heard: one line in FORMATS, and everything works with it."""

import dataclasses

import numpy as np
import pytest

import encodec_fast
from encodec_fast import cli
from encodec_fast.dataset.decoding import StoredRows, decode
from encodec_fast.dataset.failures import read_failures
from encodec_fast.dataset.ledger import FOLDER, Ledger, LedgerError
from encodec_fast.formats import FORMATS, ClipFailure, FormatError, format_module
from encodec_fast.formats.folder import load_codes, read_ids, shard_paths
from support.corpora import BANDWIDTH, content, put_mixed, small_model, tokenize
from support.rows import INFO, row, write

# Small shards and batches, so that there are several
STEPS = {"rows_per_shard": 3, "batch_seconds": 2.0}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def corpus(tmp_path):
    return put_mixed(tmp_path / "corpus")


@pytest.fixture(params=["plain", "side_file"])
def format(request, monkeypatch):
    monkeypatch.setitem(FORMATS, request.param, f"support.{request.param}_format")
    return request.param


def files(out):
    """The files of a folder of codes but those of its ledger."""
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and FOLDER not in path.parts}


def test_a_run_stores_the_rows_of_any_other_format(corpus, model, tmp_path, format):
    tokenize(model, [corpus], tmp_path / "codes", format=format, **STEPS)
    tokenize(model, [corpus], tmp_path / "parquet", **STEPS)
    assert len(shard_paths(tmp_path / "codes")) > 1
    assert content(tmp_path / "codes") == content(tmp_path / "parquet")
    assert read_ids(tmp_path / "codes") == read_ids(tmp_path / "parquet")
    assert read_failures(tmp_path / "codes") == read_failures(tmp_path / "parquet")


def test_the_same_call_goes_on_from_the_last_shard(corpus, model, tmp_path, monkeypatch, format):
    out, append, shards = tmp_path / "codes", Ledger.append, []

    def killed(self, record):
        if len(shards) == 1:
            raise KeyboardInterrupt
        shards.append(record.file)
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(model, [corpus], out, format=format, **STEPS)
    # the second shard is on the disk, and no line vouches for it
    assert len(shard_paths(out)) == 2
    again = tokenize(model, [corpus], out, format=format, **STEPS)
    assert again.done_before > 0 and again.clips > 0
    tokenize(model, [corpus], tmp_path / "whole", format=format, **STEPS)
    assert content(out) == content(tmp_path / "whole") and files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_killed_process_left_unfinished_is_removed(corpus, model, tmp_path, format, overwrite):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, format=format, limit=2, **STEPS)
    module, ledger = format_module(format), Ledger(out)
    shard = module.Shard(out, "part-00000099", INFO)
    ledger.begin(f"part-00000099{module.SUFFIX}")
    for index in range(3):
        shard.write(dataclasses.replace(row(0), id=f"gone-{index}.wav"))
    del shard, ledger
    tokenize(model, [corpus], out, format=format, overwrite=overwrite, **STEPS)
    assert len(content(out)) == 8 and not [name for name in files(out) if "99" in name or name.endswith(".tmp")]


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(corpus, model, tmp_path, format):
    out, folders = tmp_path / "codes", format_module(format).SIDE_FOLDERS
    tokenize(model, [corpus], out, format=format, **STEPS)
    mine = {"notes.txt", *(f"{folder}/mine" for folder in folders)}
    for name in mine:
        (out / name).write_text("mine")
    tokenize(model, [corpus / "0000.wav"], out, overwrite=True)
    assert files(out) == mine | {"part-00000000.parquet"} and list(content(out)) == ["0000.wav"]


def test_a_first_run_is_refused_where_a_file_or_folder_of_others_has_its_names(corpus, model, tmp_path, format):
    module = format_module(format)
    for name in (f"part-00000000{module.SUFFIX}", *module.SHARED_FILES, *module.SIDE_FOLDERS):
        out = tmp_path / f"with {name}"
        out.mkdir()
        (out / name).write_bytes(b"somebody's")
        with pytest.raises(LedgerError, match="choose another folder"):
            tokenize(model, [corpus], out, format=format)
        assert files(out) == {name} and (out / name).read_bytes() == b"somebody's"


def test_a_file_under_the_name_of_a_shard_that_was_only_begun_is_set_aside(corpus, model, tmp_path, format):
    out, name = tmp_path / "codes", f"part-00000001{format_module(format).SUFFIX}"
    tokenize(model, [corpus], out, format=format, limit=1)
    (out / FOLDER / "begun" / name).touch()
    (out / name).write_bytes(b"somebody's")
    tokenize(model, [corpus], out, format=format)
    assert (out / FOLDER / "set-aside" / f"{name}.1").read_bytes() == b"somebody's" and len(content(out)) == 8


@pytest.mark.parametrize("damage", ["gone", "cut", "a bit"])
def test_a_damaged_shard_is_made_again(corpus, model, tmp_path, format, damage):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, format=format, **STEPS)
    whole, shard = content(out), shard_paths(out)[1]
    data = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(data[:-5] if damage == "cut" else data[:40] + bytes([data[40] ^ 4]) + data[41:])
    tokenize(model, [corpus], out, format=format, check=damage == "a bit", **STEPS)
    assert content(out) == whole and shard.exists()


def test_decode_gives_every_clip_back(corpus, model, tmp_path, format, capsys):
    model.save_pretrained(tmp_path / "model")
    tokenize(model, [corpus], tmp_path / "codes", format=format, **STEPS)
    rows = StoredRows(tmp_path / "codes")
    decoded = list(decode(model, rows))
    assert [each.id for each, _ in decoded] == rows.ids and len(rows.ids) == 8
    assert all(audio.shape[1] == each.num_samples for each, audio in decoded)
    arguments = ["decode", tmp_path / "codes", "--out", tmp_path / "wavs", "--model", tmp_path / "model"]
    assert cli.main([str(argument) for argument in arguments]) == cli.OK, capsys.readouterr().err
    assert len(list((tmp_path / "wavs").rglob("*.wav"))) == 8


def test_the_command_takes_its_name_and_the_codes_load(corpus, model, tmp_path, format, capsys):
    model.save_pretrained(tmp_path / "model")
    options = ["--out", tmp_path / "codes", "--model", tmp_path / "model", "--bandwidth", BANDWIDTH, "--format", format]
    assert cli.main([str(each) for each in ("tokenize", corpus, *options)]) == cli.CLIPS_FAILED
    assert "2 of the clips failed:" in capsys.readouterr().err
    assert len(list(encodec_fast.load_codes(tmp_path / "codes"))) == 8
    assert len(list(encodec_fast.CodesDataset(tmp_path / "codes"))) == 8


def test_messages_name_it(tmp_path, format):
    suffix = format_module(format).SUFFIX
    with pytest.raises(FormatError, match=f" or \\{suffix}; give the --out folder"):
        load_codes(tmp_path)
    (tmp_path / "x.flac").touch()
    with pytest.raises(FormatError, match=f" and \\{suffix} are"):
        list(load_codes(tmp_path / "x.flac"))
    with pytest.raises(ValueError, match=f"allowed are .*, {format}"):
        format_module("mp3")


def test_a_shard_keeps_what_it_is_given(tmp_path, format):
    rows = [row(0), row(1, (4, 2, 150), scales=True)]
    path = write(tmp_path, rows, format)
    for one, other in zip(rows, load_codes(path), strict=True):
        assert not isinstance(other, ClipFailure) and one.id == other.id and np.array_equal(one.codes, other.codes)
        assert np.array_equal(one.scales, other.scales)
