"""Writes a model as a folder of transformers, or as an original checkpoint of weights alone."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import EncodecConfig, EncodecFeatureExtractor

from encodec_fast.checkpoints.structure import published_config, structure_of
from encodec_fast.checkpoints.weights import CheckpointError, original_weights
from encodec_fast.formats.atomic import open_atomically, sync_folder
from encodec_fast.model import EncodecModel

# By its name an output is one file
FILE_SUFFIXES = (".th", ".pt", ".bin")
# What a folder of a model holds; no other folder is replaced
_FOLDER_FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "generation_config.json"}
# Fields that weights alone do not show
_UNSEEN = (
    "sampling_rate",
    "use_causal_conv",
    "normalize",
    "chunk_length_s",
    "overlap",
    "pad_mode",
    "dilation_growth_rate",
    "trim_right_ratio",
    "target_bandwidths",
)


def check_target(out: Path, overwrite: bool) -> None:
    """Raises ValueError unless the output may be made.  overwrite: replaces a file, or a folder with nothing but a model in it."""
    if out.suffix == ".safetensors":
        raise ValueError(f"--out is {out}, a file; safetensors come in a folder, with their config: --out {out.with_suffix('')}.")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent}: no such folder; make it first.")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise ValueError(f"{out} exists already; choose another --out or add --overwrite.")
    if is_file_name(out) == out.is_dir():
        raise ValueError(f"{out} is a {'folder' if out.is_dir() else 'file'}; names that end in {_SUFFIXES} are files, others are folders.")
    others = sorted({path.name for path in out.iterdir()} - _FOLDER_FILES) if out.is_dir() else []
    if others:
        raise ValueError(f"{out} holds more than a model ({others[0]}), and is not replaced; choose another --out.")


_SUFFIXES = f"{', '.join(FILE_SUFFIXES[:-1])} or {FILE_SUFFIXES[-1]}"


def is_file_name(out: Path) -> bool:
    """Returns whether the output is to be a file of weights, which its name tells."""
    return out.suffix in FILE_SUFFIXES


def write_original(model: EncodecModel, path: Path) -> None:
    """Writes the weights as the encodec package saves them; under its name the file is whole or not there.

    path: the file; one of that name is replaced.
    Raises CheckpointError for a model that weights alone do not tell, so that nobody could read it again.
    """
    weights = original_weights(model)
    config, told = model.config, published_config(structure_of(weights))
    for field in _UNSEEN:
        own, theirs = _comparable(config, field), _comparable(told, field)
        if own != theirs:
            raise CheckpointError(
                f"a file of weights holds no config, and is read with {field} = {theirs}; this model has {own}. Convert it to a folder."
            )
    with open_atomically(path) as file:
        torch.save(weights, file)


def _comparable(config: EncodecConfig, field: str) -> Any:
    """Returns the value of a field, or None where it changes nothing."""
    without_effect = {
        "overlap": config.chunk_length_s is None,
        "dilation_growth_rate": config.num_residual_layers < 2,
        "trim_right_ratio": not config.use_causal_conv,
    }
    if without_effect.get(field):
        return None
    value: Any = getattr(config, field)
    return [float(each) for each in value] if field == "target_bandwidths" else value


def write_folder(model: EncodecModel, folder: Path) -> None:
    """Writes what `from_pretrained` of model and feature extractor read; under its name the folder is whole or not there.

    A folder of that name is replaced.
    """
    # a link stays one, and what it leads to is replaced
    folder = folder.resolve()
    config = model.config
    extractor = EncodecFeatureExtractor(
        feature_size=config.audio_channels,
        sampling_rate=config.sampling_rate,
        chunk_length_s=config.chunk_length_s,
        overlap=config.overlap,
    )
    temporary, former = (folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp") for _ in range(2))
    temporary.mkdir()
    try:
        model.save_pretrained(temporary)
        extractor.save_pretrained(temporary)
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if folder.is_dir():
            folder.rename(former)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if former.exists() and not folder.exists():
            former.rename(folder)
        raise
    shutil.rmtree(former, ignore_errors=True)
    sync_folder(folder.parent)
