"""Models of any architecture with drawn weights, whose codes are used and spread like real ones. Their audio is noise.

Drawn weights are the same on every machine and for every number of threads. They are drawn from torch's integer generator and fitted
in float64 by transformers' own modules. Measured values are rounded to float16, which hides differences in the last bits of float64 sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncodecConfig

from encodec_fast.audio import read_audio
from encodec_fast.demo import bundled_clips
from encodec_fast.frame_codec import weight_norm_parts
from encodec_fast.model import EncodecModel
from encodec_fast.serving.request import use_backend

SEED = 20220
# Frames that each codebook is fitted on, 24 s at 75 Hz.
# They use 580 of 1024 entries of the first codebook, whose frames of silence are alike.
# They use about 800 of each other one. 1200 frames would use under half of the first.
FIT_FRAMES = 1800
# An entry moves to the mean of its frames and PRIOR_FRAMES copies of its drawn position.
# Plain k-means (0) puts an entry on nearly every one of so few frames.
# Over 32 levels their residual falls to 1e-12 of its energy, that of other audio only to 0.6.
# Rounding then decides the deep levels of other audio.
PRIOR_FRAMES = 8
# Share of a residual's energy that 10 bits can remove from 128 white values: 1 - 2^(-2 * 10 / 128).
ENTRY_ENERGY = 0.1
KMEANS_STEPS = 2
OUTPUT_RMS = 0.1


def drawn_model(config: EncodecConfig, audio: Tensor) -> EncodecModel:
    """Returns a model in float32 and eval mode on the device of `audio`.

    Weights are drawn from SEED; scales and codebooks are fitted to the audio.
    audio: [B, C, T] float32, B >= 2, scaled as the encoder sees it. It holds the frames that the codebooks are fitted on.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng(devices=[]):
        model = EncodecModel(config).eval()
    with torch.no_grad(), use_backend("reference"):
        seed_weights(model, generator)
        model.to(audio.device, torch.float64)
        audio = audio.double()
        # two pieces of different clips are enough for the layers' means and deviations
        embeddings = _calibrate(model.encoder, audio[:: len(audio) // 2][:2])
        fit_codebooks(model, audio, generator)
        _calibrate(model.decoder, model.quantizer.decode(model.quantizer.encode(embeddings)))
        if not config.normalize:
            _rescale(_calibrated_modules(model.decoder)[-1], OUTPUT_RMS)
    return model.float()


def fitting_audio(config: EncodecConfig, frames: int = FIT_FRAMES) -> Tensor:
    """Returns one-second pieces of the bundled clips, [B, C, T] float32, scaled as the encoder sees them.

    The pieces are spread evenly over all clips. They hold at least `frames` codec frames, or are all there are.
    """
    rate, channels = config.sampling_rate, config.audio_channels
    whole = torch.cat([torch.from_numpy(read_audio(path, rate, channels)[0]) for path in bundled_clips()], dim=-1)
    pieces = torch.stack([piece for piece in whole.split(rate, dim=-1) if piece.shape[-1] == rate])
    count = min(len(pieces), -(-frames // config.frame_rate))
    pieces = pieces[torch.arange(count) * len(pieces) // count]
    if config.normalize:
        pieces = pieces / (pieces.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8)
    return pieces


def seed_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draws every weight of the model's convolutions and LSTMs in place, uniform, with unit gain by fan-in.

    torch.rand, not randn: its values come from integers, randn's from the log and cos of the machine's library.
    """

    def draw(tensor: Tensor, bound: float) -> None:
        tensor.copy_((2 * torch.rand(tensor.shape, generator=generator) - 1) * bound)

    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            gain, direction = weight_norm_parts(module)
            fan_in = module.in_channels * module.kernel_size[0]
            if isinstance(module, nn.ConvTranspose1d):
                fan_in //= module.stride[0]
            draw(direction, (3 / fan_in) ** 0.5)
            if gain is not None:
                gain.copy_(direction.flatten(1).norm(dim=1).view_as(gain))
            assert module.bias is not None
            draw(module.bias, 0.1)
        elif isinstance(module, nn.LSTM):
            for parameter in module.parameters():
                draw(parameter, module.hidden_size**-0.5)


def _portable(value: Tensor) -> Tensor:
    """Rounds value to float16: machines and thread counts agree on it, though not on a sum's last bits."""
    return value.half().to(value.dtype)


def _calibrate(stack: nn.Module, inputs: Tensor) -> Tensor:
    """Scales each layer's output in place to zero mean per channel and unit deviation; returns the stack's output.

    That takes a bias per channel and one factor per layer, found on `inputs`.
    """

    def standardise(module: Any, _: Any, output: Tensor) -> Tensor:
        mean = output.mean((0, 2))
        factor = _portable((output - mean[:, None]).square().mean().rsqrt())
        bias = _portable((module.bias - mean) * factor)
        standardised = (output - module.bias[:, None]) * factor + bias[:, None]
        _rescale(module, factor)
        module.bias.copy_(bias)
        return standardised

    handles = [module.register_forward_hook(standardise) for module in _calibrated_modules(stack)]
    output = stack(inputs)
    for handle in handles:
        handle.remove()
    return output


def _calibrated_modules(stack: nn.Module) -> list[nn.Module]:
    """Returns the group norms if there are any, since they undo the scale of the convolution before; else the convolutions."""
    norms: list[nn.Module] = [module for module in stack.modules() if isinstance(module, nn.GroupNorm)]
    return norms or [module for module in stack.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]


def _rescale(module: Any, factor: Tensor | float) -> None:
    """Multiplies the output of a convolution or group norm by factor, in place."""
    gain, weight = (None, module.weight) if isinstance(module, nn.GroupNorm) else weight_norm_parts(module)
    (weight if gain is None else gain).mul_(factor)
    module.bias.mul_(factor)


def fit_codebooks(model: Any, audio: Tensor, generator: torch.Generator) -> list[int]:
    """Fits the codebooks to `audio` in place; returns how many entries of each its frames use.

    audio: [B, C, T], scaled as the encoder sees it, of the model's dtype (float64: the same codebooks on any machine).
    At each level, entries are drawn from the covariance of the residual.
    """
    embeddings = torch.cat([model.encoder(piece) for piece in audio.split(2)])
    vectors = embeddings.transpose(1, 2).reshape(-1, embeddings.shape[1])  # [B*F, D]
    return fit_levels(
        model,
        vectors,
        draw=lambda residual, size: _draw_entries(residual, size, generator),
        settle=lambda entries, _: _portable(entries),
        prior=PRIOR_FRAMES,
    )


def fit_levels(
    model: Any, vectors: Tensor, draw: Callable[[Tensor, int], Tensor], settle: Callable[[Tensor, Tensor], Tensor], prior: float
) -> list[int]:
    """Fits every level in place to what the levels before leave of `vectors`; returns how many entries of each these use.

    vectors: [R, D] of the codebooks' dtype.  draw: gives the first entries [size, D] for a residual [R, D] and a size.
    KMEANS_STEPS of k-means then move them, with a weight of `prior` vectors on the entry as it was.
    settle: gives the entries [size, D] that are kept, for those and the residual.
    """
    residual, used = vectors, []
    for layer in model.quantizer.layers:
        size = layer.codebook.embed.shape[0]
        entries = draw(residual, size)
        for _ in range(KMEANS_STEPS):
            nearest = _nearest(residual, entries)
            count = torch.bincount(nearest, minlength=size).to(residual)[:, None]
            total = torch.zeros_like(entries).index_add_(0, nearest, residual)
            moved = (total + prior * entries) / (count + prior)
            entries = torch.where(count + prior > 0, moved, entries)
        entries = settle(entries, residual)
        layer.codebook.embed.copy_(entries)
        nearest = _nearest(residual, entries)
        residual = residual - entries[nearest]
        used.append(nearest.unique().numel())
    return used


def _draw_entries(residual: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draws random vectors [size, D] with the frames' mean and ENTRY_ENERGY of their covariance.  residual: [frames, D]."""
    mean = residual.mean(0)
    covariance = (residual - mean).T @ (residual - mean) / len(residual)
    # fewer frames than dimensions leave the covariance singular
    covariance.diagonal().add_(1e-6 * covariance.diagonal().mean() + 1e-12)
    unit = 3**0.5 * (2 * torch.rand(size, residual.shape[1], generator=generator) - 1).to(residual)
    return mean + unit @ torch.linalg.cholesky(ENTRY_ENERGY * covariance).T


def _nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """Returns the index of the nearest entry for each vector, int64 [frames]."""
    return (entries.square().sum(1) - 2 * vectors @ entries.T).argmin(1)
