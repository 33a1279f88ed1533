"""Which backend runs which stage of a call, and why.

Every step away from the preferred backend is logged once with its reason, on the logger "encodec_fast", and shown by `explain`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from encodec_fast.backends import registry
from encodec_fast.backends.base import Backend
from encodec_fast.backends.registry import get_backend
from encodec_fast.plan import Quantizer, Stage, stage_tensors
from encodec_fast.plan.cache import cache_of
from encodec_fast.plan.reader import Unplannable, read_network, read_quantizer
from encodec_fast.serving.autograd import with_recomputed_backward
from encodec_fast.serving.prepared import Choice, PreparedNetwork, PreparedQuantizer, note_graphs
from encodec_fast.serving.reasons import call_reason, codes_mismatch, is_exporting, mismatch, reference_reason, single_value_reason
from encodec_fast.serving.request import REFERENCE, BackendError, Request, log_once, requested

Prepared = TypeVar("Prepared")


def choose(stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device, request: Request) -> Choice:
    """The backend that runs the stage.  Raises BackendError where a backend demanded by name can't."""
    named = request.backend not in ("auto", REFERENCE)
    order = (request.backend, "torch") if named else registry.PREFERENCE.get(device.type, ("torch",))
    refused: list[str] = []
    for name in (name for name in order if name in registry.BACKENDS):
        reason = get_backend(name).unavailable()
        if reason is not None and named and name == request.backend:
            raise BackendError(f"backend {name!r} was asked for but is not available: {reason}")
        reason = reason or get_backend(name).refusal(stage, dtype, device)
        if reason is None:
            return Choice(name, "; ".join(refused))
        if request.strict and named:
            raise BackendError(f"backend {name!r} was asked for but can't run this call: {reason}")
        refused.append(f"{name}: {reason}")
    raise AssertionError("the torch backend refuses nothing")


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
    if is_exporting():
        # as HF's own: what follows can't be traced
        return reference()
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
        return PreparedQuantizer(quantizer, choice, get_backend(choice.backend).prepare_quantizer(quantizer))

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
    """As `Backend.overlap_add` of the backend in force; None where it has no kernel for it, under autograd and inside torch.compile."""
    able = _plain_backend(*chunks)
    return able.overlap_add(chunks, weight, stride, length) if able else None


def normalize(audio: Tensor) -> tuple[Tensor, Tensor] | None:
    """As `Backend.normalize` of the backend in force; None where it has no kernel for it, under autograd and inside torch.compile."""
    able = _plain_backend(audio)
    return able.normalize(audio) if able else None


def _plain_backend(*tensors: Tensor) -> Backend | None:
    """What runs functions that have no weights, or None where torch does."""
    if is_exporting():
        return None
    first, backend = tensors[0], requested().backend
    if call_reason(first) or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return None
    preferred = registry.PREFERENCE.get(first.device.type, ()) if backend == "auto" else (backend,)
    # a backend that is missing says so where the networks run
    return next((get_backend(name) for name in preferred if name in registry.BACKENDS and get_backend(name).unavailable() is None), None)


def note_reference(module: nn.Module, reason: str, request: Request) -> None:
    """Logs that the reference modules run.  Raises BackendError where a backend was demanded by name."""
    if request.backend == REFERENCE:
        return
    if request.strict and request.backend != "auto":
        raise BackendError(f"backend {request.backend!r} was asked for but {type(module).__name__} can't use it: {reason}")
    log_once(f"{type(module).__name__} runs on the reference modules ({reason})")
