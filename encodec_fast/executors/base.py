"""What a backend is: it prepares stages once and then runs clips through them, whole or in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from encodec_fast.plan import Quantizer, Stage


class StageProgram(ABC):
    """A run of consecutive stages, with weights laid out for one backend.

    One law covers `run` and `push`: pushed in any pieces equals run whole, bit for bit where `exact` is true, to rounding elsewhere.
    """

    exact: bool = False

    def run(self, x: Tensor) -> Tensor:
        """Whole clips [B, C_in, T] -> [B, C_out, T_out]: one push and one flush."""
        return self.push(x, self.open(x.shape[0]), final=True)

    @abstractmethod
    def open(self, batch: int) -> Any:
        """A fresh state for `batch` clips that start at time zero."""

    @abstractmethod
    def push(self, x: Tensor, state: Any, final: bool) -> Tensor:
        """The output that the next piece of time completes; `state` moves on in place.

        x: [B, C_in, T], T may be 0.  Returns [B, C_out, T_out], T_out may be 0.
        final: the clips end with this piece, and everything still owed comes out.
        """


class QuantizerProgram(ABC):
    """The stacked codebooks, laid out for one backend."""

    @abstractmethod
    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        """Codes [num_quantizers, B, F], int64, of embeddings x [B, D, F]; on equal distances the lowest index."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Sum of the entries [B, D, F] that codes [K, B, F] name.  Raises IndexError for a code outside the codebook."""


class Executor(ABC):
    """A backend. Building one probes nothing; `unavailable` does."""

    name: str

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this machine can't use the backend and how to change that, or None."""

    @abstractmethod
    def refusal(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the backend can't run this stage on such tensors, or None. Declared limits only; errors are not limits."""

    @abstractmethod
    def prepare(self, stages: tuple[Stage, ...]) -> StageProgram:
        """Lays out the weights of consecutive stages."""

    @abstractmethod
    def prepare_quantizer(self, quantizer: Quantizer) -> QuantizerProgram:
        """Lays out the codebooks."""
