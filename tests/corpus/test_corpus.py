"""Sources and their clips, as read in this process."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from encodec_fast.audio import MAX_CLIP_BYTES, AudioError, audio_info, read_audio
from encodec_fast.audio.ffmpeg import FfmpegFile, ffmpeg_program
from encodec_fast.corpus import sources, tables
from encodec_fast.corpus.manifests import ManifestError
from encodec_fast.corpus.reader import Reader, UnreadableClip
from encodec_fast.corpus.scanning import scan
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tables import TableError
from encodec_fast.corpus.tasks import Clip, Task, read_task
from support.corpora import RATE, THREE, by_processes, put_clip, put_table, put_three, samples_of
from support.encoded_files import encoded, lively
from support.models import audio_like


@pytest.fixture
def folder(tmp_path):
    return put_three(tmp_path / "audio")


def read_all(sources, **options):
    """{id: samples or the reason} of the sources."""
    with Reader(RATE, 1, workers=0, **options) as reader:
        return {
            clip.task.id: clip.reason if isinstance(clip, UnreadableClip) else clip.samples
            for clip in reader.read(scan_seconds(find_tasks(sources)))
        }


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# Manifests


@pytest.mark.parametrize("name", ["m.tsv", "m.csv", "m.jsonl", "m.json", "m.jsonl.gz"])
def test_a_manifest_names_clips_relative_to_itself(folder, name):
    rows = [{"path": "a.wav", "start": 0.25, "duration": 0.5}, {"path": "b.wav", "start": 0, "duration": ""}]
    if ".json" in name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = "\n".join(("\t" if "tsv" in name else ",").join(map(str, row)) for row in [rows[0], *(row.values() for row in rows)])
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    clips = read_all([folder / name])
    assert list(clips) == ["a.wav#0.25+0.5", "b.wav"]
    assert np.array_equal(clips["a.wav#0.25+0.5"], samples_of(folder, "a")[:, 600:1800])
    assert np.array_equal(clips["b.wav"], samples_of(folder, "b"))


def test_nemo_s_manifests_are_read(folder):
    path = lines(
        folder / "nemo.json",
        [{"audio_filepath": "a.wav", "duration": 1.0, "text": "é"}, {"audio_filepath": "b.wav", "offset": 1.0, "duration": 0.5}],
    )
    clips = read_all([path])
    assert np.array_equal(clips["a.wav"], samples_of(folder, "a"))
    assert np.array_equal(clips["b.wav#1+0.5"], samples_of(folder, "b")[:, 2400:3600])


@pytest.mark.parametrize("name", ["m.tsv", "m.jsonl"])
def test_the_end_of_a_part_is_heeded(folder, name):
    rows = [("path", "start", "end", "duration"), ("a.wav", 0.25, 0.75, ""), ("b.wav", "", 0.5, ""), ("c.wav", 0.05, 0.1, 0.05)]
    if name == "m.tsv":
        (folder / name).write_text("\n".join("\t".join(map(str, row)) for row in rows))
    else:
        lines(folder / name, [{key: value for key, value in zip(rows[0], row) if value != ""} for row in rows[1:]])
    clips = read_all([folder / name])
    assert np.array_equal(clips["a.wav#0.25+0.5"], samples_of(folder, "a")[:, 600:1800])
    assert np.array_equal(clips["b.wav"], samples_of(folder, "b")[:, :1200])
    assert np.array_equal(clips["c.wav#0.05+0.05"], samples_of(folder, "c")[:, 120:240])


@pytest.mark.parametrize("selector", [1, [1], "1"])
def test_nemo_s_channel_selector_takes_that_channel(tmp_path, selector):
    stereo = audio_like(1, 2, 1000, 0)[0].numpy()
    soundfile.write(tmp_path / "s.wav", stereo.T, RATE, subtype="FLOAT")
    records = [{"audio_filepath": "s.wav", "id": "one", "channel_selector": selector}]
    records += [{"audio_filepath": "s.wav", "id": "all", "channel_selector": "average"}]
    clips = read_all([lines(tmp_path / "nemo.json", records)])
    assert np.array_equal(clips["one"], stereo[1:])
    np.testing.assert_allclose(clips["all"], stereo.mean(0, keepdims=True), rtol=0, atol=1e-7)


def test_kaldi_s_files_are_clips_and_its_segments_where_there_are_some(folder):
    table = folder / "wav.scp"
    table.write_text(f"one a.wav\ntwo  {folder / 'b.wav'}\nthree sox c.wav -t wav - |\n")
    clips = read_all([table])
    assert np.array_equal(clips["one"], samples_of(folder, "a")) and np.array_equal(clips["two"], samples_of(folder, "b"))
    assert clips["wav.scp:3"].startswith("line 3 of the manifest: a command, which is not run")
    (folder / "segments").write_text("first one 0.25 0.75\nsecond two 1 1.5 0\nthird nobody 0 1\nfourth three 0 1\nfifth one\n")
    clips = read_all([table])
    assert np.array_equal(clips["first"], samples_of(folder, "a")[:, 600:1800])
    assert np.array_equal(clips["second"], samples_of(folder, "b")[:, 2400:3600])
    assert "of 'nobody', which wav.scp lacks" in clips["wav.scp:3"] and "a command" in clips["wav.scp:4"]
    assert "2 fields of a segment" in clips["wav.scp:5"] and len(clips) == 5


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_audiofolder_s_metadata_names_its_files(folder, name):
    (folder / "train").mkdir()
    shutil.move(folder / "a.wav", folder / "train" / "a.wav")
    record = {"file_name": "train/a.wav", "transcription": "yes"}
    text = json.dumps(record) if name.endswith("jsonl") else "\n".join([",".join(record), ",".join(record.values())])
    (folder / name).write_text(text + "\n")
    assert list(read_all([folder / name])) == ["train/a.wav"]


def test_a_table_of_common_voice_names_files_in_its_clips(folder):
    (folder / "clips").mkdir()
    shutil.move(folder / "a.wav", folder / "clips" / "a.wav")
    (folder / "validated.tsv").write_text('client_id\tpath\tsentence\tup_votes\nx\ta.wav\tIt is "quoted.\t2\n')
    (clip,) = read_all([folder / "validated.tsv"]).values()
    assert clip.shape == (1, THREE["a"])


@pytest.mark.parametrize("gz", [False, True])
def test_lhotse_s_own_cuts_and_recordings_are_read(folder, gz):
    lhotse = pytest.importorskip("lhotse")
    recordings = lhotse.RecordingSet.from_recordings(lhotse.Recording.from_file(folder / f"{name}.wav") for name in THREE)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings).to_eager()
    suffix = ".jsonl.gz" if gz else ".jsonl"
    recordings.to_file(folder / f"recordings{suffix}")
    cuts.truncate(max_duration=0.1, offset_type="start", preserve_id=True).to_file(folder / f"cuts{suffix}")
    whole, cut = read_all([folder / f"recordings{suffix}"]), read_all([folder / f"cuts{suffix}"])
    assert sorted(whole) == ["a", "b", "c"] and len(cut) == 3
    for name in THREE:
        assert np.array_equal(whole[name], samples_of(folder, name))
    assert {clip.shape[1] for clip in cut.values()} == {240}


def test_a_cut_of_one_channel_takes_that_channel(tmp_path):
    stereo = audio_like(1, 2, 1000, 0)[0].numpy()
    soundfile.write(tmp_path / "s.wav", stereo.T, RATE, subtype="FLOAT")
    recording = {"id": "s", "sources": [{"type": "file", "channels": [0, 1], "source": "s.wav"}], "duration": 1000 / RATE}
    path = lines(tmp_path / "cuts.jsonl", [{"id": "right", "start": 0, "duration": 0.1, "channel": 1, "recording": recording}])
    assert np.array_equal(read_all([path])["right"], stereo[1:, :240])


BAD_LINES = {
    '{"text": "no path"}': "line 1 of the manifest: no path; one of path, audio_filepath",
    "{nonsense": "no JSON",
    "[1]": "no JSON object",
    '{"path": "a.wav", "start": -1}': "start is -1; seconds are needed",
    '{"path": "a.wav", "duration": "long"}': "duration is 'long'",
    '{"path": "gone.wav"}': "can't be opened",
    '{"path": "a.wav", "start": 7}': "the file ends before 7 s",
    '{"path": "a.wav", "duration": 9}': "the file ends 8.00 s before the part",
    '{"path": "a.wav", "start": 0.5, "end": 0.5}': "end is 0.5, and start is 0.5",
    '{"path": "a.wav", "start": 0.5, "end": 0.9, "duration": 1.0}': "start 0.5 and duration 1 contradict end 0.9",
    '{"path": "a.wav", "channel_selector": [0, 1]}': "channel_selector is [0, 1]; one channel",
    '{"path": "a.wav", "channel_selector": 7}': "channel",
    '{"id": "x", "recording": {"sources": [{"type": "file", "source": "a.wav"}], "transforms": [{"name": "Speed"}]}}': "['Speed']",
    '{"id": "x", "sources": [{"type": "file", "source": "a.wav"}], "transforms": [{"name": "Volume"}]}': "['Volume']",
    '{"id": "x", "tracks": []}': "MixedCut",
    '{"id": "x", "sources": [{"type": "command", "source": "rm"}]}': "sources of type ['command']",
}


@pytest.mark.parametrize("line, reason", BAD_LINES.items())
def test_a_bad_line_of_a_manifest_costs_itself_only(folder, line, reason):
    (folder / "m.jsonl").write_text(line + "\n\n" + '{"path": "b.wav"}\n')
    clips = read_all([folder / "m.jsonl"])
    assert reason in next(value for value in clips.values() if isinstance(value, str))
    assert np.array_equal(clips["b.wav"], samples_of(folder, "b"))


def test_a_table_without_a_path_column_is_named(folder):
    (folder / "m.tsv").write_text("text\tspeaker\nhello\t1\n")
    with pytest.raises(ManifestError, match=r"m.tsv: its first line names no column path, .*\['text', 'speaker'\]"):
        find_tasks([folder / "m.tsv"])
    (folder / "m.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not a manifest"):
        find_tasks([folder / "m.jsonl"])


def test_clips_of_one_name_are_told_apart(folder):
    path = lines(folder / "m.jsonl", [{"id": "x", "path": "a.wav"}, {"id": "x", "path": "b.wav"}, {"path": "c.wav"}, {"path": "c.wav"}])
    clips = read_all([path])
    assert sorted(clips) == ["c.wav", "c.wav~2", "x", "x~2"]
    assert {clip.shape[1] for clip in clips.values()} == set(THREE.values())


# Archives and tables


def put_tar(path, folder, names=tuple(THREE)):
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / f"{name}.wav", f"{name}.wav")
            text = tarfile.TarInfo(f"{name}.txt")
            text.size = 5
            tar.addfile(text, io.BytesIO(b"words"))
    return path


def test_the_members_of_a_tar_are_clips(folder, tmp_path):
    put_tar(tmp_path / "shard-000.tar", folder)
    clips = read_all([tmp_path / "shard-000.tar"])
    assert list(clips) == [f"shard-000.tar/{name}.wav" for name in THREE]
    for name, clip in zip(THREE, clips.values()):
        assert np.array_equal(clip, samples_of(folder, name))


def test_a_damaged_tar_gives_what_stands_before_the_damage_and_its_reason(folder, tmp_path):
    path = put_tar(tmp_path / "x.tar", folder)
    path.write_bytes(path.read_bytes()[:13_000])
    clips = read_all([path])
    assert np.array_equal(clips["x.tar/a.wav"], samples_of(folder, "a"))
    assert [reason for reason in clips.values() if isinstance(reason, str)] and len(clips) <= 3


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_the_rows_of_a_table_are_clips(folder, tmp_path, suffix):
    path = put_table(tmp_path / f"t{suffix}", folder, text=["x", "y", "z"])
    clips = read_all([path])
    assert list(clips) == [f"t{suffix}#{row}" for row in range(3)]
    for name, clip in zip(THREE, clips.values()):
        assert np.array_equal(clip, samples_of(folder, name))


def test_a_table_may_name_its_clips_their_length_and_the_files(folder, tmp_path):
    cells = [{"bytes": None, "path": "audio/a.wav"}, {"bytes": None, "path": "audio/gone.wav"}, None]
    pq.write_table(pa.table({"sound": cells, "id": ["x", "y", "z"], "duration": [1.0, 1.0, 1.0]}), tmp_path / "t.parquet")
    tasks = scan_seconds(find_tasks([tmp_path / "t.parquet"], "sound"), "sound")
    assert [(task.id, task.seconds) for task in tasks] == [("x", 1.0), ("y", 1.0), ("z", 1.0)]
    with Reader(RATE, 1, workers=1, audio_column="sound") as reader:
        clips = list(reader.read(tasks))
    assert np.array_equal(clips[0].samples, samples_of(folder, "a"))
    assert "gone.wav" in clips[1].reason or "can't be opened" in clips[1].reason
    assert "row 2 holds no audio" in clips[2].reason


def test_a_datasets_audio_column_is_read_as_saved(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = [str(folder / f"{name}.wav") for name in THREE]
    features = datasets.Features({"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    rows = {"audio": [{"bytes": open(path, "rb").read(), "path": path} for path in paths]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    clips = read_all([tmp_path / "saved"])
    assert [clip.shape[1] for clip in clips.values()] == list(THREE.values())


def test_a_table_without_the_column_is_named_with_those_it_has(folder, tmp_path):
    path = put_table(tmp_path / "t.parquet", folder, column="sound")
    with pytest.raises(TableError, match=r"no column 'audio' among sound; name it with --audio-column"):
        find_tasks([path])


def test_tables_of_labels_beside_audio_are_no_sources(folder):
    pq.write_table(pa.table({"label": [1]}), folder / "labels.parquet")
    assert [task.id for task in find_tasks([folder])] == ["a.wav", "b.wav", "c.wav"]


def counting_groups(monkeypatch):
    """The row groups that are read in this process from now on."""
    read, groups = tables._Table.read, []
    monkeypatch.setattr(tables._Table, "read", lambda self, group, columns: groups.append(group) or read(self, group, columns))
    return groups


def test_rows_read_in_their_groups_cost_one_reading_each(folder, tmp_path, monkeypatch):
    tasks = find_tasks([put_table(tmp_path / "t.parquet", folder, names=("a", "b", "c", "a", "b", "c"))])
    groups = counting_groups(monkeypatch)
    with Reader(RATE, 1, workers=0) as reader:
        assert len([clip for clip in reader.read(tasks) if isinstance(clip, Clip)]) == 6
    assert groups == [0, 1, 2] and [task.group for task in tasks] == [0, 0, 1, 1, 2, 2]


def test_lengths_are_found_group_by_group_whatever_the_ids(folder, tmp_path, monkeypatch):
    # ids in an order that has a row's neighbours far away
    names, ids = [*THREE, "a"] * 20, [f"{37 * row % 80:02d}" for row in range(80)]
    tasks = find_tasks([put_table(tmp_path / "t.parquet", folder, names=names, group_rows=16, id=ids)])
    (part,) = sources._parts(range(80), tasks)
    groups = counting_groups(monkeypatch)
    scanned = list(scan([tasks[index] for index in part], tables.TableReader("audio"), MAX_CLIP_BYTES))
    # 5 row groups; more only where a thread lags behind the others, as many as rows in the order of the ids
    assert set(groups) == set(range(5)) and len(groups) < 15
    assert [task.id for task in scan_seconds(tasks)] == sorted(ids)
    assert all(task.seconds == THREE[names[task.row]] / RATE for task in scanned)
    assert {task.id: task for task in scanned} == {task.id: task for task in scan_seconds(tasks)}


# URLs


@pytest.fixture
def bucket(folder, tmp_path):
    """The folder behind a URL."""
    pytest.importorskip("fsspec")
    shutil.copytree(folder, tmp_path / "bucket" / "audio")
    return f"file://{tmp_path}/bucket"


@pytest.mark.parametrize("source", ["audio", "audio/*.wav", "audio/a.wav"])
def test_a_url_is_searched_like_a_folder(folder, bucket, source):
    clips = read_all([f"{bucket}/{source}"])
    assert list(clips) == (["a.wav"] if source.endswith("a.wav") else ["a.wav", "b.wav", "c.wav"])
    for id, clip in clips.items():
        assert np.array_equal(clip, samples_of(folder, id[0]))


def test_manifests_tars_and_tables_behind_a_url_are_read(folder, bucket, tmp_path):
    (tmp_path / "bucket" / "m.jsonl").write_text('{"path": "audio/a.wav"}\n')
    put_tar(tmp_path / "bucket" / "x.tar", folder)
    put_table(tmp_path / "bucket" / "t.parquet", folder)
    clips = read_all([f"{bucket}/m.jsonl", f"{bucket}/x.tar", f"{bucket}/t.parquet"])
    assert sorted(clips) == ["audio/a.wav", *(f"t.parquet#{row}" for row in range(3)), *(f"x.tar/{name}.wav" for name in THREE)]
    assert not [clip for clip in clips.values() if isinstance(clip, str)]


def test_a_local_url_is_read_by_processes(folder):
    with Reader(RATE, 1, workers=1) as reader:
        clips = list(reader.read(find_tasks([f"file://{folder}"])))
    assert [clip.samples.shape[1] for clip in clips] == list(THREE.values())


def test_a_url_that_is_not_there_and_a_protocol_that_is_not_installed_are_named():
    pytest.importorskip("fsspec")
    with pytest.raises(FileNotFoundError, match=r"memory://nowhere: no such file or folder"):
        find_tasks(["memory://nowhere"])
    with pytest.raises(ValueError, match="foo"):
        find_tasks(["foo://bucket"])


# Bad input


def put_float(path, samples, **options):
    soundfile.write(str(path), samples, RATE, **options)


BAD = {
    "empty.wav": (lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    "no-samples.wav": (lambda path: put_float(path, np.zeros(0)), "holds no samples"),
    "text.wav": (lambda path: path.write_text("words"), "not audio that libsndfile can read"),
    "nan.wav": (lambda path: put_float(path, np.full(100, np.nan), subtype="FLOAT"), "100 samples are NaN or infinite"),
    "cut.wav": (lambda path: path.write_bytes(put_clip(path, 4000).read_bytes()[:2000]), "cut short"),
    "cut.flac": (lambda path: path.write_bytes(put_clip(path, 9000, subtype="PCM_16").read_bytes()[:3000]), "cut short"),
    "folder.wav": (lambda path: path.mkdir(), None),
    "link.wav": (lambda path: path.symlink_to("nowhere.wav"), "can't be opened"),
}
GOOD = {
    "8bit.wav": lambda path: put_float(path, audio_like(1, 1, 900, 0)[0, 0], subtype="PCM_U8"),
    "24bit.wav": lambda path: put_float(path, audio_like(1, 1, 900, 0)[0, 0], subtype="PCM_24"),
    "float64.wav": lambda path: put_float(path, audio_like(1, 1, 900, 0)[0, 0].double(), subtype="DOUBLE"),
    "96khz.wav": lambda path: soundfile.write(str(path), audio_like(1, 1, 36_000, 0)[0, 0], 96_000),
    "6channels.wav": lambda path: put_float(path, audio_like(1, 6, 900, 0)[0].T),
    "wrong-extension.mp3": lambda path: put_float(path, audio_like(1, 1, 900, 0)[0, 0], format="FLAC"),
    "ünï¢ødé 🎵.wav": lambda path: put_clip(path, 900),
    "x" * 245 + ".wav": lambda path: put_clip(path, 900),
    "one.sample.wav": lambda path: put_float(path, np.zeros(1)),
}


def test_bad_input_is_named_with_its_reason_and_odd_input_is_read(tmp_path):
    for name, make in {**{name: make for name, (make, _) in BAD.items()}, **GOOD}.items():
        make(tmp_path / name)
    # a name of 300 characters needs folders: no file system takes it at once
    deep = tmp_path / ("d" * 150) / ("e" * 150)
    put_clip(deep / "a.wav", 900)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    clips = read_all([tmp_path])
    for name, (_, reason) in BAD.items():
        assert (name not in clips) if reason is None else (isinstance(clips[name], str) and reason in clips[name]), (name, clips.get(name))
    for name in GOOD:
        assert isinstance(clips[name], np.ndarray) and clips[name].shape == (1, 1 if "sample" in name else 900), (name, clips[name])
    assert clips[f"{'d' * 150}/{'e' * 150}/a.wav"].shape == (1, 900)
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_that_vanishes_after_the_search_is_reported_clip_by_clip(folder):
    tasks = scan_seconds(find_tasks([folder]))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with by_processes() as reader:
        assert ["can't be opened (No such file" in clip.reason for clip in reader.read(tasks)] == [True] * 3


def test_a_folder_that_can_not_be_listed_is_reported_and_the_rest_is_found(folder, monkeypatch):
    (folder / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    clips = read_all([folder])
    assert len(clips) == 4 and "a folder that can't be listed" in clips["closed"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
def test_a_file_nobody_may_read_is_reported(folder, monkeypatch):
    if os.geteuid() == 0:  # who may read everything
        monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("a.wav"))
    (folder / "a.wav").chmod(0)
    clips = read_all([folder])
    assert "no permission to read it" in clips["a.wav"] and clips["b.wav"].shape == (1, 4801)


# ffmpeg


@pytest.fixture
def aac(folder):
    program = ffmpeg_program()
    if program is None:
        pytest.skip("ffmpeg is not installed")
    path = folder / "speech.m4a"
    subprocess.run([program, "-v", "error", "-i", folder / "b.wav", "-ar", "24000", path], check=True)
    return path


def test_what_libsndfile_does_not_read_is_read_by_ffmpeg_also_from_bytes_and_in_blocks(folder, aac):
    (task,) = scan_seconds(find_tasks([aac]))
    assert task.seconds == pytest.approx(4801 / RATE, abs=0.05)
    clip = read_task(task, RATE, 1)
    truth = samples_of(folder, "b")
    length = min(clip.num_samples, truth.shape[1])
    assert abs(clip.num_samples - truth.shape[1]) < 0.05 * RATE
    assert np.corrcoef(clip.samples[0, :length], truth[0, :length])[0, 1] > 0.9
    assert np.array_equal(read_audio(aac.read_bytes(), RATE, 1)[0], clip.samples)
    part, _ = read_audio(aac, 24_000, 1, start=0.5, duration=0.25)
    assert np.array_equal(part, read_audio(aac, 24_000, 1)[0][:, 12_000:18_000])
    with Reader(RATE, 1, workers=0, long_seconds=0.5, block_seconds=0.3) as reader:
        (long,) = reader.read([task])
        assert np.array_equal(np.concatenate(list(long), 1), clip.samples)


def test_a_clip_whose_header_has_no_length_is_measured(folder, aac):
    # what goes to a pipe can't be gone back to, to fill in the length
    to_pipe = [ffmpeg_program(), "-v", "error", "-i", folder / "b.wav", "-ar", "24000", "-c:a", "libopus", "-f", "webm", "pipe:1"]
    path = folder / "recorded.webm"
    path.write_bytes(subprocess.run(to_pipe, check=True, stdout=subprocess.PIPE).stdout)
    assert audio_info(path).duration == 0.0
    tasks = [Task("whole", str(path)), Task("part", str(path), start=0.5, duration=0.25), Task("rest", str(path), start=1.5)]
    seconds = {task.id: task.seconds for task in scan_seconds(tasks)}
    # Opus has no other rate
    samples, _ = read_audio(path, 48_000, 1)
    assert seconds["whole"] == samples.shape[1] / 48_000 == pytest.approx(4801 / RATE, abs=0.05)
    assert seconds["part"] == 0.25 and seconds["rest"] == pytest.approx(seconds["whole"] - 1.5)


def test_damage_is_ffmpeg_s_reason_and_without_ffmpeg_that_is_the_reason(aac, monkeypatch):
    (aac.parent / "bad.m4a").write_bytes(aac.read_bytes()[:600])
    with pytest.raises(AudioError, match=r"not audio that libsndfile can read .*, nor ffmpeg"):
        read_audio(aac.parent / "bad.m4a", RATE, 1)
    monkeypatch.setattr("encodec_fast.audio.reading.ffmpeg_program", lambda: None)
    with pytest.raises(AudioError, match="ffmpeg, which may read it, is not installed"):
        read_audio(aac, RATE, 1)


@pytest.mark.skipif(os.name != "posix", reason="starts a script")
def test_an_ffmpeg_that_says_more_than_a_pipe_holds_is_read_to_its_end(tmp_path):
    program = tmp_path / "ffmpeg"
    # the alarm: where nobody reads what it says, it ends by a signal, and not never
    program.write_text(
        f"#!{sys.executable}\n"
        "import signal, struct, sys\n"
        "signal.alarm(20)\n"
        "sys.stderr.write('Duration: 00:00:01.00\\n' + 'a chapter\\n' * 20_000)\n"
        "sys.stdout.buffer.write(struct.pack('>4sIIIII', b'.snd', 24, 0xFFFFFFFF, 6, 2400, 1) + bytes(4 * 2400))\n"
    )
    program.chmod(0o755)
    (block,) = FfmpegFile(str(program), "x.m4a").blocks(10_000)
    assert block.shape == (2400, 1)


def test_reading_loads_no_torch():
    script = "import sys, encodec_fast.corpus.worker, encodec_fast.corpus.sources; print({'torch', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"


# Names


SUFFIXES = ".mkv .mov .m4b .mp2 .ac3 .eac3 .wv .tta .voc .avi .flv .mpg .wmv .asf .dts .ogv .sph .avr .paf .pvf .8svx .snd".split()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_gives_what_libsndfile_and_ffmpeg_read(tmp_path, suffix):
    path, samples = tmp_path / f"a{suffix}", lively(1.0, 44_100)
    kinds = {".sph": "NIST", ".avr": "AVR", ".paf": "PAF", ".pvf": "PVF", ".8svx": "SVX", ".snd": "AU"}
    if suffix in kinds:
        soundfile.write(path, samples, 44_100, format=kinds[suffix], subtype="PCM_16")
    else:
        encoded(path, samples, 44_100, "-strict", "-2")
    (task,) = find_tasks([tmp_path])
    clip = read_task(task, 24_000, 1)
    assert 0.9 < clip.num_samples / 24_000 < 1.1 and np.abs(clip.samples).max() > 0.2


def test_what_a_folder_leaves_out_is_counted_by_suffix(folder):
    for name in ("notes.txt", "more.TXT", "labels.json", ".hidden.txt", "README"):
        (folder / name).write_text("")
    left_out = Counter()
    assert len(find_tasks([folder], left_out=left_out)) == 3
    assert left_out == {".txt": 2, ".json": 1, "": 1}
