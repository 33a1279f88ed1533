"""The encoder and the decoder with gradients: transformers' modules and numbers, in fewer and lighter operations.

The modules' own forward pads, activates and convolves in turns. It asks tensors for lengths of padding, for which a GPU waits.
Here an activation is written straight into the padded input of the next convolution. Backward needs no more of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.plan.reader import conv_padding

# Up to so many, oneDNN's convolutions with channels last take two thirds of the time of those with channels first.
_FEW_CHANNELS = 16


def run_layers(network: Any, x: Tensor) -> Tensor:
    """Runs an `EncodecEncoder` or `EncodecDecoder`: [B, C, T] -> [B, C_out, T_out], with the gradient of every parameter.

    Equal to the modules' own forward up to rounding. Layers that transformers does not make run as they are, and so do all where one has
    a hook. First derivatives only.
    """
    activate = False
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.layers.modules()):
        for layer in network.layers:
            x = layer(x)
        return x
    for layer in network.layers:
        if _is_elu(layer):
            activate = True
            continue
        x, activate = _run(layer, x, activate), False
    return x


def _is_elu(layer: nn.Module) -> bool:
    return type(layer) is nn.ELU and layer.alpha == 1.0


def _run(layer: Any, x: Tensor, activate: bool) -> Tensor:
    """Runs one layer on x, behind an ELU or not."""
    if type(layer) is hf.EncodecConv1d:
        return _convolve(layer, x, activate)
    x = F.elu(x) if activate else x
    if type(layer) is hf.EncodecResnetBlock and [_is_elu(each) for each in layer.block] == [True, False, True, False]:
        first, second = layer.block[1], layer.block[3]
        return _run(second, _run(first, x, True), True) + _run(layer.shortcut, x, False)
    return layer(x)


def _convolve(layer: Any, x: Tensor, activate: bool) -> Tensor:
    conv = layer.conv
    stride, dilation, length = conv.stride[0], conv.dilation[0], x.shape[-1]
    left, right = conv_padding(layer)
    plain = layer.pad_mode != "reflect" or left + right < 0
    # what the last window lacks
    right += -length % stride
    if plain or length <= max(left, right):
        return layer(F.elu(x) if activate else x)
    if activate or left or right:
        x = _Padded.apply(x, left, right, activate)
    x = _conv1d(x, conv.weight, conv.bias, stride, dilation)
    return layer.norm(x) if layer.norm_type == "time_group_norm" else x


def _conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    """Runs a convolution without padding, on CPUs in the form that costs least there."""
    channels, kernel = weight.shape[1:]
    if x.device.type == "cpu" and stride == kernel == 1 and bias is not None:
        # torch's own, on one thread, zeroes the gradient of x before it is written
        return torch.baddbmm(bias[:, None], weight.squeeze(2).expand(len(x), -1, -1), x)
    if x.device.type == "cpu" and stride == 1 and kernel > 1:
        if channels == 1 and dilation == 1 and bias is not None and not x.requires_grad:
            # the recording: a matrix product per clip takes a quarter of oneDNN's time
            windows = x.unfold(2, kernel, 1).squeeze(1).transpose(1, 2)
            return torch.baddbmm(bias[:, None], weight.flatten(1).expand(len(x), -1, -1), windows.contiguous())
        if channels <= _FEW_CHANNELS:
            image = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            return F.conv2d(image, weight.unsqueeze(2), bias, dilation=(1, dilation)).squeeze(2).contiguous()
    return F.conv1d(x, weight, bias, stride, 0, dilation)


class _Padded(torch.autograd.Function):
    """Returns x [B, C, T], or ELU of it, with `left` and `right` samples of it reflected around it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: int, right: int, activate: bool) -> Tensor:
        length = x.shape[-1]
        out = x.new_empty(*x.shape[:-1], left + length + right)
        middle = out[..., left : left + length]
        if activate:
            torch.ops.aten.elu.out(x, out=middle)
        else:
            middle.copy_(x)
        if left:
            out[..., :left] = middle[..., 1 : left + 1].flip(-1)
        if right:
            out[..., left + length :] = middle[..., length - right - 1 : length - 1].flip(-1)
        ctx.sizes = left, right, length
        if activate:
            ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grad_outputs
        left, right, length = ctx.sizes
        result = ctx.saved_tensors[0][..., left : left + length] if ctx.saved_tensors else None

        def through(part: Tensor, start: int) -> Tensor:
            # ELU'(x) from its value
            if result is None:
                return part
            return torch.ops.aten.elu_backward(part, 1.0, 1.0, 1.0, True, result[..., start : start + part.shape[-1]])

        own = through(grad[..., left : left + length], 0)
        own = own.clone() if result is None else own
        if left:
            own[..., 1 : left + 1] += through(grad[..., :left].flip(-1), 1)
        if right:
            own[..., length - right - 1 : length - 1] += through(grad[..., left + length :].flip(-1), length - right - 1)
        return own, None, None, None
