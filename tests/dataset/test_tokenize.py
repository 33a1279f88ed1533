"""`encodec_fast.tokenize`: the call that the command makes, with defaults, progress, typed results and errors by argument."""

import json
import os
import sys

import pytest
import torch
import transformers

import encodec_fast
from encodec_fast import cli, pretrained
from encodec_fast.dataset.engines import Engine
from encodec_fast.dataset.failures import read_failures
from encodec_fast.dataset.ledger import FOLDER, Ledger, LedgerError
from encodec_fast.dataset.ray_engine import RayError
from encodec_fast.dataset.tokenize import preview
from encodec_fast.formats.folder import load_codes, read_info, shard_paths
from support.corpora import BANDWIDTH, SMALL, content, put_mixed, put_three, small_model
from support.models import pair, small_config

# No processes that read: each test takes a second less
OPTIONS = encodec_fast.TokenizeOptions(BANDWIDTH, workers=0, batch_seconds=2.0, rows_per_shard=3)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    return put_mixed(tmp_path / "corpus")


def test_a_folder_a_model_and_a_place_are_enough(tmp_path, monkeypatch):
    # a small model under the default's name, with the default's bandwidth
    small = pair(small_config(**{**SMALL, "target_bandwidths": [6.0]}))[1]
    monkeypatch.setattr(pretrained, "_from_hub", {"facebook/encodec_24khz": small}.get)
    summary = encodec_fast.tokenize(put_three(tmp_path / "recordings"), tmp_path / "codes")
    assert (summary.clips, summary.failures, summary.done_before, summary.left) == (3, [], 0, 0)
    assert summary.files == shard_paths(tmp_path / "codes") and 0 < summary.seconds and 0 < summary.wall_seconds
    assert {row.bandwidth for row in encodec_fast.load_codes(tmp_path / "codes")} == {6.0}
    assert read_info(tmp_path / "codes").model_id == "facebook/encodec_24khz"


def test_it_writes_what_the_command_writes(corpus, model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder, name = "corpus", str(model_folder)
    encodec_fast.tokenize(folder, "by call", model=name, bandwidth=BANDWIDTH, format="npy", limit=5)
    command = ["tokenize", folder, "--out", "by command", "--model", name, "--bandwidth", str(BANDWIDTH), "--format", "npy"]
    assert cli.main([*command, "--limit", "5", "--no-report"]) == cli.OK, capsys.readouterr().err
    for path in (tmp_path / "by call").rglob("*"):
        if path.is_file() and FOLDER not in path.parts:
            assert path.read_bytes() == (tmp_path / "by command" / path.relative_to(tmp_path / "by call")).read_bytes(), path
    runs = [json.loads((tmp_path / name / FOLDER / "run.json").read_bytes()) for name in ("by call", "by command")]
    assert {**runs[0], "run": None} == {**runs[1], "run": None}


def test_failed_clips_are_results_and_no_errors(corpus, model_folder, tmp_path):
    summary = encodec_fast.tokenize([corpus], tmp_path / "codes", model=model_folder, options=OPTIONS)
    assert summary.clips == 8 and sorted(failure.id for failure in summary.failures) == ["4b.wav", "6b.wav"]
    again = encodec_fast.tokenize([corpus], tmp_path / "codes", model=model_folder, options=OPTIONS, retry_failed=True)
    assert (again.clips, len(again.failures), again.done_before) == (0, 2, 10)


def test_an_argument_counts_before_the_same_option(corpus, model_folder, tmp_path):
    encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS, bandwidth=1.2, format="webdataset")
    assert {row.bandwidth for row in load_codes(tmp_path / "codes")} == {1.2}
    assert {path.suffix for path in shard_paths(tmp_path / "codes")} == {".tar"}


