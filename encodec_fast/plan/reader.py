"""Reads the plan from the Hugging Face module tree: weight norm folded, geometry as integers, codebooks stacked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.kernels.modes import Activation
from encodec_fast.plan import (
    LSTM,
    Conv,
    GroupNorm,
    LSTMLayer,
    Network,
    Plan,
    Quantizer,
    ResidualBlock,
    Stage,
    Upsample,
)

PAD_MODES = ("reflect", "constant", "replicate")


class Unplannable(Exception):
    """The module tree holds something the plan has no words for; the message says what."""


def read_network(module: Any) -> Network:
    """Returns the stages of an `EncodecEncoder` or `EncodecDecoder`.

    Raises Unplannable where the tree holds anything but the modules that transformers builds.
    """
    if not isinstance(getattr(module, "layers", None), nn.ModuleList):
        raise Unplannable(f"{type(module).__name__} has no list of layers")
    stages: list[Stage] = []
    activation = Activation.NONE
    for index, layer in enumerate(module.layers):
        name = f"layers.{index}"
        found = _read_activation(layer, name)
        if found is None:
            stages.append(_read_stage(layer, name, activation))
        activation = found or Activation.NONE
    if activation != Activation.NONE:
        raise Unplannable(f"{name} is an activation that no layer follows")
    return Network(tuple(stages))


def read_quantizer(module: Any) -> Quantizer:
    """Returns the stacked codebooks of an `EncodecResidualVectorQuantizer`."""
    if not isinstance(getattr(module, "layers", None), nn.ModuleList):
        raise Unplannable(f"{type(module).__name__} has no list of layers")
    embeds = []
    for index, layer in enumerate(module.layers):
        if type(layer) is not hf.EncodecVectorQuantization or type(layer.codebook) is not hf.EncodecEuclideanCodebook:
            raise Unplannable(f"quantizer.layers.{index} is a {type(layer).__name__}")
        embeds.append(layer.codebook.embed.detach())
    if not embeds:
        raise Unplannable("the quantizer has no layers")
    return Quantizer(torch.stack(embeds))


def read_plan(model: hf.EncodecModel) -> Plan:
    """Returns the plan of a whole model.  Raises Unplannable as `read_network` does."""
    return Plan(read_network(model.encoder), read_quantizer(model.quantizer), read_network(model.decoder))


def _read_stage(layer: Any, name: str, activation: Activation) -> Stage:
    if type(layer) is hf.EncodecConv1d:
        return _read_conv(layer, name, activation)
    if type(layer) is hf.EncodecConvTranspose1d:
        return _read_upsample(layer, name, activation)
    if activation != Activation.NONE:
        raise Unplannable(f"{name} is a {type(layer).__name__} after an activation")
    if type(layer) is hf.EncodecResnetBlock:
        return _read_residual(layer, name)
    if type(layer) is hf.EncodecLSTM:
        return _read_lstm(layer, name)
    raise Unplannable(f"{name} is a {type(layer).__name__}")


def _read_conv(module: Any, name: str, activation: Activation) -> Conv:
    conv = module.conv
    _require_plain_conv(conv, nn.Conv1d, name)
    stride, dilation = conv.stride[0], conv.dilation[0]
    if module.pad_mode not in PAD_MODES:
        raise Unplannable(f"{name} pads with mode {module.pad_mode!r}")
    pad_left, pad_right = conv_padding(module)
    if pad_left + pad_right < 0:
        raise Unplannable(f"{name} has a stride longer than its kernel")
    return Conv(
        name=name,
        weight=_folded_weight(conv, name),
        bias=None if conv.bias is None else conv.bias.detach(),
        stride=stride,
        dilation=dilation,
        pad_left=pad_left,
        pad_right=pad_right,
        pad_mode=module.pad_mode,
        activation=activation,
        norm=_read_norm(module, name),
    )


def conv_padding(module: Any) -> tuple[int, int]:
    """Returns the steps of padding on both sides of an `EncodecConv1d`, without those that make the last stride whole.

    Their sum is negative for a stride longer than the kernel.
    """
    conv = module.conv
    total = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
    right = 0 if module.causal else total // 2
    return total - right, right


def _read_upsample(module: Any, name: str, activation: Activation) -> Upsample:
    conv = module.conv
    _require_plain_conv(conv, nn.ConvTranspose1d, name)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    total = kernel - stride
    trim_right = math.ceil(total * module.trim_right_ratio) if module.causal else total // 2
    if total < 0 or conv.dilation != (1,) or not 0 <= trim_right <= total:
        raise Unplannable(f"{name} has kernel {kernel}, stride {stride}, dilation {conv.dilation}, trim {trim_right}")
    return Upsample(
        name=name,
        weight=_folded_weight(conv, name),
        bias=None if conv.bias is None else conv.bias.detach(),
        stride=stride,
        trim_left=total - trim_right,
        trim_right=trim_right,
        activation=activation,
        norm=_read_norm(module, name),
    )


def _read_residual(module: Any, name: str) -> ResidualBlock:
    kinds = [type(layer) for layer in module.block]
    activations = [_read_activation(layer, f"{name}.block.{index}") for index, layer in enumerate(module.block)]
    first, second = (activations[0], activations[2]) if len(kinds) == 4 else (None, None)
    if kinds[1::2] != [hf.EncodecConv1d] * 2 or first is None or second is None:
        raise Unplannable(f"{name}.block is {[kind.__name__ for kind in kinds]}")
    conv1 = _read_conv(module.block[1], f"{name}.block.1", first)
    conv2 = _read_conv(module.block[3], f"{name}.block.3", second)
    shortcut = None
    if type(module.shortcut) is hf.EncodecConv1d:
        shortcut = _read_conv(module.shortcut, f"{name}.shortcut", Activation.NONE)
    elif type(module.shortcut) is not nn.Identity:
        raise Unplannable(f"{name}.shortcut is a {type(module.shortcut).__name__}")
    if conv1.stride != 1 or any(conv.kernel != 1 or conv.stride != 1 for conv in (conv2, shortcut) if conv is not None):
        raise Unplannable(f"{name} has a strided convolution, or a wide second or shortcut convolution")
    return ResidualBlock(name, conv1, conv2, shortcut)


def _read_lstm(module: Any, name: str) -> LSTM:
    lstm = module.lstm
    if type(lstm) is not nn.LSTM or (lstm.bias, lstm.batch_first, lstm.bidirectional, lstm.proj_size) != (True, False, False, 0):
        raise Unplannable(f"{name}.lstm is not a plain unidirectional nn.LSTM with bias")
    if lstm.input_size != lstm.hidden_size or lstm.dropout:
        raise Unplannable(f"{name}.lstm changes its width or drops out")
    layers = tuple(LSTMLayer(*(weight.detach() for weight in weights)) for weights in lstm.all_weights)
    return LSTM(name, layers)


def _read_norm(module: Any, name: str) -> GroupNorm | None:
    if module.norm_type != "time_group_norm":
        return None
    norm = module.norm
    if type(norm) is not nn.GroupNorm or norm.num_groups != 1 or norm.weight is None:
        raise Unplannable(f"{name}.norm is not an affine GroupNorm over one group")
    return GroupNorm(norm.weight.detach(), norm.bias.detach(), norm.eps)


def _require_plain_conv(conv: Any, kind: type[nn.Module], name: str) -> None:
    # a parametrized module's class is made on the fly, derived from the real one
    plain = isinstance(conv, kind) and type(conv).forward is kind.forward
    if not plain or conv.groups != 1 or conv.padding != (0,) or getattr(conv, "output_padding", (0,)) != (0,):
        raise Unplannable(f"{name}.conv is not a plain {kind.__name__} without padding or groups")


def _read_activation(layer: Any, name: str) -> Activation | None:
    """Returns which activation the layer is, or None where it is none."""
    if type(layer) is not nn.ELU:
        return None
    if layer.alpha != 1.0:
        raise Unplannable(f"{name} is an ELU with alpha {layer.alpha}")
    return Activation.ELU


def weight_norm_hook(module: nn.Module) -> Any:
    """Returns the forward pre-hook that `torch.nn.utils.weight_norm` installs (transformers before 4.38), if there is one."""
    from torch.nn.utils.weight_norm import WeightNorm

    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return hook
    return None


def _folded_weight(conv: Any, name: str) -> Tensor:
    hook = weight_norm_hook(conv)
    with torch.no_grad():
        if hook is not None:
            # conv.weight itself is stale until the next forward of the hooked module
            return hook.compute_weight(conv).detach()
        parametrized = getattr(conv, "parametrizations", None)
        if parametrized is not None:
            kinds = [type(p).__name__ for key in parametrized for p in parametrized[key]]
            if list(parametrized) != ["weight"] or kinds != ["_WeightNorm"]:
                raise Unplannable(f"{name}.conv is parametrized by {kinds}")
        elif "weight" not in conv._parameters:
            # nobody could tell when it is replaced
            raise Unplannable(f"{name}.conv has a weight that is no parameter")
        return conv.weight.detach()
