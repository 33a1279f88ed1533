"""examples/tokenize_ray.py on a Ray cluster of two CPUs on this machine."""

import runpy
import sys

import pytest

from encodec_fast.dataset import engines
from encodec_fast.formats.folder import read_ids
from support.corpora import content, put_three, small_model, tokenize
from support.venvs import ROOT

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        ray.init(
            address="local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, logging_level="ERROR", log_to_driver=False
        )
        yield ray
        ray.shutdown()


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tokenize_ray.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples" / "tokenize_ray.py"), run_name="__main__")
    return end.value.code


def test_a_folder_is_tokenized_with_the_rows_of_the_local_engine_and_counted(ray, monkeypatch, capsys, tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path / "model")
    clips = put_three(tmp_path / "clips")
    (clips / "d.wav").write_bytes(b"no audio")
    runs, run_on_ray = [], engines.run_on_ray
    monkeypatch.setattr(engines, "run_on_ray", lambda *job: runs.append(job) or run_on_ray(*job))
    job = [clips, tmp_path / "codes", "--model", tmp_path / "model", "--bandwidth", 2.4]
    assert run(monkeypatch, *job) == 1 and len(runs) == 1
    captured = capsys.readouterr()
    assert "codes: 4 of 4 clips" in captured.out and "x real time" in captured.out
    # 2,400 + 4,801 + 333 samples at 2,400 a second
    assert "encoded 3 clips, 3.1 s of audio" in captured.out and "3 clips, 0.001 h, 1 failed" in captured.out
    assert "level 2: " in captured.out and "failed: d.wav: " in captured.err
    tokenize(model, [clips], tmp_path / "local")
    assert content(tmp_path / "codes") == content(tmp_path / "local")

    # what failed before is tried again only if that is asked for
    assert run(monkeypatch, *job) == 0
    assert "encoded 0 clips" in capsys.readouterr().out and len(read_ids(tmp_path / "codes")) == 3


def test_without_a_cluster_it_says_how_to_start_one(monkeypatch, capsys, tmp_path):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: (_ for _ in ()).throw(ConnectionError("nothing answers")))
    small_model().save_pretrained(tmp_path / "model")
    job = [put_three(tmp_path / "clips"), tmp_path / "codes", "--model", tmp_path / "model", "--bandwidth", 2.4]
    assert run(monkeypatch, *job, "--address", "nowhere:1") == 2
    assert "no Ray cluster at nowhere:1: nothing answers" in capsys.readouterr().err
