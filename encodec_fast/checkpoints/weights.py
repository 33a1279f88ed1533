"""The names of weights in original checkpoints and in transformers, and whether a set of them is whole."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

# Buffers for training the codebooks, which encoding and decoding never read
TRAINING_STATE = (".inited", ".cluster_size", ".embed_avg")
# Other spellings of original names: of the wrapper of parallel training, of early encodec-pytorch, and of torch's newer weight norm
_SPELLINGS = (
    (re.compile(r"^module\."), ""),
    (re.compile(r"^quantizer\.model\."), "quantizer.vq."),
    (re.compile(r"\.parametrizations\.weight\.original0$"), ".weight_g"),
    (re.compile(r"\.parametrizations\.weight\.original1$"), ".weight_v"),
)
# What other checkpoints' weights begin with, and what these are
_OTHERS = (
    (
        r"(transformer|emb|linears|condition_provider)\.",
        "a language model over codes; the codec is another file (encodec_24khz-*.th, compression_state_dict.bin)",
    ),
    (r"discriminators\.", "the discriminator of a training; the codec is another file, without disc in its name"),
    (r"(encoder|decoder|quantizer)\.layers\.", "a model of transformers; give the folder that holds its config.json too"),
)


class CheckpointError(ValueError):
    """A checkpoint that can't be loaded or written; the message is one sentence in one line, without the file's name."""

    def __init__(self, message: str):
        # names and values out of a file may hold anything
        super().__init__(" ".join(message.split()))


def original_names(model: hf.EncodecModel) -> dict[str, str]:
    """Returns the original name of each entry of the model's state dict, by the name that it has there.

    The layers stand in the same order in both packages. The original wraps each convolution once more, and calls transposed ones `convtr`.
    """
    wrappers = {
        name: "convtr" if isinstance(module, hf.EncodecConvTranspose1d) else "conv"
        for name, module in model.named_modules()
        if isinstance(module, (hf.EncodecConv1d, hf.EncodecConvTranspose1d))
    }
    return {name: _original_name(name, wrappers) for name in model.state_dict()}


def _original_name(name: str, wrappers: Mapping[str, str]) -> str:
    part, layers, number, *rest = usual_spelling(name).split(".")
    if part == "quantizer":
        return ".".join([part, "vq", layers, number, "_codebook", *rest[1:]])
    # one more component for each: the wrapper's own, and the name of the convolution inside it
    for cut in range(len(rest)):
        kind = wrappers.get(".".join([part, layers, number, *rest[:cut]]))
        if kind is not None:
            rest[cut : cut + 1] = [kind, kind if rest[cut] == "conv" else rest[cut]]
            break
    return ".".join([part, "model", number, *rest])


def usual_spelling(name: str) -> str:
    """Returns an original name as the encodec package spells it."""
    for pattern, replacement in _SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


def known_weights(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Returns the weights of an original codec under their usual names.  Raises CheckpointError for a dict that holds anything else."""
    weights = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"this is no dict of weights: {str(name)!r} is of type {type(tensor).__name__}; save model.state_dict() by itself."
            )
        weights[usual_spelling(name)] = tensor
    if not any(name.startswith("encoder.model.") for name in weights):
        for pattern, kind in _OTHERS:
            if any(re.match(pattern, name) for name in weights):
                raise CheckpointError(f"these are the weights of {kind}.")
        first = f"the first weight is {next(iter(weights))}" if weights else "it holds no weights"
        raise CheckpointError(f"this is no checkpoint of an EnCodec model: {first}, and those of an encoder are needed (encoder.model.*).")
    return weights


def put_weights(model: hf.EncodecModel, weights: Mapping[str, Tensor]) -> None:
    """Copies weights under original names into the model.  Raises CheckpointError unless they are the model's, whole and finite."""
    own = model.state_dict()
    names = original_names(model)
    missing = sorted(name for name in names.values() if name not in weights and not name.endswith(TRAINING_STATE))
    if missing:
        raise CheckpointError(f"{_of_weights(missing, 'missing')}; the file is not whole.")
    surplus = sorted(set(weights) - set(names.values()))
    if surplus:
        raise CheckpointError(f"{_of_weights(surplus, 'surplus')}; transformers' EncodecModel has no place for it.")
    found = {name: weights[original] for name, original in names.items() if original in weights}
    for name, tensor in found.items():
        original = names[name]
        if tensor.shape != own[name].shape:
            raise CheckpointError(f"{original} has the shape {list(tensor.shape)}, and the other weights need {list(own[name].shape)}.")
        # a tensor may also be quantized, sparse or without data
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"{original} is {tensor.dtype} ({tensor.layout}, {tensor.device}); plain floating point is needed.")
        if not original.endswith(TRAINING_STATE) and not tensor.isfinite().all():
            raise CheckpointError(f"{original} holds values that are not finite; the file is damaged, or its training went astray.")
    model.load_state_dict({**own, **found})


def _of_weights(names: list[str], what: str) -> str:
    return f"1 weight is {what}, {names[0]}" if len(names) == 1 else f"{len(names)} weights are {what}, the first is {names[0]}"


def original_weights(model: hf.EncodecModel) -> OrderedDict[str, Tensor]:
    """Returns copies of the model's weights under their original names, on the CPU."""
    state, names = model.state_dict(), original_names(model)
    return OrderedDict((names[name], tensor.detach().cpu().clone()) for name, tensor in state.items())
