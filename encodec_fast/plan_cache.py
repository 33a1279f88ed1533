"""Keeps what was derived from a module's weights for as long as the weights stay what they were."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from encodec_fast.plan_reader import inner_modules

T = TypeVar("T")


class PlanCache:
    """Derived values of one module, dropped when its weights change. Never pickled or copied along with the module."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._weights: WeightsSnapshot | None = None
        self._values: dict[Hashable, Any] = {}

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


class WeightsSnapshot:
    """Tells whether a parameter, buffer or submodule was replaced, moved, cast or edited in place since it was taken."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = _module_ids(module)
        self._owners: list[tuple[dict[str, Any], int]] = []
        self._tensors: list[_TensorSnapshot] = []
        for child in inner_modules(module):
            for owner in cast(tuple[dict[str, Any], ...], (child._parameters, child._buffers)):
                if owner:
                    self._owners.append((owner, len(owner)))
                    self._tensors += [_TensorSnapshot(owner, key, tensor) for key, tensor in owner.items() if tensor is not None]

    def still_hold(self, module: nn.Module) -> bool:
        """Whether `module`, the one the snapshot was taken of, still has those weights."""
        return (
            _module_ids(module) == self._modules
            and all(len(owner) == size for owner, size in self._owners)
            and all(tensor.still_holds() for tensor in self._tensors)
        )


class _TensorSnapshot:
    __slots__ = ("_id", "_key", "_owner", "_pointer", "_values", "_version", "_words")

    def __init__(self, owner: dict[str, Any], key: str, tensor: Tensor) -> None:
        self._owner, self._key, self._id = owner, key, id(tensor)
        self._pointer = tensor.data_ptr()
        # inference tensors have no version
        self._version = None if tensor.is_inference() else tensor._version
        self._words = _sampled_words(tensor)
        self._values = [word.value for word in self._words]

    def still_holds(self) -> bool:
        tensor = self._owner.get(self._key)
        return (
            tensor is not None
            and id(tensor) == self._id
            and tensor.data_ptr() == self._pointer
            and (self._version is None or tensor._version == self._version)
            and [word.value for word in self._words] == self._values
        )


def _sampled_words(tensor: Tensor) -> list[ctypes.c_int32]:
    # an edit through `.data` leaves the version counter alone: three words of each tensor show it, where reading them costs no sync
    count = tensor.numel() * tensor.element_size() // 4
    if count == 0 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return []
    return [ctypes.c_int32.from_address(tensor.data_ptr() + 4 * word) for word in (0, count // 2, count - 1)]


def _module_ids(module: nn.Module) -> list[int]:
    return list(map(id, inner_modules(module)))
