"""Models with codebooks that mean something, audio to run through them, and the comparison that every drop-in test ends in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from hypothesis import reject
from torch import Tensor
from transformers import EncodecConfig

import encodec_fast
from bench_lib.drawn import fit_levels
from encodec_fast import verify
from encodec_fast.plan import geometry

# Against a float64 run ours may err this many times as much as HF's own float32 run, plus the slack times the signal's peak: on a few
# dozen values either error can come out near zero by luck.
PEAK_ERROR_FACTOR, PEAK_ERROR_SLACK = 4.0, 5e-6


def config_24khz(**changes: Any) -> EncodecConfig:
    """The geometry of facebook/encodec_24khz."""
    return EncodecConfig(**changes)


def config_48khz(**changes: Any) -> EncodecConfig:
    """The geometry of facebook/encodec_48khz."""
    settings = {
        "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
        "sampling_rate": 48_000,
        "audio_channels": 2,
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "norm_type": "time_group_norm",
        "use_causal_conv": False,
    }
    return EncodecConfig(**{**settings, **changes})


def small_config(**changes: Any) -> EncodecConfig:
    """A streamable mono model of few channels: every kind of stage, milliseconds to run."""
    settings = {
        "sampling_rate": 2400,
        "num_filters": 4,
        "upsampling_ratios": [4, 2],
        "hidden_size": 8,
        "codebook_size": 16,
        # transformers before 4.45 counts 10 bits per level whatever the codebook: 4 levels there, 10 later
        "target_bandwidths": [1.2, 2.4, 4.8, 12.0],
    }
    return EncodecConfig(**{**settings, **changes})


def audio_like(batch: int, channels: int, samples: int, seed: int) -> Tensor:
    """[batch, channels, samples] float32: gliding tones with pauses over faint noise, seeded."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / max(samples, 1)
    tones = torch.zeros(batch, channels, samples)
    for _ in range(4):
        start, glide, phase = (torch.rand(batch, channels, 1, generator=generator) for _ in range(3))
        tones += torch.sin(6.2832 * (phase + samples * (0.3 * start * time + 0.1 * glide * time**2)))
    swell = torch.sin(6.2832 * (torch.rand(batch, channels, 1, generator=generator) + 3 * time)).clamp(min=0)
    return 0.2 * tones * swell + 0.01 * torch.randn(batch, channels, samples, generator=generator)


class DegenerateCodebooks(AssertionError):
    """Codebooks with half of their entries unused, which compare equal whatever is computed."""


def reference_model(config: EncodecConfig, seed: int = 0) -> transformers.EncodecModel:
    """Stock HF, seeded weights, codebooks fitted by k-means on the residuals of seeded audio's embeddings.

    A fresh EncodecModel has codebooks of zeros: every code is 0 and every comparison passes. Here more than half of each codebook's
    entries are in use on the fitting audio, or this fails.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.EncodecModel(config).eval()
    # about 4 frames per entry
    hop_length = geometry.hop_length(config)
    samples = min(4 * config.codebook_size * hop_length, 30 * config.sampling_rate) // 4 + hop_length
    with torch.no_grad():
        embeddings = model.encoder(audio_like(4, config.audio_channels, samples, seed + 1000))
        vectors, used = embeddings.transpose(1, 2).flatten(0, 1), [0]
        for attempt in range(20):
            # embeddings of one or two channels lie on a line, where only faint noise leaves every entry its own vectors
            if min(used) <= config.codebook_size / 2:
                used = fit_codebooks(model, vectors, torch.Generator().manual_seed(seed + attempt), 0.05 * 0.5**attempt)
    if min(used) <= config.codebook_size / 2:
        raise DegenerateCodebooks(f"{used} of {config.codebook_size} entries in use")
    return model


def fit_codebooks(model: transformers.EncodecModel, vectors: Tensor, generator: torch.Generator, noise: float) -> list[int]:
    """Fits every level to the vectors [R, D], beginning with some of them; returns the entries in use per level."""

    def near(entries: Tensor, residual: Tensor) -> Tensor:
        # entries that equal their only vector would leave a residual of zero
        return entries + noise * residual.std() * torch.randn(entries.shape, generator=generator)

    def draw(residual: Tensor, size: int) -> Tensor:
        return near(residual[torch.randperm(residual.shape[0], generator=generator)[:size]], residual)

    return fit_levels(model, vectors, draw, near, prior=0)


def ours_like(reference: transformers.EncodecModel) -> encodec_fast.EncodecModel:
    """Our model with the reference's weights, dtype and mode."""
    model = encodec_fast.EncodecModel(reference.config)
    model.load_state_dict(reference.state_dict())
    return model.to(reference.dtype).train(reference.training)


def pair(config: EncodecConfig, seed: int = 0) -> tuple[transformers.EncodecModel, encodec_fast.EncodecModel]:
    """(stock HF, ours) on the same fitted weights."""
    reference = reference_model(config, seed)
    return reference, ours_like(reference)


def drawn_pair(config: EncodecConfig, seed: int) -> tuple[transformers.EncodecModel, encodec_fast.EncodecModel]:
    """As `pair`, of a config that hypothesis drew: another is drawn where the codebooks would mean nothing."""
    try:
        return pair(config, seed)
    except DegenerateCodebooks:
        reject()


def top_bandwidth(model: transformers.EncodecModel) -> float:
    """The highest bandwidth of the model, kbps: all levels of the quantizer."""
    return model.config.target_bandwidths[-1]


def outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or (type, message) of what it raises."""
    try:
        return call()
    except Exception as error:  # the type and text of any error are what is compared
        return type(error), str(error)


def is_error(result: Any) -> bool:
    return isinstance(result, tuple) and bool(result) and isinstance(result[0], type)


def assert_close_to_reference(ours: Tensor, reference: Tensor, truth: Tensor) -> None:
    """Ours errs at most PEAK_ERROR_FACTOR times as much as the reference against the float64 truth, plus the slack."""
    assert (ours.shape, ours.dtype) == (reference.shape, reference.dtype)
    if not truth.isfinite().all():
        assert torch.equal(ours.isfinite(), reference.isfinite())
        return
    own, stock = ((side.double() - truth).abs().max().item() if truth.numel() else 0.0 for side in (ours, reference))
    bound = PEAK_ERROR_FACTOR * stock + PEAK_ERROR_SLACK * (truth.abs().max().item() if truth.numel() else 0.0)
    assert own <= bound, f"error {own:.2e} against float64, HF's own float32 errs {stock:.2e}, bound {bound:.2e}"


def assert_same_codes(
    model: encodec_fast.EncodecModel, reference: transformers.EncodecModel, audio: Tensor, ours: Tensor, theirs: Tensor, bandwidth: float
) -> int:
    """Codes are equal, or differ only where float64 itself can hardly tell: returns the frames that do (printed, capped by `verify`)."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if torch.equal(ours, theirs):
        return 0
    report = verify.verify(model, audio, bandwidth)
    print(report)
    assert report.passed, str(report)
    return len(report.flips)
