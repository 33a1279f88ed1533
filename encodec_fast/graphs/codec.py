"""Encoder and decoder as graphs: audio to codes, codes to audio.

Legend: B batch, C channels, T samples, F codec frames, K quantizers, N codebook entries, D codebook dim.
"""

from __future__ import annotations

import numpy as np

from encodec_fast.graphs.builder import BOOL, FLOAT, INT64, GraphBuilder
from encodec_fast.graphs.stages import weights, write_network
from encodec_fast.plan import Network, Plan, Quantizer

# Added to the volume of a clip, as transformers does it
VOLUME_FLOOR = 1e-8


def encoder_graph(plan: Plan, normalized: bool) -> GraphBuilder:
    """Returns the graph of `audio` [B, C, T] and `num_quantizers` [] to `codes` int64 [B, K, F].

    normalized: the model takes off the volume of each clip, which is another output, `scale` [B, 1].
    """
    graph = GraphBuilder("encodec_encoder")
    audio = graph.input("audio", FLOAT, ["batch", plan.encoder.stages[0].in_channels, "samples"])
    levels = graph.input("num_quantizers", INT64, [])
    if normalized:
        audio = _normalized(graph, audio)
    embeddings = write_network(graph, plan.encoder, audio)
    graph.output(searched(graph, plan.quantizer, embeddings, levels), "codes", INT64, ["batch", "num_quantizers", "frames"])
    return graph


def decoder_graph(plan: Plan, normalized: bool) -> GraphBuilder:
    """Returns the graph of `codes` int64 [B, K, F], and `scale` [B, 1] of a normalized model, to `audio` [B, C, T]."""
    graph = GraphBuilder("encodec_decoder")
    codes = graph.input("codes", INT64, ["batch", "num_quantizers", "frames"])
    audio = write_network(graph, plan.decoder, summed(graph, plan.quantizer, codes))
    if normalized:
        scale = graph.input("scale", FLOAT, ["batch", 1])
        audio = graph.add("Mul", audio, graph.add("Unsqueeze", scale, [2]))
    graph.output(audio, "audio", FLOAT, ["batch", _out_channels(plan.decoder), "samples"])
    return graph


def _out_channels(network: Network) -> int:
    return network.stages[-1].out_channels


def _normalized(graph: GraphBuilder, audio: str) -> str:
    """Writes the volume, sqrt(mean(mono^2)) + floor, as an output, and returns the audio divided by it."""
    mono = graph.add("ReduceMean", audio, axes=[1], keepdims=1)
    power = graph.add("ReduceMean", graph.add("Mul", mono, mono), axes=[2], keepdims=1)
    scale = graph.add("Add", graph.add("Sqrt", power), graph.constant([VOLUME_FLOOR], np.float32))
    graph.output(graph.add("Squeeze", scale, [2]), "scale", FLOAT, ["batch", 1])
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
    # |e|^2 - 2 x e: the distance without |x|^2, which is the same for all entries
    squares = body.add("ReduceSumSquare", book, axes=[1], keepdims=0)
    products = body.add("MatMul", residual, body.add("Transpose", book, perm=[1, 0]))
    distances = body.add("Sub", squares, body.add("Mul", products, body.constant([2.0], np.float32)))
    nearest = body.add("ArgMin", distances, axis=1, keepdims=0, select_last_index=0)
    left = body.add("Sub", residual, body.add("Gather", book, nearest, axis=0))
    body.output("level_goes_on", "level_still", BOOL, [])
    body.output(left, "level_left", FLOAT, ["rows", dim])
    body.output(nearest, "level_codes", INT64, ["rows"])

    codes = graph.loop(levels, rows, body)
    shape = graph.concat(graph.length(codes, 0), graph.add("Slice", graph.add("Shape", frames), [0], [2]))
    return graph.add("Transpose", graph.add("Reshape", codes, shape), perm=[1, 0, 2])


def summed(graph: GraphBuilder, quantizer: Quantizer, codes: str) -> str:
    """Writes the sum of the entries that codes [B, K, F] name; returns [B, D, F]."""
    _, size, dim = quantizer.codebooks.shape
    # all codebooks as one, in which level k begins at k * N
    flat = graph.constant(weights(quantizer.codebooks).reshape(-1, dim), np.float32)
    levels = graph.add("Range", graph.constant(0), graph.add("Squeeze", graph.length(codes, 1), [0]), graph.constant(1))
    first = graph.add("Unsqueeze", graph.add("Mul", levels, [size]), [1])
    entries = graph.add("Gather", flat, graph.add("Add", codes, first), axis=0)
    return graph.add("Transpose", graph.add("ReduceSum", entries, [1], keepdims=0), perm=[0, 2, 1])
