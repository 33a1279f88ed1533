"""The codec of facebookresearch/encodec 0.1.1 in plain torch, with its names of weights: for where that package is not installed.

`tests/test_checkpoints.py` compares it with the package where it is. audiocraft and encodec-pytorch have the same modules.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def normed(name: str, convolution: nn.Module, norm: str) -> nn.Module:
    """The innermost wrapper: a convolution under a name, and its norm."""
    inner = nn.Module()
    inner.add_module(name, weight_norm(convolution) if norm == "weight_norm" else convolution)
    inner.add_module("norm", nn.GroupNorm(1, convolution.out_channels) if norm == "time_group_norm" else nn.Identity())
    return inner


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, settings: Any, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = normed("conv", nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation), settings["norm"])
        self.causal, self.pad_mode = settings["causal"], settings["pad_mode"]
        self.stride, self.padding = stride, (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor) -> Tensor:
        extra = -x.shape[-1] % self.stride
        right = 0 if self.causal else self.padding // 2
        x = F.pad(x, (self.padding - right, right + extra), self.pad_mode)
        return self.conv.norm(self.conv.conv(x))


class ConvTranspose(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, settings: Any):
        super().__init__()
        self.convtr = normed("convtr", nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride), settings["norm"])
        self.right = math.ceil(stride * settings["trim_right_ratio"]) if settings["causal"] else stride // 2
        self.left = stride - self.right

    def forward(self, x: Tensor) -> Tensor:
        x = self.convtr.norm(self.convtr.convtr(x))
        return x[..., self.left : x.shape[-1] - self.right]


class LSTM(nn.Module):
    def __init__(self, channels: int, layers: int):
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + x).permute(1, 2, 0)


class Block(nn.Module):
    def __init__(self, channels: int, index: int, settings: Any):
        super().__init__()
        narrow, dilation = channels // settings["compress"], settings["dilation_base"] ** index
        first = Conv(channels, narrow, settings["residual_kernel_size"], settings, dilation=dilation)
        self.block = nn.Sequential(nn.ELU(), first, nn.ELU(), Conv(narrow, channels, 1, settings))
        self.shortcut = nn.Identity() if settings["true_skip"] else Conv(channels, channels, 1, settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


def network(layers: list[nn.Module]) -> nn.Module:
    part = nn.Module()
    part.add_module("model", nn.Sequential(*layers))
    return part


# As the package's own 24 kHz model has them
SETTINGS = {
    "channels": 1,
    "dimension": 128,
    "n_filters": 32,
    "n_residual_layers": 1,
    "ratios": [8, 5, 4, 2],
    "norm": "weight_norm",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_base": 2,
    "causal": True,
    "pad_mode": "reflect",
    "true_skip": False,
    "compress": 2,
    "lstm": 2,
    "trim_right_ratio": 1.0,
    "n_q": 32,
    "bins": 1024,
}


class OriginalModel(nn.Module):
    """Encoder, quantizer and decoder; settings are audiocraft's words."""

    def __init__(self, **changes: Any):
        super().__init__()
        s = self.settings = {**SETTINGS, **changes}
        width = s["n_filters"]
        encoder: list[nn.Module] = [Conv(s["channels"], width, s["kernel_size"], s)]
        for ratio in reversed(s["ratios"]):
            encoder += [Block(width, index, s) for index in range(s["n_residual_layers"])]
            encoder += [nn.ELU(), Conv(width, 2 * width, 2 * ratio, s, stride=ratio)]
            width *= 2
        encoder += [LSTM(width, s["lstm"]), nn.ELU(), Conv(width, s["dimension"], s["last_kernel_size"], s)]
        decoder: list[nn.Module] = [Conv(s["dimension"], width, s["kernel_size"], s), LSTM(width, s["lstm"])]
        for ratio in s["ratios"]:
            decoder += [nn.ELU(), ConvTranspose(width, width // 2, ratio, s)]
            width //= 2
            decoder += [Block(width, index, s) for index in range(s["n_residual_layers"])]
        decoder += [nn.ELU(), Conv(width, s["channels"], s["last_kernel_size"], s)]
        self.encoder, self.decoder = network(encoder), network(decoder)
        self.embeds = [torch.zeros(s["bins"], s["dimension"]) for _ in range(s["n_q"])]

    def encode(self, audio: Tensor) -> Tensor:
        """[B, K, F], all levels."""
        residual, codes = self.encoder.model(audio).transpose(1, 2), []
        for embed in self.embeds:
            # as the package has it: the order of the sum decides near ties
            distances = residual.pow(2).sum(-1, keepdim=True) - 2 * residual @ embed.t() + embed.pow(2).sum(-1)
            codes.append((-distances).max(dim=-1).indices)
            residual = residual - F.embedding(codes[-1], embed)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        embeddings = sum(F.embedding(level, embed) for level, embed in zip(codes.unbind(1), self.embeds))
        return self.decoder.model(embeddings.transpose(1, 2))

    def weights(self) -> OrderedDict[str, Tensor]:
        """As the package saves them."""
        spell = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        found = OrderedDict((name, tensor.clone()) for name, tensor in self.state_dict().items())
        for new, old in spell.items():
            found = OrderedDict((name.replace(new, old), tensor) for name, tensor in found.items())
        for index, embed in enumerate(self.embeds):
            entries = {"inited": torch.ones(1), "cluster_size": torch.rand(len(embed)), "embed": embed, "embed_avg": 2 * embed}
            found.update({f"quantizer.vq.layers.{index}._codebook.{name}": tensor.clone() for name, tensor in entries.items()})
        return found
