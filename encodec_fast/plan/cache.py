"""Keeps what was derived from a module's weights for as long as the weights stay what they were."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from encodec_fast.forks import ForkSafeLock
from encodec_fast.plan.reader import inner_modules

T = TypeVar("T")


class PlanCache:
    """Derived values of one module, dropped when its weights change. Never pickled or copied along with the module."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock(self._forget)
        self._weights: WeightsSnapshot | None = None
        self._values: dict[Hashable, Any] = {}

    def _forget(self) -> None:
        self._weights, self._values = None, {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PlanCache, ()

    def get(self, module: nn.Module, key: Hashable, make: Callable[[], T]) -> T:
        """The value for `key`, made anew if the module's weights are not the ones it was made from."""
        with self._lock:
            if self._weights is None or not self._weights.still_hold(module):
                self._weights, self._values = WeightsSnapshot(module), {}
            if key not in self._values:
                self._values[key] = make()
            return self._values[key]


def cache_of(module: nn.Module) -> PlanCache:
    """The cache that lives on the module."""
    cache = module.__dict__.get("_plan_cache")
    if cache is None:
        cache = module.__dict__.setdefault("_plan_cache", PlanCache())
    return cache


def forget(module: nn.Module) -> None:
    """Drops what was derived from the module's weights."""
    module.__dict__.pop("_plan_cache", None)


class WeightsSnapshot:
    """Tells whether a parameter, buffer or submodule was replaced, moved, cast or edited in place since it was taken."""

    def __init__(self, module: nn.Module) -> None:
        modules = inner_modules(module)
        self._modules = _ids(modules)
        both = [cast("dict[str, Tensor | None]", owner) for child in modules for owner in (child._parameters, child._buffers)]
        self._owners = [owner for owner in both if owner]
        self._names = self._read_names()
        tensors = self._tensors()
        self._ids, self._pointers = _ids(tensors), _pointers(tensors)
        # inference tensors have no version
        self._versioned = [n for n, tensor in enumerate(tensors) if tensor is not None and not tensor.is_inference()]
        self._versions = self._versions_of(tensors)
        self._words = [word for tensor in tensors if tensor is not None for word in _sampled_words(tensor)]
        self._values = self._read_words()

    def still_hold(self, module: nn.Module) -> bool:
        """Whether `module`, the one the snapshot was taken of, still has those weights."""
        # in every call, list by list: a method for each tensor would take three times as long
        if _ids(inner_modules(module)) != self._modules or self._read_names() != self._names:
            return False
        tensors = self._tensors()
        return (
            _ids(tensors) == self._ids
            and _pointers(tensors) == self._pointers
            and self._versions_of(tensors) == self._versions
            # at addresses that the tensors are now known to have still
            and self._read_words() == self._values
        )

    def _read_names(self) -> list[list[str]]:
        return [list(owner) for owner in self._owners]

    def _tensors(self) -> list[Tensor | None]:
        return [tensor for owner in self._owners for tensor in owner.values()]

    def _versions_of(self, tensors: list[Tensor | None]) -> list[int]:
        return [tensors[n]._version for n in self._versioned]  # type: ignore[union-attr]

    def _read_words(self) -> list[int]:
        return [word.value for word in self._words]


def _ids(objects: Sequence[object]) -> list[int]:
    return list(map(id, objects))


def _pointers(tensors: list[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _sampled_words(tensor: Tensor) -> list[ctypes.c_int32]:
    # an edit through `.data` leaves the version counter alone: three words of each tensor show it, where reading them costs no sync
    count = tensor.numel() * tensor.element_size() // 4
    if count == 0 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return []
    return [ctypes.c_int32.from_address(tensor.data_ptr() + 4 * word) for word in (0, count // 2, count - 1)]
