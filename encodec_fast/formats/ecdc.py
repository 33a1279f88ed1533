"""Codes as entropy-coded shards: version 2 of `.ecdc`, a frame with a checksum for each clip, and an index of them at the end.

The coder is `adaptive`. It needs no weights, and begins with tables that are fitted to the first clips of the shard.
At 6 kbps it takes Python a hundredth of the audio's time, to write and to read again: for archives rather than for training.
`docs/ecdc.md` has the bytes.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from encodec_fast.compression.adaptive import AdaptiveCoder
from encodec_fast.compression.coders import Coder, RawCoder
from encodec_fast.compression.crc32c import crc32c
from encodec_fast.compression.header import MAGIC, PREFIX, read_exactly
from encodec_fast.compression.tables import Tables, fit_tables, read_tables
from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo, FormatError, check_codes, check_embeddings
from encodec_fast.formats.atomic import AtomicFile
from encodec_fast.formats.records import damaged_row, info_of, info_record, load_npy, npy_bytes, record_row, row_record, shape_of

SUFFIX = ".ecdc"
# None: a shard is all there is
SHARED_FILES: tuple[str, ...] = ()
SIDE_FOLDERS: tuple[str, ...] = ()
VERSION = 2
ROW_MARKER, INDEX_MARKER = b"\xec\xdc\xc1\x19", b"\xec\xdc\x1d\x78"
# How the codes are coded; bytes of the record, the codes and the embeddings
_ROW = struct.Struct("!BIII")
_RAW, _ADAPTIVE, _WITH_TABLES = 0, 1, 2
_CRC = struct.Struct("!I")
# Bytes of the whole index, and its checksum
_TAIL = struct.Struct("!II")
_MOST_INFO = 1 << 24
# Tables inside a shard are of its own model
_NO_WEIGHTS = "00" * 32
# Larger codebooks are rare, and a table of frequencies for each would be long
_MOST_ADAPTIVE_ENTRIES = 1 << 12
# No code is likelier for the coder than 0.995: a byte stands for fewer codes than that
_MOST_CODES_A_BYTE = 2000
# Tables are fitted to the first clips, where they have that many frames for each entry: 64 clips give hardly more than 32
_FITTED_CLIPS, _FRAMES_AN_ENTRY = 32, 2
# What most records have: zlib refers to it
_RECORD_WORDS = (
    b'"columns": "bandwidth": 24.0, "bandwidth": 12.0, "bandwidth": 3.0, "bandwidth": 1.5, .flac", "path": "/.mp3", "path": "/'
    b'{"id": ".wav", "path": "/", "num_samples": 1, "last_frame_pad_length": 0, "sampling_rate": 48000, "original_rate": 44100, '
    b'"sampling_rate": 24000, "original_rate": 24000, "bandwidth": 6.0, "scales": null, "frames": 75, "duration": 10.0, '
    b'"codes_shape": [1, 8, 750]}'
)


class Shard:
    """Writes a shard; see formats.ShardFile."""

    def __init__(self, folder: Path, name: str, info: DatasetInfo):
        self._info, self._sizes = info, list[int]()
        self._adaptive, self._raw = AdaptiveCoder(info.codebook_size), RawCoder(info.codebook_size)
        self._tables: Tables | None = None
        # (record, codes [K, F], embeddings) of the clips that tables are fitted to; None once the header is written
        self._first: list[tuple[bytes, np.ndarray, bytes]] | None = []
        self._atomic = AtomicFile(folder / f"{name}{SUFFIX}")

    def write(self, row: ClipRow) -> None:
        codes, embeddings = check_codes(row, self._info), check_embeddings(row, self._info)
        # chunks end to end, with what pads the last one
        frames = codes.swapaxes(0, 1).reshape(codes.shape[1], -1)
        packer = zlib.compressobj(9, zdict=_RECORD_WORDS)
        record = packer.compress(json.dumps(row_record(row), ensure_ascii=False).encode()) + packer.flush()
        kept = b"" if embeddings is None else npy_bytes(embeddings)
        if self._first is None:
            self._put(record, frames, kept)
            return
        self._first.append((record, frames, kept))
        if len(self._first) == _FITTED_CLIPS:
            self._begin()

    def _begin(self) -> None:
        """Writes the header, with tables, and the clips that waited for it."""
        first, self._first = self._first or [], None
        entries = self._info.codebook_size
        frames = sum(codes.shape[1] for _, codes, _ in first)
        packed = b""
        if entries <= _MOST_ADAPTIVE_ENTRIES and frames >= _FRAMES_AN_ENTRY * entries:
            self._tables = fit_tables((codes for _, codes, _ in first), entries, _NO_WEIGHTS)
            packed = zlib.compress(self._tables.to_bytes(), 9)
        text = json.dumps(info_record(self._info), sort_keys=True).encode()
        body = struct.pack("!I", len(text)) + text + packed
        head = PREFIX.pack(MAGIC, VERSION, len(body) + _CRC.size) + body
        self._atomic.file.write(head + _CRC.pack(crc32c(head)))
        for waiting in first:
            self._put(*waiting)

    def _put(self, record: bytes, codes: np.ndarray, kept: bytes) -> None:
        (payload,), coded = self._raw.encode([codes]), _RAW
        if self._info.codebook_size <= _MOST_ADAPTIVE_ENTRIES:
            fitted = self._tables is not None and len(codes) <= self._tables.levels
            coder = AdaptiveCoder(self._info.codebook_size, self._tables) if fitted else self._adaptive
            (shorter,) = coder.encode([codes])
            if len(shorter) < len(payload):
                payload, coded = shorter, _WITH_TABLES if fitted else _ADAPTIVE
        body = _ROW.pack(coded, len(record), len(payload), len(kept)) + record + payload + kept
        self._sizes.append(self._atomic.file.write(ROW_MARKER + body + _CRC.pack(crc32c(body))))

    def finish(self) -> Path:
        try:
            if self._first is not None:
                self._begin()
            body = struct.pack("!I", len(self._sizes)) + np.array(self._sizes, ">u4").tobytes()
            body += struct.pack("!I", len(INDEX_MARKER) + len(body) + _TAIL.size)
            self._atomic.file.write(INDEX_MARKER + body + _CRC.pack(crc32c(body)))
        except BaseException:
            self.discard()
            raise
        return self._atomic.finish()

    def discard(self) -> None:
        self._atomic.discard()


def read_shard_info(path: Path) -> DatasetInfo:
    """Returns what made the codes of a shard. Raises FormatError for a file that isn't one."""
    with _opened(path) as file:
        return _header(path, file)[0]


