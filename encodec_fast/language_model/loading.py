"""Language models from files: the published ones, a state dict of theirs, and folders of `encodec-fast train-lm`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encodec_fast.errors import first_line
from encodec_fast.language_model.model import LanguageModel, LanguageModelConfig

# The published weights: name -> file. The last part of a file's name is how the SHA-256 of its content begins.
PUBLISHED = {"encodec_lm_24khz": "encodec_lm_24khz-1608e3c0.th", "encodec_lm_48khz": "encodec_lm_48khz-7add9fc3.th"}
# Frames of 3.5 s, by the number of codebooks that the published models have
_PUBLISHED_CONTEXT = {32: 262, 16: 525}
_PUBLISHED_HEADS = 8
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_KIND = "encodec_language_model"
_SUFFIXES = (".th", ".pt", ".safetensors")


class LanguageModelError(ValueError):
    """A language model that can't be loaded; the message is one sentence that says why and what to do."""


def load_lm(path_or_name: str | os.PathLike[str], *, heads: int | None = None, past_context: int | None = None) -> LanguageModel:
    """Loads a language model in eval mode, float32, on the CPU. A file is read as data and never runs code.

    path_or_name: a folder that `encodec-fast train-lm` wrote, or a file with a state dict of such a model (.th, .pt, .safetensors).
    The published files, `encodec_lm_24khz-1608e3c0.th` and `encodec_lm_48khz-7add9fc3.th`, must have the hash in their names.
    The names `encodec_lm_24khz` and `encodec_lm_48khz` are looked up in torch's hub cache; nothing is downloaded.
    heads, past_context: of a state dict, which does not tell them; default those of the published models.

    Raises LanguageModelError where there is none, or it is damaged or of another kind.
    """
    name = os.fspath(path_or_name)
    if name in PUBLISHED:
        path = Path(torch.hub.get_dir()) / "checkpoints" / PUBLISHED[name]
        if not path.is_file():
            raise LanguageModelError(f"{name}: the file {path} is not there; put the published weights there, or give the path of a file.")
    else:
        path = Path(name)
    try:
        if path.is_dir():
            if heads is not None or past_context is not None:
                raise LanguageModelError("heads and past_context are in the folder's config.json; leave them out.")
            return _from_folder(path)
        if not path.is_file():
            known = ", ".join(PUBLISHED)
            raise LanguageModelError(f"no such file or folder; a language model's weights, its folder, or a name ({known}) is needed.")
        _check_hash(path)
        weights = _weights_of(path)
        return _model(_config_of(weights, heads, past_context), weights)
    except LanguageModelError as error:
        raise LanguageModelError(f"{path}: {error}") from error
    except OSError as error:
        raise LanguageModelError(f"{path}: the file can't be read ({error.strerror or first_line(error)}).") from error


def config_json(config: LanguageModelConfig) -> bytes:
    """Returns the content of a folder's config.json."""
    return json.dumps({"model_type": _KIND, **asdict(config)}, indent=2).encode() + b"\n"


def _from_folder(folder: Path) -> LanguageModel:
    try:
        record = json.loads((folder / CONFIG).read_bytes())
        if not isinstance(record, dict) or record.pop("model_type", None) != _KIND:
            raise LanguageModelError(f"{CONFIG} is not that of a language model over codes; a folder of encodec-fast train-lm is needed.")
        config = LanguageModelConfig(**record)
    except LanguageModelError:
        raise
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise LanguageModelError(f"{CONFIG} can't be read ({first_line(error)}).") from error
    if not (folder / WEIGHTS).is_file():
        raise LanguageModelError(f"{WEIGHTS} is missing.")
    return _model(config, _weights_of(folder / WEIGHTS))


def _check_hash(path: Path) -> None:
    """Raises LanguageModelError where a file has a published one's name and other content."""
    if path.name not in PUBLISHED.values():
        return
    expected, digest = path.stem.rpartition("-")[2], hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(expected):
        raise LanguageModelError(
            f"the SHA-256 of its content begins with {digest.hexdigest()[:8]}, not with {expected}: "
            "it is damaged or another file; fetch it again, or give other weights another name."
        )


def _weights_of(path: Path) -> dict[str, Tensor]:
    if path.suffix not in _SUFFIXES:
        raise LanguageModelError(f"its name ends in {path.suffix!r}; {', '.join(_SUFFIXES)} are read.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    # damaged files raise whatever their bytes lead to
    except Exception as error:
        reason = "" if "weights_only" in str(error) else f" ({first_line(error)})"
        raise LanguageModelError(f"it is damaged, or no file of plain tensors{reason}.") from error
    if not isinstance(found, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise LanguageModelError("it holds no dict of weights; save model.state_dict() by itself.")
    return dict(found)


def _config_of(weights: Mapping[str, Tensor], heads: int | None, past_context: int | None) -> LanguageModelConfig:
    """Returns the sizes that a state dict's shapes tell."""
    layers = {match[1] for name in weights if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}
    heads = _PUBLISHED_HEADS if heads is None else heads
    codebooks = sum(re.fullmatch(r"emb\.\d+\.weight", name) is not None for name in weights)
    if not codebooks or not layers:
        raise LanguageModelError("these are not the weights of a language model over codes (emb.*, transformer.layers.*, linears.*).")
    past_context = _PUBLISHED_CONTEXT.get(codebooks) if past_context is None else past_context
    if past_context is None:
        raise LanguageModelError(f"it has {codebooks} codebooks, and the published models have 32 or 16; give past_context, in frames.")
    try:
        (hidden, dim), (codebook_size, _) = weights["transformer.layers.0.linear1.weight"].shape, weights["linears.0.weight"].shape
        return LanguageModelConfig(codebooks, codebook_size, dim, heads, len(layers), hidden, past_context)
    except (KeyError, ValueError) as error:
        raise LanguageModelError(f"its weights are not those of a language model over codes ({first_line(error)}).") from error


def _model(config: LanguageModelConfig, weights: Mapping[str, Tensor]) -> LanguageModel:
    with torch.device("meta"):
        model = LanguageModel(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in sorted(shapes.keys() ^ weights.keys()):
        raise LanguageModelError(f"{name} is {'missing' if name in shapes else 'surplus'}.")
    for name, tensor in weights.items():
        if tensor.shape != shapes[name]:
            raise LanguageModelError(f"{name} has the shape {list(tensor.shape)}; {list(shapes[name])} is needed.")
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise LanguageModelError(f"{name} is {tensor.dtype} ({tensor.layout}); plain floating point is needed.")
        if not tensor.isfinite().all():
            raise LanguageModelError(f"{name} holds values that are not finite; the file is damaged, or its training went astray.")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return model.eval()
