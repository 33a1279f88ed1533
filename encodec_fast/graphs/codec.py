"""Encoder and decoder as graphs: audio to codes, codes to audio; of whole clips, or of pieces of streams.

`frames` of each function: codec frames of a call where all calls have as many, and B is 1; None where each call chooses both.
Graphs of as many frames in each call have no loop, and no arithmetic of shapes: compilers of phones ask for that.

Legend: B batch, C channels, T samples, F codec frames, K quantizers, N codebook entries, D codebook dim.
S numbers that a stream remembers.
"""

from __future__ import annotations

import numpy as np

from encodec_fast.graphs.builder import BOOL, FLOAT, INT64, GraphBuilder
from encodec_fast.graphs.stages import ClipWriter, count_up, time_mean, weights
from encodec_fast.graphs.streams import Begins, PieceWriter, state_size
from encodec_fast.plan import Network, Plan, Quantizer

# Added to the volume of a clip, as transformers does it
VOLUME_FLOOR = 1e-8


def encoder_graph(plan: Plan, normalized: bool, frames: int | None = None) -> GraphBuilder:
    """Returns the graph of `audio` [B, C, T] and `num_quantizers` [] to `codes` int64 [B, K, F].

    normalized: the model takes off the volume of each clip, which is another output, `scale` [B, 1].
    With `frames` there is no `num_quantizers`: codes of all levels come, of which a host takes the first.
    """
    graph = GraphBuilder("encodec_encoder")
    audio = _audio_input(graph, plan.encoder, frames)
    steps = None if frames is None else frames * plan.encoder.hop_length
    if normalized:
        audio = _normalized(graph, audio, steps)
    embeddings = ClipWriter(graph).network(plan.encoder, audio, steps)
    _codes_output(graph, plan.quantizer, embeddings, frames)
    return graph


def decoder_graph(plan: Plan, normalized: bool, frames: int | None = None) -> GraphBuilder:
    """Returns the graph of `codes` int64 [B, K, F], and `scale` [B, 1] of a normalized model, to `audio` [B, C, T].

    With `frames`, codes of all levels are taken, and `num_quantizers` int64 [] says how many count.
    """
    graph = GraphBuilder("encodec_decoder")
    audio = ClipWriter(graph).network(plan.decoder, _summed_input(graph, plan.quantizer, frames), frames)
    if normalized:
        scale = graph.input("scale", FLOAT, [_batch(frames), 1])
        audio = graph.add("Mul", audio, graph.add("Unsqueeze", scale, [2]))
    _audio_output(graph, plan.decoder, audio, frames)
    return graph


def encoder_stream_graph(plan: Plan, begins: Begins, frames: int | None = None) -> GraphBuilder:
    """Returns the graph of a piece: as `encoder_graph`, and `state` [B, S] to `next_state`; no state where pieces always begin a stream."""
    graph = GraphBuilder("encodec_encoder_stream")
    audio = _audio_input(graph, plan.encoder, frames)
    steps = None if frames is None else frames * plan.encoder.hop_length
    embeddings = _streamed(graph, plan.encoder, audio, steps, begins)
    _codes_output(graph, plan.quantizer, embeddings, frames)
    return graph


def decoder_stream_graph(plan: Plan, begins: Begins, frames: int | None = None) -> GraphBuilder:
    """Returns the graph of a piece: as `decoder_graph`, and `state` [B, S] to `next_state`; no state where pieces always begin a stream."""
    graph = GraphBuilder("encodec_decoder_stream")
    summed = _summed_input(graph, plan.quantizer, frames)
    _audio_output(graph, plan.decoder, _streamed(graph, plan.decoder, summed, frames, begins), frames)
    return graph


def _streamed(graph: GraphBuilder, network: Network, x: str, steps: int | None, begins: Begins) -> str:
    """Writes a network on a piece, with its state as an input and an output."""
    shape = [_batch(steps), state_size(network)]
    state = None if begins == Begins.ALWAYS else graph.input("state", FLOAT, shape)
    writer = PieceWriter(graph, network, state, begins)
    x = writer.network(network, x, steps)
    graph.output(writer.next_state(None if steps is None else 1), "next_state", FLOAT, shape)
    return x


def _batch(frames: int | None) -> int | str:
    return "batch" if frames is None else 1


def _audio_input(graph: GraphBuilder, network: Network, frames: int | None) -> str:
    samples = "samples" if frames is None else frames * network.hop_length
    return graph.input("audio", FLOAT, [_batch(frames), network.stages[0].in_channels, samples])


def _audio_output(graph: GraphBuilder, network: Network, audio: str, frames: int | None) -> None:
    samples = "samples" if frames is None else network.output_length(frames)
    graph.output(audio, "audio", FLOAT, [_batch(frames), network.stages[-1].out_channels, samples])


def _codes_output(graph: GraphBuilder, quantizer: Quantizer, embeddings: str, frames: int | None) -> None:
    """Writes the search of embeddings [B, D, F]: of as many levels as the call says, or of all."""
    if frames is None:
        codes = searched(graph, quantizer, embeddings, graph.input("num_quantizers", INT64, []))
        graph.output(codes, "codes", INT64, ["batch", "num_quantizers", "frames"])
    else:
        graph.output(searched_unrolled(graph, quantizer, embeddings), "codes", INT64, [1, len(quantizer.codebooks), frames])


