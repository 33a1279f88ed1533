"""Collectives of a training step; without a process group each leaves its tensor as it is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Returns the number of ranks: 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sums the tensor over all ranks, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def least_over_ranks(tensor: Tensor) -> Tensor:
    """Takes the minimum over all ranks, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return tensor


def from_first_rank(tensor: Tensor) -> Tensor:
    """Gives all ranks the tensor of rank 0, in place; returns it."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Averages the gradients over all ranks, in place.

    In the place of DistributedDataParallel, whose hooks want the forward pass to run through it.
    Each rank must have gradients at the same parameters; those without one are left out.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not grads:
        return
    whole = torch.cat([grad.flatten() for grad in grads])
    sum_over_ranks(whole).div_(world_size())
    for grad, mean in zip(grads, whole.split([grad.numel() for grad in grads])):
        grad.copy_(mean.view_as(grad))
