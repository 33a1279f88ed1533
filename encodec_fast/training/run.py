"""A training run in a folder: from scratch or from any model. It may end at any moment and goes on, on a CPU to the same bits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from encodec_fast.corpus.reader import Reader
from encodec_fast.corpus.tasks import Task
from encodec_fast.formats.atomic import locked, write_atomically
from encodec_fast.pretrained import load_model
from encodec_fast.quality.measurement import QualityReport
from encodec_fast.signals import ENDING, handling
from encodec_fast.training.building import (
    build_model,
    build_step,
    check_length,
    rank_device,
    recordings,
    scanned_clips,
    validation_bandwidth,
)
from encodec_fast.training.checkpoint import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    MODEL,
    REPORT,
    MetricsFile,
    read_checkpoint,
    remove_temporaries,
    write_checkpoint,
    write_model,
)
from encodec_fast.training.config import TrainingConfig
from encodec_fast.training.crops import CropPlan, read_crops
from encodec_fast.training.distributed import any_over_ranks, process_group, rank, world_size
from encodec_fast.training.report import measured, write_report
from encodec_fast.training.step import StepReport
from encodec_fast.training.validation import Validation, validate
from encodec_fast.wording import counted

# Held while a process trains
_LOCK = ".lock"
_LOSSES = ("time", "mel", "generator", "features", "commitment", "discriminator")


class TrainingStopped(ValueError):
    """A loss or a weight that is not finite; the message names the step, and the files and offsets of its batch."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a run came to.

    steps: done in all, by earlier runs in the folder too.  first: of this run.  model: folder of the model, for transformers.
    report: the page with the sound before and after, where the config asks for one.
    validation: the last one of this run; None without, and on other ranks than the first.
    left_out: clips that can't be read, with the reason in `problem`.
    """

    steps: int
    first: int
    model: Path
    report: Path
    validation: Validation | None
    left_out: tuple[Task, ...]


def train(config: TrainingConfig, folder: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> TrainingSummary:
    """Trains a model and returns what came of it. A folder with a checkpoint is gone on with.

    folder: gets config.toml, checkpoint.pt, metrics.csv and report.html. And `model/`: the best by the validation's mel loss, without
    validation the last.
    progress: called with the steps done and all.

    On a CPU a run that was killed and went on has the bits of one that was not. Both must have the same number of threads, of ranks and
    of parts. See `TrainingStep` for ranks that are parts of another run.
    Started by torchrun, each rank takes its share of each batch, and the first one alone writes.
    SIGINT, SIGTERM and SIGHUP in the main thread let the step end, write a checkpoint and raise KeyboardInterrupt.

    Raises TrainingStopped for a loss that is not finite, and AudioError for a crop that can't be read; the checkpoint before is kept.
    Raises ValueError for a folder of another config, other audio or another process. Also for crops that are too short for the losses,
    and for a batch that the ranks can't share.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(process_group())
        if config.batch_size % (world_size() * config.gradient_accumulation_steps):
            parts = f"{config.gradient_accumulation_steps} gradient_accumulation_steps of {world_size()} ranks"
            raise ValueError(f"batch_size is {config.batch_size} for {parts}; a multiple of their product is needed.")
        if rank() == 0:
            try:
                stack.enter_context(locked(folder / _LOCK))
            except BlockingIOError as error:
                raise ValueError(f"{folder}: another process trains in this folder; wait for it, or choose another folder.") from error
        state = read_checkpoint(folder)
        if state is not None:
            _check_same_config(config, state["config"], folder)
        if rank() == 0:
            remove_temporaries(folder)
            write_atomically(folder / CONFIG, config.to_toml().encode())
        run = _Run(config, folder, state, stack)
        return run.go_on(progress if rank() == 0 else None)


