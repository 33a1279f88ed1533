"""A codec on frames of samples, embedded in the layers of EnCodec's two architectures.

    units  = ELU(conv(samples of two frames))                             [512]
    values = conv(units of 7 frames)                                      [128]  -> codebooks
    units  = ELU(conv(values of 7 frames))                                [512]
    samples of two frames, summed where they overlap = transposed conv(units)

At 24 kHz frames are a frame and those before it. At 48 kHz two frames are a frame with half of each neighbour, and 7
are three on each side.

That is the inner half of EnCodec: its last strided convolution, its two widest ones, its first transposed convolution.
The outer layers only move samples. Strided convolutions move them into channels: 1, 2, 8 and 40 samples of each audio
channel at a time. Eight steps of 40 are a frame. The decoder's layers deal them out again.

ELU is all but linear near zero: half of ELU(x) - ELU(-x) is x - |x| x / 4. So a sample is held by pairs of channels, as
SCALE * sample and as minus that. Full scale loses 0.1 % in each layer, speech less; louder samples are bent softly.
A bias that moves samples to where ELU is linear would do too. But rounding errors grow with it, and quiet speech has most.
All channels of a layer are used, each pair with another scale. So their rounding errors differ, and the mean has less.

The group norms of the 48 kHz architecture divide by the deviation of a whole second. The last two channels of a layer are
constant, far from zero and of opposite signs: they are nearly all of that deviation. So the norm divides by a constant, which
its weight takes off, and its weight for the two is zero. Only the audio itself has no such channels: each second leaves
the decoder with the same volume, as it does in the official model.

Residual blocks pass on what they get: identity in the shortcut, zero in the branch. The LSTM's weights are zero, so its
residual sum is its input. All of it is dense tensors of the real architecture: it runs at the real model's speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Float16 resolves 6e-8 near zero, which is 96 dB below full scale at this scale.
SCALE = 2.0**-8
# Of samples that `normalize` brought to unit volume, whose peaks are about 8
SCALE_OF_UNIT_VOLUME = 2.0**-11
SCALE_STEP = 0.0173  # from pair to pair, relative
# Deviations that the constant channels give a layer: a thousand times that of what pairs hold, and of values
CONSTANT, CONSTANT_OF_VALUES = 2.0**-1, 2.0**10


def embed_frame_codec(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Writes the frame codec into the model's weights, in place; every other weight becomes zero or part of an identity.

    model: an EncodecModel of the 24 kHz architecture (causal, weight norm) or that of 48 kHz (group norm), float32.
    tensors, any floating dtype, C the audio channels, U units up to 512 and the rest of them zero:
        encoder.units [U, 40 * C, 16] and encoder.units_bias [U], of the last strided convolution.
        encoder.values [128, U, 7] and encoder.values_bias [128].
        decoder.units [U, 128, 7] and decoder.units_bias [U].
        decoder.samples [U, 40 * C, 16], of the first transposed convolution.
        codebooks [K, 1024, 128] int8 and codebooks_scale [K, 1024].
    At 48 kHz the last two units and values are constant, and `volume` [] is the deviation of decoded audio.
    """
    scale = SCALE_OF_UNIT_VOLUME if model.config.normalize else SCALE
    with torch.no_grad():
        _embed_encoder(model.encoder, tensors, scale)
        _embed_decoder(model.decoder, tensors, scale)
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


