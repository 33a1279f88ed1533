"""The YAML config inside a checkpoint of audiocraft, as a config of transformers."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

import yaml
from torch import Tensor
from transformers import EncodecConfig

from encodec_fast.checkpoints.structure import Structure, make_config, structure_of
from encodec_fast.checkpoints.weights import CheckpointError

# Keys of audiocraft that must have one of the values that transformers has
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "encodec.autoencoder": ("seanet",),
    "encodec.quantizer": ("rvq",),
    "seanet.activation": ("ELU",),
    "seanet.activation_params": ({"alpha": 1.0},),
    "seanet.norm": ("weight_norm", "time_group_norm"),
    "seanet.norm_params": ({},),
    "seanet.disable_norm_outer_blocks": (0,),
    "seanet.pad_mode": ("reflect", "constant", "replicate"),
    "seanet.decoder.final_activation": (None,),
}
# Keys whose values the weights show too, and the field of EncodecConfig
_SHOWN_BY_WEIGHTS = {
    "encodec.channels": "audio_channels",
    "seanet.channels": "audio_channels",
    "seanet.dimension": "hidden_size",
    "seanet.n_filters": "num_filters",
    "seanet.n_residual_layers": "num_residual_layers",
    "seanet.ratios": "upsampling_ratios",
    "seanet.norm": "norm_type",
    "seanet.kernel_size": "kernel_size",
    "seanet.last_kernel_size": "last_kernel_size",
    "seanet.residual_kernel_size": "residual_kernel_size",
    "seanet.compress": "compress",
    "seanet.lstm": "num_lstm_layers",
    "rvq.bins": "codebook_size",
}
# The others that change what a model computes
_SETTINGS = (
    "encodec.sample_rate",
    "encodec.causal",
    "encodec.renormalize",
    "seanet.causal",
    "seanet.dilation_base",
    "seanet.true_skip",
    "seanet.decoder.trim_right_ratio",
    "rvq.n_q",
)
# Of training, or without effect
_UNHEEDED = (
    "encodec.renorm",
    "seanet.decoder.final_activation_params",
    "rvq.q_dropout",
    "rvq.decay",
    "rvq.kmeans_init",
    "rvq.kmeans_iters",
    "rvq.threshold_ema_dead_code",
    "rvq.orthogonal_reg_weight",
    "rvq.orthogonal_reg_active_codes_only",
    "rvq.orthogonal_reg_max_codes",
)
_KNOWN = {*_ALLOWED, *_SHOWN_BY_WEIGHTS, *_SETTINGS, *_UNHEEDED}
# No sampling rate and no dilation is larger
LARGEST = 1_000_000
# What only the decoder has
_OF_DECODER = {"trim_right_ratio", "final_activation", "final_activation_params"}
# `${sample_rate}` in the place of a value means the value of that key
_REFERENCE = re.compile(r"\$\{\s*([\w.]+)\s*\}")


def audiocraft_config(text: str, weights: Mapping[str, Tensor]) -> EncodecConfig:
    """Returns the config that the YAML and the weights have.  Raises CheckpointError for what transformers can't represent."""
    keys = _keys_of(_parsed(text))
    for key, allowed in _ALLOWED.items():
        if key in keys and keys[key] not in allowed:
            raise _unrepresentable(key, keys[key], f"it has {' or '.join(map(str, allowed))}")
    if keys.get("seanet.lstm") == 0:
        raise _unrepresentable("seanet.lstm", 0, "it always has LSTM layers")
    causal = _value(keys, "seanet.causal", False)
    trim = _value(keys, "seanet.decoder.trim_right_ratio", 1.0)
    if trim > 1 or (trim < 1 and not causal):
        raise _unrepresentable("seanet.decoder.trim_right_ratio", trim, "it has 1.0 where seanet.causal is false, and never more")
    structure = structure_of(weights)
    _compare(keys, structure)
    return make_config(
        structure,
        (),
        sampling_rate=_value(keys, "encodec.sample_rate", 0),
        use_causal_conv=causal,
        normalize=_value(keys, "encodec.renormalize", False),
        dilation_growth_rate=_value(keys, "seanet.dilation_base", 2),
        pad_mode=keys.get("seanet.pad_mode", "reflect"),
        trim_right_ratio=trim,
    )


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    # impossible dates and numbers, and nesting without end, are errors of other kinds
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError("its xp.cfg is no YAML; the file is damaged.") from error
    other = found.get("compression_model", "encodec") if isinstance(found, dict) else "encodec"
    if other != "encodec":
        raise _unrepresentable("compression_model", other, "it has encodec")
    whole = isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in ("encodec", "seanet", "rvq"))
    if not whole or not all(isinstance(found["seanet"].get(part) or {}, dict) for part in ("encoder", "decoder")):
        raise CheckpointError("its xp.cfg has no encodec, seanet and rvq; a checkpoint of audiocraft's EnCodec is needed.")
    return found


