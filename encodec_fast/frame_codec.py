"""A codec on frames of samples, embedded exactly in the layers of EnCodec's 24 kHz architecture.

    units  = ELU(conv(samples of this frame and the one before))          [512]
    values = conv(units of the last 7 frames)                             [128]  -> codebooks
    units  = ELU(conv(values of the last 7 frames))                       [512]
    samples of this frame and the next, summed = transposed conv(units)   [320 each]

That is the inner half of EnCodec: its last strided convolution, its two widest ones, its first transposed convolution.
The outer layers only move samples. Strided convolutions move them into channels: 1, 2, 8 and 40 samples at a time,
and eight steps of 40 are a frame. The decoder's layers deal them out again.

ELU is all but linear near zero: half of ELU(x) - ELU(-x) is x - |x| x / 4. So a sample is held by pairs of channels, as
SCALE * sample and as minus that. Full scale loses 0.1 % in each layer, speech less; louder samples are bent softly.
A bias that moves samples to where ELU is linear would do too. But rounding errors grow with it, and quiet speech has most.
All channels of a layer are used, each pair with another scale. So their rounding errors differ, and the mean has less.

Residual blocks pass on what they get: identity in the shortcut, zero in the branch. The LSTM's weights are zero, so its
residual sum is its input. All of it is dense tensors of the real architecture: it runs at the real model's speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Float16 resolves 6e-8 near zero, which is 96 dB below full scale at this scale.
SCALE = 2.0**-8
SCALE_STEP = 0.0173  # from pair to pair, relative


def embed_frame_codec(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Writes the frame codec into the model's weights, in place; every other weight becomes zero or part of an identity.

    model: an EncodecModel of the 24 kHz architecture (mono, causal, weight norm), float32.
    tensors, any floating dtype:
        encoder.units [512, 40, 16] and encoder.units_bias [512], of the last strided convolution.
        encoder.values [128, 512, 7] and encoder.values_bias [128].
        decoder.units [512, 128, 7] and decoder.units_bias [512].
        decoder.samples [512, 40, 16], of the first transposed convolution.
        codebooks [K, 1024, 128] int8 and codebooks_scale [K, 1024].
    """
    with torch.no_grad():
        _embed_encoder(model.encoder, tensors)
        _embed_decoder(model.decoder, tensors)
        scaled = tensors["codebooks"].float() * tensors["codebooks_scale"].float()[..., None]
        for layer, entries in zip(model.quantizer.layers, scaled, strict=True):
            layer.codebook.embed.copy_(entries)
            layer.codebook.embed_avg.copy_(entries)
            layer.codebook.cluster_size.fill_(1.0)


@dataclass(frozen=True)
class _Held:
    """How a layer's channels hold samples. Channels beyond a whole number of pairs hold nothing."""

    read: Tensor  # [samples, C], gives the samples: the mean over the channels that hold a sample
    write: Tensor  # [C, samples], signed scales


def _held(channels: int, samples: int) -> _Held:
    """Returns how `channels` hold `samples`: in channel order first each sample, then minus each, and so on."""
    copies = channels // (2 * samples) * 2
    assert copies, "too few channels for a pair of each sample"
    copy = torch.arange(copies).repeat_interleave(samples)
    write = torch.zeros(channels, samples)
    scale = SCALE * (1 + SCALE_STEP * (copy // 2)) * (1 - 2 * (copy % 2))
    write[: copies * samples] = torch.eye(samples).repeat(copies, 1) * scale[:, None]
    read = torch.zeros(samples, channels)
    read[:, : copies * samples] = torch.eye(samples).repeat(1, copies) / (copies * scale)
    return _Held(read, write)


def _embed_encoder(encoder: Any, tensors: Mapping[str, Tensor]) -> None:
    """Moves samples into channels, then writes the encoder's two convolutions."""
    first, *strided, units, last = _convolutions(encoder)
    _pass_on(encoder)
    held = _held(first.out_channels, 1)
    weight = torch.zeros(_shape(first))
    weight[:, :, -1] = held.write
    _write(first, weight)
    for conv in strided:
        stride = conv.stride[0]
        before, held = held, _held(conv.out_channels, len(held.read) * stride)
        weight = torch.zeros(_shape(conv))
        for step, write in enumerate(held.write.chunk(stride, dim=1)):
            weight[:, :, stride + step] = write @ before.read
        _write(conv, weight)
    weight = torch.einsum("usk,sc->uck", tensors["encoder.units"].float(), held.read)
    _write(units, weight, tensors["encoder.units_bias"].float())
    _write(last, tensors["encoder.values"].float(), tensors["encoder.values_bias"].float())


def _embed_decoder(decoder: Any, tensors: Mapping[str, Tensor]) -> None:
    """Writes the decoder's two convolutions, then deals samples out of channels."""
    first, samples, *transposed, last = _convolutions(decoder)
    _pass_on(decoder)
    _write(first, tensors["decoder.units"].float(), tensors["decoder.units_bias"].float())
    held = _held(samples.out_channels, tensors["decoder.samples"].shape[1])
    weight = torch.einsum("usk,cs->uck", tensors["decoder.samples"].float(), held.write)
    _write(samples, weight)
    for conv in transposed:
        stride = conv.stride[0]
        before, held = held, _held(conv.out_channels, len(held.read) // stride)
        weight = torch.zeros(_shape(conv))
        for step, read in enumerate(before.read.chunk(stride)):
            weight[:, :, step] = (held.write @ read).T
        _write(conv, weight)
    weight = torch.zeros(_shape(last))
    weight[:, :, -1] = held.read
    _write(last, weight)


def _convolutions(stack: Any) -> list[Any]:
    """Returns the convolutions of the stack's line, without those in residual blocks."""
    return [layer.conv for layer in stack.layers if hasattr(layer, "conv")]


def _pass_on(stack: Any) -> None:
    """Makes the stack's residual blocks and LSTM give what they get."""
    for layer in stack.layers:
        if hasattr(layer, "block"):
            for part in layer.block:
                if hasattr(part, "conv"):
                    _write(part.conv, torch.zeros(_shape(part.conv)))
            conv = layer.shortcut.conv
            _write(conv, torch.eye(conv.out_channels)[..., None])
        elif hasattr(layer, "lstm"):
            for parameter in layer.lstm.parameters():
                parameter.zero_()


def weight_norm_parts(conv: Any) -> tuple[Tensor | None, Tensor]:
    """Returns (g, v) of a weight-normed convolution, under torch's new or old names; (None, weight) of a plain one."""
    if hasattr(conv, "parametrizations"):
        parts = conv.parametrizations.weight
        return parts.original0, parts.original1
    if hasattr(conv, "weight_g"):
        return conv.weight_g, conv.weight_v
    return None, conv.weight


def _shape(conv: Any) -> torch.Size:
    return weight_norm_parts(conv)[1].shape


def _write(conv: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    """Writes weight and bias, or none, into a weight-normed convolution.

    A filter of zeros gets the length 0 and some direction: weight norm would divide zero by zero.
    """
    direction = weight.clone(memory_format=torch.contiguous_format)
    length = weight.flatten(1).norm(dim=1)
    direction.flatten(1)[length == 0, 0] = 1
    gain, own = weight_norm_parts(conv)
    assert gain is not None and isinstance(conv.bias, nn.Parameter)
    gain.copy_(length.view_as(gain))
    own.copy_(direction)
    conv.bias.copy_(torch.zeros(conv.out_channels) if bias is None else bias)
