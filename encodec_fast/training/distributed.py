"""The ranks of a training run, and the collectives of a step; without a process group each leaves its tensor as it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
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


class PairwiseSum:
    """Sums tensors in the order of a binary tree: neighbours first, then neighbours of these sums, and so on.

    Parts 0 to 3 give (0 + 1) + (2 + 3). So a rank with four parts, two with two and four with one add alike, and have the same bits.
    It holds the logarithm of the number of parts.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[int, list[Tensor]]] = []  # of how many parts each is, fewer towards the end

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Adds the tensors of the next part, as many as the first part has; they are changed."""
        parts, own = 1, list(tensors)
        while self._sums and self._sums[-1][0] == parts:
            own, parts = _added(self._sums.pop()[1], own), 2 * parts
        self._sums.append((parts, own))

    def total(self) -> list[Tensor]:
        """Returns the sums over all parts, of which there must be one; ends the sum."""
        own = self._sums.pop()[1]
        while self._sums:
            own = _added(self._sums.pop()[1], own)
        return own


def _added(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    return [one.add_(other) for one, other in zip(left, right, strict=True)]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sums the tensor over all ranks in the order of `PairwiseSum`, in place; returns it."""
    if world_size() > 1:
        # not all_reduce: a ring begins each slice of the sum at another rank
        ranks = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(ranks, tensor)
        whole = PairwiseSum()
        for each in ranks:
            whole.add([each])
        tensor.copy_(whole.total()[0])
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


def mean_over_parts(parts: Sequence[Tensor]) -> Tensor:
    """Returns the mean of a tensor over the parts of the batch on all ranks, which have equally many."""
    whole = PairwiseSum()
    for part in parts:
        whole.add([part.detach().clone()])
    return sum_over_ranks(whole.total()[0]) / (len(parts) * world_size())


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


class MeanGradients:
    """Averages gradients over the parts of a batch on this rank and all others, in the order of `PairwiseSum`.

    In the place of DistributedDataParallel: its hooks want the forward pass to run through it, and its sums have another order.
    Each part must give gradients to the same parameters; those without one are left out.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._sum, self._parts = PairwiseSum(), 0
        self._clear()

    def add(self) -> None:
        """Takes the gradients of one part from the parameters, which are without any then."""
        self._sum.add([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        self._learning = [parameter for parameter in self._parameters if parameter.grad is not None]
        self._parts += 1
        self._clear()

    def finish(self) -> None:
        """Puts the means into the parameters' `grad`."""
        grads = self._sum.total()
        if world_size() > 1 and grads:
            # one message for all
            whole = sum_over_ranks(torch.cat([grad.flatten() for grad in grads]))
            grads = [part.view_as(grad) for grad, part in zip(grads, whole.split([grad.numel() for grad in grads]))]
        for parameter, grad in zip(self._learning, grads):
            parameter.grad = grad.div_(self._parts * world_size())

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
