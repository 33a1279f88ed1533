"""Runs exported graphs in onnxruntime, and compares their codes and audio with transformers'."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.plan.geometry import chunks_of, hop_length
from encodec_fast.serving.clips import levels_of
from encodec_fast.transformers_versions import MASKS_FRAMES
from encodec_fast.verify import Errors, Reference, VerifyReport, code_flips


class Codec(Protocol):
    """What encodes and decodes whole clips."""

    def parts(self, config: Any, samples: int) -> list[tuple[int, int]]:
        """Returns (length, start) of what it encodes by itself of a clip of so many samples: at most a chunk, and what its shapes fit."""
        ...

    def encode(self, audio: Tensor, num_quantizers: int) -> tuple[Tensor, Tensor | None]:
        """Returns codes [B, K, F], and the scale [B, 1] of a model that normalizes, of audio [B, C, T]: of one chunk at most."""
        ...

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """Returns the audio [B, C, T] of codes [B, K, F], and the scale [B, 1] of a model that normalizes."""
        ...


class Graph:
    """A file in onnxruntime.

    threads: 0 for onnxruntime's choice.
    Raises ImportError without onnxruntime, OSError or its own errors for a file that can't be read.
    """

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("running graphs needs the package onnxruntime: pip install 'encodec-fast[onnx]'.") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.frames = int(self.metadata["frames"]) if "frames" in self.metadata else None
        self.shapes: dict[str, list[Any]] = {each.name: each.shape for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, **values: Tensor | int) -> dict[str, Tensor]:
        """Returns the outputs by name.  values: inputs by name; those that the graph lacks are left out."""
        given = {name: np.asarray(value) for name, value in values.items() if name in self.shapes}
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, self._session.run(None, given), strict=True)}

    def with_all_levels(self, codes: Tensor) -> Tensor:
        """Returns codes [B, K, F] with the levels that a graph of fixed shapes has; added ones are not looked at."""
        levels = self.shapes["codes"][1]
        return torch.cat((codes, codes.new_zeros(1, levels - codes.shape[1], codes.shape[2])), 1) if self.frames else codes


class OnnxCodec:
    """`encoder.onnx` and `decoder.onnx` of a folder in onnxruntime; see `Codec`.  Arguments and errors as for `Graph`."""

    def __init__(self, folder: str | os.PathLike[str], threads: int = 0) -> None:
        self.encoder, self.decoder = (Graph(Path(folder) / name, threads) for name in ("encoder.onnx", "decoder.onnx"))
        self.metadata, self.frames = self.encoder.metadata, self.encoder.frames
        self.quantizers_of_bandwidth: dict[str, int] = json.loads(self.metadata["quantizers_of_bandwidth"])

    def parts(self, config: Any, samples: int) -> list[tuple[int, int]]:
        if self.frames is None:
            return chunks_of(config, samples)
        length = self.frames * hop_length(config)
        return [(length, start) for start in range(0, samples - length + 1, length)]

    def encode(self, audio: Tensor, num_quantizers: int) -> tuple[Tensor, Tensor | None]:
        found = self.encoder(audio=audio, num_quantizers=num_quantizers)
        return found["codes"][:, :num_quantizers], found.get("scale")

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        given = {} if scale is None else {"scale": scale}
        return self.decoder(codes=self.decoder.with_all_levels(codes), num_quantizers=codes.shape[1], **given)["audio"]


class OnnxStreams:
    """`encoder_stream.onnx` and `decoder_stream.onnx` of a folder in onnxruntime, whole clips in pieces; see `Codec`.

    piece: frames of each piece but the first and the last; graphs of fixed shapes have their own.
    """

    def __init__(self, folder: str | os.PathLike[str], piece: int = 8, threads: int = 0) -> None:
        self._streams = {part: Stream(Path(folder), part, piece, threads) for part in ("encoder", "decoder")}
        self.hop_length = int(self.graph("encoder").metadata["hop_length"])

    def graph(self, part: str) -> Graph:
        """Returns the graph of "encoder" or "decoder"."""
        return self._streams[part].graph

    def parts(self, config: Any, samples: int) -> list[tuple[int, int]]:
        fitting = min(stream.fitting(samples, self.hop_length) for stream in self._streams.values())
        return [(fitting, 0)] if fitting else []

    def encode(self, audio: Tensor, num_quantizers: int) -> tuple[Tensor, Tensor | None]:
        stream, hop = self._streams["encoder"], self.hop_length
        pieces = [audio[..., start * hop : end * hop] for start, end in stream.pieces(-(-audio.shape[-1] // hop))]
        found = [each["codes"] for each in stream.run("audio", pieces, num_quantizers)]
        return torch.cat(found, 2)[:, :num_quantizers], None

    def decode(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        stream = self._streams["decoder"]
        whole = stream.graph.with_all_levels(codes)
        pieces = [whole[..., start:end] for start, end in stream.pieces(codes.shape[-1])]
        return torch.cat([each["audio"] for each in stream.run("codes", pieces, codes.shape[1])], 2)


class Stream:
    """One direction in pieces."""

    def __init__(self, folder: Path, part: str, piece: int, threads: int) -> None:
        self.graph = Graph(folder / f"{part}_stream.onnx", threads)
        start = folder / f"{part}_stream_start.onnx"
        self._start = Graph(start, threads) if start.exists() and self.graph.frames is not None else None
        self._piece = self.graph.frames or piece
        first = int(self.graph.metadata["stream_first_frames"])
        self._first = first if self._start is not None else max(first, self._piece)

    def fitting(self, samples: int, hop_length: int) -> int:
        """Returns the samples from the beginning of a clip that can come in pieces, 0 for none."""
        beyond = samples - self._first * hop_length
        if beyond < 0:
            return 0
        return samples if self.graph.frames is None else samples - beyond % (self._piece * hop_length)

    def pieces(self, frames: int) -> list[tuple[int, int]]:
        """Returns the first frame of each piece, and that behind it."""
        cuts = [0, *range(self._first, frames, self._piece), frames]
        return list(itertools.pairwise(cuts))

    def run(self, name: str, pieces: Sequence[Tensor], num_quantizers: int) -> Iterator[dict[str, Tensor]]:
        """Yields what comes of each piece.  name: of the input that the pieces are."""
        size = self.graph.shapes["state"][1]
        state = torch.zeros(pieces[0].shape[0], size)
        for number, piece in enumerate(pieces):
            graph = self._start if number == 0 and self._start is not None else self.graph
            found = graph(**{name: piece.contiguous()}, state=state, num_quantizers=num_quantizers)
            state = found["next_state"]
            yield found


@torch.no_grad()
def check_export(
    codec: Codec,
    model: hf.EncodecModel,
    clips: Sequence[Tensor],
    bandwidth: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compares exported graphs with transformers, in float32 and in float64, on the model's weights; see `verify`.

    model: the one that was exported, float32, on the CPU.  clips: [C, T] each.  bandwidth: kbps; None for the highest.
    progress: called with the clips compared and all of them.
    """
    waveform, between = Errors(), Errors()
    report = VerifyReport(max(model.config.target_bandwidths) if bandwidth is None else bandwidth, clips=len(clips))
    single, double = Reference(model, torch.float32), Reference(model, torch.float64)
    codebooks = torch.stack([layer.codebook.embed for layer in double.model.quantizer.layers])
    levels = levels_of(model.quantizer, report.bandwidth)
    for number, clip in enumerate(clips):
        if progress is not None:
            progress(number, len(clips))
        for chunk, (length, start) in enumerate(codec.parts(model.config, clip.shape[1])):
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
