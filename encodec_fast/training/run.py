"""A training run in a folder: from scratch or from any model. It may end at any moment and goes on, on a CPU to the same bits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EncodecConfig

from encodec_fast.corpus.reader import Clip, Reader
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tasks import Task
from encodec_fast.formats.atomic import locked, write_atomically
from encodec_fast.model import EncodecModel, known_bandwidth
from encodec_fast.pretrained import load_model, torch_device
from encodec_fast.signals import ENDING, handling
from encodec_fast.training.checkpoint import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    MODEL,
    MetricsFile,
    read_checkpoint,
    remove_temporaries,
    write_checkpoint,
    write_model,
)
from encodec_fast.training.config import CHANGEABLE, TrainingConfig
from encodec_fast.training.crops import Crop, CropPlan, read_crops
from encodec_fast.training.discriminator import MultiScaleSTFTDiscriminator
from encodec_fast.training.step import StepOptions, StepReport, TrainingStep
from encodec_fast.training.validation import Validation, validate

# Held while a process trains
_LOCK = ".lock"
_LOSSES = ("time", "mel", "generator", "features", "commitment", "discriminator")


class TrainingStopped(ValueError):
    """A loss or a weight that is not finite; the message names the step, and the files and offsets of its batch."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a run came to.

    steps: done in all, by earlier runs in the folder too.  first: of this run.  model: folder of the model, for transformers.
    validation: the last one of this run; None without.  left_out: clips that can't be read, with the reason in `problem`.
    """

    steps: int
    first: int
    model: Path
    validation: Validation | None
    left_out: tuple[Task, ...]


def train(config: TrainingConfig, folder: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> TrainingSummary:
    """Trains a model and returns what came of it. A folder with a checkpoint is gone on with.

    folder: gets config.toml, checkpoint.pt, metrics.csv and `model/`: the best by the validation's mel loss, without validation the last.
    progress: called with the steps done and all.

    On a CPU a run that was killed and went on has the bits of one that was not. Both must have the same number of threads.
    SIGINT, SIGTERM and SIGHUP in the main thread let the step end, write a checkpoint and raise KeyboardInterrupt.

    Raises TrainingStopped for a loss that is not finite, and AudioError for a crop that can't be read; the checkpoint before is kept.
    Raises ValueError for a folder of another config, other audio or another process. Also for crops that are too short for the losses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / _LOCK))
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process trains in this folder; wait for it, or choose another folder.") from error
        state = read_checkpoint(folder)
        if state is not None:
            _check_same_config(config, state["config"], folder)
        remove_temporaries(folder)
        write_atomically(folder / CONFIG, config.to_toml().encode())
        run = _Run(config, folder, state, stack)
        return run.go_on(progress)


