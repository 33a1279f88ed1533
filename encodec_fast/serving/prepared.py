"""A network or codebooks laid out for the backends that run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encodec_fast.backends.base import QuantizerProgram, StageProgram
from encodec_fast.backends.cuda_graphs import CudaGraphs
from encodec_fast.backends.registry import get_backend
from encodec_fast.plan import Network, Quantizer, step_bytes
from encodec_fast.serving.request import BackendError, log_once

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
    token = _capturing.set(captured)
    try:
        yield captured
    finally:
        _capturing.reset(token)


class PreparedNetwork:
    """A network cut into runs of stages of one backend each."""

    def __init__(self, network: Network, choices: list[Choice], precision: str = "parity") -> None:
        self.network = network
        self.choices = choices
        self.programs: list[StageProgram] = []
        self.graphs: CudaGraphs | None = None
        start = 0
        for end in range(1, len(choices) + 1):
            if end == len(choices) or choices[end].backend != choices[start].backend:
                backend = get_backend(choices[start].backend)
                self.programs.append(backend.prepare(network.stages[start:end], precision))
                if precision not in backend.precisions:
                    log_once(f"precision {precision!r}: the {backend.name} backend computes as for parity")
                start = end
        for reason in {choice.reason for choice in choices if choice.reason}:
            log_once(f"running on the {choices[0].backend} backend ({reason})")

    def run(self, x: Tensor) -> Tensor:
        """Whole clips [B, C, T] -> [B, C_out, T_out]; from a CUDA graph where one was captured for the shape."""
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
        """Whole clips [C, T_b] of any lengths -> [C_out, T_out_b] each."""
        if (self.graphs is not None or _capturing.get() is not None) and len({clip.shape for clip in clips}) == 1:
            return list(self.run(torch.stack(list(clips))))
        for program in self.programs:
            clips = program.run_clips(clips)
        return list(clips)

    @property
    def exact(self) -> bool:
        """Whether bits are independent of batch and pieces."""
        return all(program.exact for program in self.programs)

    @property
    def held_bytes(self) -> float:
        """Bytes that a call holds per clip and step of the network's input, beside input and output; about."""
        return max(program.activations_held for program in self.programs) * step_bytes(self.network.stages)

    def open(self) -> list[Any]:
        """The state of one clip at time zero."""
        return [program.open() for program in self.programs]

    def push(self, pieces: Sequence[Tensor], states: Sequence[list[Any]], final: Sequence[bool]) -> list[Tensor]:
        """Each clip's next piece of time [C, T_b] through all stages; its state moves on in place."""
        for index, program in enumerate(self.programs):
            pieces = program.push(pieces, [state[index] for state in states], final)
        return list(pieces)

    def save(self, state: list[Any]) -> list[Any]:
        """A clip's state as nested lists of tensors, integers and None."""
        return [program.save(part) for program, part in zip(self.programs, state)]

    def load(self, saved: Sequence[Any]) -> list[Any]:
        """The state that `save` wrote.  Raises ValueError for one of another network or backend, and for one that no push leads to."""
        if not isinstance(saved, (list, tuple)) or len(saved) != len(self.programs):
            raise ValueError("this is not the state of a clip in such a program")
        state = [program.load(part) for program, part in zip(self.programs, saved)]
        if len({program.ended(part) for program, part in zip(self.programs, state)}) > 1:
            raise ValueError("this is not the state of a clip in such a program: it has ended in some of the stages")
        return state

    def ended(self, state: list[Any]) -> bool:
        """Whether the clip has ended."""
        return self.programs[0].ended(state[0])


def note_graphs(module: nn.Module, prepared: PreparedNetwork) -> None:
    """Logs that a module with CUDA graphs runs without them, because they are of other weights or another precision."""
    if _capturing.get() is not None:
        module.__dict__["_has_graphs"] = True
    elif prepared.graphs is None and module.__dict__.get("_has_graphs", False):
        log_once(f"the CUDA graphs of {type(module).__name__} are of other weights or another precision; call cuda_graphs again")


@dataclass(frozen=True)
class PreparedQuantizer:
    """The codebooks, laid out for one backend."""

    quantizer: Quantizer
    choice: Choice
    program: QuantizerProgram

    def search_clips(self, embeddings: Sequence[Tensor], num_quantizers: int) -> list[Tensor]:
        """Codes [num_quantizers, F_b] of embeddings [D, F_b]. A frame's codes depend on it alone: all frames are one search."""
        frames = [part.shape[1] for part in embeddings]
        joined = torch.cat(list(embeddings), 1)
        if not sum(frames):
            return [joined.new_empty(num_quantizers, 0, dtype=torch.int64) for _ in frames]
        return list(self.program.encode(joined[None], num_quantizers)[:, 0].split(frames, 1))

    def lookup_clip(self, codes: Tensor) -> Tensor:
        """Embeddings [D, F] of codes [K, F]."""
        if not codes.shape[1]:
            codebooks = self.quantizer.codebooks
            return codebooks.new_empty(codebooks.shape[2], 0)
        return self.program.decode(codes[:, None])[0]
