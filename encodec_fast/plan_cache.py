"""Keeps what was derived from a module's weights for as long as the weights stay what they were."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor, nn

from encodec_fast.plan_reader import inner_modules

T = TypeVar("T")


class PlanCache:
    """Derived values of one module, dropped when its weights change. Never pickled or copied along with the module."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._fingerprint: tuple[Hashable, ...] = ()
        self._values: dict[Hashable, Any] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PlanCache, ()

    def get(self, module: nn.Module, key: Hashable, make: Callable[[], T]) -> T:
        """The value for `key`, made anew if the module's weights are not the ones it was made from."""
        fingerprint = weights_fingerprint(module)
        with self._lock:
            if fingerprint != self._fingerprint:
                self._fingerprint, self._values = fingerprint, {}
            if key not in self._values:
                self._values[key] = make()
            return self._values[key]


def cache_of(module: nn.Module) -> PlanCache:
    """The cache that lives on the module."""
    cache = module.__dict__.get("_plan_cache")
    if cache is None:
        cache = module.__dict__.setdefault("_plan_cache", PlanCache())
    return cache


def weights_fingerprint(module: nn.Module) -> tuple[Hashable, ...]:
    """A value that differs once a parameter, buffer or submodule was replaced, moved, cast or edited in place."""
    prints: list[Hashable] = []
    for child in inner_modules(module):
        prints.append(id(child))
        for tensors in (child._parameters, child._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    prints.append(_tensor_fingerprint(tensor))
    return tuple(prints)


def _tensor_fingerprint(tensor: Tensor) -> Hashable:
    pointer = tensor.data_ptr()
    version = 0 if tensor.is_inference() else tensor._version
    return id(tensor), pointer, version, tensor.dtype, _samples(tensor, pointer)


def _samples(tensor: Tensor, pointer: int) -> tuple[int, ...]:
    # an edit through `.data` leaves the version counter alone: three words of each tensor show it, where reading them costs no sync
    words = tensor.numel() * tensor.element_size() // 4
    if pointer == 0 or words == 0 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return ()
    return tuple(ctypes.c_int32.from_address(pointer + 4 * word).value for word in (0, words // 2, words - 1))