class _Run:
    """Holds a run while it goes: the model and its step, the crops, and how far it is."""

    def __init__(self, config: TrainingConfig, folder: Path, state: dict[str, Any] | None, stack: ExitStack) -> None:
        self.config, self.folder = config, folder
        self.done = self.first = 0 if state is None else state["step"]
        self.best: float | None = None if state is None else state["best"]
        self.validation: Validation | None = None
        tasks, self.left_out = _scanned(config.audio, config)
        self.plan = CropPlan(tasks, config.crop_seconds, config.seed, config.mix_share, config.mix_files, config.gain_db)
        if state is not None and state["clips"] != self.plan.fingerprint():
            raise ValueError(f"{folder}: audio is {len(tasks)} clips, which are not those of the checkpoint. Choose another folder.")
        self.model = _model(config)
        if state is not None:
            self.model.load_state_dict(state["model"])
        self.step = _step(config, self.model)
        if state is not None:
            self.step.load_state_dict(state["training"])
        rate, channels = self.model.config.sampling_rate, self.model.config.audio_channels
        self.samples = round(config.crop_seconds * rate)
        _check_length(self.step, channels, self.samples)
        self.bandwidth = _bandwidth(self.model.config, config.validation_bandwidth)
        # two batches ahead; each clip of a sum counts
        ahead = 2 * config.batch_size * config.crop_seconds * config.mix_files
        self.reader = stack.enter_context(
            Reader(rate, channels, workers=config.workers, prefetch_seconds=ahead, audio_column=config.audio_column)
        )
        self.recordings = self._recordings()
        uses = [f"val_use_{level + 1}" for level in range(len(self.model.quantizer.layers))]
        columns = ["step", "bandwidth", *_LOSSES, "perplexity", "replaced", "val_mel", "val_si_snr", "val_stoi", *uses]
        self.metrics = MetricsFile(folder / METRICS, columns, self.done)
        stack.callback(self.metrics.close)

    def go_on(self, progress: Callable[[int, int], None] | None) -> TrainingSummary:
        """Runs the steps that are left."""
        config, saved = self.config, time.monotonic()
        crops = read_crops(self.plan, self.reader, self.done * config.batch_size, self.samples)
        with _noticing_signals() as asked_to_end:
            while self.done < config.steps:
                self._update(list(islice(crops, config.batch_size)))
                last, asked = self.done == config.steps, asked_to_end()
                late = time.monotonic() - saved >= 60 * config.checkpoint_minutes
                if last or asked or late or self.done % config.checkpoint_steps == 0:
                    self._save()
                    saved = time.monotonic()
                if progress is not None:
                    progress(self.done, config.steps)
                if asked and not last:
                    raise KeyboardInterrupt
        return TrainingSummary(self.done, self.first, self.folder / MODEL, self.validation, tuple(self.left_out))

    def _update(self, batch: list[tuple[Crop, Any]]) -> None:
        """Runs a step with the crops, and a validation where it is time."""
        audio = torch.stack([torch.from_numpy(sound) for _, sound in batch]).to(self.model.device, self.model.dtype)
        try:
            report = self.step(audio)
        except ValueError as error:
            raise self._stopped(str(error), batch) from error
        broken = [name for name, loss in report.losses.items() if not loss.isfinite()]
        if broken:
            raise self._stopped(f"The loss {broken[0]!r} is not finite.", batch)
        self.done += 1
        last = self.done == self.config.steps
        validated = bool(self.recordings) and (last or self.done % self.config.validation_steps == 0)
        if validated:
            self._validate()
        if validated or last or self.done % self.config.log_steps == 0:
            self.metrics.write(_row(self.done, report, self.validation if validated else None))

    def _check_weights(self) -> None:
        """Raises TrainingStopped before a model that is of no use takes the place of one that is."""
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise TrainingStopped(f"After step {self.done}, {name} is not finite. The checkpoint before is kept. Lower learning_rate.")

    def _validate(self) -> None:
        self._check_weights()
        self.validation = validate(self.model, self.recordings, self.bandwidth, self.step.mel)
        if self.best is None or self.validation.mel < self.best:
            self.best = self.validation.mel
            write_model(self.folder, self.model)

    def _save(self) -> None:
        """Writes the checkpoint, and the model where no validation chooses it."""
        self._check_weights()
        if self.best is None:
            write_model(self.folder, self.model)
        self.metrics.sync()
        write_checkpoint(
            self.folder,
            {
                "step": self.done,
                "config": self.config.as_dict(),
                "clips": self.plan.fingerprint(),
                "best": self.best,
                "model": self.model.state_dict(),
                "training": self.step.state_dict(),
            },
        )

    def _stopped(self, reason: str, batch: list[tuple[Crop, Any]]) -> TrainingStopped:
        crops = "\n".join(f"  {crop}" for crop, _ in batch)
        kept = f"The last checkpoint in {self.folder} is kept. Look at this audio, or lower learning_rate."
        return TrainingStopped(f"Step {self.done + 1} stopped. {reason} {kept} Its batch was:\n{crops}")

    def _recordings(self) -> list[Tensor]:
        """Returns the first seconds of the validation's clips, [C, T] each."""
        if not self.config.validation_audio:
            return []
        tasks, left_out = _scanned(self.config.validation_audio, self.config)
        self.left_out += left_out
        seconds = self.config.validation_seconds
        chosen = [_start(task, seconds) for task in tasks[: self.config.validation_clips]]
        clips = []
        for clip in self.reader.read(chosen):
            if not isinstance(clip, Clip):
                raise ValueError(f"validation_audio: {clip.task.shown_path}: {getattr(clip, 'reason', '')} Leave it out.")
            clips.append(torch.from_numpy(clip.samples))
        return clips


