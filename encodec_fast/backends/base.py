"""The interface of a backend: it prepares stages once, then runs clips through them, whole or in pieces."""

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
    """Returns run(clip [C, T_b]) of each clip; clips of one length run as a batch [B, C, T]."""
    by_length = defaultdict(list)
    for index, clip in enumerate(clips):
        by_length[clip.shape[1]].append(index)
    outputs: dict[int, Tensor] = {}
    for members in by_length.values():
        outputs |= zip(members, run(torch.stack([clips[index] for index in members])))
    return [outputs[index] for index in range(len(clips))]


class StageProgram(ABC):
    """A run of consecutive stages, with weights laid out for one backend.

    `run`, `run_clips` and `push` agree: alone, in a batch of any clips, or pushed in any pieces, a clip has the same output.
    It is the same bit for bit where `exact` is true, to rounding elsewhere.
    """

    exact: bool = False
    # Whether `run` only launches, so that a CUDA graph can hold it: it neither waits for the device nor branches on values.
    capturable: bool = False
    # Activations of the widest layer that a call holds at once; 0 where it runs a clip in tiles.
    activations_held: int = 0

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """Runs whole clips [B, C_in, T] to [B, C_out, T_out]."""

    def run_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Runs whole clips [C_in, T_b] of any lengths to [C_out, T_out_b] each."""
        return run_equal_lengths(self.run, clips)

    @abstractmethod
    def open(self) -> Any:
        """Returns the state of one clip at time zero."""

    @abstractmethod
    def push(self, pieces: Sequence[Tensor], states: Sequence[Any], final: Sequence[bool]) -> list[Tensor]:
        """Returns the output that each clip's next piece of time completes; updates its state in place.

        pieces: [C_in, T_b], T_b may be 0.  Returns [C_out, T_out_b], T_out_b may be 0.
        final: the clip ends with this piece, and all remaining output is returned. A clip that has ended accepts no more.
        """

    @abstractmethod
    def save(self, state: Any) -> Any:
        """Returns a clip's state as nested lists of tensors, integers and None.

        `load` of the same program accepts it in any process.
        """

    @abstractmethod
    def load(self, saved: Any) -> Any:
        """Restores the state that `save` returned.

        Raises ValueError for a state of other stages, and for a count or a size that these stages can't reach.
        """

    @abstractmethod
    def ended(self, state: Any) -> bool:
        """Tells whether the clip has ended."""


class QuantizerProgram(ABC):
    """The stacked codebooks, laid out for one backend.  exact: as of `StageProgram`."""

    exact: bool = False

    @abstractmethod
    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        """Returns codes [num_quantizers, B, F], int64, of embeddings x [B, D, F]; on equal distances the lowest index wins."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the sum [B, D, F] of the entries that codes [K, B, F] name.  Raises IndexError for a code outside the codebook.

        On a GPU the device asserts instead, and the next call that waits for it raises.
        """


class Precision(str, Enum):
    """Precision that the user asks of products; `Backend.precisions` lists those that a backend distinguishes.

    PARITY: float32's accuracy, the codes of Hugging Face's float32, and the same bits for a clip in any batch.
    TF32X3: another name of PARITY on GPUs.
    FAST: one product of operands rounded to 11 bits, with other codes.
    A recurrence that does not fit a GPU runs in the library there, and its bits depend on the batch.
    """

    PARITY = "parity"
    TF32X3 = "tf32x3"
    FAST = "fast"

    __hash__ = str.__hash__
    __str__ = str.__str__


class Backend(ABC):
    """A backend. Construction probes nothing; `unavailable` does."""

    name: str
    # Whether its functions without weights are kernels, which take regular shapes only; torch's operations take all.
    has_kernels: bool = True
    # Precisions that the backend distinguishes; it computes the others as parity.
    precisions: tuple[Precision, ...] = (Precision.PARITY,)

    @abstractmethod
    def unavailable(self) -> str | None:
        """Returns why this machine can't use the backend and how to change that, or None."""

    @abstractmethod
    def refusal(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device) -> str | None:
        """Returns why the backend can't run this stage on such tensors, or None. It states declared limits; errors are not limits."""

    @abstractmethod
    def prepare(self, stages: tuple[Stage, ...], precision: Precision = Precision.PARITY) -> StageProgram:
        """Lays out the weights of consecutive stages."""

    @abstractmethod
    def prepare_quantizer(self, quantizer: Quantizer) -> QuantizerProgram:
        """Lays out the codebooks. The codes are those of float32 products at every precision."""

    def function_refusal(self, name: str, tensors: Sequence[Tensor]) -> str | None:
        """Returns why the backend has no kernel for a function without weights on such tensors, or None.

        name: 'normalize' or 'overlap_add'. Torch's operations return the same bits.
        """
        return f"no kernel for {name}"

    def normalize(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Returns clips [B, C, T] of unit volume and their scales [B, 1], bit-equal to `normalize_torch`."""
        raise NotImplementedError(self.function_refusal("normalize", [audio]))

    def overlap_add(self, chunks: Sequence[Tensor], weight: Tensor, stride: int, length: int) -> Tensor:
        """Returns chunks [B, C, T_i] cross-faded linearly, [B, C, length].

        Chunks start at multiples of `stride`; one that is shorter than the first ends no earlier than the result.
        weight: factor of each step of a chunk, as long as the first chunk. The sum is divided by the sum of the weights.
        """
        raise NotImplementedError(self.function_refusal("overlap_add", chunks))

    def products(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device, precision: Precision) -> str:
        """Describes in a few words, for `explain`, what the products of a stage are computed in."""
        return str(dtype).removeprefix("torch.")
