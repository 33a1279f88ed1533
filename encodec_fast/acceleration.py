"""Turns the EnCodec models inside any module into ours, in place, and back."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from torch import nn
from transformers.models.encodec import modeling_encodec as hf

from encodec_fast.model import FAST_PARTS, EncodecModel
from encodec_fast.serving import compiled

_REPLACEMENTS: dict[type, type] = {hf.EncodecModel: EncodecModel, **FAST_PARTS}


@dataclass(frozen=True)
class Change:
    """One submodule whose class was exchanged.

    name: its path inside the module, "" for the module itself.  module: the submodule.  before, after: its classes.
    """

    name: str
    module: nn.Module
    before: type
    after: type


class Acceleration:
    """What `accelerate` changed.  `restore()` undoes it; as a context manager it restores at the end of the block.

    changes: one for each submodule, in the order of `named_modules`.
    """

    def __init__(self, changes: tuple[Change, ...]) -> None:
        self.changes = changes

    def restore(self) -> None:
        """Restores the class of every changed submodule; safe to call twice."""
        for change in self.changes:
            if type(change.module) is change.after:
                change.module.__class__ = change.before
                for name in ("_plan_cache", "_compiled_number", "_has_graphs"):
                    change.module.__dict__.pop(name, None)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    def __repr__(self) -> str:
        lines = [f"  {change.name or '(the module itself)'}: {change.after.__module__}.{change.after.__name__}" for change in self.changes]
        return "\n".join([f"Acceleration of {len(self.changes)} submodules", *lines])


def accelerate(module: nn.Module) -> Acceleration:
    """Exchanges the classes of all EnCodec models (and of encoders, decoders and quantizers on their own) inside `module`.

    Weights, buffers, device, dtype, hooks and the identity of every object stay.
    Subclasses of transformers' classes are left alone, because they are somebody's own.
    Returns what was changed, with `restore()`.
    Raises TypeError if `module` is no nn.Module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}.")
    changes = []
    for name, child in module.named_modules():
        before = type(child)
        if before in _REPLACEMENTS:
            child.__class__ = _REPLACEMENTS[before]
            if isinstance(child, compiled.Enrolled):
                compiled.enroll(child)
            changes.append(Change(name, child, before, type(child)))
    return Acceleration(tuple(changes))
