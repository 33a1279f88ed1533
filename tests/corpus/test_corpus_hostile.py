"""Hostile sources: a bad line is its own failure, and no line opens what it should not."""

import gzip
import json
import os
import struct
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encodec_fast.audio import files
from encodec_fast.corpus.manifests import ManifestError
from encodec_fast.corpus.reader import Reader, UnreadableClip
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tasks import Task
from support.corpora import RATE, put_three


@pytest.fixture
def folder(tmp_path):
    return put_three(tmp_path / "audio")


def read_all(path):
    """{id: clip} of a manifest."""
    with Reader(RATE, 1, workers=0) as reader:
        return {clip.task.id: clip for clip in reader.read(scan_seconds(find_tasks([path])))}


CHAIN = "reference://x.wav::data:application/json;base64,e30="
URLS = [CHAIN, "reference://x.wav", "simplecache::file:///etc/passwd", "github://a:b@c/x.wav", "data://x", "FILE:///x.wav", "a/b://c.wav"]


@pytest.mark.parametrize("url", URLS)
def test_a_manifest_opens_plain_urls_of_known_protocols_only(folder, url, monkeypatch):
    fsspec = pytest.importorskip("fsspec.core")
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: pytest.fail(f"{url} was opened"))
    (folder / "m.jsonl").write_text(json.dumps({"path": url}) + "\n" + json.dumps({"path": "b.wav"}) + "\n")
    clips = read_all(folder / "m.jsonl")
    assert len(clips) == 2 and sum(isinstance(clip, UnreadableClip) for clip in clips.values()) == 1


def test_a_reading_process_refuses_such_a_url_too_and_the_reason_names_the_option(folder):
    pytest.importorskip("fsspec")
    with Reader(RATE, 1, workers=1) as reader:
        (clip,) = reader.read([Task("x", "github://x/y.wav")])
    assert "--allow-protocol github" in clip.reason


