"""Codes as the sequences that language models train on, and back.

`flatten` and `coarse_first` make one stream of tokens, `delay` (Copet et al. 2023, MusicGen, arXiv 2306.05284) and `parallel` one
stream per level. Every pattern is inverted exactly by `decode`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["flatten", "coarse_first", "delay", "parallel"]
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


@dataclass(frozen=True)
class TokenPattern:
    """How codes [..., K, F] become tokens.

    kind:
        "flatten": [..., F * K], frame by frame, the levels of a frame in order.
        "coarse_first": [..., K * F], all frames of level 1, then those of level 2, and so on.
        "delay": [..., K, F + K - 1], level k k-1 frames later. `pad_token` fills the corners.
        "parallel": [..., K, F], the codes as they are.
    levels: K.  codebook_size: N, entries of each codebook.
    offsets: adds (k-1) * N to the codes of level k, so that one embedding table serves all levels. None: where there is one stream.
    Raises ValueError for another kind, and for numbers below 1.
    """

    kind: Kind
    levels: int
    codebook_size: int = 1024
    offsets: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; allowed are {', '.join(get_args(Kind))}.")
        if self.levels < 1 or self.codebook_size < 1:
            raise ValueError(f"levels and codebook_size are {self.levels} and {self.codebook_size}; 1 or more.")

    @property
    def is_one_stream(self) -> bool:
        """Tells whether the tokens of a clip are one sequence."""
        return self.kind in ("flatten", "coarse_first")

    @property
    def has_offsets(self) -> bool:
        """Tells whether a token says which level it is of."""
        return self.is_one_stream if self.offsets is None else self.offsets

    @property
    def num_codes(self) -> int:
        """Tokens that stand for codes: 0 ... num_codes - 1."""
        return self.codebook_size * (self.levels if self.has_offsets else 1)

    @property
    def pad_token(self) -> int:
        """The token for no code: the first one above those of codes."""
        return self.num_codes

    @property
    def vocabulary_size(self) -> int:
        """Size of an embedding table: the codes and `pad_token`."""
        return self.num_codes + 1

    def length(self, frames: int) -> int:
        """Returns the steps of the sequence for so many frames."""
        return frames * self.levels if self.is_one_stream else frames + (self.levels - 1) * (self.kind == "delay")

    def encode(self, codes: Tensor) -> Tensor:
        """Returns the tokens, int64, of codes [..., K, F] of any integer dtype.

        Raises TypeError for no integers, ValueError for another number of levels and for codes that no codebook has.
        """
        if codes.dtype not in _INTEGERS:
            raise TypeError(f"codes are {codes.dtype}; integers are needed.")
        if codes.dim() < 2 or codes.shape[-2] != self.levels:
            raise ValueError(f"codes have shape {list(codes.shape)}; [..., {self.levels}, F] is needed.")
        codes = codes.long()
        self._check(codes, self.codebook_size, "a code")
        tokens = codes + self._shifts(codes.device) if self.has_offsets else codes
        if self.kind == "flatten":
            return tokens.transpose(-1, -2).flatten(-2)
        if self.kind == "coarse_first":
            return tokens.flatten(-2)
        return self._delayed(tokens) if self.kind == "delay" else tokens.clone()

    def decode(self, tokens: Tensor) -> Tensor:
        """Returns the codes [..., K, F], int64, that `encode` made these tokens of.

        Raises ValueError for tokens that are none: another shape, a pad in the place of a code, a code of another level.
        """
        if tokens.dtype not in _INTEGERS:
            raise TypeError(f"tokens are {tokens.dtype}; integers are needed.")
        tokens, steps = tokens.long(), tokens.shape[-1] if tokens.dim() else 0
        if self.is_one_stream:
            if steps % self.levels:
                raise ValueError(f"{steps} tokens are no whole number of frames of {self.levels} levels.")
            sides = (-1, self.levels) if self.kind == "flatten" else (self.levels, steps // self.levels)
            tokens = tokens.unflatten(-1, sides) if steps else tokens.new_zeros(*tokens.shape[:-1], *(max(0, side) for side in sides))
            tokens = tokens.transpose(-1, -2) if self.kind == "flatten" else tokens
        elif tokens.dim() < 2 or tokens.shape[-2] != self.levels:
            raise ValueError(f"tokens have shape {list(tokens.shape)}; [..., {self.levels}, steps] is needed.")
        elif self.kind == "delay":
            tokens = self._undelayed(tokens)
        codes = tokens - self._shifts(tokens.device) if self.has_offsets else tokens
        self._check(codes, self.codebook_size, "a token")
        return codes.clone()

    def _shifts(self, device: torch.device) -> Tensor:
        """Returns what is added to each level, [K, 1]."""
        return self.codebook_size * torch.arange(self.levels, device=device)[:, None]

    def _delayed(self, tokens: Tensor) -> Tensor:
        frames = tokens.shape[-1]
        out = tokens.new_full((*tokens.shape[:-1], self.length(frames)), self.pad_token)
        for level in range(self.levels):
            out[..., level, level : level + frames] = tokens[..., level, :]
        return out

    def _undelayed(self, tokens: Tensor) -> Tensor:
        frames = tokens.shape[-1] - (self.levels - 1)
        if frames < 0:
            raise ValueError(f"{tokens.shape[-1]} steps are fewer than the {self.levels - 1} by which the last level is late.")
        return torch.stack([tokens[..., level, level : level + frames] for level in range(self.levels)], dim=-2)

    @staticmethod
    def _check(codes: Tensor, size: int, what: str) -> None:
        if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < size):
            wrong = int(codes.min()) if int(codes.min()) < 0 else int(codes.max())
            raise ValueError(f"{what} stands for entry {wrong} of its codebook; the entries are 0 ... {size - 1}.")
