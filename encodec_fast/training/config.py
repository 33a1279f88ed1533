"""What a training run is asked for: a TOML file with every key by its default, checked before anything else happens."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

_ABOVE_ZERO = ("more than 0", lambda value: value > 0)
_FROM_ZERO = ("0 or more", lambda value: value >= 0)
_RANGE = ("two, the lower one first", lambda value: len(value) == 2 and value[0] <= value[1])
_SHARE = ("0 to 1", lambda value: 0 <= value <= 1)


def _key(default: Any, about: str, rule: tuple[str, Callable[[Any], bool]] | None = None, of: type | None = None) -> Any:
    """Describes a key: its comment in the file, what it allows beyond the type of its default, and the type of its elements."""
    metadata = {"about": about, "rule": rule, "of": of, "default": default}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainingConfig:
    """The keys of a run's TOML file; `encodec-fast train --print-config` writes all of them with what they mean.

    audio: sources, as of `tokenize`.  Lists may be given for tuples.
    Raises ValueError for a value out of range, TypeError for one of another type; both name the key and what is allowed.
    """

    audio: tuple[str, ...] = _key((), "Files, folders, patterns, manifests, tar shards or tables to train on.", of=str)
    validation_audio: tuple[str, ...] = _key((), "The same for validation; none: no validation.", of=str)
    audio_column: str = _key("audio", "Column of tables with the audio.")
    model: str = _key("", 'The model to fine-tune: a name, folder or checkpoint. "": from scratch, with the settings of [architecture].')
    frozen: tuple[str, ...] = _key(
        (),
        "Parts of it that stay as they are: encoder, quantizer or decoder.",
        ("encoder, quantizer and decoder", lambda value: set(value) <= {"encoder", "quantizer", "decoder"}),
        of=str,
    )
    device: str = _key("auto", "auto, cpu, cuda or cuda:N.")
    precision: str = _key(
        "float32",
        "Of the networks' products: float32, tf32 or bf16. Weights, codebooks and losses are float32 in each.",
        ("float32, tf32 or bf16", lambda value: value in ("float32", "tf32", "bf16")),
    )
    compile: bool = _key(
        False, "Whether torch.compile makes the kernels of the discriminator, which takes most of a step; minutes at the start."
    )
    seed: int = _key(0, "Of new weights, crops, bandwidths and replaced entries.", _FROM_ZERO)
    steps: int = _key(600_000, "Updates in all; the paper's 300 epochs of 2000.", _ABOVE_ZERO)
    batch_size: int = _key(64, "Crops in a batch.", _ABOVE_ZERO)
    gradient_accumulation_steps: int = _key(
        1, "Parts in which a rank takes its share of a batch, one after the other, to save memory.", _ABOVE_ZERO
    )
    crop_seconds: float = _key(1.0, "Length of a crop. Shorter clips end in silence.", _ABOVE_ZERO)
    mix_share: float = _key(0.5, "Share of crops that are a sum of several clips.", _SHARE)
    mix_files: int = _key(2, "Clips in such a sum: 2 to so many.", ("2 or more", lambda value: value >= 2))
    gain_db: tuple[float, ...] = _key((-10.0, 6.0), "Range of each clip's gain. It is drawn again while the sum clips.", _RANGE, of=float)
    workers: int = _key(2, "Processes that read audio; 0: none. Their number changes no result.", _FROM_ZERO)
    learning_rate: float = _key(3e-4, "Of Adam, for the model and the discriminator.", _ABOVE_ZERO)
    warmup_steps: int = _key(0, "Steps in which it rises to that from 0.", _FROM_ZERO)
    schedule: str = _key(
        "constant",
        "constant, as in the paper, or cosine: it falls to 0 at the last step.",
        ("constant or cosine", lambda value: value in ("constant", "cosine")),
    )
    discriminator_filters: int = _key(32, "Channels of the discriminator's layers. 0: train on time and mel alone.", _FROM_ZERO)
    mel_exponents: tuple[int, ...] = _key(
        (5, 6, 7, 8, 9, 10, 11),
        "Windows of the mel loss, as powers of two.",
        ("2 to 16, one at least", lambda value: bool(value) and 2 <= min(value) and max(value) <= 16),
        of=int,
    )
    validation_steps: int = _key(5000, "Steps from one validation to the next; the last step has one too.", _ABOVE_ZERO)
    validation_clips: int = _key(32, "Clips of validation_audio that are used, at most.", _ABOVE_ZERO)
    validation_seconds: float = _key(10.0, "Of each, from its start.", _ABOVE_ZERO)
    validation_bandwidth: float = _key(0.0, "Kbps. 0: the model's highest, so that every codebook counts.", _FROM_ZERO)
    report_clips: int = _key(3, "Validation clips to be heard in report.html, before and after; 0: no page.", _FROM_ZERO)
    log_steps: int = _key(50, "Steps from one row of metrics.csv to the next.", _ABOVE_ZERO)
    checkpoint_steps: int = _key(1000, "Steps from one checkpoint to the next, at most.", _ABOVE_ZERO)
    checkpoint_minutes: float = _key(10.0, "Minutes from one checkpoint to the next, at most.", _ABOVE_ZERO)
    weights: Mapping[str, float] = _key({}, "Weights of losses, where not the paper's: time, mel, generator, features.", of=float)
    architecture: Mapping[str, Any] = _key({}, "Settings of transformers' EncodecConfig for a model from scratch.")

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each.name, getattr(self, each.name), each.metadata))
        if not self.audio:
            raise ValueError("audio is empty; name at least one file, folder, manifest, tar shard or table to train on.")
        if self.frozen and not self.model:
            raise ValueError(f"frozen is {list(self.frozen)} without a model; name the one whose parts stay as they are.")
        if self.model and self.architecture:
            raise ValueError(f"model is {self.model!r} and architecture has settings; a model that is fine-tuned keeps its own.")

    def rate_of(self, step: int) -> float:
        """Returns the learning rate of a step, from 0 on."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        return rate if self.schedule == "constant" else rate * (1 + math.cos(math.pi * step / self.steps)) / 2

    def changeable(self) -> frozenset[str]:
        """Returns the keys that a run may go on with at another value: no number of a step depends on them, but for rounding."""
        return _CHANGEABLE - {"steps"} if self.schedule == "cosine" else _CHANGEABLE

    def as_dict(self) -> dict[str, Any]:
        """Returns the keys and values as plain lists and dicts."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_toml(self) -> str:
        """Returns the text of a file that gives this config, with a comment at each key."""
        return _toml(self.as_dict())


_CHANGEABLE = frozenset({"steps", "workers", "gradient_accumulation_steps", "checkpoint_steps", "checkpoint_minutes", "report_clips"})


def default_toml() -> str:
    """Returns the text of a file with every key at its default; `audio` is left to be filled in."""
    return _toml({each.name: each.metadata["default"] for each in fields(TrainingConfig)})


def read_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Reads a TOML file.

    Raises ValueError for what is no TOML, and for keys and values that `TrainingConfig` does not know or allow; OSError.
    Raises ImportError before Python 3.11 where tomli is not installed.
    """
    text = Path(path).read_bytes()
    try:
        found = _toml_reader()(text.decode())
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: not a TOML file ({error}).") from error
    known = [each.name for each in fields(TrainingConfig)]
    for name in found:
        if name not in known:
            raise ValueError(f"{os.fspath(path)}: {name!r} is no key; there are {', '.join(known)}.")
    try:
        return TrainingConfig(**found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _toml_reader() -> Callable[[str], dict[str, Any]]:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        loads: Callable[[str], dict[str, Any]] = importlib.import_module(name).loads
    except ImportError as error:
        raise ImportError("Reading TOML needs Python 3.11 or tomli: pip install 'encodec-fast[train]'.") from error
    return loads


def _checked(name: str, value: Any, metadata: Mapping[str, Any]) -> Any:
    """Returns the value in the type of the key's default."""
    default, of = metadata["default"], metadata["of"]
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} is {value!r}; a list is needed.")
        value = tuple(_scalar(f"{name}[{index}]", each, of) for index, each in enumerate(value))
    elif isinstance(default, dict):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} is {value!r}; a table [{name}] is needed.")
        value = {key: each if of is None else _scalar(f"{name}.{key}", each, of) for key, each in value.items()}
    else:
        value = _scalar(name, value, type(default))
    if (rule := metadata["rule"]) is not None and not rule[1](value):
        raise ValueError(f"{name} is {list(value) if isinstance(value, tuple) else value}; allowed is {rule[0]}.")
    return value


def _scalar(name: str, value: Any, kind: type) -> Any:
    """Returns the value in the type."""
    # a bool is an int to Python
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        words = {str: "text in quotes", int: "a whole number", float: "a number"}
        raise TypeError(f"{name} is {value!r}; {words[kind]} is needed.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; a finite number is needed.")
    return value


def _toml(values: Mapping[str, Any]) -> str:
    about = {each.name: each.metadata["about"] for each in fields(TrainingConfig)}
    lines = []
    for name, value in values.items():
        lines.append(f"# {about[name]}")
        if isinstance(value, Mapping):
            lines += [f"[{name}]", *(f"{json.dumps(key)} = {_toml_value(each)}" for key, each in value.items())]
        else:
            lines.append(f"{name} = {_toml_value(value)}")
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    # JSON's text, numbers and truth values are TOML's too
    return json.dumps(value)
