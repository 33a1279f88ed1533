"""Which backend runs which stage of a call, and why.

    auto       the first backend of the device's preference that can run the stage
    a name     that backend or an error; `use_backend` in code, ENCODEC_FAST_BACKEND for the process
    reference  the Hugging Face modules themselves: for calls that only they can serve (hooks, tracing, autocast, foreign modules)

And in which precision products are computed: `use_precision` for a block, `model.precision` for a model, else parity.

Every step away from the preferred backend is logged once with its reason, on the logger "encodec_fast", and shown by `explain`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from encodec_fast.autograd import with_recomputed_backward
from encodec_fast.executors.base import Executor, QuantizerProgram, StageProgram
from encodec_fast.executors.cuda_graphs import CudaGraphs
from encodec_fast.plan import Network, Quantizer, Stage, convolutions, stage_tensors, step_bytes
from encodec_fast.plan_cache import cache_of
from encodec_fast.plan_reader import Unplannable, inner_modules, read_network, read_quantizer, weight_norm_hook

logger = logging.getLogger("encodec_fast")

ENVIRONMENT_VARIABLE = "ENCODEC_FAST_BACKEND"

# One line per backend. The order is the order of `encodec-fast info`.
EXECUTORS = {
    "cpu": ("encodec_fast.executors.cpu_executor", "CpuExecutor"),
    "triton": ("encodec_fast.executors.triton_executor", "TritonExecutor"),
    "torch": ("encodec_fast.executors.torch_executor", "TorchExecutor"),
}
PREFERENCE = {"cpu": ("cpu", "torch"), "cuda": ("triton", "torch")}
REFERENCE = "reference"
# parity  float32 products: the codes of Hugging Face's float32, and the same bits for a clip in any batch.
# tf32x3  three tf32 products on tensor cores for each float32 one: about twice float32's error.
# fast    one tf32 product, and the library's recurrence: other codes than Hugging Face's float32, and bits that follow the batch.
PRECISIONS = ("parity", "tf32x3", "fast")
FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CODE_DTYPES = (torch.int64, torch.int32)

# torch counts these itself from 2.7 on
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")

Prepared = TypeVar("Prepared")

_requested: ContextVar[str | None] = ContextVar("encodec_fast_backend", default=None)
_precision: ContextVar[str | None] = ContextVar("encodec_fast_precision", default=None)
_capturing: ContextVar[list[tuple[int, ...]] | None] = ContextVar("encodec_fast_capturing", default=None)
_logged: set[str] = set()


class BackendError(RuntimeError):
    """A backend that was asked for by name can't run the call."""


@dataclass(frozen=True)
class Request:
    """What the user asked for.  strict: a limit of the named backend is an error, not a reason to fall back."""

    backend: str
    strict: bool
    precision: str = "parity"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs the block on one backend: "auto", "torch", "cpu", "triton" or "reference".

    Raises ValueError for another name and BackendError where the backend can't run a call: here a name is a demand.
    Holds for the current thread or task only.
    """
    token = _requested.set(_known(name, "use_backend"))
    try:
        yield
    finally:
        _requested.reset(token)


@contextmanager
def use_precision(name: str) -> Iterator[None]:
    """Runs the block in one of PRECISIONS, whatever the models' own `precision` says.

    A wish, not a demand: a backend that knows parity only computes that, and says so once.
    Raises ValueError for another name. Holds for the current thread or task only.
    """
    token = _precision.set(known_precision(name, "use_precision"))
    try:
        yield
    finally:
        _precision.reset(token)


@contextmanager
def capturing() -> Iterator[list[tuple[int, ...]]]:
    """Captures the networks that run in the block as CUDA graphs, for the shapes that they run on: the list yielded.

    Raises BackendError where a network can't be captured. Holds for the current thread or task only.
    """
    captured: list[tuple[int, ...]] = []
    token = _capturing.set(captured)
    try:
        yield captured
    finally:
        _capturing.reset(token)


@contextmanager
def prefer_backend(name: str) -> Iterator[None]:
    """As `use_backend`; but "auto", which an option has by default, leaves the choice to ENCODEC_FAST_BACKEND."""
    with nullcontext() if name == "auto" else use_backend(name):
        yield


def requested(module: nn.Module | None = None) -> Request:
    """The backend in force: `use_backend`, else ENCODEC_FAST_BACKEND, else auto; the precision: `use_precision`, else the module's own."""
    name = _requested.get()
    own: str = getattr(module, "precision", "parity")
    precision = _precision.get() or own
    if name is not None:
        return Request(name, True, precision)
    return Request(_known(os.environ.get(ENVIRONMENT_VARIABLE) or "auto", ENVIRONMENT_VARIABLE), False, precision)


