"""Trains a language model on the codes of a data set. A run may end at any moment and goes on, on a CPU to the same bits."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from encodec_fast.formats.atomic import locked, temporary_of, write_atomically
from encodec_fast.language_model.initial import begin_with_codebooks
from encodec_fast.language_model.loading import CONFIG, WEIGHTS, config_json
from encodec_fast.language_model.model import LanguageModel, LanguageModelConfig
from encodec_fast.signals import ENDING, handling
from encodec_fast.training.checkpoint import CHECKPOINT, METRICS, MetricsFile, read_checkpoint, write_checkpoint

_LOCK = ".lock"
# What a run may go on with: no number of a step depends on these
_CHANGEABLE = {"checkpoint_minutes"}
# Of the learning rate, where the cosine ends
_LEAST_SHARE = 0.05


class Rows(Protocol):
    """Gives rows of codes, as `CodesDataset(..., shuffle=True, crop_frames=...)` does."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class LanguageModelOptions:
    """What a run is asked for.

    steps: updates in all.  batch_size: crops of each.  learning_rate: of Adam, after `warmup_steps`; from there it falls as a cosine does.
    held_out: share of clips, by their ids, that are not trained on.  held_out_clips: of these, how many are measured, at most.
    most_offset: half of the batches begin at position 0, the others at one below this, in frames: long clips reach such positions.
    validation_steps, checkpoint_minutes: from one to the next.  seed: of weights, levels and offsets.
    """

    steps: int = 10_000
    batch_size: int = 16
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    held_out: float = 0.05
    held_out_clips: int = 64
    most_offset: int = 13_500
    validation_steps: int = 250
    checkpoint_minutes: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "held_out_clips", "most_offset", "validation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; 1 or more is needed.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out:g}; more than 0 and less than 1 is needed.")
        if not self.learning_rate > 0 or self.warmup_steps < 0 or self.seed < 0 or not self.checkpoint_minutes > 0:
            raise ValueError("learning_rate and checkpoint_minutes are more than 0, warmup_steps and seed 0 or more.")


@dataclass(frozen=True)
class LanguageModelSummary:
    """What a run came to.

    steps: done in all.  first: by earlier runs in the folder.  bits: per code of the held-out clips, at all levels, of the model that
    was kept, the best one.  plain_bits: what a code takes without a model.
    """

    steps: int
    first: int
    bits: float
    plain_bits: float


def train_language_model(
    rows: Rows,
    folder: str | os.PathLike[str],
    config: LanguageModelConfig,
    options: LanguageModelOptions | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, float | None], None] | None = None,
    codebooks: Sequence[Tensor] | None = None,
) -> LanguageModelSummary:
    """Trains a language model and returns what came of it. A folder with a checkpoint is gone on with.

    rows: of codes [1, K, F], K as many as the model's codebooks or more; as they are for each epoch.
    folder: gets config.json and model.safetensors, for `load_lm`, the best by its bits on held-out clips; checkpoint.pt and metrics.csv.
    progress: called with the steps done, all of them, and the last bits per code of held-out clips, or None.
    codebooks: of the codec, [N, D] for each level; the model begins with them, and needs fewer steps.

    SIGINT, SIGTERM and SIGHUP in the main thread let the step end, write a checkpoint and raise KeyboardInterrupt.
    Raises ValueError for a folder of another run or process, and where all clips or none are held out.
    """
    folder, options = Path(folder), options or LanguageModelOptions()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / _LOCK))
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process trains in this folder; wait for it, or choose another folder.") from error
        state = read_checkpoint(folder)
        asked = {"kind": "language model", **asdict(config), **asdict(options), "codebooks": _digest(codebooks)}
        if state is not None:
            _check_same(folder, asked, state["config"])
        for path in folder.iterdir():
            if temporary_of(path.name) in (CHECKPOINT, METRICS, CONFIG, WEIGHTS):
                path.unlink(missing_ok=True)
        run = _Run(rows, folder, config, options, torch.device(device), state, asked, codebooks)
        stack.callback(run.metrics.close)
        return run.go_on(progress)


