"""A run of two ranks is the run of one: its crops, its losses, its files, and how it ends and goes on."""

import csv
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from encodec_fast.training import building, run, train
from support.models import pair, small_config
from support.ranks import run_ranks, start_ranks
from support.training_runs import assert_same_run, tiny_config, write_recordings

LOSSES = ("time", "mel", "generator", "features", "commitment", "discriminator")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("audio") / "recordings")


def reporting(folder, rank):
    """A progress that leaves a file of each rank that calls it."""
    return lambda done, _: (folder / f"progress-{rank}").write_text(str(done))


def train_as_a_rank(config, folder):
    rank = os.environ["RANK"]
    try:
        train(config, folder / "run", reporting(folder, rank))
    except KeyboardInterrupt:
        (folder / f"interrupted-{rank}").touch()


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def wait_for(path: Path, processes):
    while not path.exists():
        assert all(process.is_alive() for process in processes), f"a rank ended without {path.name}"
        time.sleep(0.01)


def test_two_ranks_have_the_losses_of_one(recordings, tmp_path):
    pair(small_config(target_bandwidths=[1.2, 2.4, 4.8]))[1].save_pretrained(tmp_path / "model")
    # at 3e-4 the first steps of Adam double what is rounding with every step, and a code that flips does the rest
    config = tiny_config(recordings, model=str(tmp_path / "model"), steps=8, batch_size=4, learning_rate=1e-5)
    assert run_ranks(2, train_as_a_rank, config, tmp_path) == [0, 0]
    train(config, tmp_path / "alone")
    both, alone = rows(tmp_path / "run"), rows(tmp_path / "alone")
    assert len(both) == 8 and sum(bool(row["discriminator"]) for row in both) > 2
    for one, other in zip(both, alone, strict=True):
        for name in LOSSES:
            # 1e-6 in 200 steps, 1e-5 for the generator's, which the file rounds to that
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), rel=1e-5, abs=1e-5), (one["step"], name)


def test_parts_of_one_rank_have_the_bits_of_ranks_with_one_part_also_in_turns(recordings, tmp_path):
    turns = {"alone": [1], "two": [2], "in-turns": [4, 2, 1]}
    for name, numbers in turns.items():
        (tmp_path / name).mkdir()
        for turn, ranks in enumerate(numbers, 1):
            settings = {"batch_size": 4, "gradient_accumulation_steps": 4 // ranks, "steps": 6 * turn // len(numbers)}
            assert run_ranks(ranks, train_as_a_rank, tiny_config(recordings, **settings), tmp_path / name) == [0] * ranks
    found = rows(tmp_path / "alone" / "run")
    assert sum(bool(row["discriminator"]) for row in found) > 2 and any(int(row["replaced"]) for row in found)
    for name in ("two", "in-turns"):
        assert_same_run(tmp_path / "alone" / "run", tmp_path / name / "run")


def test_ranks_killed_at_any_moment_go_on_to_the_same_bits(recordings, tmp_path):
    settings = {"validation_audio": [str(recordings)], "validation_steps": 2, "checkpoint_steps": 1}
    settings |= {"batch_size": 4, "gradient_accumulation_steps": 2}
    processes = start_ranks(2, train_as_a_rank, tiny_config(recordings, steps=100_000, **settings), tmp_path)
    try:
        wait_for(tmp_path / "run" / "checkpoint.pt", processes)
        moment = random.uniform(0, 0.4)
        print(f"killed {moment:.3f} s after the first checkpoint")
        time.sleep(moment)
    finally:
        for process in processes:
            process.kill()
            process.join()
    steps = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] + 2
    config = tiny_config(recordings, steps=steps, **settings)
    assert run_ranks(2, train_as_a_rank, config, tmp_path) == [0, 0]
    (tmp_path / "undisturbed").mkdir()
    assert run_ranks(2, train_as_a_rank, config, tmp_path / "undisturbed") == [0, 0]
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed" / "run")
    # and the first rank alone reported, and wrote
    assert (tmp_path / "progress-0").read_text() == str(steps) and not (tmp_path / "progress-1").exists()


def test_a_signal_at_one_rank_ends_all_with_a_checkpoint(recordings, tmp_path):
    processes = start_ranks(2, train_as_a_rank, tiny_config(recordings, steps=100_000), tmp_path)
    try:
        wait_for(tmp_path / "progress-0", processes)
        # twice, as torchrun and the terminal do
        for _ in range(2):
            os.kill(processes[1].pid, signal.SIGINT)
        for process in processes:
            process.join(30)
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert all((tmp_path / f"interrupted-{rank}").exists() for rank in range(2)) and (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_batch_that_ranks_cannot_share_is_refused(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="batch_size is 2 for 1 gradient_accumulation_steps of 4 ranks; a multiple"):
        train(tiny_config(recordings), tmp_path)


def test_one_gpu_for_all_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(building, "world_size", lambda: 2)
    monkeypatch.setattr(building, "torch_device", torch.device)
    with pytest.raises(ValueError, match="for 2 ranks; each needs a GPU of its own"):
        building.rank_device("cuda:1")
    assert building.rank_device("cpu") == torch.device("cpu")