class _Run:
    """Holds a run while it goes: the model and its step, the crops, and how far it is. Each rank has one."""

    def __init__(self, config: TrainingConfig, folder: Path, state: dict[str, Any] | None, stack: ExitStack) -> None:
        self.config, self.folder = config, folder
        self.done = self.first = 0 if state is None else state["step"]
        self.best: float | None = None if state is None else state["best"]
        self.validation: Validation | None = None
        tasks, self.left_out = scanned_clips(config.audio, config)
        self.plan = CropPlan(tasks, config.crop_seconds, config.seed, config.mix_share, config.mix_files, config.gain_db)
        if state is not None and state["clips"] != self.plan.fingerprint():
            raise ValueError(f"{folder}: audio is {len(tasks)} clips, which are not those of the checkpoint. Choose another folder.")
        self.model = build_model(config, rank_device(config.device))
        if state is not None:
            self.model.load_state_dict(state["model"])
        self.step = build_step(config, self.model)
        if state is not None:
            self.step.load_state_dict(state["training"])
        rate, channels = self.model.config.sampling_rate, self.model.config.audio_channels
        self.samples = round(config.crop_seconds * rate)
        check_length(self.step, channels, self.samples)
        self.bandwidth = validation_bandwidth(self.model.config, config.validation_bandwidth)
        self.share = config.batch_size // world_size()
        # two batches ahead; each clip of a sum counts
        ahead = 2 * self.share * config.crop_seconds * config.mix_files
        self.reader = stack.enter_context(
            Reader(rate, channels, workers=config.workers, prefetch_seconds=ahead, audio_column=config.audio_column)
        )
        self.recordings: list[torch.Tensor] = []
        self.metrics: MetricsFile | None = None
        if rank() > 0:
            return
        names, self.recordings, left_out = recordings(config, self.reader)
        self.left_out += left_out
        # spread over all
        apart = -(-len(names) // max(1, config.report_clips)) or 1
        self.heard_names, self.heard = names[::apart], self.recordings[::apart]
        self.before: QualityReport | None = None
        self.after: QualityReport | None = None
        uses = [f"val_use_{level + 1}" for level in range(len(self.model.quantizer.layers))]
        columns = ["step", "bandwidth", *_LOSSES, "perplexity", "replaced", "val_mel", "val_si_snr", "val_stoi", *uses]
        self.metrics = MetricsFile(folder / METRICS, columns, self.done)
        stack.callback(self.metrics.close)

    def go_on(self, progress: Callable[[int, int], None] | None) -> TrainingSummary:
        """Runs the steps that are left."""
        config, saved = self.config, time.monotonic()
        numbers = (number for step in count(self.done) for number in self._numbers(step))
        crops = read_crops(self.plan, self.reader, numbers, self.samples)
        with _noticing_signals() as asked_to_end:
            while self.done < config.steps:
                self._update([sound for _, sound in islice(crops, self.share)])
                # a rank that ended alone would leave the others waiting for it
                last, asked = self.done == config.steps, any_over_ranks(asked_to_end())
                late = time.monotonic() - saved >= 60 * config.checkpoint_minutes
                if last or asked or late or self.done % config.checkpoint_steps == 0:
                    self._save()
                    saved = time.monotonic()
                if progress is not None:
                    progress(self.done, config.steps)
                if asked and not last:
                    raise KeyboardInterrupt
        return TrainingSummary(self.done, self.first, self.folder / MODEL, self.folder / REPORT, self.validation, tuple(self.left_out))

    def _numbers(self, step: int) -> range:
        """Returns the numbers of this rank's crops in a step, from 0 on. All ranks' together are those of a single one."""
        first = step * self.config.batch_size + rank() * self.share
        return range(first, first + self.share)

    def _update(self, sounds: list[Any]) -> None:
        """Runs a step with the crops [C, T], and a validation where it is time."""
        audio = torch.stack([torch.from_numpy(sound) for sound in sounds]).to(self.model.device, self.model.dtype)
        self.step.set_learning_rate(self.config.rate_of(self.done))
        try:
            report = self.step(audio)
        except ValueError as error:
            raise self._stopped(str(error)) from error
        broken = [name for name, loss in report.losses.items() if not loss.isfinite()]
        if broken:
            raise self._stopped(f"The loss {broken[0]!r} is not finite.")
        self.done += 1
        last = self.done == self.config.steps
        validated = bool(self.recordings) and (last or self.done % self.config.validation_steps == 0)
        best = validated and self._validate()
        if self.metrics is not None and (validated or last or self.done % self.config.log_steps == 0):
            self.metrics.write(_row(self.done, report, self.validation if validated else None))
            if self.config.report_clips and (best or last):
                self._report(best)

    def _check_weights(self) -> None:
        """Raises TrainingStopped before a model that is of no use takes the place of one that is."""
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise TrainingStopped(f"After step {self.done}, {name} is not finite. The checkpoint before is kept. Lower learning_rate.")

    def _validate(self) -> bool:
        """Returns whether the model is the best so far, and then writes it."""
        self._check_weights()
        self.validation = validate(self.model, self.recordings, self.bandwidth, self.step.mel)
        if self.best is not None and self.validation.mel >= self.best:
            return False
        self.best = self.validation.mel
        write_model(self.folder, self.model)
        return True

    def _report(self, best: bool) -> None:
        """Writes report.html; what is heard in it is the start, and the best model by now."""
        if self.recordings:
            if self.before is None:
                self.before = measured(build_model(self.config, self.model.device), self.heard)
            if best:
                self.after = measured(self.model, self.heard)
            elif self.after is None:
                # the best is an earlier process's
                self.after = measured(load_model(self.folder / MODEL, self.model.device), self.heard)
        facts = {
            "model": self.config.model or "from scratch",
            "steps": f"{self.done:,} of {self.config.steps:,}",
            "batch": f"{counted(self.config.batch_size, 'crop')} of {self.config.crop_seconds:g} s",
            "audio": f"{counted(len(self.plan.tasks), 'clip')}, {sum(task.seconds for task in self.plan.tasks) / 60:,.1f} minutes",
        }
        if self.best is not None:
            facts["best mel loss"] = f"{self.best:.4f}, validation at {self.bandwidth:g} kbps"
        write_report(self.folder, facts, self.heard_names, self.before, self.after)

    def _save(self) -> None:
        """Writes the checkpoint, and the model where no validation chooses it; on other ranks than the first, nothing."""
        self._check_weights()
        if self.metrics is None:
            return
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

    def _stopped(self, reason: str) -> TrainingStopped:
        batch = range(self.done * self.config.batch_size, (self.done + 1) * self.config.batch_size)
        crops = "\n".join(f"  {self.plan.crop(number)}" for number in batch)
        kept = f"The last checkpoint in {self.folder} is kept. Look at this audio, or lower learning_rate."
        return TrainingStopped(f"Step {self.done + 1} stopped. {reason} {kept} Its batch was:\n{crops}")


def _check_same_config(config: TrainingConfig, before: Mapping[str, Any], folder: Path) -> None:
    now, changeable = config.as_dict(), config.changeable()
    for name in sorted({*now, *before} - changeable):
        if now.get(name) != before.get(name):
            raise ValueError(
                f"{folder / CHECKPOINT} is of a run with {name} = {before.get(name)!r}; now it is {now.get(name)!r}. "
                f"Choose another folder. Only {', '.join(sorted(changeable))} may change."
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

    A second SIGINT interrupts at once, but not one of several ranks: torchrun passes on what the terminal sends them anyway.
    In another than the main thread, where Python sets no handlers, nothing changes.
    """
    asked, alone = False, world_size() == 1

    def notice(number: int, _: Any) -> None:
        nonlocal asked
        if asked and alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    with handling(notice, signal.SIGINT, *ENDING):
        yield lambda: asked
