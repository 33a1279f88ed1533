"""Segments of codes back to audio, as they come and in bounded memory; silence for those that are lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from encodec_fast.codec.encoding import streams
from encodec_fast.compression.container import Lost
from encodec_fast.compression.segments import Segment
from encodec_fast.model import EncodecModel, EncodedClip
from encodec_fast.plan.geometry import hop_length
from encodec_fast.serving.clips import decode_clips
from encodec_fast.serving.functions import overlap_add
from encodec_fast.streaming import StreamingDecoder


def decoded_blocks(model: EncodecModel, found: Iterable[Segment | Lost]) -> Iterator[np.ndarray]:
    """Yields the audio, float32 [C, T_i], as it is determined: end to end, with silence where segments are lost.

    found: in the order of time, as a reader gives them.
    Without loss it is the audio of `decode_batch`. Behind a lost segment the model begins anew.
    """
    channels, config = model.config.audio_channels, model.config
    at: int | None = None
    run: _Run | None = None
    for item in found:
        at = item.start if at is None else at
        if isinstance(item, Lost):
            if item.samples <= 0:
                continue
            if run is not None:
                yield from _blocks(run.finish(item.start))
                run = None
            yield from _silence(channels, item.samples)
        else:
            if run is None:
                kind = _Chunks if config.chunk_length is not None else _Frames if streams(model) else _Whole
                run = kind(model, item.start)
            yield from _blocks(run.push(item))
    if run is not None:
        yield from _blocks(run.finish(run.end))


def _blocks(audio: Iterable[Tensor]) -> Iterator[np.ndarray]:
    yield from (block.float().cpu().numpy() for block in audio if block.shape[1])


def _silence(channels: int, samples: int) -> Iterator[np.ndarray]:
    # in blocks: a file may announce days
    for start in range(0, samples, 1 << 20):
        yield np.zeros((channels, min(1 << 20, samples - start)), np.float32)


class _Run:
    """Decodes segments that follow each other without loss.

    end: of what their codes cover so far.
    """

    def __init__(self, model: EncodecModel, start: int):
        self.model, self.start, self.end = model, start, start

    def push(self, segment: Segment) -> Iterator[Tensor]:
        """Yields the audio [C, T_i] that a segment completes."""
        raise NotImplementedError

    def finish(self, end: int) -> Iterator[Tensor]:
        """Yields what is left, up to the sample `end` of the clip."""
        raise NotImplementedError


class _Frames(_Run):
    """A model whose frames follow each other, with carried state."""

    def __init__(self, model: EncodecModel, start: int):
        super().__init__(model, start)
        self._decoder = StreamingDecoder(model)
        self._at = start

    def push(self, segment: Segment) -> Iterator[Tensor]:
        self.end = segment.start + segment.samples
        yield self._until(self.end, self._decoder.push(torch.from_numpy(segment.codes))[0])

    def finish(self, end: int) -> Iterator[Tensor]:
        yield self._until(min(end, self.end), self._decoder.flush()[0])

    def _until(self, end: int, audio: Tensor) -> Tensor:
        """Cuts what lies behind the clip's end: codes stand for whole frames."""
        audio = audio[:, : max(0, end - self._at)]
        self._at += audio.shape[1]
        return audio


class _Whole(_Run):
    """A model that needs all of a clip at once."""

    def __init__(self, model: EncodecModel, start: int):
        super().__init__(model, start)
        self._segments: list[Segment] = []

    def push(self, segment: Segment) -> Iterator[Tensor]:
        self.end = segment.start + segment.samples
        self._segments.append(segment)
        return iter(())

    def finish(self, end: int) -> Iterator[Tensor]:
        codes = torch.from_numpy(np.concatenate([each.codes for each in self._segments], axis=1))[None]
        scales = self._segments[0].scales
        clip = EncodedClip(codes, None if scales is None else torch.from_numpy(scales), 0, self.end - self.start)
        yield self.model.decode_batch([clip])[0]


class _Chunks(_Run):
    """A model of chunks, which fade into each other."""

    def __init__(self, model: EncodecModel, start: int):
        super().__init__(model, start)
        # the last two chunks: the next one begins inside the last, whose fade is that of its neighbours' length
        self._kept: list[Tensor] = []
        self._kept_start = self._at = start

    def push(self, segment: Segment) -> Iterator[Tensor]:
        stride = self.model.config.chunk_stride
        self.end = max(self.end, segment.start + segment.samples)
        self._kept += self._decoded(segment)
        # where the next chunk begins
        yield self._until(self._kept_start + len(self._kept) * stride)
        dropped = max(0, len(self._kept) - 2)
        self._kept, self._kept_start = self._kept[dropped:], self._kept_start + dropped * stride

    def finish(self, end: int) -> Iterator[Tensor]:
        yield self._until(end)

    def _until(self, end: int) -> Tensor:
        end = max(self._at, min(end, self.end))
        mixed = overlap_add(self._kept, self.model.config.chunk_stride, self.end - self._kept_start)[0]
        audio = mixed[:, self._at - self._kept_start : end - self._kept_start]
        self._at = end
        return audio

    @torch.no_grad()
    def _decoded(self, segment: Segment) -> list[Tensor]:
        """Returns the audio [1, C, T_i] of each chunk."""
        config, device = self.model.config, self.model.device
        codes, parts = torch.from_numpy(segment.codes).to(device), []
        for index, first in enumerate(range(0, segment.samples, config.chunk_stride)):
            frames = -(-min(config.chunk_length, segment.samples - first) // hop_length(config))
            scale = None if segment.scales is None else torch.from_numpy(segment.scales[index : index + 1]).to(device)
            if codes.shape[1]:
                parts.append((codes[None, :, :frames], scale))
            codes = codes[:, frames:]
        return decode_clips(self.model, parts)
