"""A model as two modules that torch itself exports: `torch.export`, `torch.onnx.export(dynamo=True)`, AOTInductor."""

from __future__ import annotations

from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.backends import torch_export
from encodec_fast.model import known_bandwidth
from encodec_fast.plan import Network, Quantizer, mapped
from encodec_fast.plan.reader import Unplannable, read_plan
from encodec_fast.serving.clips import levels_of

Part = TypeVar("Part", Network, Quantizer)


class ExportableCodec(NamedTuple):
    """A model as modules of its own, with folded weights as buffers.

    encoder: `audio` [B, C, T] to `codes` int64 [B, K, F].  decoder: `codes` to `audio` [B, C, T], whole codec frames.
    Of a model that normalizes, the encoder returns (codes, scale [B, 1]), and the decoder takes `scale` too.
    """

    encoder: nn.Module
    decoder: nn.Module


def exportable(model: hf.EncodecModel, bandwidth: float | None = None) -> ExportableCodec:
    """Returns encoder and decoder as modules that torch exports for any batch and any length from one sample on.

    model: any transformers.EncodecModel. Its weights are copied; device and dtype stay.
    bandwidth: kbps, which fixes the K of the encoder's codes; None for the lowest. The decoder takes any K.
    One with chunks takes a chunk at a time, as the ONNX graphs do; `torch.export` of the drop-in class takes the clip.

    Give `torch.export.export` dynamic dimensions, `Dim.DYNAMIC` or a `Dim` from 1 on. The modules are for inference.
    Raises ValueError for a bandwidth that the model lacks, and for a model with foreign modules inside.
    Raises RuntimeError where torch is too old to export what they do.
    """
    reason = torch_export.too_old()
    if reason is not None:
        raise RuntimeError(f"exportable: {reason}. encodec_fast.export(model, folder) writes ONNX with any torch.")
    levels = levels_of(model.quantizer, known_bandwidth(model.config, bandwidth))
    try:
        plan = read_plan(model)
    except Unplannable as reason:
        raise ValueError(f"model: {reason}, which is no part of an EncodecModel; it can't be exported.") from reason
    quantizer = Quantizer(plan.quantizer.codebooks[:levels])
    normalizes = bool(model.config.normalize)
    return ExportableCodec(_Encoder(plan.encoder, quantizer, normalizes).eval(), _Decoder(plan.quantizer, plan.decoder, normalizes).eval())


class _Weights(nn.Module):
    """A network or the codebooks, whose tensors are buffers, so that they move, are saved and are exported."""

    def __init__(self, part: Network | Quantizer) -> None:
        super().__init__()
        self._part = mapped(part, self._keep)

    def _keep(self, weight: Tensor) -> Tensor:
        self.register_buffer(f"weight{len(self._buffers)}", weight.detach().clone())
        # in the place of the weight, which only its buffer holds
        return torch.empty(0)

    def forward(self) -> Network | Quantizer:
        """Returns it with its tensors as they are now."""
        kept = iter(self.buffers())
        return mapped(self._part, lambda _: next(kept))


class _Encoder(nn.Module):
    def __init__(self, network: Network, quantizer: Quantizer, normalizes: bool) -> None:
        super().__init__()
        self.network, self.quantizer, self.normalizes = _Weights(network), _Weights(quantizer), normalizes
        self.num_quantizers = len(quantizer.codebooks)

    def forward(self, audio: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        with torch_export.any_length():
            if not self.normalizes:
                return self._codes(audio)
            clean, scale = torch_export.normalize(audio)
            return self._codes(clean), scale

    def _codes(self, audio: Tensor) -> Tensor:
        embeddings = torch_export.run_network(cast(Network, self.network()), audio)
        return torch_export.search(cast(Quantizer, self.quantizer()), embeddings, self.num_quantizers).transpose(0, 1)


class _Decoder(nn.Module):
    def __init__(self, quantizer: Quantizer, network: Network, normalizes: bool) -> None:
        super().__init__()
        self.quantizer, self.network, self.normalizes = _Weights(quantizer), _Weights(network), normalizes

    def forward(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        if (scale is not None) != self.normalizes:
            raise ValueError(f"scale is {'missing: this model normalizes' if self.normalizes else 'given, but this model has none'}.")
        with torch_export.any_length():
            embeddings = torch_export.look_up(cast(Quantizer, self.quantizer()), codes.transpose(0, 1))
            audio = torch_export.run_network(cast(Network, self.network()), embeddings)
            return audio if scale is None else audio * scale[..., None]
