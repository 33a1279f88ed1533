"""The documentation's tables in Markdown, each from rows of results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from bench_lib.legend import LEGEND
from bench_lib.results import INSTRUCTIONS, Row

Group = tuple[dict[str, Any], str, dict[str, Row]]
# Within this factor two medians of a few runs are not told apart.
EQUAL = 1.03


def table(headings: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> str:
    """Returns a Markdown table; all columns but the first `left` are aligned to the right."""
    headings = list(headings)
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rule, *map(list, rows)])


def threads_of(about: Row) -> str:
    """Returns threads and clock of a row's environment, in words."""
    count = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    return f"{count}, CPU time" if about.get("clock") == "cpu" else count


def by_case(rows: list[Row]) -> list[Group]:
    """Returns (case, threads, row of each contender), in the order measured."""
    groups: dict[str, Group] = {}
    for row in rows:
        threads = threads_of(row["environment"])
        key = json.dumps([row["case"], threads, row["environment"]["machine"]], sort_keys=True)
        groups.setdefault(key, (row["case"], threads, {}))[2][row["contender"]] = row
    return list(groups.values())


def case_name(case: dict[str, Any]) -> str:
    stereo = "48 kHz stereo" if "48" in case["model"] else "24 kHz"
    return f"{stereo} {case['call']}, {case['batch']} x {case['seconds']:g} s, {case['bandwidth']:g} kbps"


def ahead(found: dict[str, Row]) -> tuple[str, float] | None:
    """Returns the contender that is faster than all backends of ours, and how many times; None where none is."""
    times = {name: row["median"] for name, row in found.items() if "median" in row}
    own = [time for name, time in times.items() if name.startswith("ours")]
    others = {name: time for name, time in times.items() if not name.startswith("ours")}
    if not own or not others:
        return None
    best = min(others, key=others.__getitem__)
    return (best, min(own) / others[best]) if others[best] < min(own) else None


def speed_table(groups: list[Group]) -> str:
    """Returns x real time; the fastest of each line in bold, a disturbed measurement with an asterisk."""
    names = [name for name in LEGEND if any(name in found for *_, found in groups)]
    lines = []
    for case, threads, found in groups:
        fastest = min((row["median"] for row in found.values() if "median" in row), default=None)
        cells = [_speed_cell(found.get(name), fastest) for name in names]
        reference, own = found.get("hf", {}), found.get("ours-cpu", {})
        factor = f"{reference['median'] / own['median']:.1f}" if "median" in reference and "median" in own else ""
        lines.append([case_name(case), threads, *cells, factor])
    return table(["x real time", "threads", *(LEGEND[name].heading for name in names), "cpu / transformers"], lines)


