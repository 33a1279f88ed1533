"""The language model one frame at a time, by the very torch operations of `encodec` 0.1.1: in one process, its bits.

All else in this package runs many frames at once, or in the native engine. This is for files that `encodec` is to read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encodec_fast.language_model.model import MAX_PERIOD, LanguageModel


class PublishedSteps:
    """Walks through one segment.

    model: in eval mode, float32, on the CPU.
    Every operation, its shapes and its layouts are those of the source: another one may give other bits.
    Source: encodec 0.1.1, model.py and modules/transformer.py.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._position = model, 0
        # of each layer its last inputs, behind a vector of zeros
        self._inputs = [torch.zeros(1, 1, model.config.dim) for _ in range(model.config.layers)]

    @torch.no_grad()
    def next(self, before: Tensor) -> Tensor:
        """Returns the probabilities [N, K] of the next frame's codes, float32.

        before: the codes of the frame before plus one, int64 [1, K, 1]; zeros in front of the first frame.
        """
        model, transformer = self._model, self._model.transformer
        x = sum(model.emb[level](before[:, level]) for level in range(before.shape[1]))
        x = transformer.norm_in(x) + self._positions(x)
        for number, layer in enumerate(transformer.layers):
            inputs = torch.cat([self._inputs[number], x], dim=1)
            self._inputs[number] = inputs[:, -transformer.past_context :]
            x = _layer(layer, x, inputs, transformer.past_context)
        self._position += 1
        logits = torch.stack([model.linears[level](x) for level in range(before.shape[1])], dim=1)
        return torch.softmax(logits.permute(0, 3, 1, 2), dim=1)[0, :, :, 0]

    def _positions(self, x: Tensor) -> Tensor:
        half = x.shape[2] // 2
        position = torch.arange(1).view(1, -1, 1) + self._position
        # torch's own power, whose last bits are those of this machine
        phase = position / (MAX_PERIOD ** (torch.arange(half).view(1, 1, -1) / (half - 1)))
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


def _layer(layer: Any, x: Tensor, keys: Tensor, past_context: int) -> Tensor:
    distance = keys.shape[1] - 1 - torch.arange(keys.shape[1]).view(1, -1)
    attended = layer.self_attn(x, keys, keys, attn_mask=distance > past_context, need_weights=False)[0]
    x = layer.norm1(x + attended)
    return layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))
