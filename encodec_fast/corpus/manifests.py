"""Manifests: a clip per line of a TSV, CSV or JSONL file; NeMo's manifests and lhotse's cuts and recordings among the latter.

Columns, first of each that is there: path | audio_filepath | audio_path | file | filename | wav; start | offset; duration;
id | utt_id | utterance_id | key. Only the path is required. A line that names no clip becomes a task with its problem.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from encodec_fast.audio.files import check_url, is_url, open_binary
from encodec_fast.corpus.tasks import HALF_CHARACTER, Task, valid_text

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".jsonl.gz", ".tsv.gz", ".csv.gz")
# More channels than any file has, and few enough for the schedule's column
MAX_CHANNELS = 1 << 16
_PATH = ("path", "audio_filepath", "audio_path", "file", "filename", "wav")
_START = ("start", "offset")
_ID = ("id", "utt_id", "utterance_id", "key")


class ManifestError(ValueError):
    """A manifest that can't be read at all; the message names it and says why."""


def is_manifest(path: str) -> bool:
    """Returns whether the name is that of a manifest."""
    return path.lower().endswith(SUFFIXES)


def read_manifest(path: str) -> Iterator[Task]:
    """Returns the tasks of a manifest, in its order; ids may repeat. Paths are relative to its folder, or else to the current one.

    A file that ends in the middle, as a cut .gz does, ends in a task with that problem.
    Raises ManifestError for a table without a path column and for a file that is no text.
    """
    folder = path.rpartition("/")[0] if is_url(path) else os.path.dirname(os.path.abspath(path))
    number = 0
    with _openvalid_text(path) as file:
        try:
            records = _json_lines(file, path) if ".json" in os.path.basename(path).lower() else _table(file, path)
            for number, record in records:
                try:
                    yield _task(record, folder)
                except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                    # the words of a ValueError are for people; the others say that a field is of another type than it should be
                    said = str(error) if isinstance(error, ValueError) else f"a field of a wrong type ({type(error).__name__})."
                    problem = f"line {number} of the manifest: {said}"
                    yield Task(f"{os.path.basename(path)}:{number}", path, row=number, problem=problem)
        # EOFError: a .gz that is cut short
        except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
            if not number:
                raise ManifestError(f"{path}: not a manifest that can be read ({error}).") from error
            problem = f"the manifest can't be read behind line {number} ({error}); what stands before is read."
            yield Task(f"{os.path.basename(path)}:{number + 1}", path, row=number + 1, problem=problem)


@contextmanager
def _openvalid_text(path: str) -> Iterator[TextIO]:
    with open_binary(path) as file:
        data: Any = gzip.open(file) if path.lower().endswith(".gz") else file
        # what is no UTF-8 becomes surrogates, which are an error of the line that has them
        yield io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _table(file: TextIO, path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    tabs = ".tsv" in os.path.basename(path).lower()
    rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.DictReader(file)
    if not set(_PATH) & set(rows.fieldnames or ()):
        raise ManifestError(f"{path}: its first line names no column {', '.join(_PATH)}; it is {rows.fieldnames}.")
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:  # a field longer than any; the next row is one again
            yield rows.line_num, {"": f"no row that can be read ({error})"}
            continue
        if row is None:
            return
        yield rows.line_num, row


def _json_lines(file: TextIO, path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, 1):
        if number == 1 and HALF_CHARACTER.search(line):
            raise ManifestError(f"{path}: not a manifest that can be read (its first line is no UTF-8).")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        # besides: numbers of thousands of digits, and brackets nested as deep
        except (ValueError, RecursionError) as error:
            record = {"": f"no JSON that can be read ({error})"}
        yield number, record if isinstance(record, dict) else {"": "no JSON object"}


def _task(record: Mapping[str, Any], folder: str) -> Task:
    """Raises ValueError with what is wrong with the record."""
    if "" in record:
        raise ValueError(f"{record['']}.")
    if "tracks" in record:
        raise ValueError("a MixedCut of several tracks; mix it down first (cut.save_audio).")
    if "recording" in record or "sources" in record:
        return _lhotse_task(record, folder)
    path = _first(record, _PATH)
    if path is None:
        raise ValueError(f"no path; one of {', '.join(_PATH)} is needed.")
    start, duration = _seconds(record, _START) or 0.0, _seconds(record, ("duration",))
    # an offset makes it a part; a duration alone is that of the file, as NeMo writes it, or a part from its start
    id = _first(record, _ID)
    if id is None:
        id = str(path) + (f"#{start:g}+{duration or math.inf:g}" if start else "")
    return Task(valid_text(id, "id"), _resolved(valid_text(path, "path"), folder), start=start, duration=duration, seconds=duration or 0.0)


def _lhotse_task(record: Mapping[str, Any], folder: str) -> Task:
    recording = record.get("recording", record)
    sources = (recording or {}).get("sources") or []
    if len(sources) != 1 or sources[0].get("type") not in ("file", "url"):
        kinds = [source.get("type") for source in sources]
        raise ValueError(f"the recording has sources of type {kinds}; one file or URL is needed.")
    channel = record.get("channel")
    if isinstance(channel, list):
        channel = channel[0] if len(channel) == 1 else None
    if channel is not None and (type(channel) is not int or not 0 <= channel < MAX_CHANNELS):
        raise ValueError("channel is no number of a channel, counted from 0.")
    several = len(sources[0].get("channels") or [0]) > 1
    duration = _seconds(record, ("duration",))
    start = _seconds(record, ("start",)) or 0.0
    whole = record is recording
    return Task(
        valid_text(record.get("id") or sources[0]["source"], "id"),
        _resolved(valid_text(sources[0]["source"], "source"), folder),
        start=start,
        duration=None if whole else duration,
        channel=channel if several else None,
        seconds=duration or 0.0,
    )


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _seconds(record: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    value = _first(record, names)
    if value is None:
        return None
    if isinstance(value, bool):
        raise ValueError(f"{names[0]} is {value}; seconds are needed, 0 or more.")
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{names[0]} is {value!r}; seconds are needed, 0 or more.")
    return seconds


def _resolved(path: str, folder: str) -> str:
    if is_url(path):
        check_url(path)
        return path
    if os.path.isabs(path):
        return path
    if is_url(folder):
        check_url(f"{folder}/{path}")
        return f"{folder}/{path}"
    beside = os.path.normpath(os.path.join(folder, path))
    return beside if os.path.exists(beside) or not os.path.exists(path) else os.path.abspath(path)
