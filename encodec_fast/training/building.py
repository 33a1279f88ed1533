"""What a training run is made of, as its config says: device, model, step, and the clips to train on and to validate with."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import EncodecConfig

from encodec_fast.corpus.reader import Clip, Reader
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tasks import Task
from encodec_fast.model import EncodecModel, known_bandwidth
from encodec_fast.pretrained import load_model, torch_device
from encodec_fast.training.config import TrainingConfig
from encodec_fast.training.discriminator import MultiScaleSTFTDiscriminator
from encodec_fast.training.distributed import world_size
from encodec_fast.training.step import StepOptions, TrainingStep


def rank_device(device: str) -> torch.device:
    """Returns the device of this rank: of several on one machine, each has the GPU of its LOCAL_RANK.

    Raises ValueError as `torch_device` does, and for one GPU that all ranks would share.
    """
    target = torch_device(device)
    if target.type != "cuda" or world_size() == 1:
        return target
    if ":" in device:
        raise ValueError(f"device is {device!r} for {world_size()} ranks; each needs a GPU of its own. Take auto or cuda.")
    target = torch_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    torch.cuda.set_device(target)
    return target


def scanned_clips(sources: tuple[str, ...], config: TrainingConfig) -> tuple[list[Task], list[Task]]:
    """Returns the clips of the sources with their lengths, and those that can't be read."""
    tasks = scan_seconds(find_tasks(sources, config.audio_column, columns=()), config.audio_column)
    return [task for task in tasks if task.problem is None], [task for task in tasks if task.problem is not None]


def _start(task: Task, seconds: float) -> Task:
    """Returns the task of the first seconds of another."""
    return task if task.seconds <= seconds else replace(task, duration=seconds, seconds=seconds)


def recordings(config: TrainingConfig, reader: Reader) -> tuple[list[str], list[Tensor], list[Task]]:
    """Returns the first seconds of the validation's clips: their ids, their audio [C, T], and the tasks that can't be read.

    Raises ValueError for a clip that turns out damaged when it is read.
    """
    if not config.validation_audio:
        return [], [], []
    tasks, left_out = scanned_clips(config.validation_audio, config)
    chosen = [_start(task, config.validation_seconds) for task in tasks[: config.validation_clips]]
    clips = []
    for clip in reader.read(chosen):
        if not isinstance(clip, Clip):
            raise ValueError(f"validation_audio: {clip.task.shown_path}: {getattr(clip, 'reason', '')} Leave it out.")
        clips.append(torch.from_numpy(clip.samples))
    return [task.id for task in chosen], clips, left_out


def build_model(config: TrainingConfig, device: torch.device) -> Any:
    """Returns the model that a run begins with, in eval mode and float32: so its own encode and decode run on the backends.

    Raises ValueError for settings that make none, and as `load_model` does.
    """
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


def build_step(config: TrainingConfig, model: Any) -> TrainingStep:
    """Returns the step of the model, with the discriminator that the config asks for."""
    rate, discriminator = model.config.sampling_rate, None
    if config.discriminator_filters:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            discriminator = MultiScaleSTFTDiscriminator.for_rate(rate, config.discriminator_filters).to(model.device)
    weights = {**StepOptions.of_rate(rate).weights, **config.weights}
    named = ("seed", "learning_rate", "mel_exponents", "frozen", "precision", "compile", "gradient_accumulation_steps")
    same = {name: getattr(config, name) for name in named}
    return TrainingStep(model, discriminator, StepOptions.of_rate(rate, weights=weights, **same))


def check_length(step: TrainingStep, channels: int, samples: int) -> None:
    """Raises ValueError where crops are too short for a loss, before anything is read."""
    crop = torch.zeros(1, channels, samples, device=step.model.device, dtype=step.model.dtype)
    try:
        step.mel(crop, crop)
        if step.discriminator is not None:
            with torch.no_grad():
                step.discriminator(crop)
    except ValueError as error:
        raise ValueError(f"crop_seconds gives {samples} samples. {error}") from error


def validation_bandwidth(config: Any, wanted: float) -> float:
    """Returns the bandwidth of validations, kbps; wanted: 0 for the highest.  Raises ValueError for one that the model lacks."""
    try:
        return known_bandwidth(config, wanted or max(config.target_bandwidths))
    except ValueError as error:
        raise ValueError(f"validation_bandwidth: {error}") from error
