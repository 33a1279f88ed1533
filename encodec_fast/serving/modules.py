"""Calls of an encoder, a decoder or a quantizer by itself: the plan where the gate lets them, else the reference modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from encodec_fast.serving.autograd import with_recomputed_backward
from encodec_fast.serving.route import is_exporting, note_reference, route_lookup, route_network, route_search


def run_network(module: nn.Module, x: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
    """Runs an encoder or decoder: [B, C, T] -> [B, C_out, T_out], with the reference's gradients."""
    if is_exporting():
        # what follows can't be traced
        return reference(x)
    route = route_network(module, x)
    if route.prepared is None:
        note_reference(module, route.reason)
        return reference(x)
    return with_recomputed_backward(module, route.prepared.run, reference, x)


def run_search(module: nn.Module, x: Tensor, num_quantizers: int, reference: Callable[[], Tensor]) -> Tensor:
    """Runs the quantizer's encode: embeddings [B, D, F] -> codes [K, B, F]."""
    if is_exporting():
        return reference()
    route = route_search(module, x)
    if route.prepared is None:
        note_reference(module, route.reason)
        return reference()
    return route.prepared.search(x.detach(), num_quantizers)


def run_lookup(module: nn.Module, codes: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
    """Runs the quantizer's decode: codes [K, B, F] -> embeddings [B, D, F]."""
    if is_exporting():
        return reference(codes)
    route = route_lookup(module, codes)
    if route.prepared is None:
        note_reference(module, route.reason)
        return reference(codes)
    try:
        return route.prepared.program.decode(codes)
    except IndexError:
        # a code outside the codebook: the reference says so in its own words
        return reference(codes)