class _Run:
    """Holds a run while it goes."""

    def __init__(
        self,
        rows: Rows,
        folder: Path,
        config: LanguageModelConfig,
        options: LanguageModelOptions,
        device: torch.device,
        state: Mapping[str, Any] | None,
        asked: Mapping[str, Any],
        codebooks: Sequence[Tensor] | None = None,
    ) -> None:
        self.rows, self.folder, self.options, self.device, self.asked = rows, folder, options, device, asked
        self.done = self.first = 0 if state is None else state["step"]
        self.best: float | None = None if state is None else state["best"]
        self.bits = self.best
        self.held_out = self._find_held_out(config.codebooks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.model = LanguageModel(config)
        if state is None and codebooks is not None:
            begin_with_codebooks(self.model, [book.detach().cpu() for book in codebooks], self._counts())
        self.model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), options.learning_rate)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["training"]["optimizer"])
            rows.load_state_dict(state["training"]["rows"])
        self.metrics = MetricsFile(folder / METRICS, ["step", "levels", "bits", "held_out_bits"], self.done)

    def go_on(self, progress: Callable[[int, int, float | None], None] | None) -> LanguageModelSummary:
        """Runs the steps that are left."""
        asked: list[int] = []
        batches, saved = self._batches(), time.monotonic()

        def notice(number: int, _: Any) -> None:
            # a second Ctrl-C interrupts at once
            if asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            asked.append(number)

        with handling(notice, signal.SIGINT, *ENDING):
            while self.done < self.options.steps:
                levels, bits = self._update(next(batches))
                # as it is now: what comes after the checkpoint lets the next step end
                last, ending = self.done == self.options.steps, bool(asked)
                if last or self.done % self.options.validation_steps == 0:
                    self._validate()
                    self.metrics.write({"step": self.done, "levels": levels, "bits": bits, "held_out_bits": self.bits})
                if last or ending or time.monotonic() - saved >= 60 * self.options.checkpoint_minutes:
                    self._save()
                    saved = time.monotonic()
                if progress is not None:
                    progress(self.done, self.options.steps, self.bits)
                if ending and not last:
                    raise KeyboardInterrupt
        assert self.best is not None  # the last step of a run measures, and so did that of a run that is over
        return LanguageModelSummary(self.done, self.first, self.best, math.log2(self.model.config.codebook_size))

    def _update(self, rows: Sequence[Tensor]) -> tuple[int, float]:
        """Runs a step; returns its levels and its bits per code."""
        options, config = self.options, self.model.config
        # of the step alone, so that a run that goes on draws the same
        random = np.random.default_rng([options.seed, self.done])
        counts = sorted({max(1, config.codebooks >> shift) for shift in range(config.codebooks.bit_length())})
        levels = int(random.choice(counts))
        offset = int(random.integers(options.most_offset)) if random.random() < 0.5 else 0
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * _share(self.done, options)
        self.model.train()
        loss = self._cross_entropy([row[:levels] for row in rows], offset)
        if not loss.isfinite():
            raise ValueError(f"{self.folder}: the loss of step {self.done + 1} is not finite. Lower learning_rate, in another folder.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        return levels, loss.item() / math.log(2)

    def _cross_entropy(self, rows: Sequence[Tensor], offset: int) -> Tensor:
        """Returns the mean over all codes of rows [K, F_b], in nats."""
        most = max(row.shape[1] for row in rows)
        codes = torch.stack([F.pad(row, (0, most - row.shape[1])) for row in rows]).to(self.device)
        mask = torch.stack([torch.arange(most) < row.shape[1] for row in rows]).to(self.device)
        logits = self.model(codes, offset).permute(0, 3, 1, 2)
        losses = F.cross_entropy(logits, codes, reduction="none")
        return (losses * mask[:, None]).sum() / (mask.sum() * codes.shape[1])

    def _validate(self) -> None:
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for row in self.held_out:
                total += self._cross_entropy([row], 0).item() * row.numel()
                count += row.numel()
        self.bits = total / count / math.log(2)
        if self.best is None or self.bits < self.best:
            self.best = self.bits
            from safetensors.torch import save

            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
            write_atomically(self.folder / CONFIG, config_json(self.model.config))
            write_atomically(self.folder / WEIGHTS, save(weights))

    def _save(self) -> None:
        self.metrics.sync()
        training = {"optimizer": self.optimizer.state_dict(), "rows": self.rows.state_dict()}
        model = self.model.state_dict()
        state = {"step": self.done, "config": dict(self.asked), "clips": "", "best": self.best, "model": model, "training": training}
        write_checkpoint(self.folder, state)

    def _batches(self) -> Iterator[list[Tensor]]:
        """Yields batches of rows without end, epoch after epoch."""
        rows = self._training_rows()
        while batch := list(islice(rows, self.options.batch_size)):
            yield batch

    def _training_rows(self) -> Iterator[Tensor]:
        # the first epoch of a run that goes on may have no row left
        empty = 0
        while empty < 2:
            empty += 1
            for row in self.rows:
                if not _is_held_out(row, self.options.held_out):
                    empty = 0
                    yield self._codes(row, self.model.config.codebooks)
        raise ValueError("all clips are held out; give more clips, or a smaller held_out.")

    def _find_held_out(self, levels: int) -> list[Tensor]:
        """Returns held-out crops, the same for each run of these rows."""
        self.rows.set_epoch(0)
        rows = (self._codes(row, levels) for row in self.rows if _is_held_out(row, self.options.held_out))
        found = list(islice(rows, self.options.held_out_clips))
        self.rows.set_epoch(0)
        if not found:
            raise ValueError(f"no clip is among the {self.options.held_out:.0%} that are held out; give more clips, or a larger held_out.")
        return found

    def _counts(self) -> Tensor:
        """Returns how often each entry of each level comes in an epoch of what is trained on, [K, N]."""
        config = self.model.config
        counts = torch.zeros(config.codebooks, config.codebook_size, dtype=torch.int64)
        for row in self.rows:
            if not _is_held_out(row, self.options.held_out):
                for level, codes in enumerate(self._codes(row, config.codebooks)):
                    counts[level] += torch.bincount(codes, minlength=config.codebook_size)
        self.rows.set_epoch(0)
        return counts

    @staticmethod
    def _codes(row: Mapping[str, Any], levels: int) -> Tensor:
        codes: Tensor = row["audio_codes"][0]
        if codes.shape[0] < levels:
            raise ValueError(f"{row['id']} has {codes.shape[0]} levels; the model has {levels}.")
        return codes[:levels]


def _digest(codebooks: Sequence[Tensor] | None) -> str | None:
    """Returns what names these codebooks in a checkpoint."""
    if codebooks is None:
        return None
    digest = hashlib.sha256()
    for book in codebooks:
        digest.update(book.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_held_out(row: Mapping[str, Any], share: float) -> bool:
    return zlib.crc32(row["id"].encode()) < share * 2**32


def _share(step: int, options: LanguageModelOptions) -> float:
    """Returns the share of the learning rate at a step."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return _LEAST_SHARE + (1 - _LEAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def _check_same(folder: Path, asked: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for name in sorted({*asked, *before} - _CHANGEABLE):
        was, now = before.get(name), asked.get(name)
        if was != now:
            raise ValueError(f"{folder / CHECKPOINT} is of a run with {name} = {was!r}; now it is {now!r}. Choose another folder.")