def test_progress_goes_through_the_phases_and_counts_every_clip(corpus, model_folder, tmp_path):
    seen = []

    def progress(so_far):
        seen.append((so_far.phase, so_far.done, so_far.total, so_far.summary is not None))

    encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS, progress=progress)
    assert seen[:2] == [("model", 0, 10, False), ("headers", 0, 10, False)]
    headers, codes = ([each for each in seen if each[0] == phase] for phase in ("headers", "codes"))
    assert seen == [seen[0], *headers, *codes]
    assert headers[-1] == ("headers", 10, 10, False) and codes[-1] == ("codes", 10, 10, True)
    for phase in (headers, codes):
        assert [done for _, done, _, _ in phase] == sorted(done for _, done, _, _ in phase)


def test_what_the_callback_raises_ends_the_run_and_the_same_call_does_the_rest(corpus, model_folder, tmp_path):
    class Enough(Exception):
        pass

    def stop(so_far):
        if so_far.phase == "codes":
            raise Enough

    with pytest.raises(Enough):
        encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS, progress=stop)
    assert 0 < len(content(tmp_path / "codes")) < 8
    rest = encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS)
    assert rest.done_before > 0 and rest.clips + rest.done_before >= 8
    encodec_fast.tokenize(corpus, tmp_path / "whole", model=model_folder, options=OPTIONS)
    assert content(tmp_path / "codes") == content(tmp_path / "whole")
    assert read_failures(tmp_path / "codes") == read_failures(tmp_path / "whole")


def test_a_full_disk_stops_the_run_with_what_was_finished(corpus, model_folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        with pytest.raises(encodec_fast.RunStopped, match=r"codes: No space left on device\.$"):
            encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS)
    encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS)
    assert len(content(tmp_path / "codes")) == 8


def test_a_model_in_memory_is_stored_by_the_name_it_was_loaded_by(corpus, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    named = encodec_fast.load_model(model_folder.name)
    name = named.name_or_path
    encodec_fast.tokenize(corpus, tmp_path / "named", model=named, options=OPTIONS)
    encodec_fast.tokenize(corpus, tmp_path / "unnamed", model=small_model(), options=OPTIONS)
    assert read_info(tmp_path / "named").model_id == name == str(model_folder)
    assert read_info(tmp_path / "unnamed").model_id == "unnamed"
    assert content(tmp_path / "named") == content(tmp_path / "unnamed")


def test_parts_and_devices_give_the_rows_of_one_call(corpus, model_folder, tmp_path):
    encodec_fast.tokenize(corpus, tmp_path / "one", model=model_folder, options=OPTIONS)
    for index in (1, 0):
        encodec_fast.tokenize(corpus, tmp_path / "parts", model=model_folder, options=OPTIONS, part=(index, 2))
    assert content(tmp_path / "one") == content(tmp_path / "parts")
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    summary = encodec_fast.tokenize(corpus, tmp_path / "two", model=model_folder, options=OPTIONS, device=["cpu", "cpu"])
    assert summary.clips == 8 and content(tmp_path / "one") == content(tmp_path / "two")


def test_devices_of_a_part_are_writers_of_their_own(tmp_path):
    engine = Engine(small_model(), "name", OPTIONS, ["corpus"], ["cuda:0", "cuda:1"])
    jobs = engine._device_jobs(engine.device, Ledger(tmp_path, 1, 2))
    assert [(job.device, job.index, job.count) for job in jobs] == [("cuda:0", 2, 4), ("cuda:1", 3, 4)]


def test_threads_hold_for_the_run_only(corpus, model_folder, tmp_path):
    before, during = torch.get_num_threads(), set()

    def progress(so_far):
        during.add(torch.get_num_threads())

    encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS, threads=before + 1, progress=progress)
    assert during == {before + 1} and torch.get_num_threads() == before


def test_overwrite_replaces_an_earlier_run(corpus, model_folder, tmp_path):
    encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS)
    with pytest.raises(LedgerError, match=r"bandwidth was 2\.4, is 1\.2"):
        encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS, bandwidth=1.2)
    encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS, bandwidth=1.2, overwrite=True)
    assert {row.bandwidth for row in load_codes(tmp_path / "codes")} == {1.2}


