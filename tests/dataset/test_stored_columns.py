"""Columns of manifests and tables in a folder of codes: their types, every format and every reader, and what goes on with them."""

import json
import logging
import math

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from encodec_fast import CodesDataset, cli
from encodec_fast.corpus.columns import Untyped
from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset.columns import chosen_columns, column_types, stored_names, typed
from encodec_fast.dataset.ledger import FOLDER, LedgerError
from encodec_fast.dataset.options import TokenizeOptions
from encodec_fast.dataset.tokenize import preview
from encodec_fast.formats import COLUMN_TYPES, FORMATS, ROW_FIELDS
from encodec_fast.formats.folder import load_codes, read_info
from support.command import run
from support.corpora import BANDWIDTH, put_three, small_model, tokenize

RECORDS = {
    "a": {"text": "é", "age": 3, "snr": 2.0, "good": True, "duration": None, "codes": "theirs"},
    "b": {"text": None, "age": 2**60, "snr": 2, "good": None, "duration": None, "codes": "theirs"},
}
STORED = {
    "a": {"text": "é", "age": 3, "snr": 2.0, "good": True, "source_codes": "theirs"},
    "b": {"text": None, "age": 2**60, "snr": 2.0, "good": None, "source_codes": "theirs"},
    "c.wav": dict.fromkeys(("text", "age", "snr", "good", "source_codes")),
}
TYPES = {"text": "string", "age": "int64", "snr": "float64", "good": "bool", "source_codes": "string"}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def folder(tmp_path):
    return put_three(tmp_path / "audio")


@pytest.fixture
def sources(folder):
    """A manifest of two clips, and a file without columns."""
    return [manifest(folder, RECORDS), folder / "c.wav"]


def manifest(folder, records):
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps({"id": id, "path": f"{id[0]}.wav", **record}) + "\n" for id, record in records.items()))
    return path


def stored(out):
    return {row.id: dict(row.columns) for row in load_codes(out)}


def tasks(*values):
    return [Task(str(index), "a.wav", columns={"x": value}) for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["12", "-3", None], "int64"),
        (["12", "007"], "string"),
        (["12", "+3"], "string"),
        (["0.50", "12"], "float64"),
        (["1e-05", "3"], "float64"),
        (["12e4", "3345"], "string"),
        (["nan"], "string"),
        (["9" * 19, "0.5"], "string"),
        ([str(2**63)], "string"),
        (["1" * 5000], "string"),
        (["true", "False"], "bool"),
        (["true", "1"], "string"),
        ([None], "string"),
        ([""], "string"),
    ],
)
def test_a_column_of_a_csv_file_has_the_type_that_holds_all_of_it(values, kind):
    values = [None if value is None else Untyped(value) for value in values]
    assert column_types(tasks(*values)) == {"x": kind}
    # what is stored as text is the text of the file
    assert kind != "string" or [typed(value, kind) for value in values] == values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2.5], "float64"),
        ([1, 2**60], "int64"),
        ([0.5, 2**60], "string"),
        ([2**63], "string"),
        ([True, False], "bool"),
        ([True, 1], "string"),
        ([1, "1"], "string"),
        ([math.nan, 1], "float64"),
    ],
)
def test_a_column_of_values_has_the_narrowest_type_that_keeps_them(values, kind):
    assert column_types(tasks(*values)) == {"x": kind}


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.text("0123456789.-e+", max_size=6).map(Untyped))


@given(st.lists(SCALARS, min_size=1))
def test_every_value_of_a_column_is_stored_in_its_type(values):
    kind = column_types(tasks(*values))["x"]
    for value in values:
        found = typed(value, kind)
        assert found is None or type(found) is COLUMN_TYPES[kind]
        if isinstance(value, str) and kind == "string":
            assert found == value
        if isinstance(value, int | float):
            lost = isinstance(value, float) and not math.isfinite(value) and kind == "float64"
            assert found is None if lost else found == value or json.loads(found) == value or value != value


