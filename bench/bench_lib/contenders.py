"""Who is compared: each contender turns a case into a call without arguments, and the call's result into a plain tensor.

All have the weights of `cases.stock_model`, in float32. A new contender is one class, one line in CONTENDERS
and one in `legend.LEGEND`.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bench_lib.cases import CACHE, Case, audio_of, codes_of, levels_of, stock_model, weights_file

Call = Callable[[], Any]


class Contender(ABC):
    """One way to encode and decode.  name: as in `--against`."""

    name: str

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.models: dict[str, Any] = {}

    @staticmethod
    def missing(device: torch.device) -> str | None:
        """Returns why the contender can't run here, with what would help, or None."""
        return None

    @abstractmethod
    def load(self, model: str) -> Any:
        """Loads the model of that name with the common weights."""

    def model(self, name: str) -> Any:
        """Returns the model of that name, loaded at the first use; the one before it is dropped."""
        if name not in self.models:
            self.models = {name: self.load(name)}
        return self.models[name]

    def prepare(self, case: Case) -> Call:
        """Returns the call to be measured.  Inputs are made here, and on the contender's device."""
        return self._call(case, slice(None))

    def _call(self, case: Case, clips: slice) -> Call:
        model = self.model(case.model)
        if case.call == "encode":
            return self.encode(model, audio_of(case)[clips].to(self.device), case)
        codes, scales, tail = codes_of(case, levels_of(case))
        scales = [None if scale is None else scale[clips].to(self.device) for scale in scales]
        return self.decode(model, codes[:, clips].to(self.device), scales, tail)

    def answer_in_pieces(self, case: Case, clips: int) -> Tensor:
        """Returns the answer to a case that is too large for memory, from calls of `clips` clips each."""
        starts = range(0, case.batch, clips)
        answers = [self.answer(case, self._call(case, slice(start, start + clips))()) for start in starts]
        return torch.cat(answers, dim=1 if case.call == "encode" else 0)

    @abstractmethod
    def encode(self, model: Any, audio: Tensor, case: Case) -> Call: ...

    @abstractmethod
    def decode(self, model: Any, codes: Tensor, scales: list[Tensor | None], tail: int) -> Call: ...

    def answer(self, case: Case, result: Any) -> Tensor:
        """Returns codes [chunks, B, K, F] or audio [B, C, T] of what the call returned, on the CPU."""
        return (result.audio_codes if case.call == "encode" else result.audio_values).cpu()


class Stock(Contender):
    """transformers as it comes."""

    name = "hf"

    def load(self, model: str) -> Any:
        return stock_model(model).to(self.device)

    def encode(self, model: Any, audio: Tensor, case: Case) -> Call:
        return lambda: model.encode(audio, bandwidth=case.bandwidth)

    def decode(self, model: Any, codes: Tensor, scales: list[Tensor | None], tail: int) -> Call:
        # transformers before 4.53 has no ragged last chunk
        extra = {"last_frame_pad_length": tail} if "last_frame_pad_length" in inspect.signature(model.decode).parameters else {}
        return lambda: model.decode(codes, scales, **extra)


class Folded(Stock):
    """transformers with the weight norm multiplied into the weights once, instead of in every call."""

    name = "folded"

    def load(self, model: str) -> Any:
        stock = super().load(model)
        for module in stock.modules():
            if nn.utils.parametrize.is_parametrized(module, "weight"):
                nn.utils.parametrize.remove_parametrizations(module, "weight")
        return stock


class Compiled(Stock):
    """transformers through torch.compile, for the very shapes that are measured; compiling is set-up time."""

    name = "compile"

    def encode(self, model: Any, audio: Tensor, case: Case) -> Call:
        torch.compiler.reset()
        encode = torch.compile(model.encode, dynamic=False)
        return lambda: encode(audio, bandwidth=case.bandwidth)

    def decode(self, model: Any, codes: Tensor, scales: list[Tensor | None], tail: int) -> Call:
        torch.compiler.reset()
        decode = torch.compile(model.decode, dynamic=False)
        return lambda: decode(codes, scales, last_frame_pad_length=tail)


