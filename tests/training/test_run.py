"""A run in a folder: ended at any moment and gone on with to the same bits, stopped by what is not finite, its model is transformers'."""

import csv
import os
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch
import transformers

import encodec_fast
from encodec_fast.audio import AudioError
from encodec_fast.training import TrainingStopped, checkpoint, run, train
from encodec_fast.training.step import TrainingStep
from support.models import audio_like, pair, small_config
from support.training_runs import RATE, assert_same_run, tiny_config, write_recordings


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("audio") / "recordings")


@pytest.fixture(scope="module")
def whole(recordings, tmp_path_factory):
    """The folder of an undisturbed run of six steps with validations."""
    folder = tmp_path_factory.mktemp("whole")
    train(validated(recordings), folder)
    return folder


def validated(recordings, **changes):
    return tiny_config(recordings, validation_audio=[str(recordings)], validation_steps=2, **changes)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def interrupting(step):
    """A progress that presses Ctrl-C after a step."""
    return lambda done, _: os.kill(os.getpid(), signal.SIGINT) if done == step else None


CHILD = """
import sys
from encodec_fast.training import read_config, train
train(read_config(sys.argv[1]), sys.argv[2])
"""


def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(recordings, tmp_path):
    pytest.importorskip("tomllib", reason="Python 3.11")
    endless = validated(recordings, steps=100_000, checkpoint_steps=1)
    (tmp_path / "run.toml").write_text(endless.to_toml(), encoding="utf-8")
    child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "run.toml", tmp_path / "killed"])
    try:
        while not (tmp_path / "killed" / "checkpoint.pt").exists():
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.02)
        moment = random.uniform(0, 0.6)
        print(f"killed {moment:.3f} s after the first checkpoint")
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(moment)
    finally:
        child.kill()
        child.wait()
    steps = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] + 2
    summary = train(validated(recordings, steps=steps), tmp_path / "killed")
    train(validated(recordings, steps=steps), tmp_path / "undisturbed")
    assert summary.first == steps - 2
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