def read_rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[ClipRow | ClipFailure]:
    """Yields the rows start ... stop - 1 of a shard; a damaged one is a failure. Raises FormatError where the file can't be read."""
    with _opened(path) as file:
        info, tables = _header(path, file)
        begin = file.tell()
        sizes = _sizes(path, file, begin)
        file.seek(begin + sum(sizes[:start]))
        for index in range(start, len(sizes) if stop is None else min(stop, len(sizes))):
            yield _row(file.read(sizes[index]), info, tables, path, index)


def count_rows(path: Path) -> int:
    """Returns the rows of a shard, by its index. Raises FormatError for a file that is cut or not whole."""
    with _opened(path) as file:
        _header(path, file)
        return len(_sizes(path, file, file.tell()))


def read_shard_ids(path: Path) -> list[str]:
    """Returns the id of every row of a shard, in order, without decoding codes."""
    with _opened(path) as file:
        _header(path, file)
        ids = []
        for index, size in enumerate(_sizes(path, file, file.tell())):
            record: Any = None
            try:
                record = json.loads(_record(_parts(file.read(size))[1]))
                ids.append(record["id"] if isinstance(record["id"], str) else f"{path.name}#{index}")
            except (ValueError, RecursionError, KeyError, TypeError, zlib.error) as error:
                ids.append(damaged_row(record, path, index, error).id)
        return ids


def side_files(path: Path) -> list[str]:
    """Returns none: a shard is all there is."""
    return []


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error


def _header(path: Path, file: IO[bytes]) -> tuple[DatasetInfo, Tables | None]:
    """Reads the header, up to the first row."""
    try:
        head = read_exactly(file, PREFIX.size)
        magic, version, size = PREFIX.unpack(head)
        if magic == MAGIC and version != VERSION:
            raise FormatError(f"{path}: not a shard, the shard can't be read (one recording: decompress reads it).")
        if magic != MAGIC or not _CRC.size < size <= _MOST_INFO:
            raise FormatError(f"{path}: the shard can't be read (not written by encodec_fast).")
        text = read_exactly(file, size)
        if _CRC.pack(crc32c(head + text[: -_CRC.size])) != text[-_CRC.size :]:
            raise FormatError(f"{path}: the shard can't be read (its header is damaged).")
        (length,) = struct.unpack_from("!I", text)
        packed = text[4 + length : -_CRC.size]
        info = info_of(json.loads(text[4 : 4 + length]), path)
        return info, read_tables(_unpacked(zlib.decompressobj(), packed)) if packed else None
    except (OSError, ValueError, zlib.error) as error:
        raise error if isinstance(error, FormatError) else FormatError(f"{path}: the shard can't be read ({error}).") from error


