"""Columns of manifests and tables in the rows of a folder: which ones, of which type, under which name.

They are decided when a run plans for the first time, and hold for every shard of the folder: readers want one schema for all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from encodec_fast.corpus.columns import Untyped
from encodec_fast.corpus.tasks import Scalar, Task
from encodec_fast.formats import ROW_FIELDS

# Whole numbers above it have no float of their own.
EXACT_FLOAT = 1 << 53
INT64 = range(-(1 << 63), 1 << 63)
# Longer ones are no numbers that a column can hold
MAX_DIGITS = 30
# Numbers as programs write them. Zeros in front, as of ids, make text; so does an exponent without a sign, as of hashes.
_INT, _FLOAT = re.compile(r"-?(0|[1-9]\d*)"), re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]\d+)?", re.IGNORECASE)


def column_types(tasks: Iterable[Task]) -> dict[str, str]:
    """Returns the type, of formats.COLUMN_TYPES, of each column of the tasks: the narrowest that holds all of its values as they are."""
    kinds: dict[str, set[str]] = {}
    for task in tasks:
        for name, value in task.columns.items():
            found = kinds.setdefault(name, set())
            if value is not None:
                found.add(_kind(value))
    return {name: _type_of(found) for name, found in kinds.items()}


def _kind(value: Scalar) -> str:
    value = _parsed(value)
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "string" if value not in INT64 else "int64" if abs(value) <= EXACT_FLOAT else "wide"
    return "float64" if isinstance(value, float) else "string"


def _type_of(kinds: set[str]) -> str:
    if len(kinds) == 1 and "wide" not in kinds:
        return next(iter(kinds))
    if kinds and kinds <= {"int64", "wide"}:
        return "int64"
    return "float64" if kinds == {"int64", "float64"} else "string"


def _parsed(value: Scalar) -> Scalar:
    """Returns what the text of a CSV file stands for; any other value as it is."""
    if not isinstance(value, Untyped):
        return value
    if len(value) > MAX_DIGITS:
        return str(value)
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if _INT.fullmatch(value):
        return int(value)
    number = float(value) if _FLOAT.fullmatch(value) else math.inf
    return number if math.isfinite(number) else str(value)


def typed(value: Scalar, type_name: str) -> Scalar:
    """Returns the value as a column of this type stores it; NaN and infinity, which JSON lacks, as None. Raises ValueError if it can't."""
    if value is None:
        return None
    if type_name == "string":
        return str(value) if isinstance(value, str) else json.dumps(value)
    value = _parsed(value)
    if type_name == "bool" and isinstance(value, bool):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if type_name == "int64" and isinstance(value, int) and value in INT64:
            return value
        if type_name == "float64":
            return float(value) if abs(value) < math.inf else None
    raise ValueError(f"{value!r} is no {type_name}.")


def stored_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the name of each column in the rows: its own, or `source_NAME` where the rows have a field of that name."""
    taken = {*ROW_FIELDS}
    stored = {}
    for name in names:
        own = name
        while own in taken:
            own = f"source_{own}"
        taken.add(own)
        stored[name] = own
    return stored


def chosen_columns(tasks: Sequence[Task], chosen: Sequence[str] | None) -> list[Task]:
    """Returns the tasks with those of their columns that are to be stored, under the names they are stored by.

    chosen: names in the sources; None: all.  Raises ValueError for a name that no source has.
    """
    found = dict.fromkeys(name for task in tasks for name in task.columns)
    if unknown := [name for name in chosen or () if name not in found]:
        have = f"the columns {', '.join(found)}" if found else "no columns"
        raise ValueError(f"columns names {', '.join(map(repr, unknown))}; the sources have {have}.")
    if not found:
        return [*tasks]
    names = stored_names(found)
    wanted = {name: names[name] for name in (found if chosen is None else chosen)}
    return [replace(task, columns={wanted[name]: value for name, value in task.columns.items() if name in wanted}) for task in tasks]


def with_typed_columns(task: Task, types: Mapping[str, str]) -> Task:
    """Returns the task with the columns of a folder, None where it has none. Raises ValueError, with the column and its value."""
    if not types and not task.columns:
        return task
    columns: dict[str, Scalar] = {}
    for name, type_name in types.items():
        try:
            columns[name] = typed(task.columns.get(name), type_name)
        except ValueError as error:
            raise ValueError(f"column {name!r} of {task.id!r}: {error}") from error
    return replace(task, columns=columns)
