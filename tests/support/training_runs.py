"""Training runs that take seconds: a model of few channels, a few recordings, and the comparison of two runs' folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from encodec_fast.training import TrainingConfig
from support.models import audio_like

RATE = 2400
ARCHITECTURE = {
    "sampling_rate": RATE,
    "num_filters": 4,
    "upsampling_ratios": [4, 2],
    "hidden_size": 8,
    "codebook_size": 16,
    "target_bandwidths": [1.2, 2.4, 4.8],
}


def write_recordings(folder: Path, count: int = 3) -> Path:
    """Writes recordings a.wav, b.wav, ... of 1, 2, ... seconds; each is loud at times."""
    folder.mkdir()
    for index in range(count):
        samples = audio_like(1, 1, RATE * (index + 1), index)[0, 0].numpy()
        soundfile.write(folder / f"{'abcdef'[index]}.wav", samples / np.abs(samples).max(), RATE, subtype="FLOAT")
    return folder


def tiny_config(recordings: Path, **changes: Any) -> TrainingConfig:
    """A run whose steps take some ten milliseconds, from scratch unless `model` is given."""
    settings: dict[str, Any] = {
        "audio": [str(recordings)],
        "device": "cpu",
        "steps": 6,
        "batch_size": 2,
        "crop_seconds": 0.25,
        "workers": 0,
        "discriminator_filters": 2,
        "mel_exponents": [5, 6],
        "log_steps": 1,
        "learning_rate": 1e-3,
        # a page takes longer than all the rest
        "report_clips": 0,
    }
    if "model" not in changes:
        settings["architecture"] = ARCHITECTURE
    return TrainingConfig(**{**settings, **changes})


def assert_same_run(one: Path, other: Path) -> None:
    """Checkpoints, models and metrics of two runs are equal to the bit; their configs may differ in what may change."""
    checkpoints = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (one, other)]
    for checkpoint in checkpoints:
        del checkpoint["config"]
    _assert_same(*checkpoints, "checkpoint")
    for name in ("metrics.csv", "model/model.safetensors", "model/config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def _assert_same(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other)):
            _assert_same(*pair, f"{where}[{index}]")
    else:
        assert one == other, where
