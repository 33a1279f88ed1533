"""What the weights of an original checkpoint tell of its model, and what has to be known besides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import EncodecConfig

from encodec_fast.checkpoints.weights import CheckpointError

# Of the two published models, kbps
BANDWIDTHS_24KHZ = (1.5, 3.0, 6.0, 12.0, 24.0)
BANDWIDTHS_48KHZ = (3.0, 6.0, 12.0, 24.0)


@dataclass(frozen=True)
class Structure:
    """What the shapes of the weights tell.

    fields: of EncodecConfig.  levels: how many codebooks there are.
    """

    fields: dict[str, Any]
    levels: int

    @property
    def kind(self) -> tuple[int, str]:
        """The number of channels and the norm, by which the published models differ."""
        return self.fields["audio_channels"], self.fields["norm_type"]


def structure_of(weights: Mapping[str, Tensor]) -> Structure:
    """Reads the structure off weights under original names.  Raises CheckpointError for one that transformers does not have."""
    layers = _layers(weights, "encoder")
    convolutions = [f"encoder.model.{number}.conv" for number, kind in layers if kind == "conv"]
    blocks = [f"encoder.model.{number}" for number, kind in layers if kind == "block"]
    lstms = [f"encoder.model.{number}" for number, kind in layers if kind == "lstm"]
    if not lstms:
        raise CheckpointError("it has no LSTM layers, which transformers' EncodecModel always has.")
    if len(convolutions) < 3:
        raise CheckpointError(f"its encoder has {len(convolutions)} convolutions outside of blocks; 3 at least are needed.")
    first, last = _kernel(weights, convolutions[0]), _kernel(weights, convolutions[-1])
    steps = [_kernel(weights, name)[2] for name in convolutions[1:-1]]
    if any(step % 2 for step in steps):
        raise CheckpointError(f"its convolutions between blocks are of lengths {steps}; transformers has them twice as long as their step.")
    embed = _shape(weights, "quantizer.vq.layers.0._codebook.embed", 2)
    if embed[1] != last[0]:
        raise CheckpointError(f"its codebooks have {embed[1]} dimensions and its embeddings {last[0]}, which transformers can't join.")
    fields = {
        "audio_channels": first[1],
        "num_filters": first[0],
        "kernel_size": first[2],
        "upsampling_ratios": [step // 2 for step in reversed(steps)],
        "hidden_size": last[0],
        "last_kernel_size": last[2],
        "norm_type": _norm_type(weights, convolutions[0]),
        "num_residual_layers": len(blocks) // len(steps),
        "num_lstm_layers": len([name for name in weights if name.startswith(f"{lstms[0]}.lstm.weight_ih_l")]),
        "codebook_size": embed[0],
    }
    if blocks:
        narrow = _kernel(weights, f"{blocks[0]}.block.1.conv")
        fields["residual_kernel_size"] = narrow[2]
        fields["compress"] = max(1, narrow[1] // max(1, narrow[0]))
        fields["use_conv_shortcut"] = any(name.startswith(f"{blocks[0]}.shortcut.") for name in weights)
    levels = len([name for name in weights if name.startswith("quantizer.") and name.endswith("._codebook.embed")])
    return Structure(fields, levels)


def _layers(weights: Mapping[str, Tensor], part: str) -> list[tuple[int, str]]:
    """Returns number and kind (conv, block or lstm) of the part's layers that have weights, in order."""
    kinds: dict[int, str] = {}
    for name in weights:
        components = name.split(".")
        if components[:2] == [part, "model"] and len(components) > 3 and components[2].isdecimal():
            kinds.setdefault(int(components[2]), "block" if components[3] == "shortcut" else components[3])
    return sorted(kinds.items())


