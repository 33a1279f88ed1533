"""Writes a model as files for other runtimes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.encodec import modeling_encodec as hf

import encodec_fast
from encodec_fast.formats.atomic import write_atomically
from encodec_fast.plan.geometry import hop_length
from encodec_fast.plan.reader import Unplannable, read_plan
from encodec_fast.plan.weights import weights_sha256
from encodec_fast.serving.clips import levels_of

FORMATS = ("onnx",)


def export(
    model: hf.EncodecModel,
    folder: str | os.PathLike[str],
    *,
    format: str = "onnx",
    stream: bool = False,
    frames: int | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Writes the model as graphs of whole clips, or of the pieces of streams, into the folder, which is made; returns their paths.

    encoder.onnx: `audio` float32 [B, C, T] and `num_quantizers` int64 [] to `codes` int64 [B, K, F].
    decoder.onnx: `codes` to `audio` [B, C, T], whole codec frames.
    B and T are any, from one sample on. `num_quantizers` of each bandwidth stands in the metadata of both files.
    A model that normalizes has `scale` float32 [B, 1] too, given by the encoder and taken by the decoder.
    One with chunks takes a chunk at a time: metadata say how long it is, and where the next begins.

    model: any transformers.EncodecModel; weights of other dtypes are written as float32.
    format: "onnx".  overwrite: replaces files of these names.

    stream: encoder_stream.onnx and decoder_stream.onnx in their place, which take `state` [B, S] and return `next_state`.
    Zeros begin a stream. Pieces are whole codec frames, but for the last one that is encoded.
    The first piece has at least `stream_first_frames` of the metadata. All pieces together are the whole clip.

    frames: codec frames of each call, for what needs fixed shapes; B is 1, and there is no loop.
    Codes of all levels come then and are taken. `num_quantizers` is an input of the decoder alone: how many count.
    Streams whose first piece must be longer than that begin with encoder_stream_start.onnx and decoder_stream_start.onnx.

    Raises ValueError for another format, for files that are there, and for a model with foreign modules inside.
    Raises it for frames below 1, and for a model that can't stream.
    Raises ImportError without the package onnx.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed is {', '.join(FORMATS)}.")
    if frames is not None and frames < 1:
        raise ValueError(f"frames is {frames}; 1 or more, or None for any.")
    try:
        plan = read_plan(model)
    except Unplannable as reason:
        raise ValueError(f"model: {reason}, which is no part of an EncodecModel; a graph can't be written of it.") from reason
    try:
        from encodec_fast.graphs.files import clip_files, stream_files
    except ImportError as error:
        raise ImportError("writing ONNX needs the package onnx: pip install 'encodec-fast[onnx]'.") from error
    files = stream_files(model, plan, frames) if stream else clip_files(model, plan, frames)
    target = Path(folder)
    for name in files:
        if os.path.lexists(target / name) and not overwrite:
            raise ValueError(f"{target / name} exists already; choose another folder, or overwrite=True.")
    facts = metadata(model)
    target.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        write_atomically(target / name, file.graph().model(facts | file.facts).SerializeToString())
    return tuple(target / name for name in files)


def metadata(model: hf.EncodecModel) -> dict[str, str]:
    """Returns what stands in each file beside its graph, as text: JSON but for single words and numbers.

    sampling_rate: Hz.  hop_length: samples per codec frame.  quantizers_of_bandwidth: kbps to `num_quantizers`.
    chunk_length, chunk_stride: samples of a chunk, and from one to the next; "null" for a model of whole clips.
    """
    config: Any = model.config
    levels = {f"{bandwidth:g}": levels_of(model.quantizer, bandwidth) for bandwidth in config.target_bandwidths}
    return {
        "model_id": str(getattr(model, "name_or_path", "")),
        "weights_sha256": weights_sha256(model),
        "sampling_rate": str(config.sampling_rate),
        "audio_channels": str(config.audio_channels),
        "hop_length": str(hop_length(config)),
        "codebook_size": str(config.codebook_size),
        "quantizers_of_bandwidth": json.dumps(levels),
        "chunk_length": json.dumps(config.chunk_length),
        "chunk_stride": json.dumps(config.chunk_stride),
        "config": json.dumps(config.to_dict(), sort_keys=True, default=str),
        "versions": json.dumps(
            {"encodec_fast": encodec_fast.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
        ),
    }
