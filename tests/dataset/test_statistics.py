"""What a folder of codes holds, in numbers, and the command that prints them."""

import dataclasses
import json

import numpy as np
import pytest

from encodec_fast import cli
from encodec_fast.dataset import statistics
from encodec_fast.dataset.statistics import LengthRange, folder_statistics, spread
from encodec_fast.formats import FORMATS, FormatError
from support.command import run
from support.corpora import RATE, put_mixed, small_model, tokenize
from support.rows import INFO, row, write

SMALL_INFO = dataclasses.replace(INFO, codebook_size=4)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    out = tmp_path_factory.mktemp("codes")
    tokenize(small_model(), [put_mixed(tmp_path_factory.mktemp("corpus"))], out, rows_per_shard=3, batch_seconds=1.0)
    return out


def test_use_entropy_and_perplexity_are_those_of_the_codes(tmp_path):
    codes = np.array([[[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1]]])
    write(tmp_path, [dataclasses.replace(row(0), codes=codes)], info=SMALL_INFO)
    found = folder_statistics(tmp_path)
    assert [each.tokens for each in found.codebooks] == [4, 4, 4] and found.tokens == 12
    assert [each.used for each in found.codebooks] == [1, 4, 2]
    assert [each.entropy for each in found.codebooks] == [0.0, 2.0, 1.0]
    assert [each.perplexity for each in found.codebooks] == [1.0, 4.0, 2.0]


def test_what_fills_up_a_last_chunk_is_no_token(tmp_path):
    codes = np.array([[[1, 2, 3]], [[1, 0, 0]]])
    write(tmp_path, [dataclasses.replace(row(0, shape=(2, 1, 3)), codes=codes, last_frame_pad_length=2)], info=SMALL_INFO)
    (level,) = folder_statistics(tmp_path).codebooks
    assert level.tokens == 4 and level.used == 3


def test_a_code_that_no_codebook_has_is_an_error_that_names_its_clip(tmp_path):
    write(tmp_path, [row(0)], info=INFO)
    path = next(tmp_path.glob("*.parquet"))
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    metadata = {b"encodec_fast": table.schema.metadata[b"encodec_fast"].replace(b"1024", b"4")}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(FormatError, match=r"0\.wav: a code is \d+; the codebooks have entries 0 \.\.\. 3"):
        folder_statistics(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_totals_are_those_of_the_rows_and_files(tmp_path, format):
    rows = [row(0, shape=(1, 8, 75)), dataclasses.replace(row(1, shape=(1, 8, 150)), num_samples=96_000)]
    write(tmp_path, rows, format=format)
    found = folder_statistics(tmp_path)
    assert (found.clips, found.seconds, found.shards, found.failed) == (2, 1.0 + 4.0, 1, 0)
    assert found.tokens == 8 * 225 and found.tokens_per_hour == 3600 * 8 * 225 / 5
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "info.json"]
    assert found.bytes == sum(path.stat().st_size for path in files)
    assert found.lengths == [LengthRange(1.0, 2.0, 1, 1.0), LengthRange(2.0, 5.0, 1, 4.0)]
    assert found.bandwidth == 6.0 and not found.is_sample


def test_a_run_s_totals_come_from_its_ledger(codes):
    found = folder_statistics(codes)
    assert found.clips == 8 and found.failed == 2 and found.shards > 2
    assert found.read_clips == 8 and found.seconds == pytest.approx(found.read_seconds)
    assert sum(each.clips for each in found.lengths) == 8


def test_a_sample_reads_some_shards_and_says_so(codes, monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLED_SHARDS", 2)
    calls = []
    found, whole = folder_statistics(codes, sample=True, progress=lambda *call: calls.append(call)), folder_statistics(codes)
    assert found.is_sample and found.read_shards == 2 and calls == [(1, 2), (2, 2)]
    assert (found.clips, found.seconds, found.bytes) == (whole.clips, whole.seconds, whole.bytes)
    assert 0 < found.tokens < whole.tokens and found.tokens_per_hour == pytest.approx(whole.tokens_per_hour, rel=0.2)
    monkeypatch.setattr(statistics, "SAMPLED_CODES", 1)
    assert folder_statistics(codes, sample=True).read_clips == 2


def test_what_is_spread_begins_with_the_first_and_repeats_nothing():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7] and spread([1], 4) == [1]


def test_the_command_prints_tables_within_80_columns(codes, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "stats", codes)
    assert (code, err) == (cli.OK, "") and max(map(len, out.splitlines())) <= 80
    assert "8 clips, 0.00365 hours" in out and "perplexity" in out and "failed" in out and "2 clips" in out


def test_the_command_prints_json_and_nothing_else(codes, capsys):
    code, out, _ = run(capsys, "stats", codes, "--json")
    found = json.loads(out)
    assert code == cli.OK and found["clips"] == 8 and found["codebooks"][0]["level"] == 1
    assert found["tokens_per_hour"] == pytest.approx(3600 * found["tokens"] / found["seconds"])
    assert found["seconds"] < 100 * RATE


def test_a_folder_without_codes_is_named(tmp_path, capsys):
    code, _, err = run(capsys, "stats", tmp_path)
    assert code == cli.WRONG_ARGUMENT and "no part-*.parquet in this folder" in err
