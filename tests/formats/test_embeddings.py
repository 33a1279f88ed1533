"""Embeddings beside the codes: every format gives them back, other programs read them, and damage is seen."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import encodec_fast
from encodec_fast.formats import FORMATS, ClipFailure, FormatError, format_module
from encodec_fast.formats.folder import count_rows, read_info, read_rows, shard_ids
from encodec_fast.formats.records import info_record
from support.rows import INFO, row, write

DIM = 16
WITH_EMBEDDINGS = dataclasses.replace(INFO, embedding_dim=DIM)


def with_embeddings(index, shape=(1, 8, 75), **options):
    """A row that has embeddings too, random ones, the same for each index."""
    values = np.random.default_rng(index).standard_normal((shape[0], DIM, shape[2])).astype(np.float16)
    return dataclasses.replace(row(index, shape, **options), embeddings=values)


@pytest.fixture
def rows():
    return [with_embeddings(0), with_embeddings(1, (4, 2, 150), scales=True), with_embeddings(2, (1, 32, 1))]


@pytest.mark.parametrize("format", FORMATS)
def test_they_come_back_as_they_were_written(tmp_path, rows, format):
    path = write(tmp_path, rows, format, info=WITH_EMBEDDINGS)
    assert read_info(tmp_path) == WITH_EMBEDDINGS and count_rows(path) == 3
    for one, other in zip(rows, encodec_fast.load_codes(tmp_path), strict=True):
        assert other.embeddings.dtype == np.float16 and np.array_equal(one.embeddings, other.embeddings)
        assert np.array_equal(one.codes, other.codes)
    (middle,) = read_rows(path, 1, 2)
    assert middle.id == rows[1].id and np.array_equal(middle.embeddings, rows[1].embeddings)


def test_embeddings_of_frames_lie_as_their_codes_do(rows):
    frames = rows[1].frame_embeddings()
    assert frames.shape == (DIM, rows[1].frames) == (DIM, 4 * 150 - 3) and row(0).frame_embeddings() is None
    assert np.array_equal(frames[:, 150:300], rows[1].embeddings[1])


def test_row_groups_do_not_change_them(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(format_module("parquet"), "ROW_GROUP_BYTES", 1)
    path = write(tmp_path, rows, info=WITH_EMBEDDINGS)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert all(np.array_equal(one.embeddings, other.embeddings) for one, other in zip(rows, read_rows(path), strict=True))


def test_a_folder_without_them_says_nothing_of_them(tmp_path):
    assert "embedding_dim" not in info_record(INFO) and info_record(WITH_EMBEDDINGS)["embedding_dim"] == DIM
    write(tmp_path, [row(0)])
    assert "embeddings" not in pq.read_table(tmp_path).column_names


@pytest.mark.parametrize("package", ["pandas", "datasets", "polars", "duckdb", "webdataset"])
def test_the_tools_people_use_read_them(tmp_path, rows, package, monkeypatch):
    module = pytest.importorskip(package)
    path = str(write(tmp_path, rows, "webdataset" if package == "webdataset" else "parquet", info=WITH_EMBEDDINGS))
    if package == "datasets":
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
        read = module.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))["embeddings"]
    elif package == "duckdb":
        read = [values for (values,) in module.sql(f"select embeddings from '{path}'").fetchall()]
    elif package == "webdataset":
        read = [sample["embeddings.npy"] for sample in module.WebDataset(path, shardshuffle=False).decode()]
    else:
        read = module.read_parquet(path)["embeddings"]
    for values, each in zip(read, rows, strict=True):
        chunks, _, frames = each.codes.shape
        assert np.array_equal(np.reshape(np.asarray(values, np.float16), (chunks, -1, frames)), each.embeddings)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "values, found",
    [
        (None, "none"),
        (np.zeros((1, DIM, 74), np.float16), r"float16 \[1, 16, 74\]"),
        (np.zeros((1, DIM, 75), np.float32), r"float32 \[1, 16, 75\]"),
        (np.full((1, DIM, 75), np.inf, np.float16), "NaN or infinite"),
    ],
)
def test_others_than_were_announced_are_refused(tmp_path, format, values, found):
    shard = format_module(format).Shard(tmp_path, "part-00000000", WITH_EMBEDDINGS)
    with pytest.raises(FormatError, match=found):
        shard.write(dataclasses.replace(row(0), embeddings=values))
    shard.discard()
    with pytest.raises(FormatError, match=r"float16 .* none must be there"):
        write(tmp_path, [with_embeddings(0)], format)


def test_each_has_a_file_of_its_own_in_a_tree_of_npy(tmp_path, rows):
    path = write(tmp_path, rows, "npy", info=WITH_EMBEDDINGS)
    names = format_module("npy").side_files(path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert names == [name for record in records for name in (record["npy"], record["embeddings_npy"])]
    assert all((tmp_path / name).is_file() for name in names) and len(names) == 6
    assert np.array_equal(np.load(tmp_path / names[1]), rows[0].embeddings) and names[1].startswith("embeddings/")


def cut_file(path):
    name = json.loads(path.read_text().splitlines()[1])["embeddings_npy"]
    (path.parent / name).unlink()


def change_file(path):
    name = json.loads(path.read_text().splitlines()[1])["embeddings_npy"]
    (path.parent / name).write_bytes((path.parent / name).read_bytes()[:-1] + b"\x00")


def change_cell(change):
    """A damage that stores another cell for the second row's embeddings."""

    def damage(path):
        table = pq.read_table(path)
        values = table["embeddings"].to_pylist()
        values[1] = change(values[1])
        column = pa.array(values, pa.list_(pa.float16()))
        pq.write_table(table.set_column(table.schema.get_field_index("embeddings"), "embeddings", column), path)

    return damage


DAMAGES = {
    "a file is gone": ("npy", cut_file),
    "a file has another byte": ("npy", change_file),
    "a null among the numbers": ("parquet", change_cell(lambda values: [*values[:-1], None])),
    "no embeddings": ("parquet", change_cell(lambda values: None)),
    "a number is missing": ("parquet", change_cell(lambda values: values[:-1])),
}


@pytest.mark.parametrize("format, damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_costs_its_row(tmp_path, rows, format, damage):
    path = write(tmp_path, rows, format, info=WITH_EMBEDDINGS)
    damage(path)
    first, second, third = read_rows(path)
    assert isinstance(second, ClipFailure) and second.id == rows[1].id and "damaged" in second.reason
    assert np.array_equal(first.embeddings, rows[0].embeddings) and np.array_equal(third.embeddings, rows[2].embeddings)
    assert shard_ids(path) == [each.id for each in rows]


def test_a_shard_that_lost_the_column_is_named(tmp_path, rows):
    path = write(tmp_path, rows, info=WITH_EMBEDDINGS)
    pq.write_table(pq.read_table(path).drop_columns(["embeddings"]), path)
    with pytest.raises(FormatError, match="no column 'embeddings' of lists of float16"):
        list(read_rows(path))


@pytest.mark.parametrize("dim", [-1, "16", True])
def test_a_size_that_is_none_is_refused(tmp_path, rows, dim):
    path = write(tmp_path, rows, "npy", info=WITH_EMBEDDINGS)
    record = json.loads((tmp_path / "info.json").read_text())
    (tmp_path / "info.json").write_text(json.dumps({**record, "embedding_dim": dim}))
    with pytest.raises(FormatError, match="embedding_dim is"):
        list(read_rows(path))
