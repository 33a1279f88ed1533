"""A network or codebooks laid out for the backends that run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encodec_fast.backends.base import Precision, QuantizerProgram, StageProgram, run_equal_lengths
from encodec_fast.backends.cuda_graphs import CudaGraphs
from encodec_fast.backends.registry import get_backend
from encodec_fast.plan import Network, Quantizer, Stage, convolutions, not_streamable, step_bytes
from encodec_fast.serving.request import BackendError, during, log_once

_capturing: ContextVar[list[tuple[int, ...]] | None] = ContextVar("encodec_fast_capturing", default=None)


@dataclass(frozen=True)
class Choice:
    """The backend of one stage and, where it is not the preferred one, the reason."""

    backend: str
    reason: str


@contextmanager
def capturing() -> Iterator[list[tuple[int, ...]]]:
    """Captures the networks that run in the block as CUDA graphs, for the shapes that they run on: the list yielded.

    Raises BackendError where a network can't be captured. Holds for the current thread or task only.
    """
    captured: list[tuple[int, ...]] = []
    with during(_capturing, captured):
        yield captured


class PreparedNetwork:
    """A network cut into runs of stages of one backend each."""

    def __init__(self, network: Network, choices: list[Choice], precision: Precision = Precision.PARITY) -> None:
        self.network = network
        # asked in every call
        self.in_channels, self.out_channels = network.stages[0].in_channels, network.stages[-1].out_channels
        self.dtype, self.device, self.hop_length = network.dtype, network.device, network.hop_length
        # stages whose group norm sees one value where the input is short enough
        self.norms_one_channel = frozenset(stage.name for stage in network.stages if _norms_one_channel(stage))
        self.choices = choices
        self.programs: list[StageProgram] = []
        self.graphs: CudaGraphs | None = None
        start = 0
        for end in range(1, len(choices) + 1):
            if end == len(choices) or choices[end].backend != choices[start].backend:
                backend = get_backend(choices[start].backend)
                self.programs.append(backend.prepare(network.stages[start:end], precision))
                if precision not in backend.precisions:
                    log_once(f"precision {precision.value!r}: the {backend.name} backend computes as for parity")
                start = end
        for reason in {choice.reason for choice in choices if choice.reason}:
            log_once(f"running on the {choices[0].backend} backend ({reason})")
        # whether bits are independent of batch and pieces
        self.exact = all(program.exact for program in self.programs)
        # bytes that a call holds per clip and step of the network's input, beside input and output; about
        self.held_bytes = max(program.activations_held for program in self.programs) * step_bytes(network.stages)

    def run(self, x: Tensor) -> Tensor:
        """Runs whole clips [B, C, T] -> [B, C_out, T_out]; replays a CUDA graph where one was captured for the shape."""
        captured = _capturing.get()
        if captured is not None:
            self._capture(x)
            captured.append(tuple(x.shape))
        return self._launch(x) if self.graphs is None else self.graphs(x)

    def _launch(self, x: Tensor) -> Tensor:
        for program in self.programs:
            x = program.run(x)
        return x

    def _capture(self, x: Tensor) -> None:
        if not all(program.capturable for program in self.programs):
            backends = ", ".join(dict.fromkeys(choice.backend for choice in self.choices))
            raise BackendError(f"a CUDA graph can hold the triton backend only, and this network runs on {backends}")
        self.graphs = self.graphs or CudaGraphs(self._launch)
        self.graphs.capture(x)

    def run_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Runs whole clips [C, T_b] of any lengths -> [C_out, T_out_b] each."""
        if self.graphs is not None or _capturing.get() is not None:
            # a graph holds one shape
            return run_equal_lengths(self.run, clips)
        for program in self.programs:
            clips = program.run_clips(clips)
        return list(clips)

    def warn_without_graphs(self, owner: str) -> None:
        """Logs that a module for which graphs were captured runs without them.  owner: the class of the module."""
        if self.graphs is None and _capturing.get() is None:
            log_once(f"the CUDA graphs of {owner} are of other weights or another precision; call cuda_graphs again")

    def open(self) -> list[Any]:
        """Returns the state of one clip at time zero."""
        return [program.open() for program in self.programs]

    def push(self, pieces: Sequence[Tensor], states: Sequence[list[Any]], final: Sequence[bool]) -> list[Tensor]:
        """Runs each clip's next piece of time [C, T_b] through all stages; its state moves on in place."""
        for index, program in enumerate(self.programs):
            pieces = program.push(pieces, [state[index] for state in states], final)
        return list(pieces)

    def save(self, state: list[Any]) -> list[Any]:
        """Returns a clip's state as nested lists of tensors, integers and None."""
        return [program.save(part) for program, part in zip(self.programs, state)]

    def load(self, saved: Sequence[Any]) -> list[Any]:
        """Returns the state that `save` wrote.  Raises ValueError for any other."""
        if not isinstance(saved, (list, tuple)) or len(saved) != len(self.programs):
            raise ValueError("this is not the state of a clip in such a program")
        state = [program.load(part) for program, part in zip(self.programs, saved)]
        if len({program.ended(part) for program, part in zip(self.programs, state)}) > 1:
            raise ValueError("this is not the state of a clip in such a program: it has ended in some of the stages")
        return state

    def ended(self, state: list[Any]) -> bool:
        """Returns whether the clip has ended."""
        return self.programs[0].ended(state[0])


class PreparedQuantizer:
    """The codebooks, laid out for one backend."""

    def __init__(self, quantizer: Quantizer, choice: Choice) -> None:
        self.quantizer = quantizer
        self.choice = choice
        self.program: QuantizerProgram = get_backend(choice.backend).prepare_quantizer(quantizer)
        self.levels, _, self.dim = quantizer.codebooks.shape
        self.dtype, self.device = quantizer.codebooks.dtype, quantizer.codebooks.device

    def search(self, embeddings: Tensor, num_quantizers: int) -> Tensor:
        """Returns codes [K, B, F] of embeddings [B, D, F], at most `levels` of them."""
        return self.program.encode(embeddings, min(num_quantizers, self.levels))

    def search_clips(self, embeddings: Sequence[Tensor], num_quantizers: int) -> list[Tensor]:
        """Returns codes [K, F_b] of embeddings [D, F_b]. A frame's codes depend on it alone: all frames are one search."""
        frames = [part.shape[1] for part in embeddings]
        joined = torch.cat(list(embeddings), 1)
        if not sum(frames):
            return [joined.new_empty(num_quantizers, 0, dtype=torch.int64) for _ in frames]
        return list(self.search(joined[None], num_quantizers)[:, 0].split(frames, 1))

    def lookup_clip(self, codes: Tensor) -> Tensor:
        """Returns embeddings [D, F] of codes [K, F]."""
        if not codes.shape[1]:
            return self.quantizer.codebooks.new_empty(self.dim, 0)
        return self.program.decode(codes[:, None])[0]


@dataclass(frozen=True)
class PreparedCodec:
    """A network and the quantizer, ready for clips."""

    network: PreparedNetwork
    quantizer: PreparedQuantizer

    @property
    def exact(self) -> bool:
        """Whether a clip's bits are independent of batch and pieces."""
        return self.network.exact and self.quantizer.program.exact

    @property
    def not_streamable(self) -> str | None:
        """Why clips can't run in pieces of time, or None."""
        return not_streamable(self.network.network.stages)


def _norms_one_channel(stage: Stage) -> bool:
    return any(conv.norm is not None and conv.out_channels == 1 for conv in convolutions(stage))
