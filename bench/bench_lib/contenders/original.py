"""The authors' own package."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bench_lib.cases import Case, stock_model
from bench_lib.contenders.base import Call, Contender, stacked


class Original(Contender):
    """facebookresearch `encodec`, the authors' own package."""

    name = "encodec"

    @staticmethod
    def missing(device: torch.device) -> str | None:
        if importlib.util.find_spec("encodec") and importlib.util.find_spec("einops"):
            return None
        return "it is not installed: pip install --no-deps encodec einops (it reads files with torchaudio, which is not needed here)"

    def load(self, model: str) -> Any:
        allow_import()
        from encodec import EncodecModel

        stock = stock_model(model)
        config = stock.config
        original = EncodecModel._get_model(
            config.target_bandwidths,
            config.sampling_rate,
            config.audio_channels,
            causal=config.use_causal_conv,
            model_norm=config.norm_type,
            audio_normalize=config.normalize,
            segment=config.chunk_length_s,
        ).eval()
        copy_weights(stock, original)
        return original.to(self.device)

    def encode(self, model: Any, audio: Tensor, case: Case) -> Call:
        model.set_target_bandwidth(case.bandwidth)
        return lambda: model.encode(audio)

    def decode(self, model: Any, codes: Tensor, scales: list[Tensor | None], tail: int) -> Call:
        frames = list(zip(codes, scales))
        frames[-1] = (frames[-1][0][..., : codes.shape[-1] - tail], frames[-1][1])
        return lambda: model.decode(frames)

    def answer(self, case: Case, result: Any) -> Tensor:
        """Returns codes [chunks, B, K, F], the last chunk padded with zeros as transformers does, or audio [B, C, T]."""
        if case.call == "decode":
            return result.cpu()
        return stacked([codes for codes, _ in result]).cpu()


def allow_import() -> None:
    """Lets `encodec` be imported without torchaudio, which it has at the top and needs for reading files only."""
    # a stand-in from an earlier call has no spec to be found
    if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")


def copy_weights(stock: transformers.EncodecModel, original: Any) -> None:
    """Gives the authors' model the weights of `stock`: both trees hold the same modules in the same order."""
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.LSTM, nn.GroupNorm)
    for part in ("encoder", "decoder"):
        sides = [[m for m in getattr(side, part).modules() if isinstance(m, kinds)] for side in (stock, original)]
        for source, target in zip(*sides, strict=True):
            target.load_state_dict({_original_name(name): value for name, value in source.state_dict().items()})
    for source, target in zip(stock.quantizer.layers, original.quantizer.vq.layers, strict=True):
        target._codebook.embed.copy_(source.codebook.embed)
        target._codebook.inited.fill_(1)


def _original_name(name: str) -> str:
    return {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}.get(name, name)
