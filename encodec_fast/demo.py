"""The built-in models: `demo`, a small stand-in for the official 24 kHz weights, and `demo-48khz` for those of 48 kHz.

Both have the real architecture, need no download and run at the speed of the real models. They are codecs on frames, embedded in
EnCodec's layers (`frame_codec.py`) and shipped in `assets/`: `demo` is fitted to speech, `demo-48khz` to music. Both are far from the
official weights. docs/demo-model.md has figures; `bench/tools/fit_demo_model.py` and `fit_demo_48khz_model.py` make the files.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import EncodecConfig

from encodec_fast.frame_codec import embed_frame_codec
from encodec_fast.model import EncodecModel

ASSETS = Path(__file__).parent / "assets"

DEMO_MODELS = {
    "demo": "EnCodec 24 kHz mono, fitted to 2.5 hours of speech: a small stand-in for the official weights",
    "demo-48khz": "EnCodec 48 kHz stereo, fitted to 20 minutes of music: a small stand-in for the official weights",
}


def demo_config(name: str) -> EncodecConfig:
    """Returns the config of facebook/encodec_24khz for `demo`, of facebook/encodec_48khz for `demo-48khz`."""
    if name == "demo":
        return EncodecConfig()
    if name == "demo-48khz":
        return EncodecConfig(
            target_bandwidths=[3.0, 6.0, 12.0, 24.0],
            sampling_rate=48_000,
            audio_channels=2,
            normalize=True,
            chunk_length_s=1.0,
            overlap=0.01,
            norm_type="time_group_norm",
            use_causal_conv=False,
        )
    raise ValueError(f"name is {name!r}; the built-in models are {' and '.join(DEMO_MODELS)}.")


def demo_model(name: str = "demo") -> EncodecModel:
    """Returns the built-in model of that name on the CPU, in float32 and eval mode: read from this package, in under a second.

    Preserves torch's global random state.
    """
    with torch.random.fork_rng(devices=[]):
        model = EncodecModel(demo_config(name)).eval()
    embed_frame_codec(model, load_file(ASSETS / f"{name.replace('-', '_')}.safetensors"))
    return model


def bundled_clips() -> list[Path]:
    """Returns the audio files inside this package: speech in several voices, and one stereo music clip at 48 kHz."""
    return sorted(ASSETS.glob("*.flac"))
