"""Codes on the disk: each format writes shards whole or not at all and gives every row back."""

import dataclasses
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import encodec_fast
from encodec_fast import formats
from encodec_fast.formats import FORMATS, ClipRow, Format, FormatError, format_module, npy, parquet
from encodec_fast.formats.atomic import AtomicFile, temporary_of, write_atomically
from encodec_fast.formats.folder import count_rows, load_codes, read_ids, read_info, read_rows, shard_paths
from encodec_fast.formats.packing import code_bits, unpack_codes
from support.rows import INFO, KINDS, pack_codes, row, write


def assert_equal(one: ClipRow, other: ClipRow) -> None:
    for name in (field.name for field in dataclasses.fields(ClipRow)):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("format, packed", KINDS)
@pytest.mark.parametrize("scales", [False, True])
def test_rows_come_back_as_they_were_written(tmp_path, format, packed, scales):
    rows = [row(0, (1, 8, 75), scales), row(1, (4, 2, 150), scales), row(2, (1, 32, 1), scales)]
    path = write(tmp_path, rows, format, packed)
    read = list(encodec_fast.load_codes(tmp_path))
    assert len(read) == 3 and read_ids(tmp_path) == [each.id for each in rows]
    for one, other in zip(rows, read):
        assert_equal(one, other)
    assert read_info(tmp_path) == INFO
    assert [each.id for each in load_codes(path)] == read_ids(tmp_path)


@pytest.mark.parametrize("format, packed", KINDS)
def test_a_shard_has_the_same_bytes_each_time(tmp_path, format, packed):
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        contents.append(write(tmp_path / name, [row(0), row(1, scales=True)], format, packed).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_has_no_name_before_it_is_whole_and_leaves_nothing_when_discarded(tmp_path, format):
    shard = format_module(format).Shard(tmp_path, "part-00000000", INFO)
    shard.write(row(0))
    assert shard_paths(tmp_path) == []
    shard.discard()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == (["info.json"] if format == "npy" else [])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "codes", [np.full((1, 1, 3), 1024), np.full((1, 1, 3), -1), np.zeros((2, 3), int)], ids=["high", "negative", "2-D"]
)
def test_codes_that_are_none_are_refused(tmp_path, format, codes):
    shard = format_module(format).Shard(tmp_path, "part-00000000", INFO)
    with pytest.raises(FormatError, match=r"each 0 \.\.\. 1023"):
        shard.write(dataclasses.replace(row(0), codes=codes))
    shard.discard()


@pytest.mark.parametrize("format", FORMATS)
def test_large_codebooks_are_stored_in_32_bits(tmp_path, format):
    write(tmp_path, [row(0, size=1 << 17)], format, info=dataclasses.replace(INFO, codebook_size=1 << 17))
    (read,) = load_codes(tmp_path)
    assert read.codes.dtype == np.uint32 and np.array_equal(read.codes, row(0, size=1 << 17).codes)


# Packing