def test_a_protocol_that_is_allowed_is_opened_by_the_reading_processes(folder, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setattr(files, "_added", set())
    with Reader(RATE, 1, workers=1, protocols=("foo",)) as reader:
        (clip,) = reader.read([Task("x", "foo://x/y.wav")])
    assert "--allow-protocol" not in clip.reason and "foo" in clip.reason


LINES = [
    *(json.dumps({"path": "a.wav", "id": value}) for value in ({}, [1], True, "\0", "\ud800")),
    *(json.dumps({"path": value}) for value in ({}, [1], True, "a\0.wav", "\udfff.wav")),
    *('{"path": "a.wav", "duration": ' + value + "}" for value in ('"abc"', "NaN", "-1", "1e400", "true", "[]", "1" * 400, "1" * 5000)),
    *('{"path": "a.wav", "duration": ' + value + "}" for value in ("1e300", "1e15", "9.3e18", "5e-324")),
    *('{"path": "a.wav", "offset": ' + value + "}" for value in ('"abc"', "{}", "true", "1e300", "1e15", "9.3e18")),
    *('{"id": "x", "sources": ' + value + "}" for value in ("5", "[5]", "[]", '[{"type": "file"}]', '"x"')),
    *('{"recording": ' + value + "}" for value in ("5", "[]", '"x"', '{"sources": [{"type": "file", "channels": 5, "source": "a.wav"}]}')),
    "[" * 100_000,
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_hostile_line_is_one_failure(folder, line):
    (folder / "m.jsonl").write_text(line + "\n" + json.dumps({"path": "b.wav"}) + "\n")
    clips = read_all(folder / "m.jsonl")
    assert len(clips) == 2 and [id for id, clip in clips.items() if not isinstance(clip, UnreadableClip)] == ["b.wav"]


@pytest.mark.parametrize("channel", [-1, True, 1.5, "0", [-1], {}, 1 << 40])
def test_a_channel_that_is_none_is_a_bad_line(folder, channel):
    recording = {"id": "a", "sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}]}
    line = {"id": "x", "start": 0, "duration": 0.1, "channel": channel, "recording": recording}
    (folder / "m.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({"path": "b.wav"}) + "\n")
    clips = read_all(folder / "m.jsonl")
    assert "channel is no number of a channel" in clips["m.jsonl:1"].reason and "b.wav" in clips


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_a_pipe_among_archives_and_tables_is_a_failure(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (task,) = find_tasks([tmp_path])
    assert "not a regular file" in task.problem


def test_bytes_that_are_no_text_cost_their_own_line(folder):
    (folder / "m.jsonl").write_bytes(b'{"path": "a.wav"}\n{"path": "\xff\xfe.wav"}\n{"path": "b.wav"}\n')
    (folder / "m.csv").write_bytes(b"path,text\na.wav,x\n\xff\xfe.wav,y\nb.wav,z\n")
    for name in ("m.jsonl", "m.csv"):
        tasks = find_tasks([folder / name])
        assert sorted(task.id for task in tasks if task.problem is None) == ["a.wav", "b.wav"]
        assert [task.problem for task in tasks if task.problem] and len(tasks) == 3


def test_a_compressed_manifest_that_is_cut_keeps_what_stands_before_and_says_so(folder):
    lines = "".join(json.dumps({"id": f"{index:05d}", "path": "a.wav", "text": str(index * 7919)}) + "\n" for index in range(3000))
    data = gzip.compress(lines.encode())
    for size in (len(data) // 2, len(data) - 3):
        (folder / "m.jsonl.gz").write_bytes(data[:size])
        tasks = find_tasks([folder / "m.jsonl.gz"])
        bad = [task for task in tasks if task.problem]
        assert len(tasks) > 1000 and len(bad) == 1 and "can't be read behind line" in bad[0].problem
    (folder / "m.jsonl.gz").write_bytes(data[:30])
    with pytest.raises(ManifestError, match="not a manifest"):
        find_tasks([folder / "m.jsonl.gz"])


def test_a_field_longer_than_any_costs_its_own_row(folder):
    (folder / "m.csv").write_text("path,text\na.wav,x\nb.wav," + "y" * 200_000 + "\nc.wav,z\n")
    tasks = find_tasks([folder / "m.csv"])
    assert {task.id for task in tasks if task.problem is None} == {"a.wav", "c.wav"} and len(tasks) == 3


def test_one_bad_manifest_or_table_of_many_is_one_failure(folder):
    (folder / "good.jsonl").write_text('{"path": "a.wav"}\n')
    (folder / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    tasks = find_tasks([str(folder / "*.jsonl")])
    assert [task.id for task in tasks if task.problem is None] == ["a.wav"] and len(tasks) == 2
    (folder / "t.parquet").write_bytes(b"PAR1 and nothing")
    tasks = find_tasks([folder])
    assert {task.id for task in tasks if task.problem} == {"t.parquet"} and len(tasks) == 4


BAD_DURATIONS = ["abc", "-1", "nan", "1e400"]


def test_a_row_of_a_table_with_no_duration_that_is_one_costs_itself(folder):
    sound = (folder / "a.wav").read_bytes()
    durations = ["1.0", *BAD_DURATIONS, None]
    pq.write_table(pa.table({"audio": [sound] * len(durations), "duration": durations}), folder / "t.parquet")
    tasks = find_tasks([folder / "t.parquet"])
    assert [task.problem is None for task in tasks] == [True, *[False] * len(BAD_DURATIONS), True]
    assert all("duration is" in task.problem or "float" in task.problem for task in tasks if task.problem)


@pytest.mark.parametrize("cell", [{"bytes": None, "path": 5}, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_a_cell_without_audio_is_one_failure(folder, cell):
    sound = {"bytes": (folder / "a.wav").read_bytes(), "path": None}
    kind = pa.int64() if cell["path"] == 5 else pa.string()
    column = pa.array([sound, cell, sound], pa.struct([("bytes", pa.binary()), ("path", kind)]))
    pq.write_table(pa.table({"audio": column}), folder / "t.parquet")
    clips = read_all(folder / "t.parquet")
    assert sum(isinstance(clip, UnreadableClip) for clip in clips.values()) == 1 and len(clips) == 3


def lying_arrow(folder):
    """An Arrow stream of three rows whose second offset points far behind the file."""
    sound = (folder / "a.wav").read_bytes()
    table = pa.table({"audio": pa.array([sound] * 3, pa.binary())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data, offsets = bytearray(sink.getvalue().to_pybytes()), struct.pack("<4i", 0, len(sound), 2 * len(sound), 3 * len(sound))
    place = bytes(data).index(offsets)
    data[place + 8 : place + 12] = struct.pack("<i", 0x7F000000)
    (folder / "lying.arrow").write_bytes(data)


def test_an_arrow_file_whose_offsets_lie_is_failures_and_not_the_end_of_the_process(folder):
    lying_arrow(folder)
    script = (
        "import sys\n"
        "from encodec_fast.corpus.sources import find_tasks, scan_seconds\n"
        "tasks = scan_seconds(find_tasks(sys.argv[1:]))\n"
        "print(sum(task.problem is None for task in tasks), len(tasks))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3 6\n"), done.stderr