class Original(Contender):
    """facebookresearch `encodec`, the authors' own package."""

    name = "encodec"

    @staticmethod
    def missing(device: torch.device) -> str | None:
        if importlib.util.find_spec("encodec") and importlib.util.find_spec("einops"):
            return None
        return "it is not installed: pip install --no-deps encodec einops (it reads files with torchaudio, which is not needed here)"

    def load(self, model: str) -> Any:
        # a stand-in from an earlier call has no spec to be found
        if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
            # encodec.utils imports it at the top, for reading files only
            sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        from encodec import EncodecModel

        stock = stock_model(model)
        config = stock.config
        original = EncodecModel._get_model(
            config.target_bandwidths,
            config.sampling_rate,
            config.audio_channels,
            causal=config.use_causal_conv,
            model_norm=config.norm_type,
            audio_normalize=config.normalize,
            segment=config.chunk_length_s,
        ).eval()
        copy_weights(stock, original)
        return original.to(self.device)

    def encode(self, model: Any, audio: Tensor, case: Case) -> Call:
        model.set_target_bandwidth(case.bandwidth)
        return lambda: model.encode(audio)

    def decode(self, model: Any, codes: Tensor, scales: list[Tensor | None], tail: int) -> Call:
        frames = list(zip(codes, scales))
        frames[-1] = (frames[-1][0][..., : codes.shape[-1] - tail], frames[-1][1])
        return lambda: model.decode(frames)

    def answer(self, case: Case, result: Any) -> Tensor:
        """Returns codes [chunks, B, K, F], the last chunk padded with zeros as transformers does, or audio [B, C, T]."""
        if case.call == "decode":
            return result.cpu()
        longest = result[0][0].shape[-1]
        return torch.stack([nn.functional.pad(codes, (0, longest - codes.shape[-1])) for codes, _ in result]).cpu()


def copy_weights(stock: transformers.EncodecModel, original: Any) -> None:
    """Gives the authors' model the weights of `stock`: both trees hold the same modules in the same order."""
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.LSTM, nn.GroupNorm)
    for part in ("encoder", "decoder"):
        sides = [[m for m in getattr(side, part).modules() if isinstance(m, kinds)] for side in (stock, original)]
        for source, target in zip(*sides, strict=True):
            target.load_state_dict({_original_name(name): value for name, value in source.state_dict().items()})
    for source, target in zip(stock.quantizer.layers, original.quantizer.vq.layers, strict=True):
        target._codebook.embed.copy_(source.codebook.embed)
        target._codebook.inited.fill_(1)


def _original_name(name: str) -> str:
    return {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}.get(name, name)


class OpenVino(Stock):
    """transformers' loop around OpenVINO: both networks and both sides of the quantizer converted, float32."""

    name = "openvino"

    @staticmethod
    def missing(device: torch.device) -> str | None:
        if device.type != "cpu":
            return "it runs on CPUs only"
        return None if importlib.util.find_spec("openvino") else "it is not installed: pip install openvino"

    def load(self, model: str) -> Any:
        stock = super().load(model)
        self.networks = {
            "encoder": OpenVinoNetwork(f"{weights_file(model).stem}-encoder", stock.encoder),
            "decoder": OpenVinoNetwork(f"{weights_file(model).stem}-decoder", stock.decoder),
        }
        stock.encoder, stock.decoder = self.networks["encoder"], self.networks["decoder"]
        self.quantizer = stock.quantizer
        return stock

    def prepare(self, case: Case) -> Call:
        self.model(case.model)
        levels, quantizer, stem = levels_of(case), self.quantizer, weights_file(case.model).stem
        search = OpenVinoNetwork(f"{stem}-search-{levels}", _Search(quantizer, case.bandwidth))
        lookup = OpenVinoNetwork(f"{stem}-lookup-{levels}", _Lookup(quantizer))
        quantizer.encode = lambda embeddings, bandwidth: search(embeddings)
        quantizer.decode = lookup
        return super().prepare(case)


class _Search(nn.Module):
    def __init__(self, quantizer: Any, bandwidth: float) -> None:
        super().__init__()
        self.quantizer, self.bandwidth = quantizer, bandwidth

    def forward(self, embeddings: Tensor) -> Tensor:
        return type(self.quantizer).encode(self.quantizer, embeddings, self.bandwidth)


