"""Manifests: a clip per line of a TSV, CSV or JSONL file; NeMo's manifests and lhotse's cuts and recordings among the latter.

Columns, first of each that is there: path | audio_filepath | audio_path | file | filename | file_name | wav; start | offset; end; duration;
id | utt_id | utterance_id | key; channel_selector. Only the path is required. A line that names no clip becomes a task with its problem.

So `metadata.csv` and `metadata.jsonl` of Hugging Face's AudioFolder are manifests. So are the tables of Common Voice, whose files are in
`clips/` beside them. Kaldi's `wav.scp` is one too: a line is an id and a file. Where `segments` stands beside it, the clips are those.

Every other column of scalars goes with its clip; see corpus.columns. Of Kaldi's, that is what `text` and `utt2spk` beside it say; of a
lhotse cut, what its one supervision and its custom fields say.
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
from encodec_fast.corpus.columns import Untyped, scalar_columns
from encodec_fast.corpus.tasks import HALF_CHARACTER, Scalar, Task, valid_text

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".jsonl.gz", ".tsv.gz", ".csv.gz", ".scp")
# Kaldi's names: of the files, and of the parts of them.
_RECORDINGS, _SEGMENTS = "wav.scp", "segments"
# Kaldi's tables of an id and a value, and the columns that they become.
_KALDI_COLUMNS = {"text": "text", "utt2spk": "speaker"}
# Of a lhotse supervision, those that are columns; the rest is its place in the recording.
_SUPERVISION = ("text", "speaker", "language", "gender")
# Seconds by which a line's duration may differ from its end less its start: both are often rounded.
ROUNDING = 0.1
# More channels than any file has, and few enough for the schedule's column
MAX_CHANNELS = 1 << 16
_PATH = ("path", "audio_filepath", "audio_path", "file", "filename", "file_name", "wav")
_START = ("start", "offset")
_ID = ("id", "utt_id", "utterance_id", "key")

# A line by its number: what it says of a clip, or why it says nothing, as a sentence.
_Line = tuple[int, Mapping[str, Any] | str]


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
    with _open_text(path) as file:
        try:
            name = os.path.basename(path).lower()
            kaldi = name.endswith(".scp")
            records = _kaldi(file, path) if kaldi else _json_lines(file, path) if ".json" in name else _table(file, path)
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
def _open_text(path: str) -> Iterator[TextIO]:
    with open_binary(path) as file:
        data: Any = gzip.open(file) if path.lower().endswith(".gz") else file
        # what is no UTF-8 becomes surrogates, which are an error of the line that has them
        yield io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _table(file: TextIO, path: str) -> Iterator[_Line]:
    tabs = ".tsv" in os.path.basename(path).lower()
    rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.DictReader(file)
    if not set(_PATH) & set(rows.fieldnames or ()):
        raise ManifestError(f"{path}: its first line names no column {', '.join(_PATH)}; it is {rows.fieldnames}.")
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:  # a field longer than any; the next row is one again
            yield rows.line_num, f"no row that can be read ({error})."
            continue
        if row is None:
            return
        yield rows.line_num, {name: Untyped(value) if isinstance(value, str) else value for name, value in row.items()}


def _kaldi(file: TextIO, path: str) -> Iterator[_Line]:
    """Yields the records of a Kaldi table of files, or of the segments beside it: `segment recording start end [channel]`."""
    lines: Iterator[_Line] = ((number, _kaldi_file(line)[1]) for number, line in enumerate(file, 1) if line.strip())
    if os.path.basename(path) != _RECORDINGS or is_url(path):
        yield from lines
        return
    folder = os.path.dirname(path)
    if os.path.exists(segments := os.path.join(folder, _SEGMENTS)):
        lines = _kaldi_segments(segments, dict(_kaldi_file(line) for line in file if line.strip()))
    columns = {column: dict(_kaldi_values(os.path.join(folder, name))) for name, column in _KALDI_COLUMNS.items()}
    for number, record in lines:
        if not isinstance(record, str):
            record = {**record, **{column: values[record["id"]] for column, values in columns.items() if record["id"] in values}}
        yield number, record


def _kaldi_file(line: str) -> tuple[str, Mapping[str, Any] | str]:
    """Returns the id of a line and its record."""
    id, *rest = line.strip().split(None, 1)
    if not rest:
        return id, "an id and a file are needed."
    (path,) = rest
    if path.endswith("|"):
        return id, "a command, which is not run; write what it gives to a file."
    return id, {"id": id, "path": path}


def _kaldi_segments(path: str, recordings: Mapping[str, Mapping[str, Any] | str]) -> Iterator[_Line]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) not in (4, 5):
                yield number, f"{len(fields)} fields of a segment; its id, recording, start and end are needed."
                continue
            id, recording, start, end, *channel = fields
            found = recordings.get(recording, f"the segment is of {recording!r}, which {_RECORDINGS} lacks.")
            part = {"id": id, "start": Untyped(start), "end": Untyped(end), "channel_selector": [*channel]}
            yield number, found if isinstance(found, str) else {**found, **part}


def _kaldi_values(path: str) -> Iterator[tuple[str, str]]:
    """Yields (id, value) of a table of Kaldi's that need not be there."""
    if not os.path.exists(path):
        return
    with _open_text(path) as lines:
        for line in lines:
            id, _, value = line.strip().partition(" ")
            if id:
                yield id, value.strip()


