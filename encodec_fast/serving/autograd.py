"""Gradients: the forward pass is ours, the backward pass differentiates the reference modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class RecomputedBackward(torch.autograd.Function):
    """Runs `fast(x)` forward; backward recomputes `reference(x)` under autograd, so that gradients are exactly the reference's.

    module: the one whose forward `reference` is.  names, parameters: of those that ask for gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        fast: Callable[[Tensor], Tensor],
        reference: Callable[[Tensor], Tensor],
        module: nn.Module,
        names: Sequence[str],
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.reference, ctx.module, ctx.names = reference, module, names
        # with saved parameters autograd refuses a backward pass after they were edited in place, as for the reference
        ctx.save_for_backward(x, *parameters)
        return fast(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        x, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        with torch.enable_grad(), _with_parameters(ctx.module, ctx.names, parameters):
            if not create_graph:
                x = x.detach().requires_grad_(needed[0])
            y = ctx.reference(x)
            inputs = [tensor for tensor, need in zip([x, *parameters], needed) if need]
            grads = iter(torch.autograd.grad(y, inputs, grad_outputs, create_graph=create_graph, allow_unused=True))
        return None, None, None, None, *(next(grads) if need else None for need in needed)


@contextmanager
def _with_parameters(module: nn.Module, names: Sequence[str], parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gives the module the parameters of the forward call for the block.

    They are its own, unless they were swapped since: `torch.func.functional_call` lends them for the forward call only.
    """
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    for name, parameter in zip(names, parameters):
        path, _, leaf = name.rpartition(".")
        owner: dict[str, Any] = module.get_submodule(path)._parameters
        if owner.get(leaf) is not parameter:
            swapped.append((owner, leaf, owner.get(leaf)))
            owner[leaf] = parameter
    try:
        yield
    finally:
        for owner, leaf, before in swapped:
            owner[leaf] = before


def with_recomputed_backward(
    module: nn.Module, fast: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """Returns `fast(x)`, differentiable through `reference` where grad mode and some input ask for it."""
    if not torch.is_grad_enabled():
        return fast(x)
    asking = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not (x.requires_grad or asking):
        return fast(x)
    return RecomputedBackward.apply(fast, reference, module, tuple(asking), x, *asking.values())
