"""Programs that run clips of equal length in one tensor; clips at different positions in time run as separate groups.

A batch's state is a tree of lists and dataclasses. Its leaves are tensors and counts.
A tensor's batch dimension is 0, or what the dataclass field's metadata says.
Counts are the same for all clips of the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from encodec_fast.backends.base import StageProgram

BATCH_DIM = "batch_dim"


class ClipState:
    """One clip's position in a program: the state of a batch of one."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.ended = False


class BatchedProgram(StageProgram):
    """A program that runs batches [B, C, T]."""

    out_channels: int

    def run(self, x: Tensor) -> Tensor:
        """Runs whole clips [B, C_in, T] to [B, C_out, T_out] by one push and one flush."""
        return self.push_batch(x, self.open_batch(x.shape[0]), final=True)

    @abstractmethod
    def open_batch(self, batch: int) -> Any:
        """Returns a fresh state tree for `batch` clips that start at time zero."""

    @abstractmethod
    def push_batch(self, x: Tensor, state: Any, final: bool) -> Tensor:
        """Runs `push` on clips [B, C_in, T] at the same position in time."""

    def split(self, state: Any, batch: int) -> list[Any]:
        """Returns the state tree of each clip."""
        return split_tree(state, batch)

    def join(self, states: Sequence[Any]) -> Any:
        """Returns the state tree of a batch of clips at the same position in time."""
        return join_trees(states)

    def open(self) -> ClipState:
        """Returns the state of one clip at time zero."""
        return ClipState(self.open_batch(1))

    def push(self, pieces: Sequence[Tensor], states: Sequence[ClipState], final: Sequence[bool]) -> list[Tensor]:
        """Pushes each clip's next piece; clips at the same position in time run together.  Raises ValueError after a clip's end."""
        groups: dict[tuple[bool, bool, int, Hashable], list[int]] = defaultdict(list)
        for index, (piece, state, ends) in enumerate(zip(pieces, states, final, strict=True)):
            if state.ended and (piece.shape[1] or ends):
                raise ValueError("this clip has ended: open a new state")
            groups[state.ended, bool(ends), piece.shape[1], place(state.tree)].append(index)
        outputs: dict[int, Tensor] = {}
        for (ended, ends, _, _), members in groups.items():
            x = torch.stack([pieces[index] for index in members])
            if ended:
                outputs |= zip(members, self.nothing(x))
                continue
            tree = self.join([states[index].tree for index in members])
            outputs |= zip(members, self.push_batch(x, tree, ends))
            for index, clip in zip(members, self.split(tree, len(members))):
                states[index].tree, states[index].ended = clip, ends
        return [outputs[index] for index in range(len(pieces))]

    def nothing(self, x: Tensor) -> Tensor:
        """Returns an output of no steps for the clips of x."""
        return x.new_empty(x.shape[0], self.out_channels, 0)

    def save(self, state: ClipState) -> list[Any]:
        """Returns a clip's state as nested lists of tensors, integers and None."""
        return [int(state.ended), plain(state.tree)]

    def load(self, saved: Any) -> ClipState:
        """Restores the state that `save` returned.  Raises ValueError for a state of other stages."""
        state = self.open()
        try:
            ended, tree = saved
            tree = filled(state.tree, tree)
            if type(ended) is not int or ended not in (0, 1):
                raise ValueError(f"found the end {ended!r}")
            # the tree of an ended clip is never read again
            if not ended and not self.reachable(tree):
                raise ValueError("its counts and sizes do not go together")
        except (TypeError, ValueError) as error:
            raise ValueError("this is not the state of a clip in such a program") from error
        state.ended, state.tree = bool(ended), state.tree if ended else tree
        return state

    @abstractmethod
    def reachable(self, tree: Any) -> bool:
        """Tells whether some pushes lead to the counts and tensor sizes of one clip's tree."""

    def ended(self, state: ClipState) -> bool:
        """Tells whether the clip has ended."""
        return state.ended


def _mapped(trees: Sequence[Any], leaf: Callable[[list[Any], int], Any], dim: int = 0) -> Any:
    """Returns a tree like each of `trees`, with leaf(their leaves, batch dimension) at its leaves."""
    first = trees[0]
    if is_dataclass(first) and not isinstance(first, type):
        parts = {f.name: _mapped([getattr(tree, f.name) for tree in trees], leaf, f.metadata.get(BATCH_DIM, 0)) for f in fields(first)}
        return replace(first, **parts)
    if isinstance(first, (list, tuple)):
        return type(first)(_mapped(parts, leaf, dim) for parts in zip(*trees, strict=True))
    return leaf(list(trees), dim)


def join_trees(trees: Sequence[Any]) -> Any:
    """Joins several batches at the same `place` into one."""
    return _mapped(trees, lambda leaves, dim: torch.cat(leaves, dim) if isinstance(leaves[0], Tensor) else leaves[0])


def split_tree(tree: Any, batch: int) -> list[Any]:
    """Splits a batch into one tree per clip."""

    def clip(index: int) -> Any:
        # a copy, since a view would keep the whole batch's memory
        return _mapped([tree], lambda leaves, dim: leaves[0].narrow(dim, index, 1).clone() if isinstance(leaves[0], Tensor) else leaves[0])

    return [tree] if batch == 1 else [clip(index) for index in range(batch)]


def place(tree: Any) -> Hashable:
    """Returns a key of the counts and tensor sizes, equal for two clips' trees if they can be joined."""
    leaves: list[Hashable] = []
    _mapped([tree], lambda found, dim: leaves.append(found[0].shape if isinstance(found[0], Tensor) else found[0]))
    return tuple(leaves)


def is_like(found: Tensor | None, like: Tensor, *shape: int) -> bool:
    """Tells whether `found` is a tensor of this shape, of the dtype and on the device of `like`."""
    return found is not None and found.shape == shape and found.dtype == like.dtype and found.device == like.device


def plain(tree: Any) -> Any:
    """Returns the tree as lists, its dataclasses as lists of their fields."""
    if is_dataclass(tree):
        return [plain(getattr(tree, f.name)) for f in fields(tree)]
    if isinstance(tree, (list, tuple)):
        return [plain(part) for part in tree]
    return tree.clone() if isinstance(tree, Tensor) else tree


def filled(fresh: Any, saved: Any) -> Any:
    """Rebuilds the tree that `plain` turned into `saved`.

    fresh: a tree of the same program.  Raises ValueError where they don't match.
    """
    if is_dataclass(fresh) and not isinstance(fresh, type):
        names = [f.name for f in fields(fresh)]
        return replace(fresh, **{name: filled(getattr(fresh, name), part) for name, part in zip(names, saved, strict=True)})
    if isinstance(fresh, (list, tuple)):
        return type(fresh)(filled(part, other) for part, other in zip(fresh, saved, strict=True))
    allowed: tuple[type, ...] = (type(fresh),) if isinstance(fresh, int) else (Tensor, type(None))
    if type(saved) not in allowed:
        raise ValueError(f"found {type(saved).__name__}")
    return saved
