"""Runs exported graphs in onnxruntime, and compares their codes and audio with transformers'."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.graphs.export import DECODER, ENCODER
from encodec_fast.plan.geometry import chunks_of
from encodec_fast.serving.clips import levels_of
from encodec_fast.transformers_versions import MASKS_FRAMES
from encodec_fast.verify import Errors, Reference, VerifyReport, code_flips


class OnnxCodec:
    """An exported model in onnxruntime.

    folder: that `export` wrote.  threads: 0 for onnxruntime's choice.
    Raises ImportError without onnxruntime, OSError or its own errors for files that can't be read.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("running graphs needs the package onnxruntime: pip install 'encodec-fast[onnx]'.") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(str(Path(folder) / name), options, providers=providers) for name in (ENCODER, DECODER)
        )
        self.metadata: dict[str, str] = self.encoder.get_modelmeta().custom_metadata_map
        self.quantizers_of_bandwidth: dict[str, int] = json.loads(self.metadata["quantizers_of_bandwidth"])

    def encode(self, audio: Tensor, num_quantizers: int) -> tuple[Tensor, Tensor | None]:
        """Returns codes [B, K, F], and the scale [B, 1] of a model that normalizes, of audio [B, C, T]: of one chunk at most."""
        found = self.encoder.run(None, {"audio": audio.numpy(), "num_quantizers": np.array(num_quantizers)})
        outputs = {each.name: torch.from_numpy(value) for each, value in zip(self.encoder.get_outputs(), found, strict=True)}
        return outputs["codes"], outputs.get("scale")

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """Returns the audio [B, C, T] of codes [B, K, F], and the scale [B, 1] of a model that normalizes."""
        given = {"codes": codes.numpy()} | ({} if scale is None else {"scale": scale.numpy()})
        return torch.from_numpy(self.decoder.run(None, given)[0])


@torch.no_grad()
def check_export(
    folder: str | os.PathLike[str],
    model: hf.EncodecModel,
    clips: Sequence[Tensor],
    bandwidth: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compares the graphs in a folder with transformers, in float32 and in float64, on the model's weights; see `verify`.

    model: the one that was exported, float32, on the CPU.  clips: [C, T] each.  bandwidth: kbps; None for the highest.
    progress: called with the clips compared and all of them.
    """
    codec, waveform, between = OnnxCodec(folder, torch.get_num_threads()), Errors(), Errors()
    report = VerifyReport(max(model.config.target_bandwidths) if bandwidth is None else bandwidth, clips=len(clips))
    single, double = Reference(model, torch.float32), Reference(model, torch.float64)
    codebooks = torch.stack([layer.codebook.embed for layer in double.model.quantizer.layers])
    levels = levels_of(model.quantizer, report.bandwidth)
    for number, clip in enumerate(clips):
        if progress is not None:
            progress(number, len(clips))
        for chunk, (length, start) in enumerate(chunks_of(model.config, clip.shape[1])):
            audio = clip[None, :, start : start + length].contiguous()
            (theirs, scale, near), (truth, _, exact) = (_chunk_by(side, audio, report.bandwidth) for side in (single, double))
            codes, _ = codec.encode(audio, levels)
            report.codes += codes.numel()
            report.reference_flips += int((theirs != truth).any(1).sum())
            report.flips += code_flips(codes, theirs, exact, (near - exact).norm(dim=1).amax(-1), codebooks, chunk, number)
            decoded = codec.decode(theirs, None if scale is None else scale.view(-1, 1))
            double_scale = None if scale is None else scale.double()
            reference, exact_audio = single.model._decode_frame(theirs, scale), double.model._decode_frame(theirs, double_scale)
            waveform.add(decoded, reference, exact_audio)
            between.add(decoded, reference, reference.double())
    report.waveform, report.snr_db = waveform.pair(), between.snr_db()
    return report


def _chunk_by(side: Reference, audio: Tensor, bandwidth: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns codes [B, K, F], scale and embeddings [B, D, F] by transformers of one chunk, which its `encode` could cut once more."""
    side.embeddings = []
    given = audio.to(side.model.dtype)
    mask = [torch.ones_like(given)] if MASKS_FRAMES else []
    codes, scale = side.model._encode_frame(given, bandwidth, *mask)
    return codes, scale, side.embeddings[0]
