"""What a ledger holds of a run: who may go on with it, what a cut leaves, what an overwrite removes."""

import itertools
import json
import pathlib
import shutil

import pytest

from corpora import SMALL, content, put_clip, put_mixed, small_model, tokenize
from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset.ledger import Ledger, LedgerError, Record, _runs
from encodec_fast.dataset.schedule import write_schedule
from encodec_fast.formats import ClipFailure
from encodec_fast.formats.parquet import read_failures
from fixtures import pair, small_config


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def corpus(tmp_path):
    return put_mixed(tmp_path / "corpus")


DIFFERENCES = {
    "bandwidth": {"bandwidth": 1.2},
    "batch_seconds": {"batch_seconds": 3.0},
    "packed": {"packed": True},
    "format": {"format": "npy"},
    "long_clip_seconds": {"long_clip_seconds": 5.0},
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_run_with_other_options_is_refused_and_the_difference_named(corpus, model, tmp_path, name):
    tokenize(model, [corpus], tmp_path / "codes")
    before = content(tmp_path / "codes")
    with pytest.raises(LedgerError, match=rf"made otherwise: {name} was .*, is .*--overwrite"):
        tokenize(model, [corpus], tmp_path / "codes", **DIFFERENCES[name])
    assert content(tmp_path / "codes") == before
    if name == "bandwidth":
        tokenize(model, [corpus], tmp_path / "codes", overwrite=True, **DIFFERENCES[name])
        assert len(content(tmp_path / "codes")) == 8 and content(tmp_path / "codes") != before


def test_other_weights_and_other_sources_are_refused(corpus, model, tmp_path):
    tokenize(model, [corpus], tmp_path / "codes")
    with pytest.raises(LedgerError, match="weights was"):
        tokenize(pair(small_config(**SMALL), seed=7)[1], [corpus], tmp_path / "codes")
    with pytest.raises(LedgerError, match="sources was"):
        tokenize(model, [corpus / "0000.wav"], tmp_path / "codes")


def test_batches_of_a_record_are_stored_as_runs():
    assert _runs([0, 1, 2, 3]) == [(0, 4, 1)]
    assert _runs([1, 4, 7, 8, 20]) == [(1, 8, 3), (8, 21, 12)]
    for numbers in ([5], [1, 4, 7, 8, 20], [0, 2, 3, 4, 9, 11]):
        record = Record("part", numbers, 3, 1.5, [ClipFailure("é", "p", "r")])
        assert Record.from_json(json.dumps(json.loads(record.to_json()))) == record


def test_more_than_a_thousand_schedules_stay_in_the_order_they_were_made(tmp_path):
    ledger = Ledger(tmp_path)
    with ledger.planning():
        for number in (999, 1000):
            write_schedule(ledger.folder / f"schedule-{number}.arrow", [Task(str(number), "x")], 60.0, first_batch=number)
        ledger.add_schedule([Task("1001", "x")], 60.0, "audio")
    assert [schedule.first_batch for schedule in ledger.schedules()] == [999, 1000, 1001]
    assert (ledger.folder / "schedule-1001.arrow").exists()


def test_a_line_that_was_cut_short_counts_for_nothing(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, rows_per_shard=1, batch_seconds=1.0)
    whole = content(out)
    log = out / "_encodec_fast" / "ledger-0-of-1.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    assert len(Ledger(out).records()) == 3
    tokenize(model, [corpus], out, rows_per_shard=1, batch_seconds=1.0)
    assert content(out) == whole and len(Ledger(out).records()) == len(lines)


def test_a_shard_that_no_line_vouches_for_is_removed_and_made_again(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, rows_per_shard=1, batch_seconds=1.0)
    whole = content(out)
    log = out / "_encodec_fast" / "ledger-0-of-1.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    # with larger shards, the old ones' rows would stand beside the new one's
    tokenize(model, [corpus], out, batch_seconds=1.0)
    assert content(out) == whole


def test_a_folder_of_codes_without_a_ledger_is_left_alone(corpus, model, tmp_path):
    out = tmp_path / "codes"
    out.mkdir()
    (out / "part-00000000.parquet").write_bytes(b"somebody's")
    with pytest.raises(LedgerError, match="holds 1 shards and no ledger"):
        tokenize(model, [corpus], out)
    assert (out / "part-00000000.parquet").read_bytes() == b"somebody's"


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(corpus, model, tmp_path):
    out = tmp_path / "codes"
    put_clip(corpus / "\u2028 \x85.wav", 100)
    tokenize(model, [corpus], out, format="npy")
    (out / "notes.txt").write_text("mine")
    (out / "codes" / "mine.npy").write_bytes(b"mine")
    tokenize(model, [corpus / "0000.wav"], out, overwrite=True)
    assert list(content(out)) == ["0000.wav"]
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and "_encodec_fast" not in path.parts}
    assert files == {"part-00000000.parquet", "notes.txt", "codes/mine.npy"}


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_overwriting_may_end_at_any_step_and_the_run_then_goes_on_from_there(corpus, model, tmp_path, monkeypatch, format):
    steps = {"format": format, "rows_per_shard": 3, "batch_seconds": 2.0}
    tokenize(model, [corpus], tmp_path / "whole", **steps)
    put_clip(corpus / "new.wav", 4321)
    tokenize(model, [corpus], tmp_path / "whole", **steps)
    unlink = pathlib.Path.unlink
    left = 0

    def killed(path, missing_ok=False):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        unlink(path, missing_ok)

    for step in itertools.count():
        out = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", out)
        left = step
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, "unlink", killed)
            try:
                Ledger(out).identify({}, overwrite=True)
                break
            except KeyboardInterrupt:
                pass
        tokenize(model, [corpus], out, **steps)
        assert content(out) == content(tmp_path / "whole") and read_failures(out) == read_failures(tmp_path / "whole")
    assert step > 10


def test_two_writers_of_one_part_and_two_splits_at_once_are_detected(tmp_path):
    with Ledger(tmp_path, 0, 2).writing():
        with pytest.raises(LedgerError, match=r"is being written by process \d+ on .* \(shard 0/2\)"):
            with Ledger(tmp_path, 0, 2).writing():
                pass
        with pytest.raises(LedgerError, match="is being written by"):
            with Ledger(tmp_path).writing():
                pass
        with pytest.raises(LedgerError, match="is being written by"):
            Ledger(tmp_path).identify({}, overwrite=True)
        with Ledger(tmp_path, 1, 2).writing():
            pass
    with Ledger(tmp_path).writing():
        pass
