"""Every kernel launch of a model's encode and decode on an architecture, recorded without a device.

What the ahead-of-time checks compile is thus what the backend launches, with the tiles and alignments of a real call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import EncodecConfig, EncodecModel

from bench_lib.roofline import stage_label
from encodec_fast.backends.triton_layers import LSTMLayer, Signal, make_layers
from encodec_fast.backends.triton_program import TritonQuantizerProgram
from encodec_fast.kernels.overlap_add import overlap_add_triton
from encodec_fast.kernels.rvq_decode import rvq_decode_triton
from encodec_fast.plan import Network
from encodec_fast.plan.reader import read_plan
from projection.compile_ahead import Launch, as_on, record_launches


class StageLaunch(NamedTuple):
    """stage: what the launch belongs to, e.g. 'encoder.layers.3 Conv 32 -> 64'.  times: how often it is made, on other data."""

    stage: str
    launch: Launch
    times: int = 1


def model_launches(
    config: EncodecConfig,
    arch: str,
    precision: str,
    search: str,
    batch: int = 4,
    samples: int = 24_000,
    ragged: bool = False,
    dtype: torch.dtype = torch.float32,
    num_quantizers: int = 8,
) -> list[StageLaunch]:
    """Returns the launches of encode and decode of `batch` clips of `samples`; of the LSTM's equal steps one.

    precision: of products, 'split', 'tf32' or 'ieee'.  search: of `rvq_encode`.  ragged: with per-clip lengths.  dtype: of the model.
    """
    with torch.device("meta"):
        plan = read_plan(EncodecModel(config).to(dtype))
        launches: list[StageLaunch] = []
        frames = plan.encoder.output_length(samples)
        for name, network, length in (("encoder", plan.encoder, samples), ("decoder", plan.decoder, frames)):
            # embeddings have their channels last, as `rvq_decode` leaves them
            shape = batch, network.stages[0].in_channels, length
            values = torch.empty(shape, dtype=dtype).transpose(1, 2)
            x = Signal(values if name == "encoder" else torch.empty_like(values, memory_format=torch.contiguous_format))
            lengths = torch.empty(batch, dtype=torch.int32) if ragged else None
            launches += _network_launches(name, network, x, lengths, arch, precision)
        quantizer = TritonQuantizerProgram(plan.quantizer, search)
        embeddings = torch.empty(batch, frames, plan.quantizer.codebooks.shape[2], dtype=dtype).transpose(1, 2)
        codes = torch.empty(num_quantizers, batch, frames, dtype=torch.int64)
        calls: dict[str, Callable[[], Any]] = {
            "quantizer.encode": lambda: quantizer.encode(embeddings, num_quantizers),
            "quantizer.decode": lambda: rvq_decode_triton(codes, plan.quantizer.codebooks),
        }
        if config.chunk_length_s is not None:
            chunks, weight = torch.empty(3, batch, config.audio_channels, samples), torch.empty(samples)
            stride = max(1, int((1 - config.overlap) * samples))
            calls["overlap_add"] = lambda: overlap_add_triton(chunks, weight, stride, 2 * stride + samples)
        for name, call in calls.items():
            launches += [StageLaunch(name, launch) for launch in record_launches(call, arch)]
    return launches


def _network_launches(name: str, network: Network, x: Signal, lengths: torch.Tensor | None, arch: str, precision: str) -> list[StageLaunch]:
    launches: list[StageLaunch] = []
    with as_on(arch):
        layers = make_layers(network.stages, precision, library_lstm=False)
    for stage, layer in zip(network.stages, layers, strict=True):
        outputs: list[Signal] = []
        recorded = record_launches(lambda: outputs.append(layer.run(x, lengths)), arch)  # noqa: B023 (called at once)
        times: dict[str, int] = {}
        if isinstance(layer, LSTMLayer):
            times = Counter(launch.name for launch in recorded)
            # of a launch for each step the one in the middle, at which every layer works
            recorded = [[one for one in recorded if one.name == name] for name in times]
            recorded = [alike[len(alike) // 2] for alike in recorded]
        launches += [StageLaunch(f"{name}.{stage_label(stage)}", launch, times.get(launch.name, 1)) for launch in recorded]
        x = outputs[0]
    return launches
