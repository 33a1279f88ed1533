"""Chunked models (48 kHz): all chunks of all clips as common batches, in place of the reference's loop over chunks.

The walk over a clip - offsets, masks, checks, error messages - stays the installed transformers' own: its `encode` and `decode`
run on a stand-in for the model that takes down the chunks, which are then run together.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.serving import route

# Bound on the audio, first-layer activations and padding of the chunks that run as one batch: 40 chunks of the 48 kHz model.
CHUNK_BATCH_BYTES = 512 << 20


class EncodeWalk:
    """Stands in for a model while HF's `encode` walks the chunks."""

    def __init__(self, model: hf.EncodecModel) -> None:
        self.config = model.config
        self._model = model
        self.chunks: list[tuple[Tensor, tuple[Any, ...]]] = []

    def _encode_frame(self, input_values: Tensor, bandwidth: float, *mask: Tensor) -> tuple[Tensor, None]:
        # mask: transformers before 4.53 applies the padding mask inside
        self.bandwidth = bandwidth
        self.chunks.append((input_values, mask))
        return self.placeholder(input_values), None

    def placeholder(self, input_values: Tensor) -> Tensor:
        """Stands for the chunk's codes, [B, K, F]."""
        frames = encoded_length(self.config, input_values.shape[-1])
        return input_values.new_empty(input_values.shape[0], self.levels(), frames, dtype=torch.int64)

    def levels(self) -> int:
        """Codebooks in use."""
        return levels_of(self._model.quantizer, self.bandwidth)


