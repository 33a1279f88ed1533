"""What a ledger holds of a run: who may go on with it, what a cut leaves, what an overwrite removes."""

import dataclasses
import itertools
import json
import pathlib
import random
import shutil
import time

import pytest

from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset.failures import read_failures
from encodec_fast.dataset.ledger import FOLDER, Ledger, LedgerError
from encodec_fast.dataset.records import Record, _runs, checked_line
from encodec_fast.dataset.schedule import write_schedule
from encodec_fast.formats import FORMATS, ClipFailure, FormatError, npy
from encodec_fast.formats.folder import load_codes, shard_paths
from support.corpora import SMALL, content, put_clip, put_mixed, small_model, tokenize
from support.models import pair, small_config
from support.rows import INFO, row


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def corpus(tmp_path):
    return put_mixed(tmp_path / "corpus")


DIFFERENCES = {
    "bandwidth": {"bandwidth": 1.2},
    "batch_seconds": {"batch_seconds": 3.0},
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
        record = Record("part-00000005.parquet", numbers, 3, 1.5, [ClipFailure("é", "p", "r")])
        assert Record.from_json(json.dumps(json.loads(record.to_json()))) == record


def test_more_than_a_thousand_schedules_stay_in_the_order_they_were_made(tmp_path):
    ledger = Ledger(tmp_path)
    with ledger.planning():
        for number in (999, 1000):
            write_schedule(ledger.folder / f"schedule-{number}.arrow", [Task(str(number), "x")], 60.0, first_batch=number - 999)
        ledger.add_schedule([Task("1001", "x")], 60.0)
    assert [schedule.first_batch for schedule in ledger.schedules()] == [0, 1, 2]
    assert list(ledger.folder.glob("schedule-1001-*.arrow"))


def test_a_line_that_was_cut_short_counts_for_nothing(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, rows_per_shard=1, batch_seconds=1.0)
    whole = content(out)
    log = out / ".encodec_fast" / "ledger-0-of-1.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    assert len(Ledger(out).records()) == 3
    tokenize(model, [corpus], out, rows_per_shard=1, batch_seconds=1.0)
    assert content(out) == whole and len(Ledger(out).records()) == len(lines)


def test_a_shard_that_no_line_vouches_for_is_removed_and_made_again(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, rows_per_shard=1, batch_seconds=1.0)
    whole = content(out)
    log = out / ".encodec_fast" / "ledger-0-of-1.jsonl"
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
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and ".encodec_fast" not in path.parts}
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
    # every file of the run but its lock, and the list of what is to be removed
    assert step == sum(path.is_file() for path in (tmp_path / "whole").rglob("*"))


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


NAMES_OF_OTHERS = ["part-1.flac", "part-00000", "part-00000.wav", "part-00000003.flac", ".part-mine.tmp", "notes.tmp", "part-a/b.wav"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_in_the_folder_are_left_alone(corpus, model, tmp_path, overwrite):
    out = tmp_path / "codes"
    for name in NAMES_OF_OTHERS:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(name.encode())
    tokenize(model, [corpus], out, overwrite=overwrite)
    tokenize(model, [corpus], out, overwrite=overwrite)
    assert [name for name in NAMES_OF_OTHERS if (out / name).read_bytes() != name.encode()] == []


def test_codes_may_be_written_beside_the_audio_they_are_of(model, tmp_path):
    for index in range(3):
        put_clip(tmp_path / f"part-{index}.wav", 500, index)
    audio = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for _ in range(2):
        tokenize(model, [tmp_path], tmp_path)
    assert len(content(tmp_path)) == 3 and read_failures(tmp_path) == []
    assert {name: (tmp_path / name).read_bytes() for name in audio} == audio


@pytest.mark.parametrize("name", ["part-00000000.parquet", "part-00000000.tar", "_report.html"])
def test_a_first_run_is_refused_where_it_would_replace_a_file_of_others(corpus, model, tmp_path, name):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / name).write_bytes(b"somebody's")
    for overwrite in (False, True):
        with pytest.raises(LedgerError, match="choose another folder"):
            tokenize(model, [corpus], tmp_path / "codes", overwrite=overwrite)
    assert (tmp_path / "codes" / name).read_bytes() == b"somebody's"


