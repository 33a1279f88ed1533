"""What a language model begins with where the codec's codebooks are known: entries that sound alike begin alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from encodec_fast.language_model.model import LanguageModel

# Of the drawn embeddings, beside codebooks whose first level has entries of size 1
_DRAWN = 0.1
# Added to how often each entry came, so that one that never came can be learned
_COUNT = 10.0


@torch.no_grad()
def begin_with_codebooks(model: LanguageModel, codebooks: Sequence[Tensor], counts: Tensor) -> None:
    """Sets embeddings and heads from the codebooks [N, D] of each level, in place; the rest stays as it was drawn.

    The embeddings of a frame then add up to its quantised values, and entries near each other get like probabilities. The heads' biases
    are how often entries came: counts [K, N] integers. Where the model is wider than D, the columns behind stay as drawn.
    Raises ValueError for codebooks of other numbers than the model's, and for a model narrower than D.
    """
    config = model.config
    if len(codebooks) < config.codebooks or codebooks[0].shape[0] != config.codebook_size:
        shape = f"{len(codebooks)} x {codebooks[0].shape[0]}"
        raise ValueError(f"the codec has {shape} entries; the language model predicts {config.codebooks} x {config.codebook_size}.")
    width = codebooks[0].shape[1]
    if width > config.dim:
        raise ValueError(f"dim is {config.dim}; to begin with codebooks whose entries have {width} values, {width} or more is needed.")
    first = _size(codebooks[0])
    for level in range(config.codebooks):
        book, seen = codebooks[level].float(), counts[level] + _COUNT
        embedding = model.get_parameter(f"emb.{level}.weight")
        embedding.mul_(_DRAWN)
        embedding[1:, :width] = book / first
        model.get_parameter(f"linears.{level}.weight")[:, :width] = book / _size(book) / width**0.5
        model.get_parameter(f"linears.{level}.bias").copy_((seen / seen.sum()).log())


def _size(book: Tensor) -> Tensor:
    # of codebooks that were never fitted it is 0
    return book.float().square().mean().sqrt().clamp(min=1e-12)
