"""The gate: whether the plan serves a call, on which backends, and if not, why.

Modules, clips, streams, `explain` and the functions without weights all ask here. A step away from the preferred backend is logged
once with its reason, on the logger "encodec_fast". `explain` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.backends import registry, torch_export
from encodec_fast.backends.base import Backend
from encodec_fast.plan import Quantizer, Stage, stage_tensors
from encodec_fast.plan.reader import Unplannable, read_network, read_quantizer, weight_norm_hook
from encodec_fast.plan.weights import cache_of
from encodec_fast.serving.prepared import Choice, PreparedCodec, PreparedNetwork, PreparedQuantizer
from encodec_fast.serving.request import REFERENCE, BackendError, Request, log_once, requested

Prepared = TypeVar("Prepared")

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CODE_DTYPES = (torch.int64, torch.int32)

# Whether torch.export is at work; torch before 2.7 does not tell
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

# Where the methods of an encoder, decoder or quantizer are defined that do what the plan does.
_KNOWN_METHODS = ("encodec_fast.model", "transformers.models.encodec.modeling_encodec", "torch.nn.modules.module")


@dataclass(frozen=True)
class Route(Generic[Prepared]):
    """What serves a call.

    prepared: what the plan serves it with, or None: then the reference modules do.
    reason: half a sentence that says why not the preferred backend, or why the reference; "" where there is nothing to say.
    """

    prepared: Prepared | None
    reason: str = ""


def route_network(module: nn.Module, x: Tensor) -> Route[PreparedNetwork]:
    """Routes the forward of an encoder or decoder on x [B, C, T]."""
    request = requested(module)
    reason = _refused(request, x)
    route = Route(None, reason) if reason else _network(module, request)
    return _fitting(route, lambda network: _misfit(network, x))


def route_search(module: nn.Module, x: Tensor) -> Route[PreparedQuantizer]:
    """Routes the quantizer's encode of embeddings x [B, D, F]."""
    request = requested(module)
    reason = _refused(request, x)
    route = Route(None, reason) if reason else _quantizer(module, request)
    return _fitting(route, lambda quantizer: _mismatch(x, quantizer.dim, quantizer.dtype, quantizer.device))


def route_lookup(module: nn.Module, codes: Tensor) -> Route[PreparedQuantizer]:
    """Routes the quantizer's decode of codes [K, B, F]."""
    request = requested(module)
    reason = _refused(request, codes) or _gradients_reason(module)
    route = Route(None, reason) if reason else _quantizer(module, request)
    return _fitting(route, lambda quantizer: _codes_mismatch(quantizer, codes, 0))


def route_encode(model: hf.EncodecModel, audio: Sequence[Tensor]) -> Route[PreparedCodec]:
    """Routes audio [B, C, T] of any lengths through the model's encoder and the search behind it."""
    route = _codec(model, model.encoder, audio[0], _frames_reason(model))
    return _fitting(route, lambda codec: next(filter(None, (_misfit(codec.network, part) for part in audio)), None))


def route_decode(model: hf.EncodecModel, codes: Sequence[Tensor]) -> Route[PreparedCodec]:
    """Routes codes [B, K, F] of any lengths through the sum of entries and the model's decoder behind it."""
    route = _codec(model, model.decoder, codes[0], _frames_reason(model) or _gradients_reason(model.quantizer))

    def misfit(codec: PreparedCodec) -> str | None:
        found = (_codes_mismatch(codec.quantizer, part, 1) or _single_value(codec.network, part) for part in codes)
        return next(filter(None, found), None)

    return _fitting(route, misfit)


def route_stream(model: hf.EncodecModel, network: nn.Module) -> Route[PreparedCodec]:
    """Routes pieces of time, whatever they will be, through the model's encoder or decoder."""
    parameter = next(network.parameters())
    return _codec(model, network, torch.empty(1, 1, dtype=parameter.dtype, device=parameter.device))