def _speed_cell(row: Row | None, fastest: float | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return "no memory" if "memory" in row["failed"] else "failed"
    mark = "\\*" if row["disturbed"] else ""
    value = f"{row['x_real_time']:.1f}"
    return f"**{value}**{mark}" if row["median"] == fastest else value + mark


def ahead_list(groups: list[Group]) -> str:
    """Says where another contender is faster than ours, in words."""
    lines = []
    for case, threads, found in groups:
        other = ahead(found)
        if other is not None:
            equal = ", which these runs do not tell apart" if other[1] < EQUAL else ""
            lines.append(f"- {case_name(case)}, {threads}: {LEGEND[other[0]].heading} is {other[1]:.2f} times as fast{equal}")
    return "\n".join(lines) or "In no cell of this table."


def details_table(groups: list[Group]) -> str:
    """Returns median, spread, share of floor and answer of every measurement."""
    lines = []
    for case, threads, found in groups:
        for name in LEGEND:
            row = found.get(name)
            if row is None:
                continue
            if "failed" in row:
                lines.append([case_name(case), threads, LEGEND[name].heading, *[""] * 5, row["failed"], ""])
                continue
            check = row["check"]
            answer = (
                f"{check['flips']} of {check['frames']} frames differ" if "flips" in check else f"{check['largest_error']:.0e} of the peak"
            )
            figures = f"{row['median']:.3f}", str(len(row["seconds"])), f"{row['spread']:.0%}", f"{row['share_of_floor']:.2f}"
            setup = f"{row['setup_seconds']:.1f}"
            lines.append([case_name(case), threads, LEGEND[name].heading, *figures, setup, answer, row["disturbed"] or ""])
    headings = (
        "case",
        "threads",
        "contender",
        "median s",
        "runs",
        "spread",
        "share of floor",
        "set-up s",
        "answer against transformers",
        "disturbed",
    )
    return table(headings, lines, left=3)


def stage_table(rows: list[Row]) -> str:
    """Returns milliseconds and share of floor of each stage and contender."""
    names = [name for name in LEGEND if any(row["contender"] == name for row in rows)]
    stages: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        stages.setdefault((case_name(row["case"]), row["stage"]), {})[row["contender"]] = row
    lines = []
    for (case, stage), found in stages.items():
        any_row = next(iter(found.values()))
        cells = [f"{1e3 * found[name]['median']:.2f} ({found[name]['share_of_floor']:.2f})" if name in found else "" for name in names]
        mark = "\\*" if any_row["disturbed"] else ""
        lines.append([case, stage + mark, any_row["bound_by"], f"{1e3 * any_row['floor_seconds']:.2f}", *cells])
    return table(["case", "stage", "bound by", "floor ms", *(f"{LEGEND[name].heading} ms (share)" for name in names)], lines, left=3)


def length_table(rows: list[Row]) -> str:
    """Returns time and memory against length."""
    lines = []
    for row in rows:
        what = [row["case"]["call"], LEGEND[row["contender"]].heading, f"{row['case']['seconds']:g} s"]
        if "failed" in row:
            lines.append([*what, "", "", "", row["failed"], ""])
            continue
        memory = f"{row['peak_bytes'] / 2**20:.0f}"
        check = row["check"]
        answer = f"{check['flips']} of {check['frames']} frames differ" if "flips" in check else f"{check['largest_error']:.0e} of the peak"
        answer += f", first {check['checked_seconds']:g} s"
        lines.append([*what, f"{row['median']:.2f}", f"{row['x_real_time']:.1f}", memory, answer, row["disturbed"] or ""])
    return table(
        ["call", "contender", "length", "seconds", "x real time", "peak MiB", "answer against transformers", "disturbed"], lines, left=2
    )


def precision_table(rows: list[Row]) -> str:
    """Returns frames that differ from float64, margins and sound of each way."""
    lines = []
    for row in rows:
        if "failed" in row:
            lines.append([row["model"], row["contender"], row["how"], "", "", "", "", "", row["failed"]])
        elif "levels" in row:
            frames = f"{row['flipped_frames']} of {row['frames']}"
            sound = [_decibels(row[key]) if key in row else "" for key in ("decode_snr_db", "round_trip_snr_db")]
            distance = f"{row['round_trip_stft']:.1e}" if "round_trip_stft" in row else ""
            margin = f"{row['largest_margin']:.0e}" if row["flipped_frames"] else ""
            lines.append([row["model"], row["contender"], row["how"], frames, margin, f"{row['embedding_error']:.1e}", *sound, distance])
    headings = (
        "model",
        "way",
        "how",
        "frames that differ",
        "largest margin",
        "embedding error",
        "SNR, decode",
        "SNR, round trip",
        "STFT distance",
    )
    return table(headings, lines, left=3)


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def level_table(rows: list[Row]) -> str:
    """Returns the share of codes unlike float64's at some levels, the levels below a flip included."""
    shown = [row for row in rows if "levels" in row and len(row["levels"]) > 2]
    levels = (0, 1, 3, 7, 15, 31)
    lines = []
    for row in shown:
        cells = [
            f"{row['levels'][level]['differing'] / row['levels'][level]['codes']:.2%}" if level < len(row["levels"]) else ""
            for level in levels
        ]
        lines.append([row["model"], row["contender"], *cells])
    return table(["model", "way", *(f"level {level + 1}" for level in levels)], lines, left=2)


def origin(rows: list[Row]) -> str:
    """Says where rows come from, one line per distinct machine, versions and revision."""
    seen: dict[str, None] = {}
    for row in rows:
        about = row["environment"]
        machine = about["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        device = f"{machine['gpu']}, " if "gpu" in machine else ""
        place = f"{device}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, tier {about['tier']}"
        date = about["time"].partition("T")[0]
        seen[f"- {place}; Python {about['python']}, {versions}; revision {about['revision']}; {date}: `{about['command']}`"] = None
    return "\n".join(seen)


def projected_totals(rows: list[Row]) -> str:
    """Returns each call on each GPU with each version of Triton."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in ("gpu", "triton", "model", "clips", "precision")), []).append(row)
    lines = []
    for (gpu, triton, model, clips, precision), own in found.items():
        sums = []
        for call in ("encode", "decode"):
            time = sum(row["ms"] for row in own if row["call"] == call)
            floor = sum(row["floor_ms"] or 0.0 for row in own if row["call"] == call)
            sums += [f"{time:.1f}", f"{clips * 10_000 / time:,.0f}", f"{floor:.1f}"]
        rate = "48 kHz" if "48" in model else "24 kHz"
        lines.append([f"{rate}, {clips} x 10 s, {precision}", gpu, triton, *sums])
    headings = ["PROJECTED", "GPU", "triton"]
    headings += [f"{call} {word}" for call in ("encode", "decode") for word in ("ms", "x real time", "floor ms")]
    return table(headings, lines, left=3)


def projected_stages(rows: list[Row]) -> str:
    """Returns the launches of one case: 32 clips in parity on the newest architecture, with the newest Triton."""
    last = max((row["arch"], row["triton"]) for row in rows)
    own = [r for r in rows if (r["arch"], r["triton"], r["model"], r["clips"], r["precision"]) == (*last, "demo", 32, "parity")]
    lines = []
    for row in own:
        pipes = [f"{row['by'][name]:.3f}" for name in own[0]["by"]]
        floor = "" if row["floor_ms"] is None else f"{row['floor_ms']:.3f}"
        kernel = row["kernel"].removeprefix("_").removesuffix("_kernel")
        lines.append([row["stage"], kernel, str(row["times"]), f"{row['ms']:.3f}", floor, row["bound"], *pipes])
    headings = ["stage", "kernel", "times", "PROJECTED ms", "floor ms", "bound by", *own[0]["by"]]
    title = f"24 kHz, 32 x 10 s, 6 kbps, parity on {own[0]['gpu']} with triton {last[1]}; each pipe's ms:"
    return title + "\n\n" + table(headings, lines, left=2)


def dataset_table(rows: list[Row]) -> str:
    """Returns whole processes from audio files to codes on disk."""
    names = {"hf": "loop over transformers", "ours": "encodec-fast tokenize"}
    lines = []
    for row in rows:
        case, check = row["case"], row["check"]
        what = f"{case['files']} files, {case['audio_seconds']:.0f} s of audio, {case['bandwidth']:g} kbps"
        times = f"{row['median']:.1f}", f"{row['x_real_time']:.1f}", f"{check['flips']} of {check['frames']}"
        lines.append([what, names[row["contender"]], str(row["environment"]["threads"]), *times])
    return table(["what", "how", "threads", "seconds", "x real time", "frames that differ between both"], lines, left=2)


def coding_table(rows: list[Row]) -> str:
    """Returns coding by a language model, x real time: a line for each case and direction."""
    groups: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        case = row["case"]
        what = f"{case['what']}, {case['model']}, {case['clips']} x {case['seconds']:g} s, {case['call']}"
        groups.setdefault((what, row["environment"]["threads"]), {})[row["contender"]] = row
    lines = []
    for (what, threads), found in groups.items():
        theirs, ours = found.get("encodec"), found["ours-cpu"]
        factor = f"{theirs['median'] / ours['median']:.0f}" if theirs else ""
        spreads = ", ".join(f"{row['spread']:.0%}" for row in (theirs, ours) if row)
        lines.append([what, str(threads), _real_time(theirs), _real_time(ours), factor, spreads])
    return table(["what", "threads", "encodec 0.1.1", "ours", "ours / encodec", "spreads"], lines)


def _real_time(row: Row | None) -> str:
    return f"{row['x_real_time']:,.1f}" + "\\*" * bool(row["disturbed"]) if row else ""


def energy_table(rows: list[Row]) -> str:
    """Returns the joules that the GPU takes per hour of audio, where NVML counts them."""
    metered = [row for row in rows if "joules_per_hour" in row]
    lines = [[case_name(row["case"]), LEGEND[row["contender"]].heading, f"{row['joules_per_hour']:.0f}"] for row in metered]
    return table(["case", "contender", "joules per hour of audio"], lines, left=2) if lines else "No energy was metered."


def instruction_table() -> str:
    """Returns the stored counts, a column per compiler and tier."""
    stored = json.loads(INSTRUCTIONS.read_text())
    names = list(dict.fromkeys(name for counts in stored.values() for name in counts))
    rows = [[name.replace("_", " "), *(f"{counts.get(name, 0):,}" for counts in stored.values())] for name in names]
    return table(["kernel", *stored], rows)