def known_precision(name: str, source: str) -> str:
    """`name`, if it is one of PRECISIONS.  Raises ValueError naming the source otherwise."""
    if name not in PRECISIONS:
        raise ValueError(f"{source}: {name!r} is not a precision. Choose one of {', '.join(PRECISIONS)}.")
    return name


def _known(name: str, source: str) -> str:
    names = ("auto", *EXECUTORS, REFERENCE)
    if name not in names:
        raise ValueError(f"{source}: {name!r} is not a backend. Choose one of {', '.join(names)}.")
    return name


@cache
def executor(name: str) -> Executor:
    """The one instance of a backend; its module is imported here, at first use."""
    module, attribute = EXECUTORS[name]
    return getattr(importlib.import_module(module), attribute)()


def backend_report() -> list[tuple[str, bool, str]]:
    """(name, available, why not) of every backend on this machine."""
    reasons = [(name, executor(name).unavailable()) for name in EXECUTORS]
    return [(name, reason is None, reason or "") for name, reason in reasons]


# Choosing


@dataclass(frozen=True)
class Choice:
    """The backend of one stage and, where it is not the preferred one, the reason."""

    backend: str
    reason: str


def choose(stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device, request: Request) -> Choice:
    """The backend that runs the stage.  Raises BackendError where a backend demanded by name can't."""
    named = request.backend not in ("auto", REFERENCE)
    order = (request.backend, "torch") if named else PREFERENCE.get(device.type, ("torch",))
    refused: list[str] = []
    for name in (name for name in order if name in EXECUTORS):
        reason = executor(name).unavailable()
        if reason is not None and named and name == request.backend:
            raise BackendError(f"backend {name!r} was asked for but is not available: {reason}")
        reason = reason or executor(name).refusal(stage, dtype, device)
        if reason is None:
            return Choice(name, "; ".join(refused))
        if request.strict and named:
            raise BackendError(f"backend {name!r} was asked for but can't run this call: {reason}")
        refused.append(f"{name}: {reason}")
    raise AssertionError("the torch backend refuses nothing")


def reference_reason(module: nn.Module, x: Tensor, request: Request) -> str | None:
    """Why only the reference modules can serve this call, or None."""
    if request.backend == REFERENCE:
        return "asked for by name"
    return call_reason(x) or hook_reason(module)


def call_reason(x: Tensor) -> str | None:
    """What about this call only the reference modules can serve, whatever the module, or None."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.jit.is_scripting():
        return "the call is being traced or compiled"
    if type(x) not in (Tensor, nn.Parameter) or torch._C._functorch.peek_interpreter_stack() is not None:
        return "the input is a tensor subclass or inside a functional transform"
    if x.device.type == "meta":
        return "the tensors are on the meta device"
    if x.layout is not torch.strided or x.numel() == 0:
        return "the input is empty or sparse"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    return None


def hook_reason(module: nn.Module) -> str | None:
    """Which hook or patched forward inside `module` needs the modules to be called one by one, or None."""
    if any(getattr(nn.modules.module, hooks) for hooks in _GLOBAL_HOOKS):
        return "a global module hook is registered"
    for child in inner_modules(module):
        if _is_hooked(child):
            return f"an inner module ({type(child).__name__}) has a hook or a patched forward"
        if child._forward_pre_hooks and (len(child._forward_pre_hooks) > 1 or weight_norm_hook(child) is None):
            return f"an inner module ({type(child).__name__}) has a forward pre-hook"
    return None


def own_hook_reason(module: nn.Module) -> str | None:
    """Which hook or method of somebody's own on `module` itself needs it to be called as a whole, or None."""
    if _is_hooked(module) or module._forward_pre_hooks:
        return f"{type(module).__name__} has a hook or a patched forward"
    for name in ("forward", "encode", "decode"):
        method = getattr(type(module), name, None)
        if name in module.__dict__ or (method is not None and method.__module__ not in _KNOWN_METHODS):
            return f"{type(module).__name__} has a {name} of its own"
    return None


