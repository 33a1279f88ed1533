"""Which weights a module has: whether they changed since, and by what they are known elsewhere."""

from __future__ import annotations

import ctypes
import hashlib
import zlib
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from encodec_fast.forks import ForkSafeLock
from encodec_fast.plan.stages import Network, stage_weights

T = TypeVar("T")

FINGERPRINT_VALUES = 64

_version = attrgetter("_version")
_value = attrgetter("value")


class _Derived(NamedTuple):
    """Values that were derived from weights."""

    weights: WeightsSnapshot
    values: dict[Hashable, Any]


class PlanCache:
    """Derived values of one module, dropped when its weights change. Never pickled or copied along with the module."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock(self._forget)
        self._derived: _Derived | None = None

    def _forget(self) -> None:
        self._derived = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PlanCache, ()

    def get(self, modules: Sequence[nn.Module], key: Hashable, make: Callable[[], T]) -> T:
        """Returns the value for `key`, made anew if the weights are not the ones it was made from.

        modules: all modules below the one whose weights these are, always in the same order.
        """
        derived = self._derived
        # without the lock: `_derived` is replaced as a whole, and a value is there or is not
        if derived is not None and key in derived.values and derived.weights.still_hold(modules):
            return cast(T, derived.values[key])
        with self._lock:
            derived = self._derived
            if derived is None or not derived.weights.still_hold(modules):
                derived = self._derived = _Derived(WeightsSnapshot(modules), {})
            if key not in derived.values:
                derived.values[key] = make()
            return cast(T, derived.values[key])


def cache_of(module: nn.Module) -> PlanCache:
    """Returns the cache that lives on the module."""
    cache = module.__dict__.get("_plan_cache")
    if cache is None:
        cache = module.__dict__.setdefault("_plan_cache", PlanCache())
    return cache


def forget(module: nn.Module) -> None:
    """Drops what was derived from the module's weights."""
    module.__dict__.pop("_plan_cache", None)


class WeightsSnapshot:
    """Tells whether a parameter, buffer or submodule was replaced, moved, cast or edited in place since it was taken.

    modules: as of `PlanCache.get`.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        # held, so that no other module can get the place in memory of one of them
        self._held, self._modules = list(modules), list(map(id, modules))
        both = [cast("dict[str, Tensor | None]", owner) for module in modules for owner in (module._parameters, module._buffers)]
        self._owners = [owner for owner in both if owner]
        self._names = list(map(list, self._owners))
        slots = list(chain.from_iterable(map(dict.values, self._owners)))
        self._ids = list(map(id, slots))
        self._tensors = [tensor for tensor in slots if tensor is not None]
        self._pointers = list(map(Tensor.data_ptr, self._tensors))
        # inference tensors have no version
        self._versioned = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._versions = list(map(_version, self._versioned))
        self._words = [word for tensor in self._tensors for word in _sampled_words(tensor)]
        self._values = list(map(_value, self._words))

    def still_hold(self, modules: Sequence[nn.Module]) -> bool:
        """Returns whether `modules`, those the snapshot was taken of, still have those weights."""
        # in every call, hence list by list in C
        return (
            list(map(id, modules)) == self._modules
            and list(map(list, self._owners)) == self._names
            # the same tensors, whose memory and version may be others
            and list(map(id, chain.from_iterable(map(dict.values, self._owners)))) == self._ids
            and list(map(Tensor.data_ptr, self._tensors)) == self._pointers
            and list(map(_version, self._versioned)) == self._versions
            # at addresses that the tensors are now known to have still
            and list(map(_value, self._words)) == self._values
        )


def _sampled_words(tensor: Tensor) -> list[ctypes.c_int32]:
    # an edit through `.data` leaves the version counter alone: three words of each tensor show it, where reading them costs no sync
    count = tensor.numel() * tensor.element_size() // 4
    if count == 0 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return []
    return [ctypes.c_int32.from_address(tensor.data_ptr() + 4 * word) for word in (0, count // 2, count - 1)]


def weights_sha256(model: torch.nn.Module) -> str:
    """Returns the SHA-256 in hex over every tensor in the state dict, in order of name.

    It covers names, dtypes, shapes and bytes, so equal weights have equal hashes on any device.
    A safetensors file's own hash also depends on how it was written.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        # bytes, not values: numpy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint(network: Network) -> int:
    """Returns a CRC-32 of the first values of each layer's weights: it tells two models apart, and costs little."""
    parts = [weight.detach().flatten()[:FINGERPRINT_VALUES].float() for stage in network.stages for weight in stage_weights(stage)]
    return zlib.crc32(torch.cat(parts).cpu().numpy().tobytes())