def route_export(module: nn.Module, read: Callable[[nn.Module], Prepared]) -> Route[Prepared]:
    """Routes a call of an encoder, decoder or quantizer that is being exported: to what `read` reads of it, for `torch_export`."""
    reason = torch_export.too_old()
    if reason is None and requested(module).backend == REFERENCE:
        reason = "asked for by name"
    if reason is None and any(weight_norm_hook(part) is not None for part in module.modules()):
        # of older transformers: it assigns the weights as attributes while it is traced
        reason = "its weight norm is torch's old one"
    reason = reason or _walk(module)[1]
    if reason is not None:
        return Route(None, reason)
    try:
        return Route(read(module))
    except Unplannable as unplannable:
        return Route(None, str(unplannable))


def route_function(name: str, tensors: Sequence[Tensor], misfit: str | None = None) -> Route[Backend]:
    """Routes 'normalize' or 'overlap_add', which have no weights: to a backend's kernel, else to torch's operations.

    Their bits are the same everywhere, so a backend demanded by name gives way, with a line in the log. Under tracing, autocast,
    transforms and gradients they are torch's own, without one.
    misfit: why no kernel can take the input, or None.
    """
    reason = call_reason(tensors[0])
    if reason is None and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        reason = "gradients are asked for"
    if reason is not None:
        return Route(registry.get_backend("torch"), reason)
    first, request, refused = tensors[0], requested(), []
    order = registry.PREFERENCE.get(first.device.type, ()) if request.backend == "auto" else (request.backend,)
    for backend in (registry.get_backend(choice) for choice in order if choice in registry.BACKENDS):
        # the reasons stand in `refused` for the log
        reason = backend.unavailable() or backend.function_refusal(name, tensors) or (misfit if backend.has_kernels else None)
        if reason is None:
            break
        refused.append(f"{backend.name}: {reason}")
    else:
        backend = registry.get_backend("torch")
    if refused:
        log_once(f"{name} runs on the {backend.name} backend ({'; '.join(refused)})")
    return Route(backend, "; ".join(refused))


def note_reference(module: nn.Module, reason: str) -> None:
    """Logs that the reference modules run.  Raises BackendError where a backend was demanded by name."""
    request = requested(module)
    if request.backend == REFERENCE:
        return
    if request.strict and request.backend != "auto":
        raise BackendError(f"backend {request.backend!r} was asked for but {type(module).__name__} can't use it: {reason}")
    log_once(f"{type(module).__name__} runs on the reference modules ({reason})")


def _fitting(route: Route[Prepared], misfit: Callable[[Prepared], str | None]) -> Route[Prepared]:
    """Returns the route, unless what it prepared can't take the input.  misfit: says why not, or None."""
    reason = None if route.prepared is None else misfit(route.prepared)
    return route if reason is None else Route(None, reason)


def _refused(request: Request, x: Tensor) -> str | None:
    """Returns why the reference modules must serve a call with x, whatever the module, or None."""
    return "asked for by name" if request.backend == REFERENCE else call_reason(x)


def _derived(module: nn.Module, request: Request, make: Callable[[nn.Module, Request], Route[Prepared]]) -> Route[Prepared]:
    """Returns what `make` derives of the module's weights, unless its modules must be called one by one."""
    modules, reason = _walk(module)
    return Route(None, reason) if reason else cache_of(module).get(modules, request, lambda: make(module, request))


def _network(module: nn.Module, request: Request) -> Route[PreparedNetwork]:
    """Returns the encoder or decoder as prepared for the request."""
    route = _derived(module, request, _prepare_network)
    if route.prepared is not None and "_has_graphs" in module.__dict__:
        route.prepared.warn_without_graphs(type(module).__name__)
    return route


def _quantizer(module: nn.Module, request: Request) -> Route[PreparedQuantizer]:
    """Returns the quantizer as prepared for the request; its codes are the same at every precision."""
    return _derived(module, Request(request.backend, request.strict), _prepare_quantizer)