# Where the methods of an encoder, decoder or quantizer are defined that do what the plan does.
_KNOWN_METHODS = ("encodec_fast.model", "transformers.models.encodec.modeling_encodec", "torch.nn.modules.module")


def _is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says; pre-hooks, which weight norm has, are not looked at."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in module.__dict__)


def log_once(message: str) -> None:
    """One warning per distinct message and process."""
    if message not in _logged:
        _logged.add(message)
        logger.warning(message)


# Running the encoder and the decoder


class PreparedNetwork:
    """A network cut into runs of stages of one backend each."""

    def __init__(self, network: Network, choices: list[Choice], precision: str = "parity") -> None:
        self.network = network
        self.choices = choices
        self.programs: list[StageProgram] = []
        self.graphs: CudaGraphs | None = None
        start = 0
        for end in range(1, len(choices) + 1):
            if end == len(choices) or choices[end].backend != choices[start].backend:
                backend = executor(choices[start].backend)
                self.programs.append(backend.prepare(network.stages[start:end], precision))
                if precision not in backend.precisions:
                    log_once(f"precision {precision!r}: the {backend.name} backend computes as for parity")
                start = end
        for reason in {choice.reason for choice in choices if choice.reason}:
            log_once(f"running on the {choices[0].backend} backend ({reason})")

    def run(self, x: Tensor) -> Tensor:
        """Whole clips [B, C, T] -> [B, C_out, T_out]; from a CUDA graph where one was captured for the shape."""
        captured = _capturing.get()
        if captured is not None:
            self._capture(x)
            captured.append(tuple(x.shape))
        return self._launch(x) if self.graphs is None else self.graphs(x)

    def _launch(self, x: Tensor) -> Tensor:
        for program in self.programs:
            x = program.run(x)
        return x

    def _capture(self, x: Tensor) -> None:
        if not all(program.capturable for program in self.programs):
            backends = ", ".join(dict.fromkeys(choice.backend for choice in self.choices))
            raise BackendError(f"a CUDA graph can hold the triton backend only, and this network runs on {backends}")
        self.graphs = self.graphs or CudaGraphs(self._launch)
        self.graphs.capture(x)

    def run_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Whole clips [C, T_b] of any lengths -> [C_out, T_out_b] each."""
        if (self.graphs is not None or _capturing.get() is not None) and len({clip.shape for clip in clips}) == 1:
            return list(self.run(torch.stack(list(clips))))
        for program in self.programs:
            clips = program.run_clips(clips)
        return list(clips)

    @property
    def exact(self) -> bool:
        """Whether bits are independent of batch and pieces."""
        return all(program.exact for program in self.programs)

    @property
    def held_bytes(self) -> float:
        """Bytes that a call holds per clip and step of the network's input, beside input and output; about."""
        return max(program.activations_held for program in self.programs) * step_bytes(self.network.stages)

    def open(self) -> list[Any]:
        """The state of one clip at time zero."""
        return [program.open() for program in self.programs]

    def push(self, pieces: Sequence[Tensor], states: Sequence[list[Any]], final: Sequence[bool]) -> list[Tensor]:
        """Each clip's next piece of time [C, T_b] through all stages; its state moves on in place."""
        for index, program in enumerate(self.programs):
            pieces = program.push(pieces, [state[index] for state in states], final)
        return list(pieces)

    def save(self, state: list[Any]) -> list[Any]:
        """A clip's state as nested lists of tensors, integers and None."""
        return [program.save(part) for program, part in zip(self.programs, state)]

    def load(self, saved: Sequence[Any]) -> list[Any]:
        """The state that `save` wrote.  Raises ValueError for one of another network or backend."""
        if len(saved) != len(self.programs):
            raise ValueError("this is not the state of a clip in such a program")
        return [program.load(part) for program, part in zip(self.programs, saved)]


