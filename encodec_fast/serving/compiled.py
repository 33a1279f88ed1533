"""The plan under `torch.compile`: encoder, decoder, search and sum as opaque ops with shapes that follow the plan.

The graph holds a module's number, not its weights. So plans, weight edits and backends are honoured at run time, as in eager mode.
The ops carry no gradient: where one is asked for, the reference modules are traced instead.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from encodec_fast.serving.modules import run_search as search
from encodec_fast.serving.route import is_exporting

_modules: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def enroll(module: Any) -> None:
    """Gives the module a number of its own in this process."""
    module._compiled_number = next(_numbers)
    _modules[module._compiled_number] = module


def number_of(module: Any) -> int:
    """Returns the module's number: an attribute and nothing else, which every torch can trace."""
    number: int = module._compiled_number
    return number


class Enrolled:
    """Mixed into a module: it has a number; its copies and what is unpickled have their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        enroll(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        enroll(self)


def traceable(module: nn.Module, x: Tensor) -> bool:
    """Returns whether a call that is being compiled may be one op.

    No gradient is asked for and the graph stays in this process. The shape of the result follows from the convolutions.
    """
    if not torch.compiler.is_compiling() or is_exporting() or not _has_own_convs(module):
        return False
    if not torch.is_grad_enabled():
        return True
    # only now: torch before 2.7 can't trace a walk over modules that hold an LSTM
    return not (x.requires_grad or any(parameter.requires_grad for parameter in module.parameters()))


def _has_own_convs(module: Any) -> bool:
    """Returns whether no convolution was replaced by another kind of module, as LoRA does: its stride and channels are its own."""
    for layer in getattr(module, "layers", ()):
        if not isinstance(getattr(layer, "conv", None), nn.Conv1d | nn.ConvTranspose1d | None):
            return False
    return True


@torch.library.custom_op("encodec_fast::run_network", mutates_args=())
def run_network(x: Tensor, module: int) -> Tensor:
    """Runs encoder or decoder number `module` on x [B, C, T]; the result is contiguous."""
    network: Any = _modules[module]
    with torch.no_grad():
        # not a call: its hooks are traced already
        return type(network).forward(network, x).contiguous()


@run_network.register_fake
def _(x: Tensor, module: int) -> Tensor:
    layers: Any = _modules[module].layers
    length = x.shape[-1]
    for layer in layers:
        conv = getattr(layer, "conv", None)
        if isinstance(conv, nn.ConvTranspose1d):
            length = length * conv.stride[0]
        elif isinstance(conv, nn.Conv1d):
            length = -(-length // conv.stride[0])
    return x.new_empty(x.shape[0], layers[-1].conv.out_channels, length)


@torch.library.custom_op("encodec_fast::run_search", mutates_args=())
def run_search(x: Tensor, num_quantizers: int, module: int) -> Tensor:
    """Returns codes [num_quantizers, B, F] of embeddings x [B, D, F] by quantizer number `module`."""
    quantizer: Any = _modules[module]

    def reference() -> Tensor:
        residual, codes = x, []
        for layer in quantizer.layers[:num_quantizers]:
            codes.append(layer.encode(residual))
            residual = residual - layer.decode(codes[-1])
        return torch.stack(codes)

    return search(quantizer, x, num_quantizers, reference).contiguous()


@run_search.register_fake
def _(x: Tensor, num_quantizers: int, module: int) -> Tensor:
    return x.new_empty(num_quantizers, x.shape[0], x.shape[2], dtype=torch.int64)


@torch.library.custom_op("encodec_fast::run_lookup", mutates_args=())
def run_lookup(codes: Tensor, module: int) -> Tensor:
    """Returns embeddings [B, D, F] of codes [K, B, F] by quantizer number `module`."""
    quantizer: Any = _modules[module]
    return type(quantizer).decode(quantizer, codes).contiguous()


@run_lookup.register_fake
def _(codes: Tensor, module: int) -> Tensor:
    quantizer: Any = _modules[module]
    embed = quantizer.layers[0].codebook.embed
    return codes.new_empty(codes.shape[1], embed.shape[1], codes.shape[2], dtype=embed.dtype)
