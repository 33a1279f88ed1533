"""What would run where: the table of stage, shape, backend and reason behind one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.backends import registry
from encodec_fast.chunks import encoded_length
from encodec_fast.model import FAST_PARTS
from encodec_fast.plan import LSTM, Conv, ResidualBlock, Stage, Upsample
from encodec_fast.serving import reasons, route
from encodec_fast.serving.prepared import PreparedNetwork
from encodec_fast.serving.request import REFERENCE, Request, requested


@dataclass(frozen=True)
class Row:
    """One stage.  shape: of its output.  reason: why not the preferred backend, "" where it is.  products: what they are computed in."""

    stage: str
    shape: tuple[int, ...]
    backend: str
    reason: str
    products: str = ""


@dataclass(frozen=True)
class Explanation:
    """Rows in the order of execution; prints as a table."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        cells = [("stage", "output", "backend", "products", "reason")]
        cells += [(row.stage, str(list(row.shape)), row.backend, row.products, row.reason) for row in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(line, widths)), line[4]]).rstrip() for line in cells]
        return "\n".join([*lines, *self.notes])


def explain(model: hf.EncodecModel, input_values: Tensor) -> Explanation:
    """The backend of every stage if `model` encoded and decoded `input_values` [B, C, T] now, and why. Runs nothing.

    Raises TypeError where the model is no EnCodec model and ValueError for input of another rank.
    """
    if not isinstance(model, hf.EncodecModel):
        raise TypeError(f"model: expected an EncodecModel, got {type(model).__name__}.")
    if input_values.dim() != 3:
        raise ValueError(f"input_values: expected shape [B, C, T], got {list(input_values.shape)}.")
    batch, channels, length = input_values.shape
    notes = []
    if model.config.chunk_length is not None:
        chunk = min(length, model.config.chunk_length)
        count = len(range(0, length, model.config.chunk_stride))
        notes.append(f"{count} chunks of up to {chunk} samples per clip, run as common batches; shapes are those of full chunks")
        batch, length = batch * max(1, length // model.config.chunk_stride), chunk
    frames = encoded_length(model.config, length)

    rows = _network_rows("encoder", model.encoder, input_values, (batch, channels, length), frames)
    rows += _quantizer_rows(model, input_values, (batch, frames))
    rows += _network_rows("decoder", model.decoder, input_values, (batch, model.config.hidden_size, frames), length)
    notes += _precision_notes(model, rows)
    if any(row.backend in ("torch", REFERENCE) for row in rows):
        notes.append("torch and reference: the libraries below may change bits with batch size, pieces and threads")
    return Explanation(tuple(rows), tuple(notes))


def _network_rows(name: str, module: nn.Module, x: Tensor, shape: tuple[int, int, int], out_length: int) -> list[Row]:
    request = requested(module)
    reason = _reference_reason(module, x, request)
    prepared = reason or route.prepare_network(module, request)
    if isinstance(prepared, PreparedNetwork):
        network = prepared.network
        example = torch.empty(1, network.stages[0].in_channels, 1, dtype=x.dtype, device=x.device)
        prepared = reasons.mismatch(example, network.stages[0].in_channels, network.dtype, network.device) or prepared
    if not isinstance(prepared, PreparedNetwork):
        return [Row(name, (shape[0], out_length), REFERENCE, prepared)]
    rows = []
    batch, _, length = shape
    for stage, choice in zip(prepared.network.stages, prepared.choices):
        length = stage.output_length(length)
        products = registry.get_backend(choice.backend).products(stage, network.dtype, network.device, request.precision)
        rows.append(Row(f"{name}.{describe(stage)}", (batch, stage.out_channels, length), choice.backend, choice.reason, products))
    return rows


def _precision_notes(model: hf.EncodecModel, rows: list[Row]) -> list[str]:
    precision = requested(model.encoder).precision
    if precision == "parity":
        return []
    used = list(dict.fromkeys(row.backend for row in rows))
    deaf = [name for name in used if name == REFERENCE or precision not in registry.get_backend(name).precisions]
    notes = [f"precision {precision}: the {name} backend computes as for parity" for name in deaf]
    return notes if deaf == used else [f"precision {precision}: codes may differ from those of Hugging Face's float32", *notes]


def _quantizer_rows(model: hf.EncodecModel, x: Tensor, shape: tuple[int, int]) -> list[Row]:
    request = requested(model.quantizer)
    prepared = _reference_reason(model.quantizer, x, request) or route.prepare_quantizer(model.quantizer, request)
    if isinstance(prepared, str):
        backend, reason, products = REFERENCE, prepared, ""
    else:
        (backend, reason), books = (prepared.choice.backend, prepared.choice.reason), prepared.quantizer
        products = registry.get_backend(backend).products(books, books.codebooks.dtype, books.codebooks.device, request.precision)
    levels, size, dim = len(model.quantizer.layers), model.config.codebook_size, model.config.codebook_dim
    batch, frames = shape
    return [
        Row(f"quantizer.encode  up to {levels} x {size} x {dim}", (levels, batch, frames), backend, reason, products),
        Row(f"quantizer.decode  up to {levels} x {size} x {dim}", (batch, dim, frames), backend, reason),
    ]


def _reference_reason(module: nn.Module, x: Tensor, request: Request) -> str | None:
    if type(module) not in FAST_PARTS.values():
        return f"{type(module).__module__}.{type(module).__name__} is not ours: see encodec_fast.accelerate"
    return reasons.reference_reason(module, x, request)


def describe(stage: Stage) -> str:
    """Name, kind and geometry of a stage in one short phrase."""
    kind = f"{stage.name}  {type(stage).__name__} {stage.in_channels} -> {stage.out_channels}"
    if isinstance(stage, (Conv, Upsample)):
        return f"{kind}, kernel {stage.kernel}, stride {stage.stride}"
    if isinstance(stage, ResidualBlock):
        return f"{kind}, kernel {stage.conv1.kernel}, dilation {stage.conv1.dilation}"
    assert isinstance(stage, LSTM)
    return f"{kind}, {len(stage.layers)} layers"