def _sizes(path: Path, file: IO[bytes], begin: int) -> list[int]:
    """Returns the bytes of each row, by the index at the end; the position stays.  begin: of the first row."""
    try:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - _TAIL.size))
        tail = file.read(_TAIL.size)
        size, crc = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, 0)
        file.seek(max(begin, end - size))
        index = file.read(size)
        file.seek(begin)
    except OSError as error:
        raise FormatError(f"{path}: the shard can't be read ({error}).") from error
    place = len(INDEX_MARKER)
    whole = size > place + _TAIL.size and len(index) == size and index.startswith(INDEX_MARKER)
    if not whole or crc32c(index[place : -_CRC.size]) != crc:
        raise FormatError(f"{path}: the shard can't be read (its index is missing or damaged: it is cut short, or changed).")
    (count,) = struct.unpack_from("!I", index, place)
    sizes: list[int] = np.frombuffer(index, ">u4", (size - place - 4 - _TAIL.size) // 4, place + 4).tolist()
    if count != len(sizes) or begin + sum(sizes) + size != end:
        raise FormatError(f"{path}: the shard can't be read (its rows have other sizes than its index says).")
    return sizes


def _parts(frame: bytes) -> tuple[int, bytes, bytes, bytes]:
    """Returns (how the codes are coded, record, codes, embeddings) of a row.  Raises ValueError for a damaged one."""
    place = len(ROW_MARKER)
    body = frame[place : -_CRC.size]
    if not frame.startswith(ROW_MARKER) or len(body) < _ROW.size or _CRC.pack(crc32c(body)) != frame[-_CRC.size :]:
        raise ValueError("its checksum is another.")
    coded, *lengths = _ROW.unpack_from(body)
    if coded > _WITH_TABLES or _ROW.size + sum(lengths) != len(body):
        raise ValueError("its parts have other sizes than it says.")
    first, second = _ROW.size + lengths[0], _ROW.size + lengths[0] + lengths[1]
    return coded, body[_ROW.size : first], body[first:second], body[second:]


def _record(packed: bytes) -> bytes:
    return _unpacked(zlib.decompressobj(zdict=_RECORD_WORDS), packed)


def _unpacked(unpacker: Any, packed: bytes) -> bytes:
    """Returns what zlib packed.  Raises ValueError for more than a shard has: a few bytes may announce gigabytes."""
    data: bytes = unpacker.decompress(packed, _MOST_INFO)
    if not unpacker.eof:
        raise ValueError(f"it unpacks to more than {_MOST_INFO} bytes, or is cut short.")
    return data


def _row(frame: bytes, info: DatasetInfo, tables: Tables | None, path: Path, index: int) -> ClipRow | ClipFailure:
    record: Any = None
    try:
        coded, text, payload, kept = _parts(frame)
        record = json.loads(_record(text))
        if not isinstance(record, dict):
            raise ValueError("no JSON object.")
        chunks, levels, frames = shape_of(record)
        if chunks * levels * frames > _MOST_CODES_A_BYTE * (len(payload) + 8):
            raise ValueError(f"{len(payload)} bytes hold no codes of shape {[chunks, levels, frames]}.")
        if coded == _WITH_TABLES and tables is None:
            raise ValueError("it needs tables, and the shard has none.")
        coder: Coder = RawCoder(info.codebook_size)
        if coded != _RAW:
            coder = AdaptiveCoder(info.codebook_size, tables if coded == _WITH_TABLES else None)
        (found,) = coder.decode([payload], [chunks * frames], levels)
        codes = found.reshape(levels, chunks, frames).swapaxes(0, 1).astype(info.code_dtype)
        return record_row(record, np.ascontiguousarray(codes), info, load_npy(kept) if kept else None)
    except (ValueError, RecursionError, zlib.error) as error:
        return damaged_row(record, path, index, error)