@given(st.integers(1, 17), st.lists(st.integers(0, 2**17), max_size=40))
def test_packed_codes_come_back(bits, values):
    codes = np.array(values, np.uint32).reshape(1, -1) % (1 << bits)
    packed = pack_codes(codes, bits)
    assert len(packed) == -(-codes.size * bits // 8)
    assert np.array_equal(unpack_codes(packed, bits, codes.shape, np.uint32), codes)


def test_a_codebook_of_1024_takes_ten_bits():
    assert [code_bits(size) for size in (1, 2, 1023, 1024, 1025)] == [1, 1, 10, 10, 11]


# What others read


def test_any_parquet_reader_gets_the_shape_and_the_length(tmp_path):
    table = pq.read_table(write(tmp_path, [row(1, (4, 2, 150), scales=True)]))
    (plain,) = table.to_pylist()
    assert np.array_equal(np.reshape(plain["codes"], plain["codes_shape"]), row(1, (4, 2, 150)).codes)
    assert plain["frames"] == 4 * 150 - 3 and plain["duration"] == 24_001 / 24_000
    assert str(table.schema.field("codes").type.value_type) == "uint16"


@pytest.mark.parametrize("package", ["datasets", "polars", "duckdb", "webdataset"])
def test_the_tools_people_use_read_it(tmp_path, package, monkeypatch):
    module = pytest.importorskip(package)
    rows = [row(0), row(1, (4, 2, 150), scales=True)]
    path = str(write(tmp_path, rows, "webdataset" if package == "webdataset" else "parquet"))
    if package == "datasets":
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
        read = [
            (line["id"], np.reshape(line["codes"], line["codes_shape"]))
            for line in module.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
        ]
    elif package == "polars":
        read = [(line["id"], np.reshape(line["codes"], line["codes_shape"])) for line in module.read_parquet(path).to_dicts()]
    elif package == "duckdb":
        found = module.sql(f"select id, codes, codes_shape from '{path}'").fetchall()
        read = [(id, np.reshape(codes, shape)) for id, codes, shape in found]
    else:
        samples = list(module.WebDataset(path, shardshuffle=False).decode())
        read = [(sample["json"]["id"], sample["codes.npy"]) for sample in samples]
    assert [id for id, _ in read] == [each.id for each in rows]
    assert all(np.array_equal(codes, each.codes) for (_, codes), each in zip(read, rows))


def test_a_tar_holds_pairs_of_codes_and_json(tmp_path):
    with tarfile.open(write(tmp_path, [row(0), row(1)], "webdataset")) as tar:
        names = tar.getnames()
        assert names == [f"part-00000000-{index:06d}.{kind}" for index in (0, 1) for kind in ("codes.npy", "json")]
        assert json.load(tar.extractfile(names[1]))["id"] == row(0).id


def test_a_tree_of_npy_files_follows_the_ids(tmp_path):
    write(tmp_path, [row(0)], "npy")
    assert np.array_equal(np.load(tmp_path / "codes" / "ü" / "0.wav.npy"), row(0).codes)


@pytest.mark.parametrize("format", FORMATS)
def test_an_id_may_hold_what_text_editors_take_for_the_end_of_a_line(tmp_path, format):
    ids = ["a\u2028b", "a\x85b", "a\nb", "a\rb", "a\x0bb", "a\x1cb"]
    write(tmp_path, [dataclasses.replace(row(0), id=id) for id in ids], format)
    assert read_ids(tmp_path) == ids == [each.id for each in load_codes(tmp_path)]


def test_writers_that_begin_together_do_not_meet_in_the_file_they_share(tmp_path, monkeypatch):
    fsync, shards = os.fsync, []

    def overtaken(descriptor):
        if not shards:
            shards.append(None)
            shards.append(npy.Shard(tmp_path, "part-00000001", INFO))
        fsync(descriptor)

    monkeypatch.setattr("encodec_fast.formats.atomic.os.fsync", overtaken)
    shards[0] = npy.Shard(tmp_path, "part-00000000", INFO)
    for number, shard in enumerate(shards):
        shard.write(row(number))
        shard.finish()
    assert read_ids(tmp_path) == [row(0).id, row(1).id] and read_info(tmp_path) == INFO


# Of one name in folders too deep for any system; in many; and in such of other depths
LONG_IDS = ["/".join(["y" * 200] * 30), "/".join(["y" * 200] * 31), "z/" * 3000 + "a.wav", "x" * 5000, "é" * 400]


def test_no_two_ids_share_an_npy_file_whatever_the_file_system():
    ids = [
        "a.wav",
        "A.wav",
        "a/b.wav",
        "a\\b.wav",
        "../a.wav",
        "/a.wav",
        "a.wav.",
        "x" * 300,
        "x" * 301,
        "",
        "a:b",
        "a?b",
        "ü.wav",
        *LONG_IDS,
    ]
    paths = [str(npy.npy_path(id)).casefold() for id in ids]
    assert len(set(paths)) == len(ids)
    assert all(path.startswith("codes/") and ".." not in path and len(path.rpartition("/")[2].encode()) < 255 for path in paths)
    assert all(len(path.encode()) < 1300 for path in paths)


@pytest.mark.parametrize("format, packed", KINDS)
def test_a_row_is_stored_under_any_id(tmp_path, format, packed):
    rows = [dataclasses.replace(row(index), id=id) for index, id in enumerate(LONG_IDS)]
    assert [each.id for each in read_rows(write(tmp_path, rows, format, packed))] == LONG_IDS


# Parquet


def test_codes_take_little_more_than_their_ten_bits(tmp_path):
    path = write(tmp_path, [row(index, (1, 8, 750)) for index in range(20)])
    assert 8 * path.stat().st_size / (20 * 8 * 750) < 10.5


def test_row_groups_do_not_change_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 2 * 8 * 75 * 2)
    path = write(tmp_path, [row(index) for index in range(5)])
    assert pq.ParquetFile(path).num_row_groups == 3
    for index, read in enumerate(load_codes(tmp_path)):
        assert_equal(read, row(index))