def prepare_network(module: nn.Module, request: Request) -> PreparedNetwork | str:
    """The prepared encoder or decoder, or why only the reference modules can run it."""

    def make() -> PreparedNetwork | str:
        try:
            network = read_network(module)
        except Unplannable as unplannable:
            return str(unplannable)
        for stage in network.stages:
            for tensor in stage_tensors(stage):
                if tensor.dtype != network.dtype or tensor.device != network.device:
                    return f"{stage.name} is {tensor.dtype} on {tensor.device}, the first layer {network.dtype} on {network.device}"
        choices = [choose(stage, network.dtype, network.device, request) for stage in network.stages]
        return PreparedNetwork(network, choices, request.precision)

    return cache_of(module).get(module, request, make)


def run_network(module: nn.Module, x: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
    """The encoder's or decoder's forward: [B, C, T] -> [B, C_out, T_out], with the reference's gradients."""

    def run(prepared: PreparedNetwork) -> Tensor | str:
        network = prepared.network
        reason = mismatch(x, network.stages[0].in_channels, network.dtype, network.device) or single_value_reason(network, x)
        if reason is not None:
            return reason
        note_graphs(module, prepared)
        return with_recomputed_backward(module, prepared.run, reference, x)

    return _served(module, x, prepare_network, run, lambda: reference(x))


def _served(
    module: nn.Module,
    x: Tensor,
    prepare: Callable[[nn.Module, Request], Prepared | str],
    run: Callable[[Prepared], Tensor | str],
    reference: Callable[[], Tensor],
) -> Tensor:
    """What the plan makes of a call of `module` with x or, where it can't serve the call, what the reference modules make of it.

    run: the result, or why the prepared module can't give one.
    """
    request = requested(module)
    reason = reference_reason(module, x, request)
    if reason is None:
        prepared = prepare(module, request)
        served = prepared if isinstance(prepared, str) else run(prepared)
        if isinstance(served, Tensor):
            return served
        reason = served
    note_reference(module, reason, request)
    return reference()


def note_graphs(module: nn.Module, prepared: PreparedNetwork) -> None:
    """Logs that a module with CUDA graphs runs without them, because they are of other weights or another precision."""
    if _capturing.get() is not None:
        module.__dict__["_has_graphs"] = True
    elif prepared.graphs is None and module.__dict__.get("_has_graphs", False):
        log_once(f"the CUDA graphs of {type(module).__name__} are of other weights or another precision; call cuda_graphs again")


def codes_mismatch(codes: Tensor, codebooks: Tensor) -> str | None:
    """Why codes [K, ...] can't be looked up in codebooks [levels, N, D], or None; their values are not looked at."""
    if codes.shape[0] <= codebooks.shape[0] and codes.dtype in CODE_DTYPES and codes.device == codebooks.device:
        return None
    return f"codes of shape {list(codes.shape)}, {codes.dtype} on {codes.device}"


def single_value_reason(network: Network, x: Tensor) -> str | None:
    """Why torch refuses this input: a group norm would see one value.  None for every other input."""
    length = x.shape[-1]
    for stage in network.stages if x.shape[0] == 1 else ():
        length = stage.output_length(length)
        if length == 1 and any(conv.norm is not None and conv.out_channels == 1 for conv in convolutions(stage)):
            return f"{stage.name} would normalise a single value"
    return None


# Running the quantizer


@dataclass(frozen=True)
class PreparedQuantizer:
    """The codebooks, laid out for one backend."""

    quantizer: Quantizer
    choice: Choice
    program: QuantizerProgram

    def search_clips(self, embeddings: Sequence[Tensor], num_quantizers: int) -> list[Tensor]:
        """Codes [num_quantizers, F_b] of embeddings [D, F_b]. A frame's codes depend on it alone: all frames are one search."""
        frames = [part.shape[1] for part in embeddings]
        joined = torch.cat(list(embeddings), 1)
        if not sum(frames):
            return [joined.new_empty(num_quantizers, 0, dtype=torch.int64) for _ in frames]
        return list(self.program.encode(joined[None], num_quantizers)[:, 0].split(frames, 1))

    def lookup_clip(self, codes: Tensor) -> Tensor:
        """Embeddings [D, F] of codes [K, F]."""
        if not codes.shape[1]:
            codebooks = self.quantizer.codebooks
            return codebooks.new_empty(codebooks.shape[2], 0)
        return self.program.decode(codes[:, None])[0]


def prepare_quantizer(module: nn.Module, request: Request) -> PreparedQuantizer | str:
    """The prepared codebooks, or why only the reference modules can run them."""

    def make() -> PreparedQuantizer | str:
        try:
            quantizer = read_quantizer(module)
        except Unplannable as unplannable:
            return str(unplannable)
        choice = choose(quantizer, quantizer.codebooks.dtype, quantizer.codebooks.device, request)
        if choice.reason:
            log_once(f"running on the {choice.backend} backend ({choice.reason})")
        return PreparedQuantizer(quantizer, choice, executor(choice.backend).prepare_quantizer(quantizer))

    # the codes are the same at every precision
    return cache_of(module).get(module, replace(request, precision="parity"), make)


def run_search(module: nn.Module, x: Tensor, num_quantizers: int, reference: Callable[[], Tensor]) -> Tensor:
    """The quantizer's encode: embeddings [B, D, F] -> codes [K, B, F]."""

    def run(prepared: PreparedQuantizer) -> Tensor | str:
        codebooks = prepared.quantizer.codebooks
        reason = mismatch(x, codebooks.shape[2], codebooks.dtype, codebooks.device)
        return reason or prepared.program.encode(x.detach(), min(num_quantizers, codebooks.shape[0]))

    return _served(module, x, prepare_quantizer, run, reference)


def run_lookup(module: nn.Module, codes: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
    """The quantizer's decode: codes [K, B, F] -> embeddings [B, D, F]."""

    def run(prepared: PreparedQuantizer) -> Tensor | str:
        codebooks = prepared.quantizer.codebooks
        reason = codes_mismatch(codes, codebooks) if codes.dim() == 3 else f"codes of shape {list(codes.shape)}"
        if reason is not None:
            return reason
        try:
            return prepared.program.decode(codes)
        except IndexError:
            # a code outside the codebook: the reference says so in its own words
            return reference(codes)

    return _served(module, codes, prepare_quantizer, run, lambda: reference(codes))


def overlap_add(chunks: Sequence[Tensor], weight: Tensor, stride: int, length: int) -> Tensor | None:
    """As `Executor.overlap_add` of the backend in force; None where it has no kernel for it, under autograd and inside torch.compile."""
    able = _plain_executor(*chunks)
    return able.overlap_add(chunks, weight, stride, length) if able else None


def normalize(audio: Tensor) -> tuple[Tensor, Tensor] | None:
    """As `Executor.normalize` of the backend in force; None where it has no kernel for it, under autograd and inside torch.compile."""
    able = _plain_executor(audio)
    return able.normalize(audio) if able else None


def _plain_executor(*tensors: Tensor) -> Executor | None:
    """What runs functions that have no weights, or None where torch does."""
    first, backend = tensors[0], requested().backend
    if call_reason(first) or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return None
    preferred = PREFERENCE.get(first.device.type, ()) if backend == "auto" else (backend,)
    # a backend that is missing says so where the networks run
    return next((executor(name) for name in preferred if name in EXECUTORS and executor(name).unavailable() is None), None)


def note_reference(module: nn.Module, reason: str, request: Request) -> None:
    """Logs that the reference modules run.  Raises BackendError where a backend was demanded by name."""
    if request.backend == REFERENCE:
        return
    if request.strict and request.backend != "auto":
        raise BackendError(f"backend {request.backend!r} was asked for but {type(module).__name__} can't use it: {reason}")
    log_once(f"{type(module).__name__} runs on the reference modules ({reason})")


def mismatch(x: Tensor, channels: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a network of `channels` inputs, this dtype and device can't take x, or None."""
    if x.dim() != 3 or x.shape[1] != channels:
        return f"the input has shape {list(x.shape)}, not [B, {channels}, T]"
    if x.dtype != dtype or dtype not in FLOAT_DTYPES:
        return f"the input is {x.dtype}, the weights are {dtype}"
    if x.device != device:
        return f"the input is on {x.device}, the weights are on {device}"
    return None
