"""transformers as it comes, and in the two ways that its users make it faster."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from bench_lib.cases import Case, stock_model
from bench_lib.contenders.base import Call, Contender


class Stock(Contender):
    """transformers as it comes."""

    name = "hf"

    def load(self, model: str) -> Any:
        return stock_model(model).to(self.device)

    def encode(self, model: Any, audio: Tensor, case: Case) -> Call:
        return lambda: model.encode(audio, bandwidth=case.bandwidth)

    def decode(self, model: Any, codes: Tensor, scales: list[Tensor | None], tail: int) -> Call:
        # transformers before 4.53 has no ragged last chunk
        extra = {"last_frame_pad_length": tail} if "last_frame_pad_length" in inspect.signature(model.decode).parameters else {}
        return lambda: model.decode(codes, scales, **extra)


class Folded(Stock):
    """transformers with the weight norm multiplied into the weights once, instead of in every call."""

    name = "folded"

    def load(self, model: str) -> Any:
        stock = super().load(model)
        for module in stock.modules():
            if nn.utils.parametrize.is_parametrized(module, "weight"):
                nn.utils.parametrize.remove_parametrizations(module, "weight")
        return stock


class Compiled(Stock):
    """transformers through torch.compile, for the very shapes that are measured; compiling is set-up time."""

    name = "compile"

    def encode(self, model: Any, audio: Tensor, case: Case) -> Call:
        torch.compiler.reset()
        encode = torch.compile(model.encode, dynamic=False)
        return lambda: encode(audio, bandwidth=case.bandwidth)

    def decode(self, model: Any, codes: Tensor, scales: list[Tensor | None], tail: int) -> Call:
        torch.compiler.reset()
        decode = torch.compile(model.decode, dynamic=False)
        return lambda: decode(codes, scales, last_frame_pad_length=tail)