def _summed_input(graph: GraphBuilder, quantizer: Quantizer, frames: int | None) -> str:
    """Writes the sum of the entries that an input of codes names; returns [B, D, F]."""
    if frames is None:
        return summed(graph, quantizer, graph.input("codes", INT64, ["batch", "num_quantizers", "frames"]))
    codes = graph.input("codes", INT64, [1, len(quantizer.codebooks), frames])
    return summed(graph, quantizer, codes, graph.input("num_quantizers", INT64, []))


def _normalized(graph: GraphBuilder, audio: str, steps: int | None) -> str:
    """Writes the volume, sqrt(mean(mono^2)) + floor, as an output, and returns the audio divided by it."""
    mono = graph.add("ReduceMean", audio, axes=[1], keepdims=1)
    power = time_mean(graph, graph.add("Mul", mono, mono), steps)
    scale = graph.add("Add", graph.add("Sqrt", power), graph.constant([VOLUME_FLOOR], np.float32))
    graph.output(graph.add("Squeeze", scale, [2]), "scale", FLOAT, [_batch(steps), 1])
    return graph.add("Div", audio, scale)


def searched(graph: GraphBuilder, quantizer: Quantizer, embeddings: str, levels: str) -> str:
    """Writes the residual search of embeddings [B, D, F] as a loop over the levels; returns codes [B, K, F].

    On equal distances the lowest entry wins.
    """
    codebooks = graph.constant(weights(quantizer.codebooks), np.float32)
    _, _, dim = quantizer.codebooks.shape
    frames = graph.add("Transpose", embeddings, perm=[0, 2, 1])
    rows = graph.add("Reshape", frames, [-1, dim])

    body = GraphBuilder("level", scope="level_")
    level = body.input("level_index", INT64, [])
    body.input("level_goes_on", BOOL, [])
    residual = body.input("level_residual", FLOAT, ["rows", dim])
    book = body.add("Gather", codebooks, level, axis=0)
    nearest, left = _nearest(body, residual, book)
    body.output("level_goes_on", "level_still", BOOL, [])
    body.output(left, "level_left", FLOAT, ["rows", dim])
    body.output(nearest, "level_codes", INT64, ["rows"])

    codes = graph.loop(levels, rows, body)
    shape = graph.concat(graph.length(codes, 0), graph.add("Slice", graph.add("Shape", frames), [0], [2]))
    return graph.add("Transpose", graph.add("Reshape", codes, shape), perm=[1, 0, 2])


def searched_unrolled(graph: GraphBuilder, quantizer: Quantizer, embeddings: str) -> str:
    """Writes the residual search of one clip's embeddings [1, D, F] level by level; returns codes [1, K, F] of all levels."""
    residual = graph.add("Transpose", graph.add("Squeeze", embeddings, [0]), perm=[1, 0])
    codes = []
    for book in weights(quantizer.codebooks):
        nearest, residual = _nearest(graph, residual, graph.constant(book, np.float32))
        codes.append(graph.add("Unsqueeze", nearest, [0]))
    return graph.add("Unsqueeze", graph.concat(*codes, axis=0), [0])


def _nearest(graph: GraphBuilder, residual: str, book: str) -> tuple[str, str]:
    """Writes one level of the search: rows [R, D] and a codebook [N, D] to the nearest entries [R] and what is left of the rows."""
    # |e|^2 - 2 x e: the distance without |x|^2, which is the same for all entries
    squares = graph.add("ReduceSumSquare", book, axes=[1], keepdims=0)
    products = graph.add("MatMul", residual, graph.add("Transpose", book, perm=[1, 0]))
    distances = graph.add("Sub", squares, graph.add("Mul", products, graph.constant([2.0], np.float32)))
    nearest = graph.add("ArgMin", distances, axis=1, keepdims=0, select_last_index=0)
    return nearest, graph.add("Sub", residual, graph.add("Gather", book, nearest, axis=0))


def summed(graph: GraphBuilder, quantizer: Quantizer, codes: str, num_quantizers: str | None = None) -> str:
    """Writes the sum of the entries that codes [B, K, F] name; returns [B, D, F].

    num_quantizers: a value [] where codes of all levels come, and only so many count.
    """
    levels, size, dim = quantizer.codebooks.shape
    # all codebooks as one, in which level k begins at k * N
    flat = graph.constant(weights(quantizer.codebooks).reshape(-1, dim), np.float32)
    if num_quantizers is None:
        first = graph.add("Unsqueeze", graph.add("Mul", count_up(graph, graph.length(codes, 1)), [size]), [1])
    else:
        first = graph.constant(np.arange(levels)[:, None] * size)
    entries = graph.add("Gather", flat, graph.add("Add", codes, first), axis=0)
    if num_quantizers is not None:
        counts = graph.add("Less", graph.constant(np.arange(levels)[:, None, None]), num_quantizers)
        entries = graph.add("Where", counts, entries, graph.constant([0.0], np.float32))
    return graph.add("Transpose", graph.add("ReduceSum", entries, [1], keepdims=0), perm=[0, 2, 1])