def test_a_preview_counts_and_writes_nothing(corpus, model_folder, tmp_path):
    found = preview(corpus, tmp_path / "codes", options=OPTIONS)
    assert (found.clips, found.known, [failure.id for failure in found.failures]) == (8, 0, ["4b.wav", "6b.wav"])
    assert found.longest == 5.0 and found.seconds > found.longest and not (tmp_path / "codes").exists()
    encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS, limit=3)
    assert preview(corpus, tmp_path / "codes", options=OPTIONS).known == 3


RAY = encodec_fast.RayCluster()
WRONG = {
    "no source": ({"sources": []}, ValueError, "sources is empty; name a file"),
    "missing source": ({"sources": "nowhere"}, FileNotFoundError, "nowhere: no such file or folder"),
    "format": ({"format": "mp3"}, ValueError, "format is 'mp3'; allowed are parquet"),
    "bandwidth": ({"bandwidth": 7}, ValueError, "bandwidth is 7; the model's are 1.2, 2.4, 4.8 kbps"),
    "bandwidth as text": ({"bandwidth": "2.4"}, ValueError, "bandwidth is '2.4'; the model's are 1.2, 2.4, 4.8 kbps"),
    "no device": ({"device": []}, ValueError, "device is an empty list; name a device"),
    "device": ({"device": "gpu"}, ValueError, "device is 'gpu'; allowed are auto, cpu"),
    "one wrong device": ({"device": ["cpu", "gpu"]}, ValueError, "device is 'gpu'; allowed are auto, cpu"),
    "devices of ray": ({"device": ["cpu"], "ray": RAY}, ValueError, "device is .'cpu'., and ray deals out.*leave out device"),
    "part of ray": ({"part": (1, 2), "ray": RAY}, ValueError, "part is 1/2, and ray deals out.*leave out part"),
    "part": ({"part": (2, 2)}, ValueError, "part is 2/2; allowed are 0/2"),
    "limit": ({"limit": -1}, ValueError, "limit is -1; 1 or more is needed"),
    "overwrite": ({"part": (0, 2), "overwrite": True}, ValueError, "overwrite is True and part is 0/2.*remove the folder instead"),
    "backend": ({"backend": "metal"}, ValueError, "'metal' is not a backend. Choose one of auto"),
    "model's name": ({"model": "a/b/c"}, ValueError, "'a/b/c' is neither a folder on this machine"),
    "model's class": ({"model": transformers.EncodecConfig()}, TypeError, "model is a EncodecConfig; a name, a folder or an"),
    "a model without EnCodec's config": (
        {"model": transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=12, vocab_size=9))},
        TypeError,
        "model is a BertModel",
    ),
    "model of processes": ({"model": small_model(), "device": ["cpu"]}, ValueError, "other processes have to load it; save it"),
    "model elsewhere": ({"model": small_model(), "device": "cpu"}, ValueError, "device is 'cpu', and model is in memory on cpu; leave"),
}


@pytest.mark.parametrize("changes, error, message", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named_with_the_remedy_and_nothing_is_written(corpus, model_folder, tmp_path, changes, error, message):
    arguments = {"sources": corpus, "model": model_folder, "options": OPTIONS, **changes}
    with pytest.raises(error, match=message):
        encodec_fast.tokenize(out=tmp_path / "codes", **arguments)
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"shard_seconds": -1.0}, ValueError, "shard_seconds is -1; 0 or more"),
        ({"shard_seconds": float("nan")}, ValueError, "shard_seconds is nan"),
        ({"columns": "text"}, TypeError, "columns is the text 'text'; a tuple of names is needed"),
        ({"protocols": "s3"}, TypeError, "protocols is the text 's3'"),
    ],
)
def test_a_wrong_option_is_named(options, error, message):
    with pytest.raises(error, match=message):
        encodec_fast.TokenizeOptions(**options)


def test_a_cluster_that_is_not_there_is_no_stopped_run(corpus, model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayError, match=r"pip install 'encodec-fast\[ray\]'"):
        encodec_fast.tokenize(corpus, tmp_path / "codes", model=model_folder, options=OPTIONS, ray=RAY)