def _scanned(sources: tuple[str, ...], config: TrainingConfig) -> tuple[list[Task], list[Task]]:
    """Returns the clips of the sources with their lengths, and those that can't be read."""
    tasks = scan_seconds(find_tasks(sources, config.audio_column, columns=()), config.audio_column)
    return [task for task in tasks if task.problem is None], [task for task in tasks if task.problem is not None]


def _start(task: Task, seconds: float) -> Task:
    """Returns the task of the first seconds of another."""
    return task if task.seconds <= seconds else replace(task, duration=seconds, seconds=seconds)


def _model(config: TrainingConfig) -> Any:
    """Returns the model in eval mode and float32: its own encode and decode then run on the backends, for validation."""
    device = torch_device(config.device)
    if config.model:
        return load_model(config.model, device).float()
    known = EncodecConfig().to_dict()
    if unknown := sorted(config.architecture.keys() - known.keys()):
        raise ValueError(f"architecture has {unknown[0]!r}, which is no setting of EncodecConfig; there are {', '.join(sorted(known))}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return EncodecModel(EncodecConfig(**config.architecture)).eval().to(device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"architecture makes no model: {error}") from error


def _step(config: TrainingConfig, model: Any) -> TrainingStep:
    rate, discriminator = model.config.sampling_rate, None
    if config.discriminator_filters:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            discriminator = MultiScaleSTFTDiscriminator.for_rate(rate, config.discriminator_filters).to(model.device)
    weights = {**StepOptions.of_rate(rate).weights, **config.weights}
    changes = {"seed": config.seed, "learning_rate": config.learning_rate, "mel_exponents": config.mel_exponents}
    return TrainingStep(model, discriminator, StepOptions.of_rate(rate, weights=weights, **changes))


def _check_length(step: TrainingStep, channels: int, samples: int) -> None:
    """Raises ValueError where crops are too short for a loss, before anything is read."""
    crop = torch.zeros(1, channels, samples, device=step.model.device, dtype=step.model.dtype)
    try:
        step.mel(crop, crop)
        if step.discriminator is not None:
            with torch.no_grad():
                step.discriminator(crop)
    except ValueError as error:
        raise ValueError(f"crop_seconds gives {samples} samples. {error}") from error


def _bandwidth(config: Any, wanted: float) -> float:
    try:
        return known_bandwidth(config, wanted or max(config.target_bandwidths))
    except ValueError as error:
        raise ValueError(f"validation_bandwidth: {error}") from error


def _check_same_config(config: TrainingConfig, before: Mapping[str, Any], folder: Path) -> None:
    now = config.as_dict()
    for name in sorted({*now, *before} - CHANGEABLE):
        if now.get(name) != before.get(name):
            raise ValueError(
                f"{folder / CHECKPOINT} is of a run with {name} = {before.get(name)!r}; now it is {now.get(name)!r}. "
                f"Choose another folder. Only {', '.join(sorted(CHANGEABLE))} may change."
            )


def _row(step: int, report: StepReport, validation: Validation | None) -> dict[str, float | None]:
    row: dict[str, float | None] = {"step": step, "bandwidth": report.bandwidth}
    row |= {name: float(loss) for name, loss in report.losses.items()}
    row |= {"perplexity": float(report.perplexity.mean()), "replaced": int(report.replaced.sum())}
    if validation is not None:
        row |= {"val_mel": validation.mel, "val_si_snr": validation.si_snr, "val_stoi": validation.stoi}
        row |= {f"val_use_{level + 1}": use for level, use in enumerate(validation.use)}
    return row


@contextmanager
def _noticing_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGINT, SIGTERM or SIGHUP came: a step must not end in its middle.

    A second SIGINT interrupts at once. In another than the main thread, where Python sets no handlers, nothing changes.
    """
    asked = False

    def notice(number: int, _: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    with handling(notice, signal.SIGINT, *ENDING):
        yield lambda: asked
