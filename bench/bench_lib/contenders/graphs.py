"""Contenders that run the graphs of `encodec_fast.export`, end to end: audio to codes, codes to audio."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EncodecModel

from bench_lib.cases import CACHE, Case, levels_of, stock_model, weights_file
from bench_lib.contenders.base import Call, Contender, stacked
from encodec_fast.plan.geometry import chunks_of

# What a graph is given and what it returns, by name
Arrays = dict[str, np.ndarray]


class Graphs(Contender):
    """The host's part: chunks of equal length are one batch, the last one follows, and what is decoded is added up."""

    package: str

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        if device.type != "cpu":
            return "it runs on CPUs only"
        absent = [name for name in ("onnx", cls.package) if importlib.util.find_spec(name) is None]
        return f"not installed: pip install {' '.join(absent)}" if absent else None

    @abstractmethod
    def run(self, path: Path, given: Arrays) -> Arrays:
        """Runs a graph on its inputs; what it makes for shapes it has not seen is set-up time."""

    def load(self, model: str) -> tuple[Path, Any]:
        return exported(model), stock_model(model).config

    def encode(self, model: tuple[Path, Any], audio: Tensor, case: Case) -> Call:
        folder, config = model
        levels, pieces = np.array(levels_of(case)), pieces_of(config, audio)
        return lambda: [self.run(folder / "encoder.onnx", {"audio": piece, "num_quantizers": levels}) for piece in pieces]

    def decode(self, model: tuple[Path, Any], codes: Tensor, scales: list[Tensor | None], tail: int) -> Call:
        folder, config = model
        # full chunks as one batch, and the last one without the frames of zeros at its end
        groups = [(codes[:-1], scales[:-1])] if len(codes) > 1 else []
        groups.append((codes[-1:, ..., : codes.shape[-1] - tail], scales[-1:]))
        given = []
        for chunks, of_chunks in groups:
            given.append({"codes": chunks.flatten(0, 1).contiguous().numpy()})
            if of_chunks[0] is not None:
                given[-1]["scale"] = torch.cat([scale for scale in of_chunks if scale is not None]).view(-1, 1).numpy()
        batch = codes.shape[1]

        def call() -> Tensor:
            found = [torch.from_numpy(self.run(folder / "decoder.onnx", each)["audio"]) for each in given]
            if config.chunk_length is None:
                return found[0]
            chunks = [chunk for group in found for chunk in group.split(batch)]
            return EncodecModel._linear_overlap_add(chunks, config.chunk_stride)

        return call

    def answer(self, case: Case, result: Any) -> Tensor:
        """Returns codes [chunks, B, K, F], the last chunk padded with zeros as transformers does, or audio [B, C, T]."""
        if case.call == "decode":
            return result
        chunks = [chunk for found in result for chunk in torch.from_numpy(found["codes"]).split(case.batch)]
        return stacked(chunks)


def pieces_of(config: Any, audio: Tensor) -> list[np.ndarray]:
    """Returns audio [B, C, T] as the batches that are encoded: all full chunks as one, then a last one that is shorter."""
    found: dict[int, list[Tensor]] = {}
    for length, start in chunks_of(config, audio.shape[-1]):
        found.setdefault(length, []).append(audio[..., start : start + length])
    return [torch.cat(chunks).contiguous().numpy() for chunks in found.values()]


def exported(model: str) -> Path:
    """Returns the folder of a built-in model's graphs, written at the first call.

    Its name carries a hash of the weights' and of the graphs' sources, so that no other graphs are taken for them.
    """
    # only now: an earlier revision, which `run.py --base` measures, may have none
    from encodec_fast import graphs
    from encodec_fast.graphs.export import export

    sources = sorted(Path(graphs.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = CACHE / f"{weights_file(model).stem}-{digest}"
    if not folder.exists():
        scratch = Path(tempfile.mkdtemp(dir=CACHE))
        export(stock_model(model), scratch)
        try:
            scratch.replace(folder)
        except OSError:
            # another process was faster
            shutil.rmtree(scratch)
    return folder


class OnnxRuntime(Graphs):
    """onnxruntime on the CPU."""

    name, package = "onnxruntime", "onnxruntime"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.opened: dict[Path, Any] = {}

    def run(self, path: Path, given: Arrays) -> Arrays:
        from encodec_fast.graphs.check import Graph

        if path not in self.opened:
            self.opened[path] = Graph(path, torch.get_num_threads())
        return {name: value.numpy() for name, value in self.opened[path](**given).items()}


class OpenVino(Graphs):
    """OpenVINO, float32, compiled for the very shapes that are measured."""

    name, package = "openvino", "openvino"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.compiled: dict[Any, Any] = {}

    def run(self, path: Path, given: Arrays) -> Arrays:
        import openvino

        key = (path, tuple((name, value.shape) for name, value in given.items()))
        if key not in self.compiled:
            model = openvino.Core().read_model(path)
            model.reshape({name: list(value.shape) for name, value in given.items()})
            threads = torch.get_num_threads()
            settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
            self.compiled[key] = openvino.Core().compile_model(model, "CPU", settings)
        # an output may have several names, of which OpenVINO shows any
        return {name: value for output, value in self.compiled[key](given).items() for name in output.get_names()}
