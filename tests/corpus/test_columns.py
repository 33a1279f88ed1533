"""What manifests and tables say of a clip goes with it."""

import datetime
import json

import pyarrow as pa
import pytest

from encodec_fast.corpus.columns import Untyped
from encodec_fast.corpus.sources import find_tasks
from encodec_fast.corpus.tables import TableError
from support.corpora import put_table, put_three


@pytest.fixture
def folder(tmp_path):
    return put_three(tmp_path / "audio")


def columns(*sources, **options):
    """{id: columns} of the clips of the sources."""
    return {task.id: dict(task.columns) for task in find_tasks([str(source) for source in sources], **options)}


def write(path, text):
    path.write_text(text)
    return path


def test_a_manifest_s_other_columns_go_with_its_clips(folder):
    table = write(folder / "m.csv", "id,path,start,duration,text,speaker\none,a.wav,0.25,0.5,yes,7\ntwo,b.wav,,,,007\n")
    assert columns(table) == {
        "one": {"start": "0.25", "text": "yes", "speaker": "7"},
        "two": {"start": None, "text": None, "speaker": "007"},
    }
    assert isinstance(columns(table)["one"]["speaker"], Untyped)
    records = [
        {"audio_filepath": "a.wav", "text": "é", "age": 3, "snr": 1.5, "good": True, "words": ["a"], "extra": {"b": 1}, "note": None}
    ]
    lines = write(folder / "m.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    assert columns(lines) == {"a.wav": {"text": "é", "age": 3, "snr": 1.5, "good": True, "note": None}}


def test_a_table_that_pandas_wrote_with_its_index_is_read(folder):
    assert columns(write(folder / "m.csv", ",path,text\n0,a.wav,yes\n1,b.wav,no\n")) == {"a.wav": {"text": "yes"}, "b.wav": {"text": "no"}}


def test_common_voice_and_audiofolder_keep_their_columns(folder):
    voices = write(folder / "validated.tsv", 'client_id\tpath\tsentence\tup_votes\nx\ta.wav\tIt is "quoted.\t2\n')
    assert columns(voices) == {"a.wav": {"client_id": "x", "sentence": 'It is "quoted.', "up_votes": "2"}}
    metadata = write(folder / "metadata.jsonl", json.dumps({"file_name": "a.wav", "transcription": "yes"}) + "\n")
    assert columns(metadata) == {"a.wav": {"transcription": "yes"}}


def test_kaldi_s_text_and_speakers_are_columns(folder):
    table = write(folder / "wav.scp", "one a.wav\ntwo b.wav\n")
    write(folder / "text", "one what is  said\ntwo\nother x\n")
    write(folder / "utt2spk", "one 0012\n")
    assert columns(table) == {"one": {"text": "what is  said", "speaker": "0012"}, "two": {"text": ""}}
    write(folder / "segments", "one two 0.25 0.5\n")
    assert columns(table) == {"one": {"start": "0.25", "end": "0.5", "text": "what is  said", "speaker": "0012"}}


@pytest.mark.parametrize("supervisions", [1, 2])
def test_a_lhotse_cut_s_one_supervision_is_its_columns(folder, supervisions):
    supervision = {
        "id": "s",
        "recording_id": "a",
        "start": 0,
        "duration": 1,
        "channel": 0,
        "text": "yes",
        "speaker": "x",
        "custom": {"age": 3},
    }
    recording = {"id": "a", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}], "sampling_rate": 2400, "num_samples": 5000}
    cut = {
        "id": "cut",
        "start": 0,
        "duration": 1.0,
        "channel": 0,
        "supervisions": [supervision] * supervisions,
        "custom": {"snr": 2.5, "alignment": [1, 2]},
        "recording": recording,
    }
    found = columns(write(folder / "cuts.jsonl", json.dumps(cut) + "\n"))
    assert found == {"cut": {"snr": 2.5} if supervisions == 2 else {"age": 3, "text": "yes", "speaker": "x", "snr": 2.5}}


def test_text_that_is_no_utf_8_keeps_its_clip(folder):
    table = folder / "m.tsv"
    table.write_bytes(b"path\ttext\na.wav\tcaf\xe9\n")
    assert columns(table) == {"a.wav": {"text": "caf�"}}
    lines = write(folder / "m.jsonl", '{"path": "a.wav", "text": "x\\ud800"}\n')
    assert columns(lines) == {"a.wav": {"text": "x�"}}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_table_s_scalar_columns_go_with_its_rows(folder, tmp_path, suffix):
    day = datetime.date(2026, 1, 2)
    table = put_table(
        tmp_path / f"t{suffix}",
        folder,
        id=["x", "y", "z"],
        text=["yes", None, "no"],
        age=pa.array([3, 4, None], pa.int16()),
        day=[day] * 3,
        words=[["a"]] * 3,
        kind=pa.array(["k", "l", "k"]).dictionary_encode(),
    )
    found = columns(table)
    assert found["x"] == {"text": "yes", "age": 3, "day": "2026-01-02", "kind": "k"}
    assert found["z"] == {"text": "no", "age": None, "day": "2026-01-02", "kind": "k"}
    assert columns(table, columns=("text", "words", "nobody"))["x"] == {"text": "yes"}
    assert columns(table, columns=())["x"] == {}
    with pytest.raises(TableError, match="no column 'sound' among audio, id"):
        find_tasks([str(table)], "sound")


def test_audio_files_have_no_columns(folder):
    assert columns(folder) == {f"{name}.wav": {} for name in "abc"}