@given(st.lists(st.sampled_from([*ROW_FIELDS, "text", "source_codes", "source_source_codes"]), unique=True))
def test_no_column_takes_the_name_of_a_field_or_of_another(names):
    found = stored_names(names)
    assert list(found) == names and len({*found.values()}) == len(names) and not {*found.values()} & ROW_FIELDS
    assert all(found[name] == name for name in names if name == "text")


@pytest.mark.parametrize("format", FORMATS)
def test_every_row_has_the_columns_typed_whatever_the_format(model, sources, tmp_path, format):
    out = tmp_path / "codes"
    for index in range(2):
        tokenize(model, sources, out, index=index, count=2, format=format, batch_seconds=1.0)
    assert stored(out) == STORED
    assert read_info(out).columns == TYPES
    assert {row["id"]: {name: row[name] for name in TYPES} for row in CodesDataset(out)} == STORED


def test_readers_of_parquet_see_one_schema_in_all_shards(model, sources, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, sources, out, rows_per_shard=1, batch_seconds=0.1)
    assert len(list(out.glob("*.parquet"))) == 3
    table = pq.read_table(out)
    assert {name: str(table.schema.field(name).type) for name in TYPES} == {**TYPES, "snr": "double"} | {"snr": "double"}
    rows = {row["id"]: {name: row[name] for name in TYPES} for row in table.to_pylist()}
    assert rows == STORED


def test_webdataset_and_npy_rows_have_the_columns_in_their_json(model, sources, tmp_path):
    tokenize(model, sources, tmp_path / "npy", format="npy")
    rows = [json.loads(line) for path in (tmp_path / "npy").glob("part-*.jsonl") for line in path.read_text().splitlines()]
    assert {row["id"]: {name: row[name] for name in TYPES} for row in rows} == STORED
    webdataset = pytest.importorskip("webdataset")
    tokenize(model, sources, tmp_path / "tar", format="webdataset")
    shards = [str(path) for path in (tmp_path / "tar").glob("*.tar")]
    rows = [sample["json"] for sample in webdataset.WebDataset(shards, shardshuffle=False).decode()]
    assert {row["id"]: {name: row[name] for name in TYPES} for row in rows} == STORED


def test_some_columns_or_none_can_be_chosen_and_others_are_named(model, sources, tmp_path):
    tokenize(model, sources, tmp_path / "some", columns=("text",))
    assert stored(tmp_path / "some")["a"] == {"text": "é"}
    tokenize(model, sources, tmp_path / "none", columns=())
    assert stored(tmp_path / "none")["a"] == {} and not read_info(tmp_path / "none").columns
    with pytest.raises(ValueError, match="columns names 'txt'; the sources have the columns text, age, snr, good, codes"):
        tokenize(model, sources, tmp_path / "other", columns=("txt",))
    with pytest.raises(LedgerError, match="stores the columns text, and columns names the columns text, age"):
        tokenize(model, sources, tmp_path / "some", columns=("text", "age"))


def test_a_run_goes_on_with_the_columns_it_began_with(model, folder, tmp_path, caplog):
    out, records = tmp_path / "codes", {"a": {"text": "yes", "age": 3}}
    source = manifest(folder, records)
    tokenize(model, [source], out)
    caplog.set_level(logging.WARNING, "encodec_fast")
    tokenize(model, [source], out)
    assert not caplog.records
    manifest(folder, {**records, "b": {"text": 7, "lang": "de"}})
    tokenize(model, [source], out)
    assert stored(out) == {"a": {"text": "yes", "age": 3}, "b": {"text": "7", "age": None}}
    (warning,) = caplog.records
    assert "stores the columns text, age" in warning.getMessage() and "the columns lang of the sources are left out" in warning.getMessage()


def test_a_value_that_a_folder_can_not_store_is_named_before_anything_is_encoded(model, folder, tmp_path):
    out = tmp_path / "codes"
    source = manifest(folder, {"a": {"age": 3}})
    tokenize(model, [source], out)
    manifest(folder, {"a": {"age": 3}, "b": {"age": "three"}})
    with pytest.raises(
        LedgerError, match=r"column 'age' of 'b': 'three' is no int64\. .* stores the columns age \(int64\)\. Choose another"
    ):
        tokenize(model, [source], out)
    assert stored(out) == {"a": {"age": 3}}


