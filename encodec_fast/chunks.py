"""HF's walk over a call of `encode` or `decode`: its checks, chunks and output, with the work left out.

The installed transformers' own method runs on a stand-in for the model, which notes the chunks that it is given.
The driver then runs them together. Offsets, masks and error messages stay transformers' own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.plan.geometry import encoded_length
from encodec_fast.serving.clips import decode_clips, levels_of
from encodec_fast.serving.functions import normalize, overlap_add
from encodec_fast.transformers_versions import SCALE_DIMS


class EncodeWalk:
    """Stands in for a chunked model while HF's `encode` walks the chunks."""

    def __init__(self, model: hf.EncodecModel) -> None:
        self.config = model.config
        self._quantizer = model.quantizer
        self.chunks: list[Tensor] = []

    def _encode_frame(self, input_values: Tensor, bandwidth: float, mask: Tensor | None = None) -> tuple[Tensor, None]:
        # mask: transformers before 4.53 applies the padding mask inside, where it normalises
        self.bandwidth = bandwidth
        self.chunks.append(input_values if mask is None or not self.config.normalize else input_values * mask)
        frames = encoded_length(self.config, input_values.shape[-1])
        return input_values.new_empty(input_values.shape[0], levels_of(self._quantizer, bandwidth), frames, dtype=torch.int64), None


class DecodeWalk:
    """Stands in for a model while HF's `decode` walks the chunks."""

    def __init__(self, model: hf.EncodecModel) -> None:
        self.config = model.config
        self._model = model

    def _decode_frame(self, codes: Tensor, scale: Tensor | None = None) -> Any:
        if self.config.chunk_length is None:
            return decode_clips(self._model, [(codes, scale)])[0]
        return codes, scale

    def _linear_overlap_add(self, chunks: list[tuple[Tensor, Tensor | None]], stride: int) -> Tensor:
        return overlap_add(decode_clips(self._model, chunks), stride)


class NormalizedModel:
    """Stands in for a model in HF's `_encode_frame` when the audio is of unit volume already."""

    def __init__(self, model: hf.EncodecModel) -> None:
        self.config = copy.copy(model.config)
        self.config.normalize = False
        self.encoder, self.quantizer = model.encoder, model.quantizer


def encode_normalized(model: hf.EncodecModel, audio: Tensor, bandwidth: float, *mask: Tensor) -> tuple[Tensor, Tensor]:
    """Encodes as HF's `_encode_frame` of a model that normalises: codes [B, K, F], and the scale that `normalize` finds."""
    for part in mask:
        audio = audio * part
    clean, scale = normalize(audio)
    codes, _ = hf.EncodecModel._encode_frame(NormalizedModel(model), clean, bandwidth, *mask)
    return codes, scale if SCALE_DIMS == 2 else scale[:, None]
