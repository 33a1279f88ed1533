"""Reads the three kinds of original checkpoints, never anything but tensors and plain values."""

from __future__ import annotations

import errno
import logging
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import EncodecConfig

from encodec_fast.checkpoints.audiocraft import audiocraft_config
from encodec_fast.checkpoints.structure import published_config, structure_of, trained_config
from encodec_fast.checkpoints.weights import CheckpointError, known_weights, put_weights
from encodec_fast.errors import first_line
from encodec_fast.model import EncodecModel

logger = logging.getLogger("encodec_fast")


def load_checkpoint(path: str) -> EncodecModel:
    """Returns the model of an original checkpoint, in eval mode, on the CPU.

    Raises CheckpointError for a file that is none, is damaged, or holds what transformers can't represent; OSError if it can't be read.
    """
    config, weights, assumed = _parts(_loaded(path))
    if assumed:
        logger.warning("%s: a checkpoint of encodec-pytorch holds no config; taken as %s", path, assumed)
    # the weights that a new model draws are replaced, and the caller's random numbers stay as they were
    with torch.random.fork_rng(devices=[]):
        try:
            model = EncodecModel(config)
        except (ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"no model can be made of its structure ({first_line(error)}).") from error
    put_weights(model, weights)
    return model.eval()


def config_of_checkpoint(path: str) -> EncodecConfig:
    """Returns the config of a checkpoint; the weights stay on the disk where the file allows that.  Raises as `load_checkpoint` does."""
    return _parts(_loaded(path, mmap=zipfile.is_zipfile(path)))[0]


def _loaded(path: str, mmap: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    # damaged pickles raise whatever the bytes lead to
    except Exception as error:
        # a damaged size leads to a read that no file allows
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise CheckpointError(
                f"it holds Python objects ({foreign[1]}), which are never loaded, for they can run code; save its weights by themselves: "
                "torch.save(model.state_dict(), NAME), or audiocraft.utils.export.export_encodec."
            ) from error
        # torch's own advice there is to trust the file
        reason = "" if "weights_only" in str(error) or "Weights only" in str(error) else f" ({first_line(error)})"
        raise CheckpointError(f"this is no checkpoint that torch can read, or it is damaged{reason}.") from error


def _parts(found: Any) -> tuple[EncodecConfig, dict[str, Tensor], str]:
    """Returns config and weights of what a file holds, and what had to be assumed."""
    if not isinstance(found, Mapping):
        raise CheckpointError(f"this is no checkpoint: it holds a {type(found).__name__}, and a dict of weights is needed.")
    if "pretrained" in found:
        raise CheckpointError(f"it holds no weights, only the name of another model; give that name: {found['pretrained']}.")
    if isinstance(found.get("best_state"), Mapping) and isinstance(found.get("xp.cfg"), str):
        weights = known_weights(found["best_state"])
        return audiocraft_config(found["xp.cfg"], weights), weights, ""
    if isinstance(found.get("model_state_dict"), Mapping):
        weights = known_weights(found["model_state_dict"])
        config = trained_config(structure_of(weights))
        return config, weights, _in_words(config)
    weights = known_weights(found)
    return published_config(structure_of(weights)), weights, ""


def _in_words(config: EncodecConfig) -> str:
    parts = [f"{config.sampling_rate} Hz", "causal" if config.use_causal_conv else "not causal"]
    parts += ["volume normalized", "whole clips" if config.chunk_length_s is None else f"chunks of {config.chunk_length_s:g} s"]
    return ", ".join(parts) + "; another training needs another config.json, made by encodec-fast convert and edited"
