"""Which files an export consists of, and which graph each one holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.graphs.builder import GraphBuilder
from encodec_fast.graphs.codec import decoder_graph, decoder_stream_graph, encoder_graph, encoder_stream_graph
from encodec_fast.graphs.streams import Begins, first_frames, why_not_streamed
from encodec_fast.plan import Plan
from encodec_fast.plan.geometry import whole_clips_only


@dataclass(frozen=True)
class File:
    """graph: writes it.  facts: its own metadata."""

    graph: Callable[[], GraphBuilder]
    facts: dict[str, str]


def clip_files(model: hf.EncodecModel, plan: Plan, frames: int | None) -> dict[str, File]:
    """Returns the files of whole clips by name."""
    normalized, facts = bool(model.config.normalize), _frames_fact(frames)
    return {
        "encoder.onnx": File(partial(encoder_graph, plan, normalized, frames), facts),
        "decoder.onnx": File(partial(decoder_graph, plan, normalized, frames), facts),
    }


def stream_files(model: hf.EncodecModel, plan: Plan, frames: int | None) -> dict[str, File]:
    """Returns the files of the pieces of streams by name.  Raises ValueError for a model that can't stream."""
    reason = whole_clips_only(model.config) or why_not_streamed(plan.encoder) or why_not_streamed(plan.decoder)
    if reason is not None:
        raise ValueError(f"stream: this model can't stream: {reason}. Export whole clips, without stream=True.")
    files = {}
    for part, network, graph in (("encoder", plan.encoder, encoder_stream_graph), ("decoder", plan.decoder, decoder_stream_graph)):
        first = first_frames(network, decoding=part == "decoder")
        if frames is None or frames >= first:
            begins = Begins.MAYBE
        else:
            begins, first = Begins.NEVER, -(-first // frames) * frames
            facts = _frames_fact(first) | {"stream_first_frames": str(first)}
            files[f"{part}_stream_start.onnx"] = File(partial(graph, plan, Begins.ALWAYS, first), facts)
        facts = _frames_fact(frames) | {"stream_first_frames": str(first)}
        files[f"{part}_stream.onnx"] = File(partial(graph, plan, begins, frames), facts)
    return files


def _frames_fact(frames: int | None) -> dict[str, str]:
    return {} if frames is None else {"frames": str(frames)}