def test_a_signal_ends_with_a_checkpoint_from_which_the_run_goes_on(recordings, whole, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(validated(recordings), tmp_path, progress=interrupting(3))
    assert signal.getsignal(signal.SIGINT) is before
    # the signal came after step 3 was shown: step 4 was run to its end
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4
    assert train(validated(recordings), tmp_path).first == 4
    assert_same_run(tmp_path, whole)


def test_one_and_two_workers_have_equal_losses(recordings, whole, tmp_path):
    for workers in (1, 2):
        train(validated(recordings, workers=workers), tmp_path / str(workers))
        assert_same_run(tmp_path / str(workers), whole)


def test_rows_after_the_checkpoint_are_written_once(recordings, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(validated(recordings), tmp_path, progress=interrupting(2))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,1\n5,1\n1")
    train(validated(recordings), tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert [int(row["step"]) for row in rows(whole)] == [1, 2, 3, 4, 5, 6]


def test_what_a_killed_run_left_half_written_is_removed(recordings, tmp_path):
    left = [tmp_path / ".checkpoint.pt.0123456789abcdef.tmp", tmp_path / ".model.x.tmp" / "model.safetensors"]
    mine = tmp_path / ".notes.txt.tmp"
    left[1].parent.mkdir()
    for path in (*left, mine):
        path.write_text("half")
    train(tiny_config(recordings, steps=1), tmp_path)
    assert not any(path.exists() for path in left) and not left[1].parent.exists() and mine.exists()


def test_the_checkpoint_before_is_kept_while_the_next_is_written(recordings, tmp_path, monkeypatch):
    train(tiny_config(recordings, steps=1), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def fail(_, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        train(tiny_config(recordings, steps=2), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "checkpoint.pt", "config.toml", "metrics.csv", "model"}


def test_a_damaged_checkpoint_is_named(recordings, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: not a checkpoint that can be read"):
        train(tiny_config(recordings), tmp_path)


def test_another_config_is_refused_by_the_key_that_differs(recordings, whole):
    with pytest.raises(ValueError, match=r"batch_size = 2; now it is 3\. Choose another folder"):
        train(validated(recordings, batch_size=3), whole)
    # and nothing was done
    assert "batch_size = 2" in (whole / "config.toml").read_text()


def test_a_folder_in_which_another_process_trains_is_refused(recordings, tmp_path):
    pytest.importorskip("fcntl", reason="Windows")
    script = "import sys; from pathlib import Path; from encodec_fast.formats.atomic import locked\n"
    script += "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process trains in this folder"):
            train(tiny_config(recordings), tmp_path)
    assert train(tiny_config(recordings, steps=1), tmp_path).steps == 1


def test_other_audio_is_refused(recordings, whole, tmp_path):
    more = write_recordings(tmp_path / "recordings", 4)
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    state["config"]["audio"] = state["config"]["validation_audio"] = [str(more)]
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(ValueError, match="audio is 4 clips, which are not those of the checkpoint"):
        train(validated(more), tmp_path / "run")


def test_a_run_that_is_done_does_nothing(recordings, whole):
    before = (whole / "metrics.csv").read_bytes()
    summary = train(validated(recordings), whole)
    assert (summary.steps, summary.first) == (6, 6) and (whole / "metrics.csv").read_bytes() == before


def test_a_loss_that_is_not_finite_names_step_files_and_offsets(recordings, tmp_path, monkeypatch):
    step = TrainingStep.__call__

    def broken(self, audio):
        report = step(self, audio)
        broken.calls += 1
        return report if broken.calls < 3 else run.StepReport(1.2, {"mel": torch.tensor(float("nan"))}, {}, torch.ones(1), torch.ones(1))

    broken.calls = 0
    monkeypatch.setattr(TrainingStep, "__call__", broken)
    config = tiny_config(recordings, checkpoint_steps=1, mix_share=0.0)
    with pytest.raises(TrainingStopped, match=r"(?s)Step 3 stopped\. The loss 'mel' is not finite\..*Its batch was:") as caught:
        train(config, tmp_path)
    lines = str(caught.value).splitlines()[1:]
    plan = run.CropPlan(run.scanned_clips(config.audio, config)[0], config.crop_seconds, mix_share=0.0)
    assert lines == [f"  {plan.crop(number)}" for number in (4, 5)] and ".wav" in lines[0]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_a_learning_rate_that_breaks_the_weights_stops_before_they_are_saved(recordings, tmp_path):
    with pytest.raises(TrainingStopped, match=r"not finite|NaN or infinity"):
        train(tiny_config(recordings, learning_rate=1e38, steps=30, checkpoint_steps=1), tmp_path)
    if (tmp_path / "checkpoint.pt").exists():
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
        assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize("validation_steps", [1, 100], ids=["before-validation", "before-a-checkpoint"])
def test_weights_that_are_not_finite_replace_no_model(recordings, tmp_path, monkeypatch, validation_steps):
    step = TrainingStep.__call__

    def broken(self, audio):
        report = step(self, audio)
        with torch.no_grad():
            next(self.model.decoder.parameters())[0] = float("nan")
        return report

    monkeypatch.setattr(TrainingStep, "__call__", broken)
    config = tiny_config(recordings, validation_audio=[str(recordings)], validation_steps=validation_steps, checkpoint_steps=1)
    with pytest.raises(TrainingStopped, match=r"After step 1, decoder.* is not finite"):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "model").exists()


def test_a_file_with_nan_stops_and_is_named(tmp_path):
    folder = write_recordings(tmp_path / "recordings", 1)
    soundfile.write(folder / "broken.wav", np.full(20 * RATE, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"broken\.wav: .* NaN or infinite\. At .* for crop"):
        train(tiny_config(folder), tmp_path / "run")


def test_a_file_without_audio_is_left_out_and_named(tmp_path):
    folder = write_recordings(tmp_path / "recordings", 1)
    (folder / "text.wav").write_text("no audio")
    (task,) = train(tiny_config(folder, steps=1), tmp_path / "run").left_out
    assert task.id == "text.wav" and "not audio" in task.problem


def test_the_trained_folder_has_the_codes_of_transformers(whole):
    ours, stock = encodec_fast.load_model(whole / "model"), transformers.EncodecModel.from_pretrained(whole / "model").eval()
    audio = audio_like(1, 1, 4 * RATE, 9)
    with torch.no_grad():
        codes, expected = (model.encode(audio, bandwidth=4.8).audio_codes for model in (ours, stock))
    assert torch.equal(codes, expected) and len(codes.unique()) > 3


def test_a_run_learns_at_the_rate_of_each_step_also_when_it_went_on(recordings, tmp_path, monkeypatch):
    seen, step = [], TrainingStep.__call__

    def noted(self, audio):
        seen.append([group["lr"] for optimizer in (self.optimizer, self.discriminator_optimizer) for group in optimizer.param_groups])
        return step(self, audio)

    monkeypatch.setattr(TrainingStep, "__call__", noted)
    for steps in (2, 4):
        train(tiny_config(recordings, learning_rate=1e-3, warmup_steps=4, steps=steps), tmp_path)
    assert seen == [[pytest.approx(rate)] * 2 for rate in (0.25e-3, 0.5e-3, 0.75e-3, 1e-3)]


def test_a_saved_model_is_fine_tuned_from_where_it_was(recordings, tmp_path):
    pair(small_config())[1].save_pretrained(tmp_path / "model")
    before = encodec_fast.load_model(tmp_path / "model").state_dict()
    train(tiny_config(recordings, model=str(tmp_path / "model"), steps=1, learning_rate=1e-6), tmp_path / "run")
    after = encodec_fast.load_model(tmp_path / "run" / "model").state_dict()
    weights = [name for name, tensor in before.items() if "codebook" not in name]
    moved = [(after[name] - before[name]).abs().max() for name in weights]
    assert 0 < max(moved) < 3e-6
    entries = [name for name in before if name.endswith("embed")]
    # one batch moves a codebook by a hundredth
    assert all((after[name] - before[name]).norm() < 0.2 * before[name].norm() for name in entries)


def test_the_best_model_by_validation_is_kept(recordings, tmp_path, monkeypatch):
    found = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(run, "validate", lambda *_: run.Validation(next(found), 0.0, None, (1.0,)))
    states = {}
    monkeypatch.setattr(
        run, "write_model", lambda _, model: states.update({len(states): model.state_dict()["quantizer.layers.0.codebook.embed"]})
    )
    summary = train(validated(recordings), tmp_path)
    assert len(states) == 2 and summary.validation.mel == 0.4
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["best"] == 0.3


def test_metrics_have_a_row_of_each_validation(whole):
    found = rows(whole)
    assert [bool(row["val_mel"]) for row in found] == [False, True] * 3
    assert all(0 < float(found[-1][f"val_use_{level}"]) <= 1 for level in (1, 2, 3)) and float(found[-1]["mel"]) > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"crop_seconds": 0.01}, "crop_seconds gives 24 samples"),
        ({"architecture": {"num_filter": 4}}, "architecture has 'num_filter', which is no setting of EncodecConfig"),
        ({"weights": {"loudness": 1.0}}, "allowed are features, generator, mel, time"),
        ({"validation_bandwidth": 7.0}, "validation_bandwidth: "),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_what_cannot_run_is_said_before_the_first_step(recordings, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_config(recordings, **changes), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_run_in_a_thread_leaves_signals_alone(recordings, tmp_path):
    before, seen = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(
        target=lambda: train(tiny_config(recordings, steps=1), tmp_path, lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    )
    thread.start()
    thread.join()
    assert seen == [before]
