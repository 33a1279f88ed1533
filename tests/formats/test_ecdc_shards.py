"""Entropy-coded shards: smaller than packed codes, each clip by itself, and nothing larger in memory than it is on the disk."""

import dataclasses
import struct
import zlib

import numpy as np
import pytest

from encodec_fast.codec.opened import OpenedFile
from encodec_fast.compression.crc32c import crc32c
from encodec_fast.compression.header import PREFIX
from encodec_fast.compression.segments import CompressedFileError
from encodec_fast.formats import ClipFailure, ClipRow, FormatError, ecdc
from encodec_fast.formats.folder import load_codes
from support.rows import INFO, row, write

# Entries of a codebook that 40 clips are enough to fit
INFO_64 = dataclasses.replace(INFO, codebook_size=64)


def alike(index, frames=20):
    """A clip whose codes are often small."""
    codes = np.minimum(np.random.default_rng(index).geometric(0.2, (1, 4, frames)) - 1, 63)
    return dataclasses.replace(row(index, (1, 4, frames)), codes=codes)


def test_clips_after_the_first_are_coded_by_what_the_first_had(tmp_path):
    rows = [alike(index) for index in range(40)]
    path = write(tmp_path, rows, "ecdc", info=INFO_64)
    assert all(np.array_equal(one.codes, other.codes) and one.id == other.id for one, other in zip(load_codes(path), rows, strict=True))
    with path.open("rb") as file:
        _, tables = ecdc._header(path, file)
        sizes = ecdc._sizes(path, file, file.tell())
        parts = [ecdc._parts(file.read(size)) for size in sizes]
    assert tables is not None and {coded for coded, *_ in parts} == {ecdc._WITH_TABLES}
    # 6 bits each as they are
    assert sum(len(payload) for _, _, payload, _ in parts) < 0.7 * 40 * 80 * 6 / 8
    # a row's record is its id and path, and little more
    assert max(len(record) for _, record, _, _ in parts) < 130


def test_a_few_clips_get_no_tables(tmp_path):
    path = write(tmp_path, [alike(0)], "ecdc", info=INFO_64)
    with path.open("rb") as file:
        assert ecdc._header(path, file)[1] is None


def test_a_clip_of_more_levels_than_the_tables_comes_back(tmp_path):
    rows = [*(alike(index) for index in range(32)), dataclasses.replace(row(99), codes=row(99, size=64).codes)]
    path = write(tmp_path, rows, "ecdc", info=INFO_64)
    assert np.array_equal(list(load_codes(path))[-1].codes, rows[-1].codes)


def test_any_damaged_byte_of_a_header_with_tables_is_named(tmp_path):
    path = write(tmp_path, [alike(index) for index in range(33)], "ecdc", info=INFO_64)
    data = path.read_bytes()
    with path.open("rb") as file:
        ecdc._header(path, file)
        size = file.tell()
    for place in range(0, size, 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(FormatError, match=r"can't be read"):
            list(load_codes(path))


def resealed(path, changed):
    """Writes the first of two rows anew, with right checksums and sizes."""
    with path.open("rb") as file:
        ecdc._header(path, file)
        begin = file.tell()
        sizes = ecdc._sizes(path, file, begin)
    data = path.read_bytes()
    frame = ecdc.ROW_MARKER + changed + struct.pack("!I", crc32c(changed))
    sizes[0], old = len(frame), sizes[0]
    body = struct.pack("!I", len(sizes)) + np.array(sizes, ">u4").tobytes()
    body += struct.pack("!I", 4 + len(body) + 8)
    path.write_bytes(
        data[:begin] + frame + data[begin + old : begin + old + sizes[1]] + ecdc.INDEX_MARKER + body + struct.pack("!I", crc32c(body))
    )


def test_a_row_that_announces_more_than_it_holds_takes_no_memory(tmp_path):
    path = write(tmp_path, [alike(0), alike(1)], "ecdc", info=INFO_64)
    packer = zlib.compressobj(9, zdict=ecdc._RECORD_WORDS)
    bomb = packer.compress(b" " * (1 << 25)) + packer.flush()
    packer = zlib.compressobj(9, zdict=ecdc._RECORD_WORDS)
    shape = b'{"id": "x", "path": "x", "codes_shape": [1024, 1024, 1024]}'
    large = packer.compress(shape) + packer.flush()
    for record in (bomb, large):
        resealed(path, ecdc._ROW.pack(1, len(record), 4, 0) + record + b"code")
        first, second = ecdc.read_rows(path)
        assert isinstance(first, ClipFailure) and isinstance(second, ClipRow)
        assert "unpacks to more" in first.reason or "4 bytes hold no codes" in first.reason


def test_recordings_and_shards_are_told_apart(tmp_path):
    (tmp_path / "part-00000000.ecdc").write_bytes(PREFIX.pack(b"ECDC", 1, 4) + bytes(4))
    with pytest.raises(FormatError, match="decompress reads it"):
        list(load_codes(tmp_path))
    path = write(tmp_path, [alike(0)], "ecdc", info=INFO_64)
    with path.open("rb") as file, pytest.raises(CompressedFileError, match="`encodec-fast decode` reads it"):
        OpenedFile(file)