def _kernel(weights: Mapping[str, Tensor], wrapper: str) -> tuple[int, ...]:
    """Returns outputs, inputs and length of a convolution."""
    normed = f"{wrapper}.conv.weight_v"
    return _shape(weights, normed if normed in weights or f"{wrapper}.conv.weight_g" in weights else f"{wrapper}.conv.weight", 3)


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights:
        raise CheckpointError(f"the weight {name} is missing; the file is not whole.")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(f"{name} has the shape {list(shape)}; {dimensions} dimensions, none of them 0, are needed.")
    return shape


def _norm_type(weights: Mapping[str, Tensor], wrapper: str) -> str:
    if f"{wrapper}.norm.weight" in weights:
        return "time_group_norm"
    if f"{wrapper}.conv.weight_g" in weights or f"{wrapper}.conv.weight_v" in weights:
        return "weight_norm"
    raise CheckpointError("its convolutions have no norm; transformers' EncodecModel has weight_norm and time_group_norm.")


def published_config(structure: Structure) -> EncodecConfig:
    """Returns the config of weights alone, which are those of the 24 kHz or of the 48 kHz model.  Raises CheckpointError for others."""
    if structure.kind == (1, "weight_norm"):
        return make_config(structure, BANDWIDTHS_24KHZ, sampling_rate=24_000, use_causal_conv=True, normalize=False)
    if structure.kind == (2, "time_group_norm"):
        return _config_48khz(structure)
    channels, norm = structure.kind
    raise CheckpointError(
        f"{channels} channels with {norm} are neither the 24 kHz model (1, weight_norm) nor the 48 kHz one (2, time_group_norm); "
        "weights alone tell no more, so give a folder with a config.json."
    )


def trained_config(structure: Structure) -> EncodecConfig:
    """Returns the config of a checkpoint of encodec-pytorch, which holds none: what its own config.yaml has where nobody changes it.

    Stereo with time_group_norm is taken for the 48 kHz model.  Raises CheckpointError for other stereo.
    """
    channels, norm = structure.kind
    if channels == 1:
        causal = norm == "weight_norm"
        return make_config(structure, BANDWIDTHS_24KHZ, sampling_rate=24_000, use_causal_conv=causal, normalize=True)
    if structure.kind == (2, "time_group_norm"):
        return _config_48khz(structure)
    raise CheckpointError(
        f"{channels} channels with {norm} are not what encodec-pytorch trains by default, and the checkpoint tells no sampling rate; "
        "give a folder with a config.json."
    )


def _config_48khz(structure: Structure) -> EncodecConfig:
    chunks = {"chunk_length_s": 1.0, "overlap": 0.01}
    return make_config(structure, BANDWIDTHS_48KHZ, sampling_rate=48_000, use_causal_conv=False, normalize=True, **chunks)


def make_config(structure: Structure, usual: Sequence[float], **settings: Any) -> EncodecConfig:
    """Returns the config of a structure and what else is known.

    usual: bandwidths in kbps, taken where the highest one means all levels. Else all levels are the only bandwidth.
    Raises CheckpointError where transformers would have another number of levels.
    """
    fields = {**structure.fields, **settings}
    frame_rate = math.ceil(fields["sampling_rate"] / math.prod(fields["upsampling_ratios"]))
    bits = frame_rate * math.ceil(math.log2(fields["codebook_size"]))
    if not bits:
        raise CheckpointError("its codebooks have 1 entry, which is no code at all.")
    if usual and int(1000 * usual[-1] // bits) == structure.levels and usual[0] * 1000 >= bits:
        bandwidths = list(usual)
    else:
        highest = structure.levels * bits / 1000
        while int(1000 * highest // bits) < structure.levels:
            highest = math.nextafter(highest, math.inf)
        bandwidths = [highest]
    config = EncodecConfig(**fields, target_bandwidths=bandwidths)
    if config.num_quantizers != structure.levels:
        raise CheckpointError(
            f"transformers {transformers.__version__} makes {config.num_quantizers} of the {structure.levels} levels, because it takes "
            "every codebook for one of 1,024 entries; transformers 4.45 and later count them."
        )
    return config
