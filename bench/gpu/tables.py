"""The report's rows as tables of 80 columns, and as Markdown for docs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
# Rows that say how a phase went and not what it found.
PROGRESS = {"begun", "ended", "complete", "failed", "left_out"}


@dataclass
class Grid:
    """A table: a title, headings, and cells as text; the first column is left-aligned."""

    title: str
    headings: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.headings) + " |"]
        lines.append("| --- |" + " ---: |" * (len(self.headings) - 1))
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in self.rows]
        return "\n".join(lines)


def grids(rows: list[Row]) -> Iterator[Grid]:
    """Yields every table of a report."""
    for phase in dict.fromkeys(row["phase"] for row in rows):
        found = [row for row in rows if row["phase"] == phase and not PROGRESS & set(row)]
        if found and phase in _TABLES:
            yield from _TABLES[phase](found)


def sentences(rows: list[Row]) -> Iterator[str]:
    """Says what failed and what was left out."""
    for row in rows:
        for kind, word in (("failed", "FAILED"), ("left_out", "left out")):
            if kind in row:
                about = ", ".join(str(row[key]) for key in ("item", "way") if key in row)
                yield f"{row['phase']}{': ' * bool(about)}{about}: {word}: {row[kind]}"


def number(value: Any, digits: int = 3) -> str:
    """Returns three digits that count, and a red check in words."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1e5:
        whole = f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
        return whole if "e" not in whole else f"{value:.0f}"
    return f"{value:.1e}"


def _card(rows: list[Row]) -> Iterator[Grid]:
    about = next((row for row in rows if "device" in row), None)
    if about:
        yield Grid("Card", ("what", "value"), [(key, number(value)) for key, value in about.items() if key not in ("phase", "item")])
    grid = Grid("Ceilings, measured", ("what", "rate"))
    for row in rows:
        grid.rows += [(row["what"], f"{number(row[unit])} {unit}") for unit in ("GB/s", "TFLOP/s", "us") if unit in row]
    if grid.rows:
        yield grid


def _compile(rows: list[Row]) -> Iterator[Grid]:
    keys = ("kernels", "spilled", "over_shared_memory", "longest_s", "passed")
    grid = Grid("Kernels compiled", ("model, precision", "kernels", "spilled", "over memory", "longest s", "ok"))
    grid.rows = [(row["item"], *(number(row[key]) for key in keys)) for row in rows]
    yield grid


def _kernels(rows: list[Row]) -> Iterator[Grid]:
    """Errors relative to float64, pivoted by precision; ! marks what did not pass, ~ runs that differ from each other."""

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        marks = "" if row["passed"] else " !" if row.get("equal_runs", True) else " ~!"
        return number(row.get("error"), 2) + marks

    precisions = ("parity", "fast", "float16", "bfloat16")
    staged = [row for row in rows if "torch_error" in row]
    for model in dict.fromkeys(row["model"] for row in staged):
        grid = Grid(f"{model}: error against float64 (! red, ~ five runs differ)", ("stage", "torch", *precisions))
        own = [row for row in staged if row["model"] == model]
        for stage in dict.fromkeys(row["stage"] for row in own):
            by = {row["precision"]: row for row in own if row["stage"] == stage}
            torch_error = by["parity"]["torch_error"] if "parity" in by else None
            grid.rows.append((_short(stage), number(torch_error, 2), *(cell(by.get(precision)) for precision in precisions)))
        yield grid
    searches = [row for row in rows if "torch_error" not in row]
    grid = Grid("Search, sum and overlap-add", ("what", "model", "in", "frames differ", "margin", "ok"))
    for row in searches:
        frames = f"{row['flipped_frames']} of {row['frames']}" if "frames" in row else number(row.get("error"), 2)
        about = row["stage"], row.get("model", ""), row.get("precision", "")
        grid.rows.append((*about, frames, number(row.get("largest_margin"), 2), number(row["passed"])))
    if searches:
        yield grid


def _short(stage: str) -> str:
    for long, short in (("encoder.layers.", "enc "), ("decoder.layers.", "dec "), (" -> ", ">"), ("ResidualBlock", "Res")):
        stage = stage.replace(long, short)
    return stage.replace("Upsample", "Up")


def _laws(rows: list[Row]) -> Iterator[Grid]:
    grid = Grid("Laws", ("law", "holds", "found"))
    grid.rows = [(row["law"], number(row["passed"]), row.get("found", "")) for row in rows]
    yield grid


