"""Which coder: by its name, or by what a file says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

from encodec_fast.compression.adaptive import AdaptiveCoder
from encodec_fast.compression.coders import NO_FINGERPRINT, Coder, RawCoder, StaticCoder
from encodec_fast.compression.header import Header
from encodec_fast.compression.segments import CompressedFileError
from encodec_fast.compression.stock_language_model import StockLanguageModelCoder
from encodec_fast.compression.tables import Tables, read_tables

if TYPE_CHECKING:
    from encodec_fast.compression.language_model_coder import LanguageModelCoder
    from encodec_fast.language_model.model import LanguageModel

CODERS = ("auto", "raw", "static", "adaptive", "lm")
# Fitted to codes of `demo` by bench/tools/fit_demo_tables.py
BUNDLED_TABLES = Path(__file__).parents[1] / "assets" / "demo_tables.ecdt"


@dataclass(frozen=True)
class AtHand:
    """What coders may need; for many files, each coder of the language model is made once.

    tables: for `static`, and for `adaptive` to begin with.
    lm: a language model, or a coder by one; version 0 needs the model itself.
    """

    tables: Tables | None = None
    lm: LanguageModel | Coder | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lm, str | PathLike):
            raise TypeError(f"lm is {str(self.lm)!r}; a language model is needed, as load_lm({str(self.lm)!r}) gives it.")

    @cached_property
    def lm_coder(self) -> Coder | None:
        """Returns the coder of version 1 by the language model; None without one.  Raises ValueError where it can't be had."""
        if self.lm is None or _is_coder(self.lm):
            return cast("Coder | None", self.lm)
        from encodec_fast.compression.language_model_coder import LanguageModelCoder

        return LanguageModelCoder(cast("LanguageModel", self.lm))

    @cached_property
    def stock_coder(self) -> StockLanguageModelCoder | None:
        """Returns the coder of version 0 by the language model; None without one, and for a coder of version 1 in its place."""
        if self.lm is None or _is_coder(self.lm):
            return None
        return StockLanguageModelCoder(cast("LanguageModel", self.lm))


def _is_coder(lm: LanguageModel | Coder) -> bool:
    # without torch, which knows the other's class
    return hasattr(lm, "encode")


NOTHING = AtHand()


def choose_coder(name: str, codebook_size: int, tables: Tables | None = None, lm: Coder | None = None) -> Coder:
    """Returns the coder of a name; for "auto" the best of what is at hand: `lm` where there is one, else `adaptive`.

    tables: for `static`, and for `adaptive` to begin with.  lm: the coder of a language model.
    Raises ValueError for another name, and for a coder that lacks what it needs.
    """
    if name not in CODERS:
        raise ValueError(f"coder is {name!r}; allowed are {', '.join(CODERS)}.")
    if tables is not None and tables.codebook_size != codebook_size:
        raise ValueError(f"tables have {tables.codebook_size} entries in a codebook, the model {codebook_size}; fit some to its codes.")
    if name == "raw":
        return RawCoder(codebook_size)
    if name == "static":
        if tables is None:
            raise ValueError("coder is 'static', which needs tables; fit some with fit_tables, or take 'adaptive'.")
        return StaticCoder(tables)
    if name == "lm" or (name == "auto" and lm is not None):
        if lm is None:
            raise ValueError(
                "coder is 'lm', which needs a language model; give one, or take 'adaptive'. The bundled one is for demo at 6 kbps or less."
            )
        return lm
    return AdaptiveCoder(codebook_size, tables)


def coder_of(header: Header, tables: Tables | None = None, lm: Coder | None = None) -> Coder:
    """Returns the coder that decodes a file.  tables, lm: what is at hand.

    Raises CompressedFileError where the file needs other tables or another language model, and names their hash.
    """
    needed = header.coder_fingerprint
    if header.coder == "lm":
        lm = bundled_coder(header.weights_sha256, header.levels) if lm is None else lm
        if lm is None or lm.fingerprint != needed:
            raise CompressedFileError(_missing("the language model", needed, None if lm is None else lm.fingerprint))
        return lm
    if needed == NO_FINGERPRINT:
        return choose_coder(header.coder, header.codebook_size)
    tables = bundled_tables(header.weights_sha256) if tables is None else tables
    if tables is None or tables.fingerprint != needed:
        raise CompressedFileError(_missing("the tables", needed, None if tables is None else tables.fingerprint))
    return choose_coder(header.coder, header.codebook_size, tables)


def bundled_tables(weights_sha256: str) -> Tables | None:
    """Returns the bundled tables, which are of the codes of `demo`; None for other codes.

    weights_sha256: of the model that makes the codes, in hex.
    """
    tables = _built_in_tables()
    return tables if weights_sha256 == tables.weights_sha256 else None


@cache
def _built_in_tables() -> Tables:
    return read_tables(BUNDLED_TABLES)


def bundled_coder(weights_sha256: str, levels: int) -> Coder | None:
    """Returns the coder by the bundled language model, which knows the codes of `demo`; None for other codes.

    weights_sha256: of the model that makes the codes, in hex.  levels: of the codes.
    None, too, for more levels than it has, and where the native engine is not there.
    """
    from encodec_fast.compression.language_model_coder import LanguageModelUnavailable
    from encodec_fast.language_model.built_in import built_in_codec

    if weights_sha256 != built_in_codec():
        return None
    try:
        coder = _built_in_coder()
    except LanguageModelUnavailable:
        return None
    return coder if levels <= coder.config.codebooks else None


@cache
def _built_in_coder() -> LanguageModelCoder:
    from encodec_fast.compression.language_model_coder import LanguageModelCoder
    from encodec_fast.language_model.built_in import BUILT_IN, unpacked

    return LanguageModelCoder(unpacked(BUILT_IN))


def _missing(what: str, needed: bytes, given: bytes | None) -> str:
    has = "" if given is None else f"; those given have {given.hex()[:16]}"
    return f"it was coded with {what} of SHA-256 {needed.hex()[:16]}{has}. Give the file that it was coded with."