def _held(layer: Any, samples: int, smallest: float) -> _Held:
    """Returns how a layer's outputs hold `samples`: in channel order first each sample, then minus each, and so on."""
    channels = len(layer.conv.bias)
    copies = (channels - 2 * hasattr(layer, "norm")) // (2 * samples) * 2
    assert copies, "too few channels for a pair of each sample"
    copy = torch.arange(copies).repeat_interleave(samples)
    write = torch.zeros(channels, samples)
    scale = smallest * (1 + SCALE_STEP * (copy // 2)) * (1 - 2 * (copy % 2))
    write[: copies * samples] = torch.eye(samples).repeat(copies, 1) * scale[:, None]
    read = torch.zeros(samples, channels)
    read[:, : copies * samples] = torch.eye(samples).repeat(1, copies) / (copies * scale)
    return _Held(read, write)


def _embed_encoder(encoder: Any, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Moves samples into channels, then writes the encoder's two convolutions."""
    first, *strided, units, last = _convolutions(encoder)
    held = _held(first, _shape(first)[1], scale)
    weight = torch.zeros(_shape(first))
    weight[:, :, _first_step(first)] = held.write
    _write(first, weight)
    blocks = _residual_blocks(encoder)
    for block, layer in zip(blocks, strided, strict=False):
        _pass_on(block)
        stride, start = layer.conv.stride[0], _first_step(layer)
        before, held = held, _held(layer, len(held.read) * stride, scale)
        weight = torch.zeros(_shape(layer))
        for step, write in enumerate(held.write.chunk(stride, dim=1)):
            weight[:, :, start + step] = write @ before.read
        _write(layer, weight)
    _pass_on(blocks[-1])
    weight = _filled(torch.einsum("usk,sc->uck", tensors["encoder.units"].float(), held.read), _shape(units))
    _write(units, weight, _filled(tensors["encoder.units_bias"].float(), weight.shape[:1]))
    _silence_lstm(encoder)
    weight = _filled(tensors["encoder.values"].float(), _shape(last))
    _write(last, weight, _filled(tensors["encoder.values_bias"].float(), weight.shape[:1]), CONSTANT_OF_VALUES)


def _embed_decoder(decoder: Any, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Writes the decoder's two convolutions, then deals samples out of channels."""
    first, samples, *transposed, last = _convolutions(decoder)
    weight = _filled(tensors["decoder.units"].float(), _shape(first))
    _write(first, weight, _filled(tensors["decoder.units_bias"].float(), weight.shape[:1]))
    _silence_lstm(decoder)
    held = _held(samples, tensors["decoder.samples"].shape[1], scale)
    weight = torch.einsum("usk,cs->uck", tensors["decoder.samples"].float(), held.write)
    _write(samples, _filled(weight, _shape(samples)))
    blocks = _residual_blocks(decoder)
    for block, layer in zip(blocks, transposed, strict=False):
        _pass_on(block)
        stride, start = layer.conv.stride[0], 0 if layer.causal else _first_step(layer)
        before, held = held, _held(layer, len(held.read) // stride, scale)
        weight = torch.zeros(_shape(layer))
        for step, read in enumerate(before.read.chunk(stride)):
            weight[:, :, start + step] = (held.write @ read).T
        _write(layer, weight)
    _pass_on(blocks[-1])
    weight = torch.zeros(_shape(last))
    weight[:, :, _first_step(last)] = held.read
    _write(last, weight, volume=float(tensors.get("volume", 1)))


def _convolutions(stack: Any) -> list[Any]:
    """Returns the convolutions of the stack's line, without those in residual blocks."""
    return [layer for layer in stack.layers if hasattr(layer, "conv")]


def _residual_blocks(stack: Any) -> list[Any]:
    return [layer for layer in stack.layers if hasattr(layer, "block")]


def _first_step(layer: Any) -> int:
    """Returns which step of its kernel meets the first of the steps that a convolution stands at: those before it are padding."""
    total = layer.conv.kernel_size[0] - layer.conv.stride[0]
    return int(total if layer.causal else total - total // 2)


def _filled(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the tensor with zeros at the end of each axis, up to that shape."""
    whole = torch.zeros(tuple(shape))
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def _pass_on(block: Any) -> None:
    """Makes a residual block give what it gets."""
    for part in block.block:
        if hasattr(part, "conv"):
            _write(part, torch.zeros(_shape(part)))
    _write(block.shortcut, torch.eye(_shape(block.shortcut)[0])[..., None])


def _silence_lstm(stack: Any) -> None:
    """Makes the stack's LSTM add nothing to what it gets."""
    for layer in stack.layers:
        if hasattr(layer, "lstm"):
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


def _shape(layer: Any) -> torch.Size:
    return weight_norm_parts(layer.conv)[1].shape


def _write(layer: Any, weight: Tensor, bias: Tensor | None = None, constant: float = CONSTANT, volume: float | None = None) -> None:
    """Writes weight and bias, or none, into a convolution with weight norm or with a group norm behind it.

    constant: the deviation that the last two channels give to what a norm gets; what they gave otherwise is lost.
    volume: the deviation of what the norm gives, without such channels.
    """
    conv = layer.conv
    bias = torch.zeros_like(conv.bias) if bias is None else bias
    gain, own = weight_norm_parts(conv)
    if gain is None:
        own.copy_(weight)
        conv.bias.zero_()
        layer.norm.bias.copy_(bias)
        if volume is not None:
            layer.norm.weight.fill_(volume)
            return
        own.narrow(0 if isinstance(conv, nn.Conv1d) else 1, len(bias) - 2, 2).zero_()
        value = constant * (len(bias) / 2) ** 0.5
        conv.bias[-2:] = torch.tensor([value, -value])
        layer.norm.weight.fill_((constant**2 + layer.norm.eps) ** 0.5)
        layer.norm.weight[-2:] = 0
        return
    # a filter of zeros gets the length 0 and some direction: weight norm would divide zero by zero
    direction = weight.clone(memory_format=torch.contiguous_format)
    length = weight.flatten(1).norm(dim=1)
    direction.flatten(1)[length == 0, 0] = 1
    gain.copy_(length.view_as(gain))
    own.copy_(direction)
    conv.bias.copy_(bias)