def test_a_shard_of_others_among_those_of_a_run_is_named_and_left_alone(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, limit=2)
    (out / "part-99999999.parquet").write_bytes(b"somebody's")
    with pytest.raises(LedgerError, match=r"part-99999999.parquet: this run did not make"):
        tokenize(model, [corpus], out)
    assert (out / "part-99999999.parquet").read_bytes() == b"somebody's"


def test_a_shard_is_not_written_over_a_file_that_came_meanwhile(corpus, model, tmp_path):
    ledger = Ledger(tmp_path)
    with ledger.writing():
        (tmp_path / "part-00000007.parquet").write_bytes(b"somebody's")
        with pytest.raises(LedgerError, match="this run did not make it"):
            ledger.begin("part-00000007.parquet")


def test_a_file_that_came_while_the_shard_was_written_is_not_replaced(corpus, model, tmp_path):
    out = tmp_path / "codes"

    def come(summary):
        deadline = time.monotonic() + 60
        while not (out / FOLDER / "begun" / "part-00000000.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        (out / "part-00000000.parquet").write_bytes(b"somebody's")

    with pytest.raises(LedgerError, match="this run did not make it"):
        tokenize(model, [corpus], out, batch_seconds=2.0, progress=come)
    assert [path.read_bytes() for path in shard_paths(out)] == [b"somebody's"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_under_the_name_of_a_shard_that_was_only_begun_is_kept(corpus, model, tmp_path, format, overwrite):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, format=format, limit=1)
    name = f"part-00000001{shard_paths(out)[0].suffix}"
    (out / FOLDER / "begun" / name).touch()
    (out / name).write_bytes(b"somebody's")
    tokenize(model, [corpus], out, format=format, overwrite=overwrite)
    assert (out / FOLDER / "set-aside" / f"{name}.1").read_bytes() == b"somebody's" and len(content(out)) == 8


def test_files_of_others_among_the_npy_files_are_left_alone(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out)
    theirs = {"0000.wav.npy": b"theirs", "0001.wav.npy": b""}
    (out / "codes").mkdir()
    for name, data in theirs.items():
        (out / "codes" / name).write_bytes(data)
    tokenize(model, [corpus], out, format="npy", overwrite=True)
    assert len(content(out)) == 8
    tokenize(model, [corpus], out, format="npy", overwrite=True)
    assert len(content(out)) == 8 and {name: (out / "codes" / name).read_bytes() for name in theirs} == theirs


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_npy_shard_that_was_never_finished_leaves_no_file_behind(corpus, model, tmp_path, overwrite):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, format="npy", limit=2)
    shard, ledger = npy.Shard(out, "part-00000001", INFO), Ledger(out)
    ledger.begin("part-00000001.jsonl")
    for index in range(2, 5):
        shard.write(dataclasses.replace(row(0), id=f"gone-{index}.wav"))
    del shard, ledger
    tokenize(model, [corpus], out, format="npy", overwrite=overwrite)
    assert sorted(path.name for path in (out / "codes").iterdir()) == [f"{index:04d}.wav.npy" for index in range(8)]


def forge(out, **fields):
    """Adds a line with a right checksum to the ledger."""
    log = out / FOLDER / "ledger-0-of-1.jsonl"
    stored = {"file": None, "batches": [[0, 1, 1]], "failures": [], **fields}
    log.write_bytes(log.read_bytes() + checked_line(json.dumps(stored)))


