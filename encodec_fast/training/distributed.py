"""The ranks of a training run, and the collectives of a step; without a process group each leaves its tensor as it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# Rank 0 validates and writes alone; NCCL's own 10 minutes would end the others meanwhile
_PATIENCE = timedelta(hours=2)


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the ranks that torchrun started while it lasts. Does nothing in a single process, or where a group was made.

    Raises ValueError for several ranks and a torch that was built without torch.distributed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or world_size() > 1:
        yield
        return
    if not dist.is_available():
        raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but this torch has no torch.distributed. Start one process.")
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Returns the number of ranks: 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this rank, from 0 on: 0 where no process group was made."""
    return dist.get_rank() if world_size() > 1 else 0


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


def any_over_ranks(asked: bool) -> bool:
    """Tells whether it is true on any rank."""
    return asked if world_size() == 1 else bool(sum_over_ranks(torch.tensor(int(asked))))


def average_over_ranks(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the means of scalars over all ranks, in one message; each rank must have the same names."""
    if world_size() == 1:
        return losses
    means = sum_over_ranks(torch.stack(list(losses.values()))) / world_size()
    return dict(zip(losses, means))


def place_of_rows(count: int, device: torch.device) -> tuple[int, int]:
    """Returns where this rank's rows begin among those of all ranks in turn, and how many all are."""
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = count
    found = sum_over_ranks(counts).tolist()
    return sum(found[: rank()]), sum(found)


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """Returns the rows [R, ...] of all ranks, one rank after the other."""
    if world_size() == 1:
        return rows
    first, total = place_of_rows(len(rows), rows.device)
    whole = rows.new_zeros(total, *rows.shape[1:])
    whole[first : first + len(rows)] = rows
    return sum_over_ranks(whole)


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
