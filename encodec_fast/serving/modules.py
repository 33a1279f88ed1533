"""Calls of an encoder, a decoder or a quantizer by itself: the plan where the gate lets them, else the reference modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from encodec_fast.backends import torch_export
from encodec_fast.plan.reader import read_network, read_quantizer
from encodec_fast.serving.autograd import with_recomputed_backward
from encodec_fast.serving.request import log_once
from encodec_fast.serving.route import Route, is_exporting, note_reference, route_export, route_lookup, route_network, route_search

Prepared = TypeVar("Prepared")


def run_network(module: nn.Module, x: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
    """Runs an encoder or decoder: [B, C, T] -> [B, C_out, T_out], with the reference's gradients."""
    if is_exporting():
        return _exported(module, read_network, lambda network: torch_export.run_network(network, x), lambda: reference(x))
    network = _prepared(route_network, module, x)
    return reference(x) if network is None else with_recomputed_backward(module, network.run, reference, x)


def run_search(module: nn.Module, x: Tensor, num_quantizers: int, reference: Callable[[], Tensor]) -> Tensor:
    """Runs the quantizer's encode: embeddings [B, D, F] -> codes [K, B, F]."""
    if is_exporting():
        return _exported(module, read_quantizer, lambda quantizer: torch_export.search(quantizer, x, num_quantizers), reference)
    quantizer = _prepared(route_search, module, x)
    return reference() if quantizer is None else quantizer.search(x.detach(), num_quantizers)


def run_lookup(module: nn.Module, codes: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
    """Runs the quantizer's decode: codes [K, B, F] -> embeddings [B, D, F]."""
    if is_exporting():
        return _exported(module, read_quantizer, lambda quantizer: torch_export.look_up(quantizer, codes), lambda: reference(codes))
    quantizer = _prepared(route_lookup, module, codes)
    if quantizer is not None:
        try:
            return quantizer.program.decode(codes)
        except IndexError:
            # a code outside the codebook: the reference says so in its own words
            pass
    return reference(codes)


def _prepared(route: Callable[[nn.Module, Tensor], Route[Prepared]], module: nn.Module, x: Tensor) -> Prepared | None:
    """Returns what serves the call, or None where the reference does, which is logged."""
    found = route(module, x)
    if found.prepared is None:
        note_reference(module, found.reason)
    return found.prepared


def _exported(
    module: nn.Module, read: Callable[[nn.Module], Prepared], run: Callable[[Prepared], Tensor], reference: Callable[[], Tensor]
) -> Tensor:
    """Returns what `run` makes of what is read of the module, in operations that torch exports; else what the reference makes."""
    part = exported_part(module, read)
    if part is None:
        return reference()
    with torch_export.any_length():
        return run(part)


def exported_part(module: nn.Module, read: Callable[[nn.Module], Prepared]) -> Prepared | None:
    """Returns what `read` reads of a module that is being exported; None where the reference is exported instead, which is logged."""
    if torch.compiler.is_dynamo_compiling():
        # strict=True, under which torch follows neither what reads a plan nor the log
        return None
    found = route_export(module, read)
    if found.prepared is None:
        log_once(f"{type(module).__name__} is exported as the reference modules are ({found.reason})")
    return found.prepared
