"""Small language models with peaked distributions, codes drawn from them, and the published model's steps by themselves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from encodec_fast.language_model.loading import CONFIG, WEIGHTS, config_json
from encodec_fast.language_model.model import LanguageModel, LanguageModelConfig

# A window that is over after a few frames, a head width that fills no vector, and a codebook that fills no panel
SMALL = LanguageModelConfig(codebooks=3, codebook_size=40, dim=30, heads=5, layers=2, hidden=50, past_context=9)


def drawn_language_model(config: LanguageModelConfig = SMALL, seed: int = 0) -> LanguageModel:
    """A model in eval mode with no weight at its initial zero or one, whose distributions are as peaked as a trained one's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(config).eval()
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight.data += 0.1 * torch.randn_like(weight)
            if name.startswith("linears") and weight.dim() == 2:
                weight.data *= 6
    return model


def drawn_codes(model: LanguageModel, frames: int, levels: int | None = None, seed: int = 0) -> np.ndarray:
    """Codes [K, F] drawn from the model's own distribution, frame by frame, as far as it depends on the 20 frames before."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.zeros(1, levels or model.config.codebooks, frames, dtype=torch.int64)
    with torch.no_grad():
        for frame in range(frames):
            first = max(0, frame - 20)
            probabilities = model(codes[..., first : frame + 1], first)[0, :, -1].softmax(-1)
            codes[0, :, frame] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return codes[0].numpy()


def saved_language_model(model: LanguageModel, folder: Path) -> Path:
    """The folder, with the model in it as `train-lm` writes one."""
    folder.mkdir()
    (folder / CONFIG).write_bytes(config_json(model.config))
    save_file(model.state_dict(), folder / WEIGHTS)
    return folder


def random_codes(config: LanguageModelConfig, frames: int, levels: int | None = None, seed: int = 0) -> np.ndarray:
    """Codes [K, F] that no model expects."""
    return np.random.default_rng(seed).integers(0, config.codebook_size, (levels or config.codebooks, frames))


def cross_entropy_bits(model: LanguageModel, codes: np.ndarray) -> float:
    """What the codes cost by the model in float64."""
    given = torch.from_numpy(codes)[None]
    with torch.no_grad():
        found = model.double()(given).log_softmax(-1)
    model.float()
    return -found.gather(-1, given[..., None]).sum().item() / math.log(2)


def published_steps(model: LanguageModel, codes: np.ndarray) -> np.ndarray:
    """Logits [K, F, N] in float64 as encodec 0.1.1 makes them: one step at a time, from layer inputs that it keeps.

    The keys and values of all of them are projected anew in each step, as there.
    """
    config, weights = model.config, {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    kept = [np.zeros((1, config.dim)) for _ in range(config.layers)]
    before, logits = np.zeros(len(codes), int), []
    for step in range(codes.shape[1]):
        x = sum(weights[f"emb.{level}.weight"][before[level]] for level in range(len(codes)))
        x = _norm(x, weights, "transformer.norm_in")
        exponents = np.arange(config.dim // 2, dtype=np.float32) / np.float32(config.dim // 2 - 1)
        phase = np.float32(step) / np.exp(exponents.astype(np.longdouble) * np.log(np.longdouble(10000))).astype(np.float32)
        x = x + np.concatenate([np.cos(phase.astype(np.float64)), np.sin(phase.astype(np.float64))])
        for number in range(config.layers):
            inputs = np.concatenate([kept[number], x[None]])
            kept[number] = inputs[-config.past_context :]
            x = _layer(x, inputs, weights, f"transformer.layers.{number}", config.heads)
        logits.append([weights[f"linears.{k}.weight"] @ x + weights[f"linears.{k}.bias"] for k in range(len(codes))])
        before = codes[:, step] + 1
    return np.array(logits).transpose(1, 0, 2)


def _layer(x: np.ndarray, inputs: np.ndarray, weights: dict[str, np.ndarray], name: str, heads: int) -> np.ndarray:
    weight, bias = weights[f"{name}.self_attn.in_proj_weight"], weights[f"{name}.self_attn.in_proj_bias"]
    sides = zip([x, inputs, inputs], np.split(weight, 3), np.split(bias, 3))
    query, keys, values = (rows @ side.T + shift for rows, side, shift in sides)
    parts = []
    for q, k, v in zip(np.split(query, heads), np.split(keys, heads, 1), np.split(values, heads, 1)):
        scores = np.exp(k @ q / math.sqrt(len(q)))
        parts.append(scores @ v / scores.sum())
    attended = weights[f"{name}.self_attn.out_proj.weight"] @ np.concatenate(parts) + weights[f"{name}.self_attn.out_proj.bias"]
    x = _norm(x + attended, weights, f"{name}.norm1")
    hidden = weights[f"{name}.linear1.weight"] @ x + weights[f"{name}.linear1.bias"]
    hidden = hidden * 0.5 * (1 + np.array([math.erf(each / math.sqrt(2)) for each in hidden]))
    return _norm(x + weights[f"{name}.linear2.weight"] @ hidden + weights[f"{name}.linear2.bias"], weights, f"{name}.norm2")


def _norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def probabilities(logits: np.ndarray | Tensor) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    powers = np.exp(np.asarray(logits, np.float64) - np.asarray(logits, np.float64).max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
