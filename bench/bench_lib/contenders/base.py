"""What every contender does: it turns a case into a call without arguments, and the call's result into a plain tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench_lib.cases import Case, audio_of, codes_of, levels_of

Call = Callable[[], Any]


class Contender(ABC):
    """One way to encode and decode.  name: as in `--against`."""

    name: str

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.models: dict[str, Any] = {}

    @staticmethod
    def missing(device: torch.device) -> str | None:
        """Returns why the contender can't run here, with what would help, or None."""
        return None

    @abstractmethod
    def load(self, model: str) -> Any:
        """Loads the model of that name with the common weights."""

    def model(self, name: str) -> Any:
        """Returns the model of that name, loaded at the first use; the one before it is dropped."""
        if name not in self.models:
            self.models = {name: self.load(name)}
        return self.models[name]

    def prepare(self, case: Case) -> Call:
        """Returns the call to be measured.  Inputs are made here, and on the contender's device."""
        return self._call(case, slice(None))

    def _call(self, case: Case, clips: slice) -> Call:
        model = self.model(case.model)
        if case.call == "encode":
            return self.encode(model, audio_of(case)[clips].to(self.device), case)
        codes, scales, tail = codes_of(case, levels_of(case))
        scales = [None if scale is None else scale[clips].to(self.device) for scale in scales]
        return self.decode(model, codes[:, clips].to(self.device), scales, tail)

    def answer_in_pieces(self, case: Case, clips: int) -> Tensor:
        """Returns the answer to a case that is too large for memory, from calls of `clips` clips each."""
        starts = range(0, case.batch, clips)
        answers = [self.answer(case, self._call(case, slice(start, start + clips))()) for start in starts]
        return torch.cat(answers, dim=1 if case.call == "encode" else 0)

    @abstractmethod
    def encode(self, model: Any, audio: Tensor, case: Case) -> Call: ...

    @abstractmethod
    def decode(self, model: Any, codes: Tensor, scales: list[Tensor | None], tail: int) -> Call: ...

    def answer(self, case: Case, result: Any) -> Tensor:
        """Returns codes [chunks, B, K, F] or audio [B, C, T] of what the call returned, on the CPU."""
        return (result.audio_codes if case.call == "encode" else result.audio_values).cpu()


def stacked(chunks: list[Tensor]) -> Tensor:
    """Returns the codes of chunks, [B, K, F_i] each, as one tensor [chunks, B, K, F]: zeros fill up the last, as transformers does it."""
    return torch.stack([F.pad(chunk, (0, chunks[0].shape[-1] - chunk.shape[-1])) for chunk in chunks])