class DecodeWalk:
    """Stands in for a chunked model while HF's `decode` walks the chunks."""

    def __init__(self, model: hf.EncodecModel) -> None:
        self.config = model.config
        self._model = model

    def _decode_frame(self, codes: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return codes, scale

    def _linear_overlap_add(self, chunks: list[tuple[Tensor, Tensor | None]], stride: int) -> Tensor:
        return overlap_add(decode_chunks(self._model, chunks), stride)


def levels_of(quantizer: hf.EncodecResidualVectorQuantizer, bandwidth: float | None) -> int:
    """Codebooks that the bandwidth (kbps, None for all) uses."""
    return min(quantizer.get_num_quantizers_for_bandwidth(bandwidth), len(quantizer.layers))


def normalized(audio: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks [B, C, T] of unit volume, and the scale [B, 1] that was taken off each.

    float32 and float64 are summed by halves, one order for any batch and thread count: torch's own sum of a chunk alone is split over
    the threads, that of a chunk in a batch is not. Half keeps torch's, which sums it in float32.
    Source: EncodecModel._encode_frame.
    """
    made = route.normalize(audio)
    if made is not None:
        return made
    if audio.dtype not in (torch.float32, torch.float64):
        mono = audio.sum(1) / audio.shape[1]
        mean = mono.pow(2).mean(dim=-1, keepdim=True)
    else:
        mono = functools.reduce(torch.add, audio.unbind(1)) / audio.shape[1]
        sums = mono * mono
        while sums.shape[-1] > 1:
            half = (sums.shape[-1] + 1) // 2
            sums = sums[..., :half] + F.pad(sums[..., half:], (0, 2 * half - sums.shape[-1]))
        mean = sums / audio.shape[-1]
    scale = _root(mean) + 1e-8
    return audio / scale[:, None], scale


def _root(x: Tensor) -> Tensor:
    """The nearest float32 to the square root: torch's own is MKL's on some CPUs, a last place off for one number in five."""
    # Apple's GPUs have no float64
    return x.double().sqrt().float() if x.dtype == torch.float32 and x.device.type != "mps" else x.sqrt()


class NormalizedModel:
    """Stands in for a model in HF's `_encode_frame` when the audio is of unit volume already."""

    def __init__(self, model: hf.EncodecModel) -> None:
        self.config = copy.copy(model.config)
        self.config.normalize = False
        self.encoder, self.quantizer = model.encoder, model.quantizer


def encode_normalized(model: hf.EncodecModel, audio: Tensor, bandwidth: float, *mask: Tensor) -> tuple[Tensor, Tensor]:
    """HF's `_encode_frame` of a model that normalises: (codes [B, K, F], scale), the scale from `normalized`."""
    for part in mask:
        audio = audio * part
    clean, scale = normalized(audio)
    codes, _ = hf.EncodecModel._encode_frame(NormalizedModel(model), clean, bandwidth, *mask)
    return codes, scale if _scale_dims(len(mask)) == 2 else scale[:, None]


@functools.cache
def _scale_dims(masks: int) -> int:
    """Dimensions of the scale that the installed transformers gives: [B, 1] or, in old versions, [B, 1, 1]."""
    config = SimpleNamespace(chunk_length_s=None, sampling_rate=1, normalize=True)
    model = SimpleNamespace(config=config, encoder=lambda x: x, quantizer=SimpleNamespace(encode=lambda x, _: x))
    one = torch.ones(1, 1, 1)
    return hf.EncodecModel._encode_frame(model, one, 0.0, *(one,) * masks)[1].dim()


def hop_length(config: Any) -> int:
    """Samples per codec frame; the config says so itself from transformers 4.45 on."""
    return math.prod(config.upsampling_ratios)


def encoded_length(config: Any, length: int) -> int:
    """Frames of a chunk of `length` samples: each downsampling rounds up."""
    for ratio in reversed(config.upsampling_ratios):
        length = -(-length // ratio)
    return length


def reference_length(config: Any, num_samples: int) -> int:
    """The longest length up to `num_samples` that HF itself can encode and decode.

    HF stacks and adds chunks of which only the last may be short: a last chunk that ends inside the one before breaks both.
    """
    length, stride = config.chunk_length, config.chunk_stride
    if length is None:
        return num_samples
    if "last_frame_pad_length" not in hf.EncodecEncoderOutput.__dataclass_fields__:
        # before 4.53 the last chunk must be full
        return (num_samples - length) // stride * stride + length
    while num_samples > 0:
        parts = [(min(length, num_samples - at), at) for at in range(0, num_samples, stride)]
        frames = [encoded_length(config, part) for part, _ in parts]
        ends = [at + count * hop_length(config) for count, (_, at) in zip(frames, parts)]
        if len(set(frames[:-1])) <= 1 and max(ends) == ends[-1]:
            break
        num_samples = (num_samples - 1) // stride * stride
    return num_samples


def encode_chunks(
    model: hf.EncodecModel, chunks: Sequence[tuple[Tensor, tuple[Any, ...]]], bandwidth: float
) -> list[tuple[Tensor, Tensor | None]]:
    """(codes [B, K, F], scale) of every chunk [B, C, T]; chunks of one shape run together."""
    if len(chunks) == 1:
        # also keeps a compiled call free of its length, which grouping by shape would fix
        return [model._encode_frame(chunks[0][0], bandwidth, *chunks[0][1])]
    results: list[Any] = [None] * len(chunks)
    for members in _equal_shapes([audio for audio, _ in chunks], first_layer_bytes(model.config)):
        batch = chunks[members[0]][0].shape[0]
        audio = torch.cat([chunks[index][0] for index in members])
        mask = [torch.cat(parts) for parts in zip(*(chunks[index][1] for index in members))]
        codes, scale = model._encode_frame(audio, bandwidth, *mask)
        scales = [None] * len(members) if scale is None else scale.split(batch)
        for index, codes_part, scale_part in zip(members, codes.split(batch), scales):
            results[index] = codes_part, scale_part
    return results


def decode_chunks(model: hf.EncodecModel, chunks: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """Audio [B, C, T] of every (codes [B, K, F], scale); chunks of one shape run together."""
    results: list[Any] = [None] * len(chunks)
    scaled = {scale is not None for _, scale in chunks}
    if len(scaled) > 1 or any(scale is not None and scale.numel() != codes.shape[0] for codes, scale in chunks):
        return [model._decode_frame(codes, scale) for codes, scale in chunks]
    bytes_per_frame = first_layer_bytes(model.config) * hop_length(model.config)
    for members in _equal_shapes([codes for codes, _ in chunks], bytes_per_frame):
        batch = chunks[members[0]][0].shape[0]
        codes = torch.cat([chunks[index][0] for index in members])
        scale = torch.cat([chunks[index][1].reshape(-1) for index in members]) if True in scaled else None  # type: ignore[union-attr]
        for index, audio in zip(members, model._decode_frame(codes, scale).split(batch)):
            results[index] = audio
    return results


def first_layer_bytes(config: Any) -> int:
    """Bytes per sample that a clip's first-layer activations take at most, input and output at once."""
    return 4 * 2 * max(config.num_filters, config.audio_channels)


def _equal_shapes(tensors: Sequence[Tensor], bytes_per_step: int) -> list[list[int]]:
    """Indices grouped by shape, each group within the memory bound."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        by_shape[tensor.shape].append(index)
    groups: list[list[int]] = []
    for shape, members in by_shape.items():
        size = max(1, CHUNK_BATCH_BYTES // max(1, shape[0] * shape[-1] * bytes_per_step))
        groups.extend(members[at : at + size] for at in range(0, len(members), size))
    return groups


def fade_weight(length: int, like: Tensor) -> Tensor:
    """The triangle [length] that weighs a chunk, on the device and in the dtype of `like`.  Source: EncodecModel._linear_overlap_add.

    In float32 where a half would hold zeros at its ends: HF decodes nothing there.
    """
    if like.dtype in (torch.float16, torch.bfloat16) and not _triangle(length, torch.device("cpu"), like.dtype).all():
        return _triangle(length, like.device, torch.float32)
    return _triangle(length, like.device, like.dtype)


def _triangle(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    time = torch.linspace(0, 1, length + 2, device=device, dtype=dtype)[1:-1]
    return 0.5 - (time - 0.5).abs()


def overlap_add(frames: list[Tensor], stride: int, num_samples: int | None = None) -> Tensor:
    """Chunks [B, C, T_i] faded linearly into each other at multiples of `stride`: [B, C, stride * (n - 1) + T_last].

    num_samples: cut to this length; HF can't add a chunk that ends after the last one, which rounding up to whole codec frames brings
    about for one clip length in 300.
    Bit-equal to HF's `_linear_overlap_add`, without its host sync: at most two chunks cover a sample, and a + b is b + a.
    """
    if not frames:
        return hf.EncodecModel._linear_overlap_add(frames, stride)
    length = frames[0].shape[-1]
    total = stride * (len(frames) - 1) + frames[-1].shape[-1] if num_samples is None else num_samples
    ends = [index * stride + frame.shape[-1] for index, frame in enumerate(frames)]
    regular = stride <= length <= 2 * stride and all(frame.shape[-1] <= length for frame in frames)
    regular = regular and len({frame.shape[:-1] for frame in frames}) == 1
    if not regular or (num_samples is None and max(ends) > total):
        return hf.EncodecModel._linear_overlap_add(frames, stride)[..., :total]
    weight = fade_weight(length, frames[0])
    # the kernels know chunks of one length, cut at the end of the result
    if weight.dtype == frames[0].dtype and all(frame.shape[-1] == length or end >= total for frame, end in zip(frames, ends)):
        made = route.overlap_add(frames, weight, stride, total)
        if made is not None:
            return made
    summed = weight.new_zeros(*frames[0].shape[:-1], total)
    weights = weight.new_zeros(total)
    for index, frame in enumerate(frames):
        start = min(index * stride, total)
        end = min(ends[index], total)
        summed[..., start:end] += (frame * weight[: frame.shape[-1]])[..., : end - start]
        weights[start:end] += weight[: end - start]
    return summed.div_(weights).to(frames[0].dtype)