def _stages(rows: list[Row]) -> Iterator[Grid]:
    ways = ("transformers", "parity", "fast")
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        beside = [f"{way} {word} ms" for word in ("projected", "floor") for way in ("parity", "fast")]
        headings = "projected", "fast", "floor", "fast"
        grid = Grid(f"{model}: ms per stage; PROJECTED by bench/aot.py; floors at the vendor's figures", ("stage", *ways, *headings))
        for row in own:
            beside_cells = [number(row.get(key), 2) for key in beside]
            grid.rows.append((_short(row["stage"]), *(number(row.get(f"{way} ms")) for way in ways), *beside_cells))
        for part in ("encoder", "decoder"):
            sums = [row for row in own if row["stage"].startswith(part)]
            if sums:
                total = [number(sum(row[f"{way} ms"] for row in sums)) if f"{way} ms" in sums[0] else "" for way in ways]
                sums_beside = [number(sum(row.get(key) or 0.0 for row in sums), 2) for key in beside]
                grid.rows.append((f"{part}, sum", *total, *sums_beside))
        yield grid


def _end_to_end(rows: list[Row]) -> Iterator[Grid]:
    def case(row: Row) -> tuple[Any, ...]:
        return row["model"], row["clips"], row["seconds"], row["bandwidth"]

    for key in dict.fromkeys(map(case, rows)):
        own = [row for row in rows if case(row) == key]
        title = f"{key[0]}, {key[1]} x {key[2]:g} s, {key[3]:g} kbps; of {own[0]['frames']} frames so many differ"
        grid = Grid(title, ("way", "enc ms", "x rt", "+-", "dec ms", "x rt", "+-", "differ"))
        for row in own:
            cells = [
                cell
                for call in ("encode", "decode")
                for cell in (number(row[f"{call} ms"]), number(row[f"{call} x real time"]), f"{row[f'{call} spread']:.0%}")
            ]
            grid.rows.append((row["way"].replace("transformers", "HF"), *cells, number(row["flipped_frames"])))
        yield grid


def _codes(rows: list[Row]) -> Iterator[Grid]:
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        count = len(own[0]["levels"])
        shown = [level for level in (1, 2, 4, 8, 16, 32) if level <= count]
        title = f"{model}, {own[0]['bandwidth']:g} kbps: codes that differ from float64's, by level"
        grid = Grid(title, ("way", "frames", *map(str, shown), "error"))
        for row in own:
            shares = [f"{row['levels'][level - 1]['differing'] / row['levels'][level - 1]['codes']:.2%}" for level in shown]
            frames = f"{row['flipped_frames']} of {row['frames']}"
            grid.rows.append((row["way"].replace("transformers", "HF"), frames, *shares, number(row["embedding_error"], 2)))
        yield grid


def _profile(rows: list[Row]) -> Iterator[Grid]:
    """Counters down, kernels across."""
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage][:4]
        counters = list(dict.fromkeys(key for row in own for key in row if key not in ("phase", "item", "stage", "kernel")))
        grid = Grid(f"ncu: {stage}", ("counter", *(row["kernel"].strip("_").removesuffix("_kernel") for row in own)))
        grid.rows = [(counter, *(number(row.get(counter)) for row in own)) for counter in counters]
        yield grid


def _plain(title: str, *keys: str) -> Callable[[list[Row]], Iterator[Grid]]:
    def made(rows: list[Row]) -> Iterator[Grid]:
        grid = Grid(title, keys)
        grid.rows = [tuple(number(row.get(key)) for key in keys) for row in rows]
        yield grid

    return made


_TABLES: dict[str, Callable[[list[Row]], Iterator[Grid]]] = {
    "card": _card,
    "compile_ahead": _compile,
    "kernels": _kernels,
    "laws": _laws,
    "stages": _stages,
    "end_to_end": _end_to_end,
    "codes": _codes,
    "variants": _plain("Tiles side by side", "kernel", "tile", "of", "ms", "same bits", "said"),
    "profile": _profile,
    "sanitizer": _plain("compute-sanitizer", "tool", "passed", "found"),
    "tokenize": _plain(
        "tokenize, an hour of FLAC", "readers", "x real time", "x real time, started", "wall s", "start s", "passed", "said"
    ),
    "cpu": _plain("cpu backend, 8 x 10 s", "threads", "encode x real time", "decode x real time", "found"),
}