def _keys_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys that make the model, by their dotted names.  Raises CheckpointError where encoder and decoder differ."""
    shared = {key: value for key, value in config["seanet"].items() if key not in ("encoder", "decoder")}
    encoder, decoder = ({**shared, **(config["seanet"].get(part) or {})} for part in ("encoder", "decoder"))
    sections = {
        "encodec": config["encodec"],
        "seanet": encoder,
        "seanet.decoder": {key: decoder.pop(key) for key in _OF_DECODER if key in decoder},
        "rvq": config["rvq"],
    }
    for key in {**encoder, **decoder}:
        if key not in encoder or key not in decoder or encoder[key] != decoder[key]:
            raise _unrepresentable(
                f"seanet.decoder.{key}", decoder.get(key), f"it has that of the encoder ({_short(encoder.get(key))}) for both"
            )
    keys = {f"{section}.{key}": value for section, entries in sections.items() for key, value in entries.items()}
    for key, value in keys.items():
        if key not in _KNOWN:
            raise _unrepresentable(key, value, "it has no such setting")
    return {key: _resolved(config, value, key) for key, value in keys.items()}


def _resolved(config: dict[str, Any], value: Any, key: str) -> Any:
    for _ in range(10):
        reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if reference is None:
            break
        value = config
        for name in reference[1].split("."):
            value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str) and "${" in value:
        raise CheckpointError(f"its xp.cfg has {key}: {_short(value)}, which is not resolved; only names of other keys are.")
    return value


def _compare(keys: dict[str, Any], structure: Structure) -> None:
    """Raises CheckpointError where the YAML and the weights disagree."""
    shown = {key: structure.fields[field] for key, field in _SHOWN_BY_WEIGHTS.items() if field in structure.fields}
    shown["rvq.n_q"] = structure.levels
    if "use_conv_shortcut" in structure.fields:
        shown["seanet.true_skip"] = not structure.fields["use_conv_shortcut"]
    for key, value in shown.items():
        if key in keys and keys[key] != value:
            raise CheckpointError(
                f"its xp.cfg has {key}: {_short(keys[key])}, and its weights have {value}; one of them is of another model."
            )


def _value(keys: dict[str, Any], key: str, usual: Any) -> Any:
    """Returns the key's value, of the type of the usual one: a truth value, a number of 1 at least, or a fraction of 0 at least."""
    value = keys.get(key, usual)
    if isinstance(usual, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(usual) or not (isinstance(value, bool) or isinstance(value, int) <= value <= LARGEST):
        kind = {bool: "true or false", int: f"a whole number from 1 to {LARGEST:,}", float: "a number of 0 or more"}[type(usual)]
        raise CheckpointError(f"its xp.cfg has {key}: {_short(value)}; {kind} is needed.")
    return value


def _short(value: Any) -> str:
    """Returns the value in few characters: a YAML of a few lines can stand for gigabytes."""
    return (value if isinstance(value, str) else reprlib.repr(value))[:80]


def _unrepresentable(key: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(f"its xp.cfg has {key}: {_short(value)}, which transformers' EncodecModel can't represent; {why}.")
