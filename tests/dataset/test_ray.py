"""The Ray engine on a real cluster of two worker nodes on this machine, and EncodecTokenizer where people map batches."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import encodec_fast
from encodec_fast.audio import read_audio
from encodec_fast.corpus import worker
from encodec_fast.corpus.sources import find_tasks
from encodec_fast.corpus.tasks import Task
from encodec_fast.dataset import ray_engine
from encodec_fast.dataset.encoding import dataset_info
from encodec_fast.dataset.failures import read_failures
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import TokenizeOptions
from encodec_fast.dataset.ray_engine import RayError, run_on_ray
from encodec_fast.dataset.ray_stages import GroupEncoder, RayJob, read_group
from encodec_fast.dataset.run import identity, plan
from encodec_fast.dataset.schedule import Schedule, write_schedule
from encodec_fast.plan.weights import weights_sha256
from support.corpora import BANDWIDTH, RATE, content, put_clip, put_corpus, small_model, tokenize

pytestmark = pytest.mark.alone

LENGTHS = [200 + 97 * (index * 7 % 40) for index in range(120)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder):
    return encodec_fast.load_model(model_folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = put_corpus(tmp_path_factory.mktemp("ray") / "corpus", LENGTHS)
    (folder / "broken.wav").write_bytes(b"")
    return folder


# EncodecTokenizer


def expected(model, path):
    samples, _ = read_audio(path, RATE, 1)
    return model.encode_batch([torch.from_numpy(samples)], BANDWIDTH)[0].codes.numpy()


def codes_of(batch):
    return [np.array(codes).reshape(shape) for codes, shape in zip(batch["codes"], batch["codes_shape"])]


# The engine


MEMORY = {"object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def nodes():
    """Two nodes of two CPUs each beside a head without any, as processes on this machine; this process is connected."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        # the workers import what this process imports
        environment.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep if "PYTHONPATH" in os.environ else None)
        environment.setenv("OMP_NUM_THREADS", "1")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY})
        for _ in range(2):
            nodes.add_node(num_cpus=2, **MEMORY)
        ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def cluster(nodes):
    """The module ray, connected to the nodes."""
    return pytest.importorskip("ray")


def ray_tokenize(model, model_folder, corpus, out, progress=None, **changes):
    options = TokenizeOptions(BANDWIDTH, **{"batch_seconds": 2.0, "rows_per_shard": 10, "embeddings": True, **changes})
    info = dataset_info(model, str(model_folder), weights_sha256(model), {}, options.embeddings)
    ledger = Ledger(out)
    plan(ledger, identity(info, model, options, [str(corpus)]), find_tasks([corpus]), options)
    job = RayJob(str(model_folder), "auto", info, options, str(out), RATE, 1, actors=2)
    return run_on_ray(job, ledger, None, progress)


@pytest.fixture(scope="module")
def local(model, corpus, tmp_path_factory):
    """(rows, failures) of the local engine."""
    out = tmp_path_factory.mktemp("local")
    tokenize(model, [corpus], out, batch_seconds=2.0, embeddings=True)
    return content(out), read_failures(out)


def test_ray_ends_what_the_local_engine_began_with_its_rows_though_an_actor_is_killed(
    cluster, model, model_folder, corpus, local, tmp_path
):
    def interrupt(summary):
        if summary.clips >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(model, [corpus], tmp_path, batch_seconds=2.0, rows_per_shard=10, embeddings=True, progress=interrupt)
    before = len(content(tmp_path))
    killed = []

    def kill_one(summary):
        if not killed:
            assert summary.clips + before < 120
            processes = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
            actors = [int(line.split()[0]) for line in processes if "ray::MapWorker(MapBatches(GroupEncoder))" in line]
            assert len(actors) == 2
            killed.append(actors[0])
            os.kill(actors[0], signal.SIGKILL)

    summary = ray_tokenize(model, model_folder, corpus, tmp_path, kill_one)
    assert killed and before + summary.clips == 120
    assert pq.read_table(tmp_path).num_rows == len(local[0])
    assert (content(tmp_path), read_failures(tmp_path)) == local


def test_a_node_that_goes_away_is_said_and_costs_no_row(nodes, cluster, model, model_folder, corpus, local, tmp_path):
    doomed = [nodes.add_node(num_cpus=2, **MEMORY)]

    def lose(summary):
        if doomed:
            nodes.remove_node(doomed.pop(), allow_graceful=False)
            deadline = time.monotonic() + 60
            while sum(node["Alive"] for node in cluster.nodes()) > 3 and time.monotonic() < deadline:
                time.sleep(0.1)

    summary = ray_tokenize(model, model_folder, corpus, tmp_path, lose)
    assert summary.warnings == ["1 of the 4 nodes of the cluster went away; others did what they had begun."]
    assert (content(tmp_path), read_failures(tmp_path)) == local