def _codec(model: hf.EncodecModel, module: nn.Module, x: Tensor, reason: str | None = None) -> Route[PreparedCodec]:
    """Routes x through the encoder or decoder `module` of the model, with the quantizer, past the methods of both.

    reason: why the reference must serve it, if the caller knows one.
    """
    request = requested(module)
    reason = reason or _refused(request, x) or _own_reason(module) or _own_reason(model.quantizer)
    if reason is not None:
        return Route(None, reason)
    network, codebooks = _network(module, request), _quantizer(model.quantizer, request)
    if network.prepared is None or codebooks.prepared is None:
        return Route(None, network.reason if network.prepared is None else codebooks.reason)
    decodes = isinstance(module, hf.EncodecDecoder)
    if codebooks.prepared.dim != (network.prepared.in_channels if decodes else network.prepared.out_channels):
        return Route(None, "its codebooks are not as wide as its embeddings")
    return Route(PreparedCodec(network.prepared, codebooks.prepared))


def _prepare_network(module: nn.Module, request: Request) -> Route[PreparedNetwork]:
    try:
        network = read_network(module)
    except Unplannable as unplannable:
        return Route(None, str(unplannable))
    if network.dtype not in FLOAT_DTYPES:
        return Route(None, f"the weights are {network.dtype}")
    for stage in network.stages:
        for tensor in stage_tensors(stage):
            if tensor.dtype != network.dtype or tensor.device != network.device:
                reason = f"{stage.name} is {tensor.dtype} on {tensor.device}, the first layer {network.dtype} on {network.device}"
                return Route(None, reason)
    choices = [_choose(stage, network.dtype, network.device, request) for stage in network.stages]
    return Route(PreparedNetwork(network, choices, request.precision))


def _prepare_quantizer(module: nn.Module, request: Request) -> Route[PreparedQuantizer]:
    try:
        quantizer = read_quantizer(module)
    except Unplannable as unplannable:
        return Route(None, str(unplannable))
    choice = _choose(quantizer, quantizer.codebooks.dtype, quantizer.codebooks.device, request)
    if choice.reason:
        log_once(f"running on the {choice.backend} backend ({choice.reason})")
    return Route(PreparedQuantizer(quantizer, choice), choice.reason)


def _choose(stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device, request: Request) -> Choice:
    """Returns the backend that runs the stage.  Raises BackendError where a backend demanded by name can't."""
    named = request.backend != "auto"
    preferred = registry.PREFERENCE.get(device.type, registry.OTHERS)
    order = (request.backend, preferred[-1]) if named else preferred
    refused: list[str] = []
    for name in (name for name in order if name in registry.BACKENDS):
        backend = registry.get_backend(name)
        reason = backend.unavailable()
        if reason is not None and named and name == request.backend:
            raise BackendError(f"backend {name!r} was asked for but is not available: {reason}")
        reason = reason or backend.refusal(stage, dtype, device)
        if reason is None:
            return Choice(name, "; ".join(refused))
        if request.strict and named:
            raise BackendError(f"backend {name!r} was asked for but can't run this call: {reason}")
        refused.append(f"{name}: {reason}")
    raise AssertionError("a device's last backend refuses nothing")


def call_reason(x: Tensor) -> str | None:
    """Returns what about a call with x only the reference modules can serve, whatever the module, or None."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.jit.is_scripting():
        return "the call is being traced or compiled"
    if type(x) not in (Tensor, nn.Parameter) or torch._C._functorch.peek_interpreter_stack() is not None:
        return "the input is a tensor subclass or inside a functional transform"
    # a level that is entered: the tangents of inputs and weights are not seen where no gradient is asked for
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if x.device.type == "meta":
        return "the tensors are on the meta device"
    if x.layout is not torch.strided or x.numel() == 0:
        return "the input is empty or sparse"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    return None


def _walk(module: nn.Module) -> tuple[list[nn.Module], str | None]:
    """Returns all modules below `module` in a fixed order; and which hook among them needs them to be called one by one, or None."""
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return [], "a global module hook is registered"
    if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
        return [], "a global module hook is registered"
    # in every call, hence without a call for each module
    modules, parents = [], [module]
    while parents:
        for child in parents.pop()._modules.values():
            if child is None:
                continue
            modules.append(child)
            if child._modules:
                parents.append(child)
            if child._forward_hooks or child._backward_hooks or child._backward_pre_hooks or "forward" in child.__dict__:
                return modules, f"an inner module ({type(child).__name__}) has a hook or a patched forward"
            if child._forward_pre_hooks and (len(child._forward_pre_hooks) > 1 or weight_norm_hook(child) is None):
                return modules, f"an inner module ({type(child).__name__}) has a forward pre-hook"
    return modules, None


def _own_reason(module: nn.Module) -> str | None:
    """Returns which hook or method of somebody's own on `module` must be called as a whole, or None."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if hooks or "forward" in module.__dict__:
        return f"{type(module).__name__} has a hook or a patched forward"
    foreign = _foreign_method(type(module))  # type: ignore[arg-type]
    if foreign is None and ("encode" in module.__dict__ or "decode" in module.__dict__):
        foreign = "encode" if "encode" in module.__dict__ else "decode"
    return None if foreign is None else f"{type(module).__name__} has a {foreign} of its own"


