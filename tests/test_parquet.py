"""Parquet shards: what is written is read back, shards appear whole or not at all."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encodec_fast.formats import WRITERS, ClipFailure, ClipRow, DatasetInfo, FormatError, parquet, writer_class
from encodec_fast.formats.parquet import ParquetShardWriter, iter_rows, read_failures, read_ids, read_info, shard_paths

INFO = DatasetInfo("model", "ab" * 32, 1024, "torch", {"torch": "2"}, {"bandwidth": 6.0, "sources": ["é"]})


def row(index: int, shape=(1, 8, 75), scales=False, size=1024) -> ClipRow:
    codes = np.random.default_rng(index).integers(0, size, shape)
    return ClipRow(
        id=f"ü/{index}.wav",
        path=f"/data/ü/{index}.wav",
        codes=codes,
        scales=np.linspace(0.1, 1.0, shape[0], dtype=np.float32) if scales else None,
        num_samples=24_000 + index,
        last_frame_pad_length=3 if shape[0] > 1 else 0,
        sampling_rate=24_000,
        original_rate=44_100,
        bandwidth=6.0,
    )


def assert_equal(one: ClipRow, other: ClipRow) -> None:
    for name in (field.name for field in dataclasses.fields(ClipRow)):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("scales", [False, True])
def test_rows_come_back_as_they_were_written(tmp_path, scales):
    rows = [row(0, (1, 8, 75), scales), row(1, (4, 2, 150), scales), row(2, (1, 32, 1), scales)]
    with ParquetShardWriter(tmp_path, INFO) as writer:
        for each in rows:
            writer.write(each)
    read = list(iter_rows(tmp_path))
    assert len(read) == 3 and read_ids(tmp_path) == [each.id for each in rows]
    for one, other in zip(rows, read):
        assert_equal(one, other)
    assert read_info(tmp_path) == INFO


def test_any_parquet_reader_gets_the_shape_and_the_length(tmp_path):
    with ParquetShardWriter(tmp_path, INFO) as writer:
        writer.write(row(1, (4, 2, 150), scales=True))
    table = pq.read_table(tmp_path / "part-00000.parquet")
    (plain,) = table.to_pylist()
    assert np.array_equal(np.reshape(plain["codes"], plain["codes_shape"]), row(1, (4, 2, 150)).codes)
    assert plain["frames"] == 4 * 150 - 3 and plain["duration"] == 24_001 / 24_000
    assert str(table.schema.field("codes").type.value_type) == "uint16"


def test_codes_take_little_more_than_their_ten_bits(tmp_path):
    with ParquetShardWriter(tmp_path, INFO) as writer:
        for index in range(20):
            writer.write(row(index, (1, 8, 750)))
    bits = 8 * (tmp_path / "part-00000.parquet").stat().st_size / (20 * 8 * 750)
    assert bits < 10.5


def test_large_codebooks_are_stored_in_32_bits(tmp_path):
    info = dataclasses.replace(INFO, codebook_size=1 << 17)
    with ParquetShardWriter(tmp_path, info) as writer:
        writer.write(row(0, size=1 << 17))
    (read,) = iter_rows(tmp_path)
    assert read.codes.max() > 1 << 16 and np.array_equal(read.codes, row(0, size=1 << 17).codes)


@pytest.mark.parametrize("limit", [{"rows_per_shard": 3}, {"bytes_per_shard": 3 * 8 * 75 * 2}])
def test_shards_end_at_their_limit_and_keep_the_order(tmp_path, limit):
    with ParquetShardWriter(tmp_path, INFO, **limit) as writer:
        for index in range(7):
            writer.write(row(index))
    assert [pq.ParquetFile(path).metadata.num_rows for path in shard_paths(tmp_path)] == [3, 3, 1]
    assert read_ids(tmp_path) == [row(index).id for index in range(7)]
    assert writer.close() == shard_paths(tmp_path)


def test_row_groups_do_not_change_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 2 * 8 * 75 * 2)
    with ParquetShardWriter(tmp_path, INFO) as writer:
        for index in range(5):
            writer.write(row(index))
    assert pq.ParquetFile(tmp_path / "part-00000.parquet").num_row_groups == 3
    for index, read in enumerate(iter_rows(tmp_path)):
        assert_equal(read, row(index))


def test_failures_stand_in_their_own_table_and_only_if_there_are_any(tmp_path):
    failure = ClipFailure("a.wav", "/a.wav", "it is broken.")
    with ParquetShardWriter(tmp_path, INFO) as writer:
        writer.write_failure(failure)
    assert read_failures(tmp_path) == [failure] and shard_paths(tmp_path) == []
    with ParquetShardWriter(tmp_path, INFO, overwrite=True) as writer:
        writer.write(row(0))
    assert read_failures(tmp_path) == []


def test_an_interrupt_keeps_the_rows_written_so_far(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with ParquetShardWriter(tmp_path, INFO) as writer:
            writer.write(row(0))
            raise KeyboardInterrupt
    assert read_ids(tmp_path) == [row(0).id]


def test_a_full_disk_leaves_finished_shards_and_no_half_one(tmp_path, monkeypatch):
    writer = ParquetShardWriter(tmp_path, INFO, rows_per_shard=2)
    writer.write(row(0))
    writer.write(row(1))
    writer.write(row(2))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(parquet.os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            with writer:
                writer.write(row(3))
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]
    assert read_ids(tmp_path) == [row(0).id, row(1).id]


def test_a_shard_has_no_name_before_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 1)
    writer = ParquetShardWriter(tmp_path, INFO)
    writer.write(row(0))
    assert shard_paths(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1
    writer.close()
    assert len(shard_paths(tmp_path)) == 1


def test_shards_of_an_earlier_run_are_replaced_only_when_asked(tmp_path):
    for index in range(3):
        with ParquetShardWriter(tmp_path, INFO, rows_per_shard=1, overwrite=index > 0) as writer:
            for each in range(3 - index):
                writer.write(row(each))
    assert len(shard_paths(tmp_path)) == 1
    with pytest.raises(FormatError, match="holds 1 shards already"):
        ParquetShardWriter(tmp_path, INFO)


@pytest.mark.parametrize(
    "codes", [np.full((1, 1, 3), 1024), np.full((1, 1, 3), -1), np.zeros((2, 3), int)], ids=["high", "negative", "2-D"]
)
def test_codes_that_are_none_are_refused(tmp_path, codes):
    writer = ParquetShardWriter(tmp_path, INFO)
    with pytest.raises(FormatError, match=r"each 0 \.\.\. 1023"):
        writer.write(dataclasses.replace(row(0), codes=codes))


def test_a_folder_of_two_models_is_refused(tmp_path):
    for index, info in enumerate([INFO, dataclasses.replace(INFO, weights_sha256="cd" * 32)]):
        with ParquetShardWriter(tmp_path / str(index), info) as writer:
            writer.write(row(index))
    (tmp_path / "1" / "part-00000.parquet").rename(tmp_path / "0" / "part-00001.parquet")
    with pytest.raises(FormatError, match="other weights"):
        read_info(tmp_path / "0")


def test_what_is_no_shard_of_ours_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"no part-\*\.parquet"):
        read_info(tmp_path)
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(b"PAR1 or so")
    with pytest.raises(FormatError, match="can't be read"):
        read_info(tmp_path)
    with pytest.raises(FormatError, match="can't be read"):
        list(iter_rows(tmp_path))
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(FormatError, match="not written by encodec_fast"):
        read_info(tmp_path)


def test_every_format_in_the_table_has_its_writer():
    for name in WRITERS:
        assert callable(writer_class(name).write)
    with pytest.raises(ValueError, match="format is 'mp3'; allowed are parquet"):
        writer_class("mp3")