class _Lookup(nn.Module):
    def __init__(self, quantizer: Any) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, codes: Tensor) -> Tensor:
        return type(self.quantizer).decode(self.quantizer, codes)


class OpenVinoNetwork(nn.Module):
    """A module that runs in OpenVINO: converted once for all lengths, compiled for each shape, which is set-up time.

    Conversions are kept on disk, for they take many seconds.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name, self.module = name, [module]  # in a list: its weights are not this module's
        self.compiled: dict[tuple[int, ...], Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape)
        if shape not in self.compiled:
            self.compiled[shape] = self._compile(x)
        return torch.from_numpy(self.compiled[shape](x.numpy())[0])

    def _compile(self, x: Tensor) -> Any:
        import openvino

        path = CACHE / f"{self.name}-{openvino.__version__.split('-')[0]}.xml"
        if not path.exists():
            free = {0: -1, x.dim() - 1: -1} if x.dtype == torch.float32 else {1: -1, 2: -1}
            shape = openvino.PartialShape([free.get(axis, size) for axis, size in enumerate(x.shape)])
            with warnings.catch_warnings():
                # transformers checks lengths in Python; a trace that took the wrong turn would show in the answer
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                converted = openvino.convert_model(self.module[0], example_input=x, input=[shape])
            openvino.save_model(converted, path, compress_to_fp16=False)
        model = openvino.Core().read_model(path)
        model.reshape(list(x.shape))
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        return openvino.Core().compile_model(model, "CPU", settings)


class Ours(Stock):
    """encodec_fast on one backend, which is demanded by name: where it can't run a call, the call fails."""

    backend: str

    def load(self, model: str) -> Any:
        from encodec_fast import EncodecModel

        stock = stock_model(model)
        ours = EncodecModel(stock.config).eval()
        ours.load_state_dict(stock.state_dict())
        return ours.to(self.device)

    def prepare(self, case: Case) -> Call:
        from encodec_fast import use_backend

        call = super().prepare(case)

        def on_backend() -> Any:
            with use_backend(self.backend):
                return call()

        return on_backend


class OursCpu(Ours):
    name, backend = "ours-cpu", "cpu"

    @staticmethod
    def missing(device: torch.device) -> str | None:
        from encodec_fast.backends.cpu_backend import CpuBackend

        return "it runs on CPUs only" if device.type != "cpu" else CpuBackend().unavailable()


class OursTorch(Ours):
    name, backend = "ours-torch", "torch"


class OursTriton(Ours):
    name, backend = "ours-triton", "triton"

    @staticmethod
    def missing(device: torch.device) -> str | None:
        if device.type != "cuda":
            return "it runs on CUDA and ROCm devices"
        from encodec_fast.backends.triton_backend import TritonBackend

        return TritonBackend().unavailable()


CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind for kind in (Stock, Folded, Compiled, Original, OpenVino, OursTorch, OursCpu, OursTriton)
}
OURS = tuple(name for name, kind in CONTENDERS.items() if issubclass(kind, Ours))


def chosen(names: list[str], device: torch.device) -> tuple[list[str], list[str]]:
    """Returns the contenders to run, and sentences about those left out.  "ours" is every backend of ours that runs on the device.

    Raises ValueError for a name that is no contender, and where one of ours, asked for by its full name, can't run.
    """
    unknown = sorted(set(names) - set(CONTENDERS) - {"ours"})
    if unknown:
        raise ValueError(f"--against: {', '.join(unknown)} is no contender. Choose from ours, {', '.join(CONTENDERS)}.")
    wanted = [name for name in CONTENDERS if name in names or ("ours" in names and name in OURS)]
    reasons = {name: CONTENDERS[name].missing(device) for name in wanted}
    refused = [f"{name}: {reason}" for name, reason in reasons.items() if reason and name in names and name in OURS]
    if refused:
        raise ValueError("; ".join(refused))
    # of "ours", the backends of other devices are not missed
    mentioned = (name for name in reasons if name in names or device.type == ("cuda" if name == "ours-triton" else "cpu"))
    left_out = [f"{name} is left out: {reasons[name]}" for name in mentioned if reasons[name]]
    return [name for name, reason in reasons.items() if reason is None], left_out
