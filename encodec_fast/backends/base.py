"""What a backend is: it prepares stages once and then runs clips through them, whole or in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from encodec_fast.plan import Quantizer, Stage


def run_equal_lengths(run: Callable[[Tensor], Tensor], clips: Sequence[Tensor]) -> list[Tensor]:
    """Returns run(clip [C, T_b]) of each clip; those of one length run as a batch [B, C, T]."""
    by_length = defaultdict(list)
    for index, clip in enumerate(clips):
        by_length[clip.shape[1]].append(index)
    outputs: dict[int, Tensor] = {}
    for members in by_length.values():
        outputs |= zip(members, run(torch.stack([clips[index] for index in members])))
    return [outputs[index] for index in range(len(clips))]


class StageProgram(ABC):
    """A run of consecutive stages, with weights laid out for one backend.

    One law covers `run`, `run_clips` and `push`: alone, in a batch of whatever clips and pushed in any pieces give the same output,
    bit for bit where `exact` is true, to rounding elsewhere.
    """

    exact: bool = False
    # Whether `run` only launches, without waiting for the device or choosing by values, so that a CUDA graph can hold it.
    capturable: bool = False
    # How many activations of the widest layer a call holds at once; 0 where it works through a clip in tiles.
    activations_held: int = 0

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """Whole clips [B, C_in, T] -> [B, C_out, T_out]."""

    def run_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Whole clips [C_in, T_b] of any lengths -> [C_out, T_out_b] each."""
        return run_equal_lengths(self.run, clips)

    @abstractmethod
    def open(self) -> Any:
        """The state of one clip at time zero."""

    @abstractmethod
    def push(self, pieces: Sequence[Tensor], states: Sequence[Any], final: Sequence[bool]) -> list[Tensor]:
        """The output that each clip's next piece of time completes; its state moves on in place.

        pieces: [C_in, T_b], T_b may be 0.  Returns [C_out, T_out_b], T_out_b may be 0.
        final: the clip ends with this piece, and everything still owed comes out. A clip that has ended takes nothing more.
        """

    @abstractmethod
    def save(self, state: Any) -> Any:
        """A clip's state as nested lists of tensors, integers and None, for `load` of the same program in any process."""

    @abstractmethod
    def load(self, saved: Any) -> Any:
        """The state that `save` wrote.

        Raises ValueError for one of other stages, and where a count or a size is not what these stages could have come to.
        """

    @abstractmethod
    def ended(self, state: Any) -> bool:
        """Whether the clip has ended."""


class QuantizerProgram(ABC):
    """The stacked codebooks, laid out for one backend.  exact: as of `StageProgram`."""

    exact: bool = False

    @abstractmethod
    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        """Codes [num_quantizers, B, F], int64, of embeddings x [B, D, F]; on equal distances the lowest index."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Sum of the entries [B, D, F] that codes [K, B, F] name.  Raises IndexError for a code outside the codebook.

        On a GPU the device stops there with an assertion, which the next call that waits for it raises.
        """


class Precision(str, Enum):
    """What the user asks of products; which a backend tells apart is in `Backend.precisions`.

    PARITY: float32's accuracy, the codes of Hugging Face's float32, and the same bits for a clip in any batch.
    TF32X3: the earlier name of PARITY on GPUs.
    FAST: one product of operands rounded to 11 bits; other codes. Where a GPU can't hold the recurrence it is the library's, whose
    bits follow the batch.
    """

    PARITY = "parity"
    TF32X3 = "tf32x3"
    FAST = "fast"

    __hash__ = str.__hash__
    __str__ = str.__str__


class Backend(ABC):
    """A backend. Building one probes nothing; `unavailable` does."""

    name: str
    # Those the backend tells apart; for the others it computes as for parity.
    precisions: tuple[Precision, ...] = (Precision.PARITY,)

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this machine can't use the backend and how to change that, or None."""

    @abstractmethod
    def refusal(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why the backend can't run this stage on such tensors, or None. Declared limits only; errors are not limits."""

    @abstractmethod
    def prepare(self, stages: tuple[Stage, ...], precision: Precision = Precision.PARITY) -> StageProgram:
        """Lays out the weights of consecutive stages."""

    @abstractmethod
    def prepare_quantizer(self, quantizer: Quantizer) -> QuantizerProgram:
        """Lays out the codebooks. The codes are those of float32 products at every precision."""

    def function_refusal(self, name: str, tensors: Sequence[Tensor]) -> str | None:
        """Returns why the backend has no kernel for a function without weights on such tensors, or None.

        name: 'normalize' or 'overlap_add'. Torch's operations give the same bits.
        """
        return f"no kernel for {name}"

    def normalize(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Returns clips [B, C, T] of unit volume and the scale [B, 1] of each, as `normalize_torch` does to the bit."""
        raise NotImplementedError(self.function_refusal("normalize", [audio]))

    def overlap_add(self, chunks: Sequence[Tensor], weight: Tensor, stride: int, length: int) -> Tensor:
        """Returns chunks [B, C, T_i] faded linearly into each other: [B, C, length].

        Chunks follow each other at multiples of `stride`; one that is shorter than the first ends no earlier than the result.
        weight: what each is weighed by before the sum is divided by that of the weights; as long as the first chunk.
        """
        raise NotImplementedError(self.function_refusal("overlap_add", chunks))

    def products(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device, precision: Precision) -> str:
        """What the products of a stage are computed in, in a few words for `explain`."""
        return str(dtype).removeprefix("torch.")
