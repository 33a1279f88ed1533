"""Hostile sources: a bad line is its own failure, and no line opens what it should not."""

import json
import os

import pytest

from corpora import RATE, put_three
from encodec_fast.audio import files
from encodec_fast.corpus.reader import Reader, UnreadableClip
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tasks import Task


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
    *('{"path": "a.wav", "offset": ' + value + "}" for value in ('"abc"', "{}", "true")),
    *('{"id": "x", "sources": ' + value + "}" for value in ("5", "[5]", "[]", '[{"type": "file"}]', '"x"')),
    *('{"recording": ' + value + "}" for value in ("5", "[]", '"x"', '{"sources": [{"type": "file", "channels": 5, "source": "a.wav"}]}')),
    "[" * 100_000,
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_hostile_line_is_one_failure(folder, line):
    (folder / "m.jsonl").write_text(line + "\n" + json.dumps({"path": "b.wav"}) + "\n")
    clips = read_all(folder / "m.jsonl")
    assert [isinstance(clip, UnreadableClip) for _, clip in sorted(clips.items())] == [False, True]


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