def _json_lines(file: TextIO, path: str) -> Iterator[_Line]:
    for number, line in enumerate(file, 1):
        if number == 1 and HALF_CHARACTER.search(line):
            raise ManifestError(f"{path}: not a manifest that can be read (its first line is no UTF-8).")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        # besides: numbers of thousands of digits, and brackets nested as deep
        except (ValueError, RecursionError) as error:
            yield number, f"no JSON that can be read ({error})."
            continue
        yield number, record if isinstance(record, dict) else "no JSON object."


def _task(record: Mapping[str, Any] | str, folder: str) -> Task:
    """Raises ValueError with what is wrong with the record."""
    if isinstance(record, str):
        raise ValueError(record)
    if "tracks" in record:
        raise ValueError("a MixedCut of several tracks; mix it down first (cut.save_audio).")
    if "recording" in record or "sources" in record:
        return _lhotse_task(record, folder)
    path_name = _first_name(record, _PATH)
    if path_name is None:
        raise ValueError(f"no path; one of {', '.join(_PATH)} is needed.")
    path = record[path_name]
    start, duration = _seconds(record, _START) or 0.0, _duration(record)
    # an offset makes it a part; a duration alone is that of the file, as NeMo writes it, or a part from its start
    id_name = _first_name(record, _ID)
    id = record[id_name] if id_name else str(path) + (f"#{start:g}+{duration or math.inf:g}" if start else "")
    taken = {path_name, id_name or "id", "duration"}
    return Task(
        valid_text(id, "id"),
        _resolved(valid_text(path, "path"), folder),
        start=start,
        duration=duration,
        channel=_selected_channel(record),
        seconds=duration or 0.0,
        columns=scalar_columns(record, taken),
    )


def _duration(record: Mapping[str, Any]) -> float | None:
    """Returns the seconds that are wanted of a line, by its end if it has one. Raises ValueError where its fields contradict."""
    start, end, duration = _seconds(record, _START) or 0.0, _seconds(record, ("end",)), _seconds(record, ("duration",))
    if end is None:
        return duration
    if end <= start:
        raise ValueError(f"end is {end:g}, and start is {start:g}; a part ends behind its start.")
    if duration is not None and abs(start + duration - end) > ROUNDING:
        raise ValueError(f"start {start:g} and duration {duration:g} contradict end {end:g}; leave out duration or end.")
    return end - start


def _selected_channel(record: Mapping[str, Any]) -> int | None:
    """Returns NeMo's channel, counted from 0; None for all of them, which are mixed to the model's."""
    selector = record.get("channel_selector")
    if isinstance(selector, list) and len(selector) == 1:
        selector = selector[0]
    if selector in (None, "", "average", []):
        return None
    if isinstance(selector, str) and selector.isdecimal():
        selector = int(selector)
    if type(selector) is not int or not 0 <= selector < MAX_CHANNELS:
        raise ValueError(f"channel_selector is {selector!r}; one channel, counted from 0, or 'average' is needed.")
    return selector


def _lhotse_task(record: Mapping[str, Any], folder: str) -> Task:
    recording = record.get("recording", record)
    sources = (recording or {}).get("sources") or []
    if len(sources) != 1 or sources[0].get("type") not in ("file", "url"):
        kinds = [source.get("type") for source in sources]
        raise ValueError(f"the recording has sources of type {kinds}; one file or URL is needed.")
    kinds = [
        transform.get("name")
        for each in ([record] if recording is record else [record, recording])
        for transform in each.get("transforms") or ()
    ]
    if kinds:
        raise ValueError(f"transforms of lhotse, {kinds}, which are not applied here; save the audio first (cut.save_audio).")
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
        columns={} if whole else _lhotse_columns(record),
    )


def _lhotse_columns(cut: Mapping[str, Any]) -> dict[str, Scalar]:
    """Returns the columns of a cut. Of several supervisions none belongs to all of it, so they are left out."""
    supervisions = cut.get("supervisions") or []
    columns: dict[str, Scalar] = {}
    for each in [*(supervisions if len(supervisions) == 1 else []), cut]:
        columns |= scalar_columns(each.get("custom") or {})
        columns |= scalar_columns({name: each[name] for name in _SUPERVISION if name in each})
    return columns


def _first_name(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if record.get(name) not in (None, "")), None)


def _seconds(record: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    name = _first_name(record, names)
    if name is None:
        return None
    value = record[name]
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
    # Common Voice's tables name the files of that folder
    in_clips = os.path.normpath(os.path.join(folder, "clips", path))
    return next((each for each in (beside, in_clips, os.path.abspath(path)) if os.path.exists(each)), beside)
