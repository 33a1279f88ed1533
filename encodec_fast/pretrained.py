"""Models by name: the built-in ones, a local folder or checkpoint, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import EncodecConfig

from encodec_fast.checkpoints import CheckpointError, config_of_checkpoint, load_checkpoint
from encodec_fast.checkpoints.weights import TRAINING_STATE
from encodec_fast.demo import DEMO_MODELS, demo_config, demo_model
from encodec_fast.errors import first_line
from encodec_fast.model import EncodecModel

# transformers asks an unreachable hub six times over 23 s (46 s before 5.0); one request with this timeout decides
HUB_TIMEOUT_S = 5.0
# A name with one of these endings is a file, not a model on the hub
CHECKPOINT_SUFFIXES = (".th", ".pt", ".pth", ".bin", ".ckpt")


class ModelNotFound(ValueError):
    """No model can be loaded under this name; the message is one sentence that says why and what to do."""


def load_model(name_or_path: str | os.PathLike[str], device: str | torch.device = "cpu") -> EncodecModel:
    """Loads the model in eval mode on the device. Its `name_or_path` is its id: the name, or the full path.

    name_or_path: `demo` or `demo-48khz` (built in), or a folder made by `save_pretrained`.
    It may also be a name on the Hugging Face hub, such as facebook/encodec_24khz.
    Or a checkpoint file of facebookresearch/encodec, audiocraft or encodec-pytorch; it is read as data and never runs code.
    device: any name that torch knows, or "auto" for the GPU if there is one.

    A model in the hub's cache is loaded without asking the hub.
    Raises ModelNotFound if there is no such model or the hub can't be reached, ValueError for an unknown device.
    """
    target, name_or_path = torch_device(device), os.fspath(name_or_path)
    if name_or_path in DEMO_MODELS:
        model, model_id = demo_model(name_or_path), name_or_path
    elif os.path.isdir(name_or_path):
        model, model_id = _from_folder(name_or_path), os.path.abspath(name_or_path)
    elif os.path.exists(name_or_path) or name_or_path.endswith(CHECKPOINT_SUFFIXES):
        model, model_id = _from_checkpoint(name_or_path), os.path.abspath(name_or_path)
    else:
        model, model_id = _from_hub(name_or_path), name_or_path
    model.name_or_path = model_id
    return model.to(target)


def known_config(name_or_path: str) -> Any | None:
    """Returns the config of a model that is on this machine, without its weights; None of any other, which `load_model` speaks of."""
    if name_or_path in DEMO_MODELS:
        return demo_config(name_or_path)
    try:
        if os.path.isfile(name_or_path):
            return config_of_checkpoint(name_or_path)
        return EncodecConfig.from_pretrained(name_or_path, local_files_only=True)
    except (OSError, ValueError):
        return None


def torch_device(device: str | torch.device) -> torch.device:
    """Returns the device; "auto" is the current CUDA (or ROCm) GPU where there is one, else the CPU.

    Raises ValueError for a name that torch doesn't know and for a GPU that isn't there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; allowed are auto, cpu, cuda, cuda:N and torch's other names.") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but torch sees {torch.cuda.device_count()} GPUs on this machine.")
    return target


def _from_folder(path: str) -> EncodecModel:
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise ModelNotFound(f"{path}: this folder holds no config.json; a folder made by save_pretrained is needed.")
    try:
        return _from_pretrained(path)
    except OSError as error:
        raise ModelNotFound(f"{path}: the model can't be loaded ({first_line(error)}).") from error


def _from_checkpoint(path: str) -> EncodecModel:
    if not os.path.isfile(path):
        kind = "this is no regular file" if os.path.exists(path) else "no such file"
        raise ModelNotFound(f"{path}: {kind}; a checkpoint, or a folder made by save_pretrained, is needed.")
    if path.endswith((".safetensors", ".json")):
        raise ModelNotFound(f"{path}: this is one file of a model; give the folder that it lies in.")
    try:
        return load_checkpoint(path)
    except OSError as error:
        raise ModelNotFound(f"{path}: the file can't be read ({error.strerror or first_line(error)}).") from error
    except CheckpointError as error:
        raise ModelNotFound(f"{path}: {error}") from error


def _from_hub(name: str) -> EncodecModel:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelNotFound(
            f"{name!r} is neither a folder on this machine, nor a name on the Hugging Face hub, nor a built-in model "
            f"({', '.join(DEMO_MODELS)})."
        ) from error
    try:
        return _from_pretrained(name, local_files_only=True)
    except OSError:
        pass  # not in the cache: the hub is asked next
    _reach_hub(name)
    try:
        return _from_pretrained(name)
    except OSError as error:
        raise ModelNotFound(f"{name}: the model can't be loaded ({first_line(error)}).") from error


def _reach_hub(name: str) -> None:
    """Raises ModelNotFound if one plain request, sent by the hub's own client, gets no answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    # the version of the hub's client decides its HTTP library, and so the error of a failed connection
    except Exception as error:
        raise ModelNotFound(
            f"{name}: not on this machine, and the Hugging Face hub can't be reached ({type(error).__name__}); "
            "use --model FOLDER for a local model or --model demo for the built-in one."
        ) from error


def _from_pretrained(name_or_path: str, **options: Any) -> EncodecModel:
    """Loads the model; raises ModelNotFound for another architecture, and for weights that are missing, damaged or of other shapes."""
    config, _ = EncodecConfig.get_config_dict(name_or_path, **options)
    if config.get("model_type", "encodec") != "encodec":
        raise ModelNotFound(f"{name_or_path}: this is a {config['model_type']} model; an encodec model is needed.")
    try:
        model, info = EncodecModel.from_pretrained(name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except SafetensorError as error:
        raise ModelNotFound(f"{name_or_path}: the weights are damaged ({first_line(error)}).") from error
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, needed = mismatched[0]
        raise ModelNotFound(f"{name_or_path}: {name} has the shape {list(found)}, and config.json needs {list(needed)}.")
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(TRAINING_STATE))
    if missing:
        raise ModelNotFound(f"{name_or_path}: {len(missing)} weights are missing, the first is {missing[0]}.")
    return model.eval()
