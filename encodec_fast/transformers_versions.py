"""What the installed transformers does otherwise than the newest: asked of its code, not of its version."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import torch
from transformers.models.encodec import modeling_encodec as hf

# before 4.53 the padding mask is applied in _encode_frame
MASKS_FRAMES = "padding_mask" in inspect.signature(hf.EncodecModel._encode_frame).parameters

# audio_codes, audio_scales and, from 4.53 on, last_frame_pad_length
ENCODER_FIELDS = len(hf.EncodecEncoderOutput.__dataclass_fields__)
PADS_LAST_FRAME = "last_frame_pad_length" in hf.EncodecEncoderOutput.__dataclass_fields__


def _scale_dims() -> int:
    """Returns the dimensions of the scale that `_encode_frame` gives: [B, 1] or, in old versions, [B, 1, 1]."""
    config = SimpleNamespace(chunk_length_s=None, sampling_rate=1, normalize=True)
    model = SimpleNamespace(config=config, encoder=lambda x: x, quantizer=SimpleNamespace(encode=lambda x, _: x))
    one = torch.ones(1, 1, 1, device="cpu")
    return hf.EncodecModel._encode_frame(model, one, 0.0, *(one,) * MASKS_FRAMES)[1].dim()


SCALE_DIMS = _scale_dims()
