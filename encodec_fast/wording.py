"""Numbers as people read them."""

from __future__ import annotations


def counted(number: int, thing: str, separator: str = "") -> str:
    """Returns `1 clip`, `2 clips`.  separator: of thousands."""
    return f"{number:{separator}} {thing}{'s' * (number != 1)}"


def hours_text(seconds: float) -> str:
    """Returns hours: two decimals, or three digits where that is less than one."""
    hours = seconds / 3600
    return f"{hours:,.2f}" if hours >= 1 or not hours else f"{hours:#.3g}"


def time_text(seconds: float) -> str:
    """Returns `12 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds < 3600 else f"{seconds // 3600} h {seconds // 60 % 60:02d} min"
