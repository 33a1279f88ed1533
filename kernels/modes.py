"""The closed sets that kernels know: activations, precisions of sums of products, precisions of the search."""

from __future__ import annotations

from enum import Enum


class _Mode(str, Enum):
    """A string that serves as a table key and as a kernel constant."""

    __hash__ = str.__hash__
    __str__ = str.__str__


class Activation(_Mode):
    """What a layer applies to its input; 0 for 0, for rows of padding are activated like any other.

    A new one needs: its functions in `activation.py` and `encodec_fast/backends/torch_backend.py`, `_read_activation` in
    `encodec_fast/plan/reader.py`, a number in `cpu/library.py`, and what `cpu/README.md` says of the engine. Each place refuses one
    that it lacks.
    """

    NONE = "none"
    ELU = "elu"


class ProductMode(_Mode):
    """How the terms of a long sum are multiplied; the sum itself is float32."""

    IEEE = "ieee"  # float32
    SPLIT = "split"  # operands split in two, three tf32 products each: float32's accuracy on matrix units
    TF32 = "tf32"  # one tf32 product
    THIN = "thin"  # float32 without matrix units, for few terms or few outputs


class SearchMode(_Mode):
    """How the distances of a search are found; both give the same codes."""

    IEEE = "ieee"  # float32
    RERANK = "rerank"  # half precision with a proof for each frame, float32 where the proof fails