def owns_frames(model: hf.EncodecModel) -> bool:
    """Returns whether some of the methods that HF's own loop over chunks calls are somebody's own."""
    kind, own = type(model), model.__dict__
    if "_encode_frame" in own or "_decode_frame" in own or "_linear_overlap_add" in own:
        return True
    if kind._encode_frame.__module__ not in _KNOWN_METHODS or kind._decode_frame.__module__ not in _KNOWN_METHODS:
        return True
    return kind._linear_overlap_add.__module__ not in _KNOWN_METHODS


@cache
def _foreign_method(kind: Any) -> str | None:
    """Returns the method of this class that does not do what the plan does, or None."""
    for name in ("forward", "encode", "decode"):
        method = getattr(kind, name, None)
        if method is not None and method.__module__ not in _KNOWN_METHODS:
            return name
    return None


def _frames_reason(model: hf.EncodecModel) -> str | None:
    return f"{type(model).__name__} has an _encode_frame or _decode_frame of its own" if owns_frames(model) else None


def _gradients_reason(quantizer: nn.Module) -> str | None:
    """Returns why a lookup needs the reference's gradients: entries of codebooks, which are buffers, may ask for them."""
    asked = torch.is_grad_enabled() and any(buffer.requires_grad for buffer in quantizer.buffers())
    return "its codebooks ask for gradients" if asked else None


def _misfit(network: PreparedNetwork, x: Tensor) -> str | None:
    """Returns why the network can't take x, or None."""
    if x.numel() == 0:
        return "the input is empty"
    return _mismatch(x, network.in_channels, network.dtype, network.device) or _single_value(network, x)


def _mismatch(x: Tensor, channels: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Returns why what has `channels` inputs, this dtype and device can't take x, or None."""
    if x.dim() != 3 or x.shape[1] != channels:
        return f"the input has shape {list(x.shape)}, not [B, {channels}, T]"
    if x.dtype != dtype:
        return f"the input is {x.dtype}, the weights are {dtype}"
    if x.device != device:
        return f"the input is on {x.device}, the weights are on {device}"
    return None


def _codes_mismatch(quantizer: PreparedQuantizer, codes: Tensor, levels_dim: int) -> str | None:
    """Returns why codes, their levels in that dimension, can't be looked up, or None; their values are not looked at."""
    taken = codes.dim() == 3 and codes.numel() > 0 and codes.shape[levels_dim] <= quantizer.levels
    if taken and codes.dtype in CODE_DTYPES and codes.device == quantizer.device:
        return None
    return f"codes of shape {list(codes.shape)}, {codes.dtype} on {codes.device}"


def _single_value(network: PreparedNetwork, x: Tensor) -> str | None:
    """Returns why torch refuses this input: a group norm would see one value.  None for every other input."""
    if not network.norms_one_channel or x.shape[0] != 1:
        return None
    length = x.shape[-1]
    for stage in network.network.stages:
        length = stage.output_length(length)
        if length == 1 and stage.name in network.norms_one_channel:
            return f"{stage.name} would normalise a single value"
    return None