def without_columns(out):
    """Gives a finished folder what earlier versions knew of columns: nothing."""
    run = json.loads((out / FOLDER / "run.json").read_text())
    del run["columns"]
    (out / FOLDER / "run.json").write_text(json.dumps(run))
    for path in (out / FOLDER).glob("schedule-*.arrow"):
        table = pa.ipc.open_file(path).read_all().drop_columns(["columns"])
        with pa.ipc.new_file(path.with_name("schedule-000.arrow"), table.schema) as writer:
            writer.write_table(table)
        path.unlink()
    for path in out.glob("*.parquet"):
        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[b"encodec_fast"])
        del metadata["columns"]
        pq.write_table(table.drop_columns([*TYPES]).replace_schema_metadata({"encodec_fast": json.dumps(metadata)}), path)


def test_a_folder_of_an_earlier_version_goes_on_without_columns(model, folder, sources, tmp_path):
    out = tmp_path / "codes"
    tokenize(model, sources, out)
    without_columns(out)
    (line,) = (out / FOLDER).glob("ledger-*.jsonl")
    records = [json.loads(text) for text in line.read_text().splitlines()]
    for record in records:
        del record["size"], record["file_crc32"], record["crc32"]
    line.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert stored(out) == {"a": {}, "b": {}, "c.wav": {}}
    manifest(folder, {**RECORDS, "cc": {"text": "new", "start": 0.01}})
    summary = tokenize(model, sources, out)
    assert summary.clips == 1 and summary.done_before == 3 and stored(out)["cc"] == {}


def test_clips_that_are_tried_again_keep_their_columns(model, folder, sources, tmp_path):
    out, audio = tmp_path / "codes", (folder / "a.wav").read_bytes()
    (folder / "a.wav").write_bytes(b"no audio")
    assert [failure.id for failure in tokenize(model, sources, out).failures] == ["a"]
    (folder / "a.wav").write_bytes(audio)
    tokenize(model, sources, out, retry_failed=True)
    assert stored(out) == STORED


def test_a_preview_names_the_columns(sources, tmp_path):
    assert preview([str(source) for source in sources], tmp_path, options=TokenizeOptions()).columns == TYPES


def test_the_commands_carry_columns_from_a_manifest_to_decoded_files(model, sources, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    codes, wavs = tmp_path / "codes", tmp_path / "wavs"
    arguments = ("tokenize", *sources, "--out", codes, "--model", tmp_path / "model", "--bandwidth", BANDWIDTH)
    assert "columns: text (string), age (int64)" in run(capsys, *arguments, "--dry-run")[1]
    code, _, err = run(capsys, *arguments, "--columns", "txt")
    assert code == cli.WRONG_ARGUMENT and "columns names 'txt'" in err
    assert run(capsys, *arguments, "--columns", "text,age")[0] == cli.OK
    assert run(capsys, "decode", codes, "--out", wavs)[0] == cli.OK
    lines = [json.loads(line) for line in (wavs / "metadata.jsonl").read_text().splitlines()]
    assert {line["file_name"]: (line["text"], line["age"]) for line in lines} == {
        "a.wav": ("é", 3),
        "b.wav": (None, 2**60),
        "c.wav": (None, None),
    }
    assert all(soundfile.info(wavs / line["file_name"]).frames for line in lines)
    # what was written is a source of its own
    assert run(capsys, "tokenize", wavs / "metadata.jsonl", *arguments[3:4], tmp_path / "again", *arguments[5:])[0] == cli.OK
    assert np.array_equal([columns["text"] for columns in stored(tmp_path / "again").values()], [each["text"] for each in lines])


def test_tasks_without_the_chosen_columns_stay_without():
    assert [dict(task.columns) for task in chosen_columns([*tasks(1), Task("b", "b.wav")], ("x",))] == [{"x": 1}, {}]
