"""What would run where: the table of stage, shape, backend and reason behind one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.backends.base import Precision
from encodec_fast.backends.registry import get_backend
from encodec_fast.model import FAST_PARTS
from encodec_fast.plan import LSTM, Conv, ResidualBlock, Stage, Upsample
from encodec_fast.plan.geometry import chunks_of, encoded_length
from encodec_fast.serving.request import REFERENCE, requested
from encodec_fast.serving.route import route_function, route_lookup, route_network, route_search

if TYPE_CHECKING:
    from encodec_fast.compression.coders import Coder


@dataclass(frozen=True)
class Row:
    """One stage.

    stage: its name.  shape: of its output.  backend: on which it runs.  reason: why not the preferred one, "" where it is.
    products: what they are computed in.
    """

    stage: str
    shape: tuple[int, ...]
    backend: str
    reason: str
    products: str = ""


@dataclass(frozen=True)
class Explanation:
    """Rows in the order of execution; prints as a table.

    rows: of both directions.  notes: what holds for the whole call, a sentence each.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        cells = [("stage", "output", "backend", "products", "reason")]
        cells += [(row.stage, str(list(row.shape)), row.backend, row.products, row.reason) for row in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[4]]).rstrip() for line in cells]
        return "\n".join([*lines, *self.notes])


def explain(model: hf.EncodecModel, input_values: Tensor, coder: Coder | None = None) -> Explanation:
    """Returns the backend of every stage if `model` encoded and decoded `input_values` [B, C, T] now, and why. Runs nothing.

    coder: of compressed files, which gets a row between the two.
    Raises TypeError where the model is no EnCodec model and ValueError for input of another rank.
    """
    if not isinstance(model, hf.EncodecModel):
        raise TypeError(f"model: expected an EncodecModel, got {type(model).__name__}.")
    if input_values.dim() != 3:
        raise ValueError(f"input_values: expected shape [B, C, T], got {list(input_values.shape)}.")
    config, notes, x = model.config, [], input_values
    batch, channels, length = x.shape
    if config.chunk_length is not None:
        chunk = min(length, config.chunk_length)
        cuts = chunks_of(config, length)
        notes.append(f"{len(cuts)} chunks of up to {chunk} samples per clip, run as common batches; shapes are those of full chunks")
        x, batch, length = x[..., :chunk], batch * sum(size == chunk for size, _ in cuts), chunk
    frames = encoded_length(config, length)
    embeddings = x.new_empty(x.shape[0], config.hidden_size, frames)

    rows = [_function_row("volume", "normalize", x, (batch, channels, length))] if config.normalize else []
    rows += _network_rows("encoder", model.encoder, x, (batch, length), frames)
    search, lookup = _quantizer_rows(model, embeddings, batch)
    rows += [search, *([] if coder is None else [_coder_row(coder, search, embeddings.device)]), lookup]
    rows += _network_rows("decoder", model.decoder, embeddings, (batch, frames), length)
    if config.chunk_length is not None:
        rows.append(_function_row("overlap-add", "overlap_add", x, input_values.shape))
    notes += _precision_notes(model, rows)
    if any(row.backend in ("torch", REFERENCE) for row in rows if row.stage not in ("volume", "overlap-add")):
        notes.append("torch and reference: the libraries below may change bits with batch size, pieces and threads")
    return Explanation(tuple(rows), tuple(notes))


def _network_rows(name: str, module: nn.Module, x: Tensor, shape: tuple[int, int], out_length: int) -> list[Row]:
    """Returns the rows of a network for (clips, steps) = `shape` of the kind of x [B, C, T]."""
    batch, length = shape
    route = route_network(module, x)
    if route.prepared is None or _not_ours(module):
        return [Row(name, (batch, out_length), REFERENCE, _not_ours(module) or route.reason)]
    rows, network, precision = [], route.prepared.network, requested(module).precision
    for stage, choice in zip(network.stages, route.prepared.choices):
        length = stage.output_length(length)
        products = get_backend(choice.backend).products(stage, network.dtype, network.device, precision)
        rows.append(Row(f"{name}.{describe(stage)}", (batch, stage.out_channels, length), choice.backend, choice.reason, products))
    return rows


def _quantizer_rows(model: hf.EncodecModel, embeddings: Tensor, batch: int) -> list[Row]:
    quantizer, frames = model.quantizer, embeddings.shape[2]
    levels, size, dim = len(quantizer.layers), model.config.codebook_size, model.config.codebook_dim
    codes = torch.zeros(levels, len(embeddings), frames, dtype=torch.int64, device=embeddings.device)
    rows, precision = [], requested(quantizer).precision
    for call, shape, route in (
        ("encode", (levels, batch, frames), route_search(quantizer, embeddings)),
        ("decode", (batch, dim, frames), route_lookup(quantizer, codes)),
    ):
        backend, reason, products = REFERENCE, _not_ours(quantizer) or route.reason, ""
        if route.prepared is not None and not _not_ours(quantizer):
            backend, books = route.prepared.choice.backend, route.prepared.quantizer
            if call == "encode":
                products = get_backend(backend).products(books, route.prepared.dtype, route.prepared.device, precision)
        rows.append(Row(f"quantizer.{call}  up to {levels} x {size} x {dim}", shape, backend, reason, products))
    return rows


def _coder_row(coder: Coder, search: Row, device: torch.device) -> Row:
    """Returns the row of an entropy coder, of the codes that `search` gives on a device."""
    reason = "" if device.type == "cpu" else f"no sums on {device.type} have the engine's order, and a reader needs the same bits"
    native = coder.name == "lm"
    return Row(f"coder {coder.name}", search.shape, "cpu" if native else "python", reason if native else "")


def _function_row(stage: str, name: str, x: Tensor, shape: tuple[int, ...]) -> Row:
    """Returns the row of a function without weights on the kind of x."""
    route = route_function(name, [x])
    assert route.prepared is not None
    return Row(stage, tuple(shape), route.prepared.name, route.reason)


def _precision_notes(model: hf.EncodecModel, rows: list[Row]) -> list[str]:
    precision = requested(model.encoder).precision
    if precision == Precision.PARITY:
        return []
    used = list(dict.fromkeys(row.backend for row in rows))
    deaf = [name for name in used if name == REFERENCE or precision not in get_backend(name).precisions]
    notes = [f"precision {precision.value}: the {name} backend computes as for parity" for name in deaf]
    return notes if deaf == used else [f"precision {precision.value}: codes may differ from those of Hugging Face's float32", *notes]


def _not_ours(module: nn.Module) -> str:
    """Returns why a module asks no gate, or ""."""
    if type(module) in FAST_PARTS.values():
        return ""
    return f"{type(module).__module__}.{type(module).__name__} is not ours: see encodec_fast.accelerate"


def describe(stage: Stage) -> str:
    """Returns name, kind and geometry of a stage in one short phrase."""
    kind = f"{stage.name}  {type(stage).__name__} {stage.in_channels} -> {stage.out_channels}"
    if isinstance(stage, (Conv, Upsample)):
        return f"{kind}, kernel {stage.kernel}, stride {stage.stride}"
    if isinstance(stage, ResidualBlock):
        return f"{kind}, kernel {stage.conv1.kernel}, dilation {stage.conv1.dilation}"
    assert isinstance(stage, LSTM)
    return f"{kind}, {len(stage.layers)} layers"
