"""The language model of EnCodec's paper in plain torch, under the names that encodec 0.1.1 gives its weights.

Of each frame it predicts the codes of all levels from the frames before it. The engine runs the same weights for coding
(`encodec_fast.compression.language_model_coder`); this module is the truth that it is held to, and what is trained.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from decimal import Context, Decimal
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Periods of the sinusoids of positions reach from 2 pi to this times 2 pi, in frames
MAX_PERIOD = 10_000


@dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes of a language model; the defaults are those of the published one for 24 kHz.

    codebooks: levels that it can predict.  codebook_size: entries of each.  dim: width of the Transformer, an even number.
    heads: of attention, a divisor of dim.  layers: of the Transformer.  hidden: width between the two linear layers of each.
    past_context: frames before its own that a frame attends to, in each layer.
    """

    codebooks: int = 32
    codebook_size: int = 1024
    dim: int = 200
    heads: int = 8
    layers: int = 5
    hidden: int = 800
    past_context: int = 262

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; a whole number of 1 or more is needed.")
        if self.dim % 2 or self.dim < 4:
            raise ValueError(f"dim is {self.dim}; an even number of 4 or more is needed, for sines and cosines of positions.")
        if self.dim % self.heads:
            raise ValueError(f"heads is {self.heads}; a divisor of dim, which is {self.dim}, is needed.")


class LanguageModel(nn.Module):
    """Predicts each frame's codes from those before it.

    The names of weights are those of `LMModel` in encodec 0.1.1, so the published weights load.
    Source: encodec 0.1.1, model.py and modules/transformer.py.
    """

    def __init__(self, config: LanguageModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LanguageModelConfig()
        self.transformer = _Transformer(config)
        # entry 0 stands for the frame before the first
        self.emb = nn.ModuleList(nn.Embedding(config.codebook_size + 1, config.dim) for _ in range(config.codebooks))
        self.linears = nn.ModuleList(nn.Linear(config.dim, config.codebook_size) for _ in range(config.codebooks))

    def forward(self, codes: Tensor, offset: int = 0) -> Tensor:
        """Returns logits [B, K, F, N] of every frame's codes, each from the frames before it.

        codes: [B, K, F] integers; K may be fewer levels than the model has.  offset: the first frame's position.
        The last frame's codes change nothing. Raises ValueError for another shape or too many levels.
        """
        if codes.dim() != 3 or not 1 <= codes.shape[1] <= self.config.codebooks:
            raise ValueError(f"codes are {list(codes.shape)}; [B, 1 ... {self.config.codebooks}, F] is needed.")
        levels = codes.shape[1]
        before = F.pad(codes + 1, (1, 0))[..., :-1]
        embedded = self.emb[0](before[:, 0])
        for level in range(1, levels):
            embedded = embedded + self.emb[level](before[:, level])
        states = self.transformer(embedded, offset)
        return torch.stack([self.linears[level](states) for level in range(levels)], dim=1)

    def fingerprint(self) -> bytes:
        """Returns 32 bytes that name these weights and sizes, whatever file they came from: a SHA-256 of them in float32."""
        digest = hashlib.sha256(repr(asdict(self.config)).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes())
        return digest.digest()


class _Transformer(nn.Module):
    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.past_context = config.past_context
        self.norm_in = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, offset: int) -> Tensor:
        """Returns the states [B, F, D] of embedded frames [B, F, D]."""
        frames = x.shape[1]
        x = self.norm_in(x) + _positions(frames, x.shape[2], offset, x)
        # key 0 is the zero vector of each layer, key f + 1 is frame f
        distance = torch.arange(1, frames + 1, device=x.device)[:, None] - torch.arange(frames + 1, device=x.device)
        hidden = (distance < 0) | (distance > self.past_context)
        for layer in self.layers:
            x = layer(x, hidden)
        return x


class _Layer(nn.Module):
    """One layer, each sum normalised after it is added."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(config.dim, config.heads, batch_first=True)
        self.linear1 = nn.Linear(config.dim, config.hidden)
        self.linear2 = nn.Linear(config.hidden, config.dim)
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Returns [B, F, D] of x [B, F, D].  hidden: [F, F + 1], True for keys that a frame does not attend to."""
        # what the published model begins with: a vector of zeros before the first frame, attended to like a frame
        keys = F.pad(x, (0, 0, 1, 0))
        attended, _ = self.self_attn(x, keys, keys, attn_mask=hidden, need_weights=False)
        x = self.norm1(x + attended)
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


@cache
def position_divisors(dim: int) -> tuple[float, ...]:
    """Returns what a position is divided by for each sinusoid, dim / 2 values of float32: MAX_PERIOD ** (i / (dim / 2 - 1)).

    By decimal arithmetic, which has the same digits on every machine; torch's powers differ in the last bit from one to another.
    """
    context, last = Context(prec=40), dim // 2 - 1
    # the exponent is a float32 in the published model
    exponents = (torch.arange(dim // 2, dtype=torch.float32) / last).tolist()
    powers = [float(context.power(Decimal(MAX_PERIOD), Decimal(exponent))) for exponent in exponents]
    return tuple(torch.tensor(powers, dtype=torch.float64).float().tolist())


def _positions(frames: int, dim: int, offset: int, like: Tensor) -> Tensor:
    """Returns the embedding [F, D] of positions from `offset` on: all cosines, then all sines."""
    positions = torch.arange(offset, offset + frames, device=like.device)[:, None]
    # the phase is a float32 in the published model, whose rounding is much of it where positions are large
    phase = (positions / torch.tensor(position_divisors(dim), dtype=torch.float32, device=like.device)).to(like.dtype)
    return torch.cat([phase.cos(), phase.sin()], dim=-1)
