"""Gradients: the forward pass is ours, the backward pass differentiates the reference modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RecomputedBackward(torch.autograd.Function):
    """Runs `fast(x)` forward; backward recomputes `reference(x)` under autograd, so that gradients are exactly the reference's."""

    @staticmethod
    def forward(
        ctx: Any, fast: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.reference = reference
        # with saved parameters autograd refuses a backward pass after they were edited in place, as for the reference
        ctx.save_for_backward(x, *parameters)
        return fast(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        x, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            if not create_graph:
                x = x.detach().requires_grad_(needed[0])
            y = ctx.reference(x)
            inputs = [tensor for tensor, need in zip([x, *parameters], needed) if need]
            grads = iter(torch.autograd.grad(y, inputs, grad_outputs, create_graph=create_graph, allow_unused=True))
        return None, None, *(next(grads) if need else None for need in needed)


def with_recomputed_backward(
    module: nn.Module, fast: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """Returns `fast(x)`, differentiable through `reference` where grad mode and some input ask for it."""
    if not torch.is_grad_enabled():
        return fast(x)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not (x.requires_grad or parameters):
        return fast(x)
    return RecomputedBackward.apply(fast, reference, x, *parameters)
