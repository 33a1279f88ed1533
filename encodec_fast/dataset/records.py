"""The lines of a ledger: what a shard holds, with a checksum, so that a damaged line counts for nothing instead of something else.

A line is JSON whose last member is the CRC-32 of the line without it. Lines of earlier versions have none; behind the first line that
has one, every line must.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from encodec_fast.formats import ClipFailure
from encodec_fast.formats.folder import is_shard_name

_CHECKED = re.compile(rb'(?P<body>.*), "crc32": "(?P<crc>[0-9a-f]{8})"\}', re.DOTALL)


@dataclass
class Record:
    """A line of the ledger. file: the shard, or None if no clip of the batches has codes. seconds: of audio.

    busy: that the encoder worked for it. paces: (Unix time, seconds of audio finished since the one before), every few seconds.
    verified: counts of the comparison with HF, if any. size, file_crc32: of the file, in bytes and as eight hexadecimal digits; None in
    lines of earlier versions.
    """

    file: str | None
    batches: list[int]
    clips: int = 0
    seconds: float = 0.0
    failures: list[ClipFailure] = field(default_factory=list)
    busy: float = 0.0
    paces: list[tuple[float, float]] = field(default_factory=list)
    verified: dict[str, Any] | None = None
    size: int | None = None
    file_crc32: str | None = None

    def to_json(self) -> str:
        failures = [[failure.id, failure.path, failure.reason] for failure in self.failures]
        return json.dumps({**asdict(self), "batches": _runs(self.batches), "failures": failures}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Raises ValueError for a line that is none."""
        return cls.from_fields(json.loads(line))

    @classmethod
    def from_fields(cls, stored: dict[str, Any]) -> Record:
        """Raises ValueError for fields that are not those of a record."""
        try:
            batches = [batch for first, end, step in stored.pop("batches") for batch in range(first, end, step)]
            failures = [ClipFailure(*failure) for failure in stored.pop("failures")]
            record = cls(batches=batches, failures=failures, **stored)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of a shard ({error}).") from error
        if not batches or not (record.file is None or is_shard_name(record.file)):
            raise ValueError(f"no record of a shard: its file is {record.file!r}.")
        return record


def _runs(numbers: list[int]) -> list[tuple[int, int, int]]:
    """Returns increasing numbers as few (first, end, step): a writer takes every n-th batch."""
    runs: list[tuple[int, int, int]] = []
    for number in numbers:
        if runs:
            first, end, step = runs[-1]
            if end - first == 1:
                runs[-1] = (first, number + 1, number - first)
                continue
            if number == end - 1 + step:
                runs[-1] = (first, number + 1, step)
                continue
        runs.append((number, number + 1, 1))
    return runs


class Line(NamedTuple):
    """A sound line: its checksum, and the record, or the checksum of a record that counts no more."""

    crc: str
    record: Record | None
    void: str | None


def checked_line(body: str) -> bytes:
    """Returns the line, with its end, that holds a JSON object and its checksum."""
    data = body.encode()
    return data[:-1] + b', "crc32": "%08x"}\n' % zlib.crc32(data)


def void_line(crc: str, reason: str) -> bytes:
    """Returns a line that says that the record of that checksum counts no more."""
    return checked_line(json.dumps({"void": crc, "reason": reason}, ensure_ascii=False))


def read_lines(path: Path) -> tuple[list[Line], list[int]]:
    """Returns the sound lines of a ledger, and the numbers, from 1, of the damaged ones. What has no line end was never finished."""
    lines: list[Line] = []
    damaged = []
    checked = False
    for number, data in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line, has_checksum = _line(data, checked)
        except ValueError:
            damaged.append(number)
            continue
        checked |= has_checksum
        lines.append(line)
    return lines, damaged


def _line(data: bytes, checked: bool) -> tuple[Line, bool]:
    """Returns a line, and whether it has a checksum.  checked: it must. Raises ValueError for a damaged one."""
    found = _CHECKED.fullmatch(data)
    body = found["body"] + b"}" if found else data
    crc = f"{zlib.crc32(body):08x}"
    if (found and found["crc"].decode() != crc) or (checked and not found):
        raise ValueError("the checksum is another.")
    stored: Mapping[str, Any] = json.loads(body)
    if not isinstance(stored, dict):
        raise ValueError("no JSON object.")
    if "void" in stored:
        return Line(crc, None, str(stored["void"])), found is not None
    return Line(crc, Record.from_fields(stored), None), found is not None
