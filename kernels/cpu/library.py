"""The compiled engine, bound by ctypes: engine.h, field for field."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

from .build import LIBRARY, SOURCES

ABI = 7
ISA_VARIABLE = "ENCODEC_FAST_CPU_ISA"
CUTS_VARIABLE = "ENCODEC_FAST_CPU_CUTS"
PAD_MODES = {"reflect": 0, "constant": 1, "replicate": 2}
ACTIVATIONS = {"none": 0, "elu": 1}
FUNCTIONS = {"exp": 0, "elu": 1, "sigmoid": 2, "tanh": 3, "gelu": 4}

INTS = POINTER(c_int64)


class ConvRecord(Structure):
    """encodec_conv."""

    _fields_ = [
        *((name, c_int64) for name in ("in_channels", "out_channels", "kernel", "stride", "dilation")),
        *((name, c_int64) for name in ("pad_left", "pad_right", "pad_mode", "activation")),
        *((name, c_void_p) for name in ("weight", "bias", "norm_weight", "norm_bias")),
        ("norm_eps", c_double),
    ]


class ClipsRecord(Structure):
    """encodec_clips."""

    _fields_ = [("data", POINTER(c_void_p)), ("lengths", INTS), ("strides", INTS)]


class LanguageModelSizes(Structure):
    """encodec_lm_sizes."""

    _fields_ = [(name, c_int64) for name in ("codebooks", "codebook_size", "dim", "heads", "layers", "hidden", "past_context")]


class EngineError(RuntimeError):
    """The engine refused a call; the message is its own."""


class LibraryMissing(Exception):
    """There is no engine to load; the message says why and how to get one."""


SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "encodec_abi": (c_int64, ()),
    "encodec_error": (c_char_p, ()),
    "encodec_tier": (c_char_p, (c_int64,)),
    "encodec_program_new": (c_void_p, (c_char_p,)),
    "encodec_program_free": (None, (c_void_p,)),
    "encodec_add_conv": (c_int, (c_void_p, POINTER(ConvRecord))),
    "encodec_add_residual": (c_int, (c_void_p, *(POINTER(ConvRecord),) * 3)),
    "encodec_add_upsample": (c_int, (c_void_p, POINTER(ConvRecord))),
    "encodec_add_lstm": (c_int, (c_void_p, c_int64, c_int64, POINTER(c_void_p))),
    "encodec_output_length": (c_int64, (c_void_p, c_int64)),
    "encodec_run": (
        c_int,
        (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int64, c_int, c_void_p, c_int64, c_int64, c_int64),
    ),
    "encodec_open": (c_void_p, (c_void_p,)),
    "encodec_close": (None, (c_void_p,)),
    "encodec_ended": (c_int, (c_void_p,)),
    "encodec_ready": (c_int, (POINTER(c_void_p), c_int64, INTS, INTS, INTS)),
    "encodec_push": (c_int, (POINTER(c_void_p), c_int64, POINTER(ClipsRecord), INTS, c_int, POINTER(ClipsRecord))),
    "encodec_save": (c_int64, (c_void_p, c_void_p, c_int64)),
    "encodec_load": (c_void_p, (c_void_p, c_char_p, c_int64)),
    "encodec_codebooks_new": (c_void_p, (c_char_p, c_void_p, c_int64, c_int64, c_int64)),
    "encodec_codebooks_free": (None, (c_void_p,)),
    "encodec_search_batch": (c_int, (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int, c_void_p)),
    "encodec_lookup": (c_int, (c_void_p, POINTER(c_void_p), INTS, c_int64, c_int64, c_int, POINTER(ClipsRecord))),
    "encodec_normalize": (c_int, (POINTER(ClipsRecord), c_int64, c_int64, c_int, POINTER(ClipsRecord), c_void_p)),
    "encodec_overlap_add": (
        c_int,
        (POINTER(ClipsRecord), c_int64, c_int64, c_int64, c_void_p, c_int64, c_int, POINTER(ClipsRecord)),
    ),
    "encodec_lm_new": (c_void_p, (c_char_p, POINTER(LanguageModelSizes), POINTER(c_void_p), c_void_p)),
    "encodec_lm_free": (None, (c_void_p,)),
    "encodec_lm_logits": (c_int, (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p)),
    "encodec_segment_encode": (c_void_p, (c_void_p, c_int64, c_int64)),
    "encodec_segment_decode": (c_void_p, (c_void_p, c_int64, c_int64, c_char_p, c_int64)),
    "encodec_segment_levels": (c_int64, (c_void_p, c_int)),
    "encodec_segment_close": (None, (c_void_p,)),
    "encodec_encode": (c_int, (POINTER(c_void_p), c_int64, POINTER(c_void_p), INTS, INTS, c_int)),
    "encodec_decode": (c_int, (POINTER(c_void_p), c_int64, POINTER(c_void_p), INTS, INTS, c_int)),
    "encodec_segment_bytes": (c_int64, (c_void_p, c_int, c_void_p, c_int64)),
    "encodec_segment_used_up": (c_int, (c_void_p,)),
    "encodec_segment_save": (c_int64, (c_void_p, c_void_p, c_int64)),
    "encodec_segment_load": (c_void_p, (c_void_p, c_char_p, c_int64)),
    "encodec_set_cut": (c_int, (c_char_p, c_int64)),
    "encodec_map": (c_int, (c_char_p, c_int, c_void_p, c_void_p, c_int64)),
}


def bind(path: Path) -> ctypes.CDLL:
    """Loads the library at `path` with every function's types set.  Raises LibraryMissing where it can't be used."""
    if not path.exists():
        raise LibraryMissing(
            "the engine was not compiled when encodec-fast was installed: install a C++17 compiler (g++ or clang++), "
            "then encodec-fast again, by pip install --force-reinstall --no-deps --no-cache-dir --no-binary encodec-fast encodec-fast"
        )
    try:
        library = ctypes.CDLL(str(path))
        abi = library.encodec_abi
    except (OSError, AttributeError) as error:
        raise LibraryMissing(f"{path} can't be loaded: {error}") from error
    abi.restype = c_int64
    if abi() != ABI:
        raise LibraryMissing(f"{path} has interface {abi()}, this version needs {ABI}: install encodec-fast again")
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def load() -> ctypes.CDLL:
    """Returns the engine of this installation, loaded at the first call, with the cuts that the environment asks for.

    Raises LibraryMissing where there is none, and EngineError for a cut that it does not know.
    """
    library = bind(SOURCES / LIBRARY)
    set_cuts(library, os.environ.get(CUTS_VARIABLE, ""))
    return library


def set_cuts(library: ctypes.CDLL, text: str) -> None:
    """Changes bounds of `net/cuts.h`, as in "tile=1000,wave=1", to find a bit that depends on one.

    Raises EngineError for an unknown name or bound.
    """
    for part in filter(None, text.split(",")):
        name, _, bound = part.partition("=")
        if not bound.isdecimal():
            raise EngineError(f"{CUTS_VARIABLE} has {part!r}: it takes NAME=BOUND,..., as in tile=1000,wave=1")
        check(library, library.encodec_set_cut(name.strip().encode(), int(bound)))


def tiers(library: ctypes.CDLL) -> list[str]:
    """Lists the instruction-set tiers that this machine can run, best first."""
    names = []
    while (name := library.encodec_tier(len(names))) is not None:
        names.append(name.decode())
    return names


def requested_tier() -> bytes | None:
    """Returns the tier that the environment variable ENCODEC_FAST_CPU_ISA names, or None for the best."""
    return os.environ.get(ISA_VARIABLE, "").encode() or None


def check(library: ctypes.CDLL, result: int) -> int:
    """Returns the status of a call.  Raises EngineError with the engine's message where it is negative."""
    if result < 0:
        raise EngineError(library.encodec_error().decode())
    return result


def check_handle(library: ctypes.CDLL, handle: int | None) -> int:
    """Returns the object that a call made.  Raises EngineError with the engine's message where it made none."""
    if handle is None:
        raise EngineError(library.encodec_error().decode())
    return handle
