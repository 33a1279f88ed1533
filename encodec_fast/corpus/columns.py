"""What a manifest or a table says of a clip besides where it is: text, speaker, language, or any other column of scalars.

Lists and objects are left out. So is what names the clip itself: its file, its id and its duration, which are stored for every clip.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Collection, Mapping
from typing import Any

from encodec_fast.corpus.tasks import HALF_CHARACTER, Scalar


class Untyped(str):
    """A value of a CSV or TSV file. All values of the column together tell its type; see dataset.columns."""

    __slots__ = ()


def scalar_columns(record: Mapping[Any, Any], taken: Collection[str] = ()) -> dict[str, Scalar]:
    """Returns the columns of a clip, in their order.  taken: names to leave out."""
    columns: dict[str, Scalar] = {}
    for name, value in record.items():
        # a row with more fields than the first has them under None
        if isinstance(name, str) and name.strip() and name not in taken and is_scalar(value):
            columns[HALF_CHARACTER.sub("\ufffd", name)] = _stored(value)
    return columns


def is_scalar(value: Any) -> bool:
    """Returns whether a column can hold the value."""
    return value is None or isinstance(value, bool | int | float | str | decimal.Decimal | datetime.date | datetime.time)


def _stored(value: Any) -> Scalar:
    if isinstance(value, str):
        # bytes that are no UTF-8 are lost, and their clip is not
        text = HALF_CHARACTER.sub("\ufffd", value)
        return (Untyped(text) if text else None) if isinstance(value, Untyped) else text
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value