def test_a_full_disk_of_a_node_is_that_error_here(cluster, model, model_folder, corpus, tmp_path):
    # for the writing task on its node, a folder where none can be
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / ".encodec_fast").mkdir()
    (tmp_path / "codes" / ".encodec_fast" / "begun").write_text("a file")
    with pytest.raises(OSError, match="begun"):
        ray_tokenize(model, model_folder, corpus, tmp_path / "codes")


def test_ray_data_maps_the_tokenizer(cluster, model, model_folder, corpus):
    paths = sorted(str(path) for path in corpus.glob("000*.wav"))
    data = cluster.data.from_items([{"audio": path} for path in paths])
    arguments = {"fn_constructor_args": [str(model_folder), BANDWIDTH], "fn_constructor_kwargs": {"device": "cpu", "keep_audio": True}}
    rows = data.map_batches(encodec_fast.EncodecTokenizer, batch_size=4, concurrency=1, **arguments).take_all()
    assert sorted(row["audio"] for row in rows) == paths
    for row in rows:
        assert np.array_equal(np.reshape(row["codes"], row["codes_shape"]), expected(model, row["audio"]))


def test_ray_is_refused_the_ledger_of_one_of_several_writers(tmp_path):
    with pytest.raises(ValueError, match=r"writer 1/2; Ray deals out all of the work"):
        run_on_ray(None, Ledger(tmp_path, 1, 2), None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("long_clip_seconds", [300.0, 3600.0])
def test_clips_of_any_length_are_cut_into_groups_that_actors_can_share(tmp_path, long_clip_seconds):
    tasks = [Task(str(index), "x", seconds=seconds) for index, seconds in enumerate([1800.0] * 4 + [250.0] * 4)]
    schedule = Schedule(write_schedule(tmp_path / "s.arrow", tasks, 60.0, 0))
    groups = ray_engine._groups([schedule], list(range(8)), TokenizeOptions(BANDWIDTH, long_clip_seconds=long_clip_seconds))
    assert [[number for number, _ in pickle.loads(group["group"])] for group in groups] == [[0], [1], [2], [3], [4, 5], [6, 7]]


@pytest.mark.parametrize("cpus, actors, threads", [(1, 1, 1), (2, 1, 1), (4, 1, 4), (4, 4, 1), (3, 7, 2), (0, 1, 4), (64, 8, 4)])
def test_encoders_leave_room_for_a_reader_and_a_writer(cpus, actors, threads):
    each = ray_engine._cpus_of_encoder(cpus, actors, threads)
    assert 0 < each <= threads and (each <= 1 or each == int(each))
    assert actors * each + ray_engine.READER_CPUS + ray_engine.WRITER_CPUS <= cpus or (cpus, each) == (0, threads)
    if cpus >= 2 * actors * threads:
        assert each == threads


@pytest.mark.skipif(worker.TOOK_TOO_LONG is None, reason="no clock that ends a process on this system")
def test_a_file_that_is_never_read_to_its_end_costs_itself_only(model, model_folder, tmp_path, monkeypatch):
    # an ffmpeg that never answers, and ends with the process that started it
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nwhile kill -0 $PPID 2>/dev/null; do sleep 0.05; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "a.m4a").write_bytes(b"no audio")
    tasks = [Task("a", str(tmp_path / "a.m4a")), Task("b", str(put_clip(tmp_path / "b.wav", 5000)))]
    tasks.append(dataclasses.replace(tasks[1], id="c", seconds=1e6))
    options = TokenizeOptions(BANDWIDTH, clip_timeout=2.0)
    job = RayJob(str(model_folder), "auto", dataset_info(model, "m", "0", {}), options, str(tmp_path / "codes"), RATE, 1)
    sizes, clips = pickle.loads(read_group({"group": [pickle.dumps([(0, tasks[:1]), (1, tasks[1:])])]}, job)["group"][0])
    assert sizes == [(0, 1), (1, 2)] and clips[2] == tasks[2]
    assert clips[0].reason.startswith("reading it, or a block of it, took longer than 2 s") and clips[1].num_samples == 5000


def test_an_actor_with_another_backend_or_other_weights_than_the_driver_refuses_to_work(model, model_folder, tmp_path):
    with encodec_fast.use_backend("torch"):
        info = dataset_info(model, str(model_folder), weights_sha256(model), {})
    job = RayJob(str(model_folder), "torch", info, TokenizeOptions(BANDWIDTH), str(tmp_path), RATE, 1, torch.get_num_threads())
    GroupEncoder(job)
    for changes, message in [
        ({"backend": "reference"}, "this node runs reference, the run was begun with torch; name a --backend"),
        ({"info": dataclasses.replace(info, weights_sha256="ab" * 32)}, "the run was begun with abababababababab"),
    ]:
        with pytest.raises(ValueError, match=message):
            GroupEncoder(dataclasses.replace(job, **changes))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayError, match=r"pip install 'encodec-fast\[ray\]'"):
        ray_engine.connect(None)