# Folders


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    write(tmp_path, [row(1)], name="part-00000010")
    write(tmp_path, [row(0)], name="part-00000002")
    assert read_ids(tmp_path) == [row(0).id, row(1).id]


def test_a_folder_of_two_models_is_refused(tmp_path):
    write(tmp_path, [row(0)])
    write(tmp_path, [row(1)], name="part-00000001", info=dataclasses.replace(INFO, weights_sha256="cd" * 32))
    with pytest.raises(FormatError, match="other weights"):
        read_info(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".tar", ".jsonl"])
def test_what_is_no_shard_of_ours_is_named(tmp_path, suffix):
    with pytest.raises(FormatError, match=r"no part-\*\.parquet"):
        read_info(tmp_path)
    with pytest.raises(FormatError, match=r"no part-\*\.parquet"):
        load_codes(tmp_path)
    (tmp_path / f"part-00000000{suffix}").write_bytes(b"PAR1 or so")
    with pytest.raises(FormatError, match="can't be read"):
        read_info(tmp_path)
    with pytest.raises(FormatError, match="can't be read"):
        list(load_codes(tmp_path))


def test_a_table_of_others_is_named(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-00000000.parquet")
    with pytest.raises(FormatError, match="not written by encodec_fast"):
        read_info(tmp_path)


def test_every_format_in_the_table_has_its_parts():
    for name in FORMATS:
        module = format_module(name)
        parts = {part for part in vars(Format) if not part.startswith("_")} | {*Format.__annotations__}
        assert {"SUFFIX", "SIDE_FOLDERS", "Shard", "read_rows", "side_files"} < parts and all(hasattr(module, part) for part in parts)
    with pytest.raises(ValueError, match=f"format is 'mp3'; allowed are {', '.join(FORMATS)}"):
        format_module("mp3")


@pytest.mark.parametrize("format, packed", KINDS)
def test_a_range_of_rows_is_that_of_all_rows(tmp_path, format, packed, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 2400)  # two rows
    path = write(tmp_path, [row(index) for index in range(7)], format, packed)
    whole = [each.id for each in read_rows(path)]
    assert count_rows(path) == len(whole) == 7
    for start in range(9):
        for stop in (*range(9), None):
            assert [each.id for each in read_rows(path, start, stop)] == whole[start:stop]


def test_a_damaged_row_has_its_number_in_the_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 2400)
    path = write(tmp_path, [row(index) for index in range(7)])
    groups = [pq.ParquetFile(path).read_row_group(group) for group in range(4)]
    groups[2] = groups[2].set_column(0, "id", pa.array([None, "x"]))
    with pq.ParquetWriter(path, groups[0].schema.set(0, pa.field("id", pa.string()))) as writer:
        for group in groups:
            writer.write_table(group.cast(writer.schema))
    assert [each.id for each in read_rows(path)][4] == "part-00000000.parquet#4"
    assert [each.id for each in read_rows(path, 4, 6)] == ["part-00000000.parquet#4", "x"]


def test_every_format_in_the_table_is_checked_by_mypy():
    source = Path(formats.__file__).read_text()
    checked = re.search(r"_MODULES: tuple\[Format, \.\.\.\] = \((.*)\)", source)
    assert checked is not None and set(checked[1].replace(" ", "").strip(",").split(",")) == {*FORMATS}


# Atomic files


def test_a_file_that_can_not_be_put_on_the_disk_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a", b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("encodec_fast.formats.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_unfinished_file_of_a_killed_process_has_a_name_that_tells_it_from_others(tmp_path):
    killed = AtomicFile(tmp_path / "a")
    killed.file.write(b"half")
    killed.file.close()
    assert write_atomically(tmp_path / "a", b"whole").read_bytes() == b"whole"
    (left,) = (path for path in tmp_path.iterdir() if path.name != "a")
    assert temporary_of(left.name) == "a" and temporary_of("notes.tmp") is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_file_that_the_full_disk_never_took_can_be_discarded(tmp_path):
    file = AtomicFile(tmp_path / "a")
    file.file.close()
    file.file = open("/dev/full", "wb")
    file.file.write(b"kept in the buffer, which closing writes")
    file.discard()
    assert file.file.closed and not list(tmp_path.iterdir())
