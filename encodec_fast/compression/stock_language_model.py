"""The coder behind `lm: true` in version 0 of `.ecdc`: the language model in plain torch and the arithmetic coder of `encodec` 0.1.1.

Both ends must compute the very same probabilities. Those of torch have other last bits on other machines, thread counts and versions.
Version 1 has the native engine instead, which has the same bits everywhere.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING

import numpy as np

from encodec_fast.compression.arithmetic_coder import TOTAL, ArithmeticDecoder, ArithmeticEncoder
from encodec_fast.compression.segments import CompressedFileError

if TYPE_CHECKING:
    from torch import Tensor

    from encodec_fast.language_model.model import LanguageModel

# What probabilities are rounded down to multiples of, and the least part of a code
_ROUNDING, _LEAST = 1e-8, 2


class NotReproducible(CompressedFileError):
    """Codes that torch did not read back right after it had written them; the message says what does not have this fault."""


def where_it_holds() -> str:
    """Returns the sentence that says on which machine a file of `lm: true` can be read."""
    import torch

    from encodec_fast.wording import counted

    threads = counted(torch.get_num_threads(), "thread")
    return f"It can be read on this machine, with {threads} and torch {torch.__version__}; with anything else it may not."


class StockLanguageModelCoder:
    """Codes segments as `encodec` 0.1.1 does with its language model: about as fast as the audio plays.

    What one process writes, the same machine reads with the same thread count and torch. Anything else may not read it.
    model: on the CPU, in float32 and in eval mode, as `load_lm` gives it.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def encode(self, codes: np.ndarray) -> bytes:
        """Returns the bytes of a segment, which were read back already.

        codes: integers [K, F].
        Raises NotReproducible where they came back as others. Raises CompressedFileError for codes that the model has not.
        """
        levels = len(codes)
        self._check(levels)
        if codes.size and not 0 <= codes.min() <= codes.max() < self._model.config.codebook_size:
            raise CompressedFileError(f"a code is outside 0 ... {self._model.config.codebook_size - 1}, which the language model has.")
        encoder = ArithmeticEncoder()
        walk = _Walk(self._model, levels)
        for frame in codes.T.tolist():
            for code, ends in zip(frame, walk.ends()):
                encoder.encode(ends[code - 1] if code else 0, ends[code])
            walk.take(frame)
        data = encoder.finish()
        self._verify(data, codes)
        return data

    def decode(self, file: IO[bytes], frames: int, levels: int) -> np.ndarray:
        """Returns the codes [levels, frames] of the segment at the file's position, int64; leaves the position behind it.

        Raises CompressedFileError where the file ends before, and where other probabilities were computed than when it was written.
        The latter is not always noticed: other codes come then.
        """
        self._check(levels)
        decoder = ArithmeticDecoder(file)
        walk, rows = _Walk(self._model, levels), list[list[int]]()
        for _ in range(frames):
            rows.append([decoder.decode(ends) for ends in walk.ends()])
            walk.take(rows[-1])
        return np.array(rows, np.int64).reshape(frames, levels).T.copy()

    def _verify(self, data: bytes, codes: np.ndarray) -> None:
        levels, frames = codes.shape
        file = io.BytesIO(data)
        try:
            same = np.array_equal(self.decode(file, frames, levels), codes) and not file.read(1)
        except CompressedFileError:
            same = False
        if not same:
            raise NotReproducible(
                "torch computed other probabilities at the second time, so that nothing can read this file. "
                "Version 1 has no such fault: leave out version 0."
            )

    def _check(self, levels: int) -> None:
        if levels > self._model.config.codebooks:
            raise CompressedFileError(f"the codes have {levels} levels, the language model {self._model.config.codebooks}.")


class _Walk:
    """The parts that the model gives to codes, from frame to frame."""

    def __init__(self, model: LanguageModel, levels: int) -> None:
        import torch

        from encodec_fast.language_model.steps import PublishedSteps

        self._steps = PublishedSteps(model)
        self._before = torch.zeros(1, levels, 1, dtype=torch.int64)

    def ends(self) -> list[list[int]]:
        """Returns for each level of the next frame where the parts of its codes end."""
        return _ends(self._steps.next(self._before))

    def take(self, frame: list[int]) -> None:
        """Goes on behind a frame of these codes."""
        self._before = self._before.new_tensor(frame)[None, :, None] + 1


def _ends(probabilities: Tensor) -> list[list[int]]:
    """Returns the ends of the parts of TOTAL, [K][N].  probabilities: float32 [N, K]."""
    if not probabilities.isfinite().all():
        raise CompressedFileError("the language model's probabilities are not finite; its weights are damaged.")
    rounded = (probabilities / _ROUNDING).floor() * _ROUNDING
    left = (1 - _LEAST * len(probabilities) / TOTAL) * TOTAL
    return ((left * rounded).floor().long() + _LEAST).cumsum(0).T.tolist()
