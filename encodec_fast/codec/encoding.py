"""Audio that comes in blocks, as segments of codes: the codes of the whole clip, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encodec_fast.compression.segments import Segment
from encodec_fast.model import EncodecModel
from encodec_fast.plan.geometry import hop_length, whole_clips_only
from encodec_fast.serving.clips import encode_clips
from encodec_fast.streaming import StreamingEncoder


def segment_samples(config: Any, seconds: float) -> int:
    """Returns the samples of segments of about that length, at least one frame or chunk: whole ones."""
    unit = config.chunk_stride or hop_length(config)
    return max(1, round(seconds * config.sampling_rate / unit)) * unit


def streams(model: EncodecModel) -> bool:
    """Tells whether the model encodes and decodes while audio comes: by frames, or by chunks."""
    config = model.config
    if config.chunk_length is not None:
        return True
    return whole_clips_only(config) is None and config.use_causal_conv and config.norm_type != "time_group_norm"


def encoded_segments(model: EncodecModel, blocks: Iterable[np.ndarray], bandwidth: float, samples: int) -> Iterator[Segment]:
    """Yields the codes of a clip in segments, each as soon as its audio is there.

    blocks: float32 [C, T_i], at the model's rate and channels.
    bandwidth: kbps.
    samples: of a segment, as `segment_samples` gives them.
    The codes are those of `encode_batch` for the whole clip. Models that can't stream take it whole first.
    """
    tensors = (torch.from_numpy(np.ascontiguousarray(block)) for block in blocks)
    if model.config.chunk_length is not None:
        return _of_chunks(model, tensors, bandwidth, samples)
    return _of_frames(model, tensors, bandwidth, samples)


def _of_frames(model: EncodecModel, blocks: Iterable[Tensor], bandwidth: float, samples: int) -> Iterator[Segment]:
    hop = hop_length(model.config)
    codes: list[Tensor] = []
    start = seen = 0
    scales: np.ndarray | None = None

    def cut(last: bool) -> Iterator[Segment]:
        nonlocal codes, start
        whole = torch.cat(codes, dim=1)
        while whole.shape[1] >= samples // hop or (last and whole.shape[1]):
            frames, whole = whole[:, : samples // hop], whole[:, samples // hop :]
            yield Segment(frames.cpu().numpy(), scales, start, min(samples, seen - start))
            start += samples
        codes = [whole]

    if streams(model):
        encoder = StreamingEncoder(model, bandwidth)
        for block in blocks:
            seen += block.shape[1]
            codes.append(encoder.push(block)[0])
            yield from cut(last=False)
        codes.append(encoder.flush()[0])
    else:
        clip = torch.cat(list(blocks), dim=1)
        seen = clip.shape[1]
        (encoded,) = model.encode_batch([clip], bandwidth)
        codes.append(encoded.codes[0])
        scales = None if encoded.scales is None else encoded.scales.float().cpu().numpy()
    yield from cut(last=True)


@torch.no_grad()
def _encode_chunks(model: EncodecModel, chunks: list[Tensor], bandwidth: float) -> list[tuple[np.ndarray, float | None]]:
    """Returns the codes [K, F] and the scale of each chunk [C, T]."""
    coded = encode_clips(model, [chunk[None].to(model.device, model.dtype) for chunk in chunks], bandwidth)
    return [(codes[0].cpu().numpy(), None if scale is None else float(scale.reshape(-1)[0])) for codes, scale in coded]


def _of_chunks(model: EncodecModel, blocks: Iterable[Tensor], bandwidth: float, samples: int) -> Iterator[Segment]:
    length, stride = model.config.chunk_length, model.config.chunk_stride
    per_segment = samples // stride
    coded: list[tuple[np.ndarray, float | None]] = []
    start = seen = 0

    def joined(count: int) -> Segment:
        nonlocal coded, start
        own, coded = coded[:count], coded[count:]
        scales = np.array([scale for _, scale in own], np.float32) if model.config.normalize else None
        covered = min(samples + length - stride, seen - start)
        segment = Segment(np.concatenate([codes for codes, _ in own], axis=1), scales, start, covered)
        start += samples
        return segment

    rest = torch.zeros(model.config.audio_channels, 0)
    for block in blocks:
        seen += block.shape[1]
        rest = torch.cat([rest, block], dim=1)
        full = max(0, (rest.shape[1] - length) // stride + 1)
        if full:
            chunks = [rest[:, first : first + length] for first in range(0, full * stride, stride)]
            coded += _encode_chunks(model, chunks, bandwidth)
            rest = rest[:, full * stride :]
        while len(coded) >= per_segment:
            yield joined(per_segment)
    if rest.shape[1]:
        coded += _encode_chunks(model, [rest[:, first : first + length] for first in range(0, rest.shape[1], stride)], bandwidth)
    while coded:
        yield joined(per_segment)