def test_a_forged_ledger_or_manifest_removes_nothing_outside_the_folder(corpus, model, tmp_path):
    out, victims = tmp_path / "codes", [tmp_path / "victim", tmp_path / "part-00000000.parquet"]
    for victim in victims:
        victim.write_text("mine")
    tokenize(model, [corpus], out, format="npy")
    manifest = next(out.glob("part-*.jsonl"))
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    names = ["../victim", str(victims[0]), "codes/../../victim", "link/victim"]
    (out / "link").symlink_to(tmp_path)
    manifest.write_text("".join(json.dumps({**line, "npy": name}) + "\n" for line, name in zip(lines, itertools.cycle(names))))
    for file in ("../part-00000000.parquet", str(victims[1]), "part-00000000.parquet/../../victim"):
        forge(out, file=file)
    with pytest.raises(FormatError, match="outside"):
        list(load_codes(out))
    tokenize(model, [corpus], out, overwrite=True)
    assert [victim.read_text() for victim in victims] == ["mine", "mine"]


def test_a_forged_list_of_removals_reaches_nothing_outside_the_folder(tmp_path):
    (tmp_path / "victim").write_text("mine")
    ledger = Ledger(tmp_path / "codes")
    with ledger.planning():
        (ledger.folder / "removal.jsonl").write_text('"../victim"\n')
        with pytest.raises(ValueError, match="outside"):
            ledger.identify({})
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("format", FORMATS)
def test_links_under_the_names_that_a_run_writes_are_not_followed(corpus, model, tmp_path, format):
    out, victim = tmp_path / "codes", tmp_path / "victim"
    victim.write_text("mine")
    tokenize(model, [corpus], out, format=format, limit=1)
    suffix = next(out.glob("part-*")).suffix
    for name in (f".part-00000001{suffix}.tmp", ".errors.parquet.tmp", ".info.json.tmp", f"{FOLDER}/.run.json.tmp"):
        (out / name).symlink_to(victim)
    if format == "npy":
        (out / "codes" / "0000.wav.npy").unlink(missing_ok=True)
        (out / "codes" / "0001.wav.npy").symlink_to(victim)
    tokenize(model, [corpus], out, format=format)
    assert victim.read_text() == "mine"
    assert (out / ".errors.parquet.tmp").is_symlink() and (out / f".part-00000001{suffix}.tmp").is_symlink()


def test_a_line_without_a_checksum_behind_one_that_has_it_counts_for_nothing(tmp_path):
    ledger = Ledger(tmp_path)
    with ledger.writing():
        ledger.append(Record(None, [0]))
    with (ledger.folder / "ledger-0-of-1.jsonl").open("a") as log:
        log.write(Record(None, [1]).to_json() + "\n")
    assert [record.batches for record in ledger.records()] == [[0]]


def test_a_folder_of_the_run_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="is a link"), Ledger(tmp_path / "codes").writing():
        pass


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", ["gone", "cut", "longer", "empty"])
def test_a_shard_that_is_gone_or_cut_is_made_again(corpus, model, tmp_path, format, damage):
    steps = {"format": format, "rows_per_shard": 3, "batch_seconds": 2.0}
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, **steps)
    whole = content(out)
    shard = shard_paths(out)[1]
    data, rows = shard.read_bytes(), sum(1 for _ in load_codes(shard))
    changed = {"cut": data[:-5], "longer": data + b"x", "empty": b""}
    shard.unlink() if damage == "gone" else shard.write_bytes(changed[damage])
    again = tokenize(model, [corpus], out, **steps)
    assert content(out) == whole and again.clips == rows
    assert tokenize(model, [corpus], out, **steps).clips == 0


@pytest.mark.parametrize("format", FORMATS)
def test_check_finds_a_bit_that_flipped_anywhere_in_a_shard(corpus, model, tmp_path, format):
    steps = {"format": format, "batch_seconds": 2.0}
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, **steps)
    whole, (shard,) = content(out), shard_paths(out)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    tokenize(model, [corpus], out, check=True, **steps)
    assert content(out) == whole and shard.read_bytes() != bytes(data)


def test_check_finds_codes_of_a_manifest_that_are_gone_or_changed(corpus, model, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, format="npy")
    whole, (gone, changed, *_) = content(out), sorted((out / "codes").iterdir())
    for damage in (gone.unlink, lambda: changed.write_bytes(changed.read_bytes()[:-1] + b"\x07")):
        damage()
        tokenize(model, [corpus], out, format="npy", check=True)
        assert content(out) == whole


