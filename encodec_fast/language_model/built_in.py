"""The language model that is bundled with the built-in model `demo`: its file, and who finds it.

Matrices are stored as whole numbers from -127 to 127 with a scale for each row, the rest in float32. What is coded with is exactly
what is stored: one product in float32, which is the same on every machine. `bench/tools/fit_demo_language_model.py` makes the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from encodec_fast.language_model.model import LanguageModel, LanguageModelConfig

BUILT_IN = Path(__file__).parents[1] / "assets" / "demo_language_model.safetensors"
_SCALE = ".scale"


def packed(model: LanguageModel, codec: str, about: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a file.

    codec: SHA-256 of the weights whose codes it predicts, in hex.  about: where the data come from, and their licences.
    """
    tensors = {}
    for name, weight in model.state_dict().items():
        if weight.dim() == 2:
            scale = weight.abs().amax(1).clamp(min=1e-12) / 127
            tensors[name] = (weight / scale[:, None]).round().to(torch.int8)
            tensors[name + _SCALE] = scale
        else:
            tensors[name] = weight.clone()
    return tensors, {"config": json.dumps(asdict(model.config)), "codec": codec, "about": about}


def unpacked(path: Path) -> LanguageModel:
    """Returns the model of such a file, in eval mode and float32."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys()}
    weights = {
        name: tensor.float() * stored[name + _SCALE][:, None] if name + _SCALE in stored else tensor
        for name, tensor in stored.items()
        if not name.endswith(_SCALE)
    }
    # not on the device "meta", whose first use imports for a second
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(LanguageModelConfig(**json.loads(metadata["config"])))
    model.load_state_dict(weights)
    return model.eval()


@cache
def built_in_codec() -> str:
    """Returns the SHA-256 of the weights whose codes the bundled language model predicts, in hex."""
    with safe_open(BUILT_IN, "pt") as file:
        codec: str = file.metadata()["codec"]
        return codec