def test_a_flipped_bit_anywhere_in_the_ledger_loses_no_row(corpus, model, tmp_path):
    steps = {"rows_per_shard": 4, "batch_seconds": 3.0}
    out = tmp_path / "codes"
    tokenize(model, [corpus], out, **steps)
    log = out / FOLDER / "ledger-0-of-1.jsonl"
    data, whole = log.read_bytes(), {record.file: record for record in Ledger(out).records()}
    bits = random.Random(0)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bits.randrange(8)
        log.write_bytes(damaged)
        found = Ledger(out).records()
        # a damaged line counts for nothing; no line says something else than it did
        assert all(whole[record.file] == record for record in found) and len(found) < len(whole)
        if place % 97 == 0:
            again = tmp_path / f"again {place}"
            shutil.copytree(out, again)
            tokenize(model, [corpus], again, **steps)
            assert content(again) == content(out) and read_failures(again) == read_failures(out)


def test_lines_of_an_earlier_version_count_and_get_checksums_behind_them(corpus, model, tmp_path):
    out = tmp_path / "codes"
    steps = {"rows_per_shard": 3, "batch_seconds": 2.0}
    tokenize(model, [corpus], out, **steps)
    log, run = out / FOLDER / "ledger-0-of-1.jsonl", out / FOLDER / "run.json"
    old = [{k: v for k, v in json.loads(line).items() if k not in ("crc32", "size", "file_crc32")} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line) + "\n" for line in old))
    run.write_text(json.dumps({k: v for k, v in json.loads(run.read_text()).items() if k != "run"}))
    assert tokenize(model, [corpus], out, **steps).clips == 0
    put_clip(corpus / "new.wav", 4321)
    assert tokenize(model, [corpus], out, **steps).clips == 1 and len(content(out)) == 9


def test_a_run_that_was_replaced_since_it_planned_does_not_write(corpus, model, tmp_path):
    out = tmp_path / "codes"
    first, second = Ledger(out), Ledger(out)
    with first.planning():
        first.identify({"bandwidth": 6})
    with second.planning():
        second.identify({"bandwidth": 3}, overwrite=True)
    with pytest.raises(LedgerError, match="taken by another run"), first.writing():
        pass
    with pytest.raises(LedgerError, match="taken by another run"), Ledger(out, 0, 2, first.run).writing():
        pass
    with Ledger(out, 1, 2, second.run).writing():
        pass


def test_a_schedule_that_is_damaged_or_gone_is_no_reason_to_do_less(corpus, model, tmp_path):
    out = tmp_path / "codes"
    steps = {"rows_per_shard": 3, "batch_seconds": 2.0}
    tokenize(model, [corpus], out, **steps)
    put_clip(corpus / "new.wav", 4321)
    tokenize(model, [corpus], out, **steps)
    rows = content(out)
    schedules = sorted((out / FOLDER).glob("schedule-*.arrow"))
    assert len(schedules) == 2
    for path in schedules:
        whole = path.read_bytes()
        for place in [*range(0, len(whole), 61), len(whole) - 1]:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(LedgerError, match=r"is damaged.*--overwrite"):
                Ledger(out).schedules()
        path.unlink()
        with pytest.raises(LedgerError, match="is gone"):
            tokenize(model, [corpus], out, **steps)
        path.write_bytes(whole)
    assert tokenize(model, [corpus], out, **steps).clips == 0 and content(out) == rows
    # of an earlier version, whose name says nothing
    for path in schedules:
        path.rename(path.with_name("-".join(path.stem.split("-")[:2]) + path.suffix))
    assert tokenize(model, [corpus], out, **steps).clips == 0 and content(out) == rows
    next((out / FOLDER).glob("schedule-000.arrow")).write_bytes(b"")
    assert tokenize(model, [corpus], out, overwrite=True, **steps).clips == len(rows) and set(content(out)) == set(rows)
