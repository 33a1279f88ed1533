"""A kernel's PTX as instructions, and the whole numbers that they compute, for all threads of a block at once.

Floating-point values are never computed: an address or a loop's end does not depend on them. What does depend on them, or on what
memory holds, is unknown, which `None` stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

# One number for all threads, or an array [threads] of int64 (bool for predicates), or None where it is unknown.
Value = Any


@dataclass
class Instruction:
    """opcode: with its suffixes.  dests, sources: registers, numbers or special registers.  guard: predicate register or ''.

    address: (base register, offset) pairs of the brackets.  line: 'file:line' of the kernel's source.
    """

    opcode: str
    dests: tuple[str, ...]
    sources: tuple[str, ...]
    guard: str
    unless: bool
    address: tuple[tuple[str, int], ...]
    line: str
    target: str = ""
    compute: Callable[[list[Value]], Value] | None = None
    stem: str = field(init=False)

    def __post_init__(self) -> None:
        self.stem = self.opcode.split(".")[0]


@dataclass(frozen=True)
class Program:
    """instructions, in order; labels: name to the index of the instruction that follows it; parameters: names in order."""

    instructions: list[Instruction]
    labels: dict[str, int]
    parameters: list[str]

    def loops(self) -> list[tuple[int, int]]:
        """Returns (first, last) instruction of every loop, by its first."""
        back = [(self.labels[one.target], index) for index, one in enumerate(self.instructions) if one.target]
        return merged_loops([(first, last) for first, last in back if first <= last])

    @cached_property
    def to_end(self) -> list[int]:
        """Returns for each instruction how many follow on the shortest way to the end of the kernel."""
        count = len(self.instructions)
        distance = [count * count] * (count + 1)
        distance[count] = 0
        changed = True
        while changed:
            changed = False
            for index in range(count - 1, -1, -1):
                one = self.instructions[index]
                ways = [] if one.stem in ("ret", "exit") and not one.guard else [index + 1]
                if one.target:
                    ways = [self.labels[one.target], *(ways if one.guard else [])]
                shortest = 1 + min((distance[way] for way in ways), default=0)
                changed |= shortest < distance[index]
                distance[index] = min(distance[index], shortest)
        return distance


def merged_loops(back: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Loops from (target, branch) of backward branches: those with one first instruction, or that overlap, are one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(back):
        inside = [index for index, (start, end) in enumerate(found) if start == first or start < first <= end < last]
        if inside:
            found[inside[-1]] = (found[inside[-1]][0], max(last, found[inside[-1]][1]))
        else:
            found.append((first, last))
    return found


_REGISTER = r"%[a-z]+\d+"
# no result, or a result that is not a register of its own
_NO_DEST = {"st", "bar", "barrier", "cp", "bra", "ret", "wgmma", "stmatrix", "mbarrier", "red", "trap", "exit"}
_IGNORED = ("prefetch", ".", "membar", "fence", "nanosleep")


def parse(text: str) -> Program:
    """Reads the instructions of the one kernel in `text`."""
    files: dict[str, str] = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]+)"', text, re.MULTILINE))
    parameters = re.findall(r"\.param\s+[^\n]*?\s(\w+_param_\d+)[,\n]", text[: text.index("\n{")])
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    line = ""
    for raw in text[text.index("\n{") :].splitlines():
        if found := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", raw):
            line = f"{files.get(found[1], '?')}:{found[2]}"
            continue
        code = re.sub(r"//.*", "", raw).strip()
        if found := re.match(r"(\$\w+):$", code):
            labels[found[1]] = len(instructions)
        elif code.endswith(";") and not code.startswith("."):
            instructions += [_instruction(part.strip(), line) for part in _statements(code)]
    return Program(instructions, labels, parameters)


def _statements(code: str) -> list[str]:
    """Without what changes nothing; a statement in braces of its own stands for itself."""
    parts = code.removeprefix("{ ").removesuffix(" }").split(";")
    return [part for part in parts if part.strip() and not part.strip().startswith(_IGNORED)]


def _instruction(code: str, line: str) -> Instruction:
    found = re.match(rf"(?:@(!?)({_REGISTER})\s+)?([a-z][\w.:]*)\s*(.*)$", code, re.DOTALL)
    assert found, code
    unless, guard, opcode, operands = found[1] == "!", found[2] or "", found[3], found[4]
    if opcode.startswith("bra"):
        return Instruction(opcode, (), (), guard, unless, (), line, target=operands.strip())
    address = tuple((base, int(offset or "0", 0)) for base, offset in re.findall(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?[^\]]*\]", operands))
    outside = re.sub(r"\[[^\]]*\]", "", operands)
    # a vector, or the pair that a comparison writes
    groups = [re.findall(r"[%$\w.+-]+", group) for group in re.findall(r"\{[^}]*\}|[^,{}]+", outside) if group.strip(" |")]
    groups = [group for group in groups if group]
    dests: list[str] = []
    if groups and opcode.split(".")[0] not in _NO_DEST:
        dests, groups = groups[0], groups[1:]
    if opcode.startswith("wgmma.mma"):
        dests = groups[0]
    sources = [word for group in groups for word in group]
    instruction = Instruction(opcode, tuple(dests), tuple(sources), guard, unless, address, line)
    instruction.compute = _compute_of(opcode)
    return instruction


# ---- whole numbers: registers hold them as signed values of their own width


def signed(x: Value, bits: int) -> Value:
    """Returns the low bits of x as a number with a sign."""
    if isinstance(x, np.ndarray) and x.dtype == np.uint64:
        x = x.view(np.int64)
    if bits == 64 and isinstance(x, np.ndarray):
        return x
    half = 1 << (bits - 1)
    return ((x + half) & ((1 << bits) - 1)) - half


def _unsigned(x: Value, bits: int) -> Value:
    if bits < 64:
        return x & ((1 << bits) - 1)
    return x.view(np.uint64) if isinstance(x, np.ndarray) else x & ((1 << 64) - 1)


def _quotient(a: Value, b: Value) -> Value:
    """a / b towards zero."""
    where = np.where if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else lambda test, yes, no: yes if test else no
    size = abs(a) // abs(b)
    return where((a < 0) != (b < 0), -size, size)


def _select(yes: Value, no: Value, test: Value) -> Value:
    if isinstance(test, np.ndarray):
        return np.where(test, yes, no)
    return yes if test else no


def _shifted(a: Value, places: Value) -> Value:
    # numpy shifts uint64 by nothing but uint64
    return a >> np.uint64(places) if isinstance(a, np.ndarray) and a.dtype == np.uint64 else a >> places


def _lop3(a: Value, b: Value, c: Value, table: int) -> Value:
    out = a & 0
    for bit in range(8):
        if table >> bit & 1:
            out = out | ((a if bit & 4 else ~a) & (b if bit & 2 else ~b) & (c if bit & 1 else ~c))
    return out


def _byte_permutation(a: Value, b: Value, selector: Value) -> Value:
    whole, out = _unsigned(a, 32) | (_unsigned(b, 32) << 32), 0
    for place in range(4):
        picked = (whole >> (8 * (selector >> 4 * place & 7))) & 255
        out = out | picked << 8 * place
    return out


_COMPARE: dict[str, Callable[[Value, Value], Value]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def _compute_of(opcode: str) -> Callable[[list[Value]], Value] | None:
    """From the values of the sources to that of the destination; None for what is not computed."""
    stem, *suffixes = opcode.split(".")
    kind = suffixes[-1] if suffixes else ""
    if not re.fullmatch(r"[sub]\d+|pred", kind) or {"f16", "f32", "f64", "bf16", "shared"} & set(suffixes):
        return None
    if kind == "pred":
        return _PREDICATES.get(stem)
    bits, unsigned = int(kind[1:]), kind[0] == "u"

    def take(x: Value) -> Value:
        return _unsigned(x, bits) if unsigned else x

    def fit(compute: Callable[..., Value], into: int = bits) -> Callable[[list[Value]], Value]:
        return lambda values: signed(compute(*map(take, values)), into)

    if stem == "setp":
        compare = _COMPARE.get(suffixes[0].rstrip("u") if suffixes[0] not in _COMPARE else suffixes[0])
        return None if compare is None else lambda values: compare(take(values[0]), take(values[1]))
    if stem == "selp":
        return lambda values: _select(*values)
    if stem == "cvt":
        target = suffixes[-2]
        if not re.fullmatch(r"[sub]\d+", target):
            return None
        return lambda values: signed(take(values[0]), int(target[1:]))
    if stem in ("mul", "mad") and suffixes[0] == "wide":
        add = (lambda a, b, c: a * b + c) if stem == "mad" else (lambda a, b: a * b)
        # the third source is as wide as the result
        return lambda values: signed(add(*map(take, values[:2]), *values[2:]), 2 * bits)
    if stem in ("mul", "mad") and suffixes[0] == "hi":
        if bits == 64:
            return None
        high = lambda a, b, c=0: (a * b >> bits) + c  # noqa: E731
        return fit(high)
    if stem == "div":
        return fit(_quotient)
    if stem == "rem":
        return fit(lambda a, b: a - _quotient(a, b) * b)
    if stem == "shr" and kind[0] in "bu":
        return lambda values: signed(_shifted(_unsigned(values[0], bits), values[1]), bits)
    if stem == "bfe":
        mask = lambda a, start, count: (a >> start) & ((1 << count) - 1)  # noqa: E731
        if unsigned:
            return fit(mask)
        return lambda values: _sign_of_field(mask(*values), values[2])
    if stem in _PLAIN:
        return fit(_PLAIN[stem])
    return None


def _sign_of_field(field_value: Value, count: int) -> Value:
    half = 1 << (count - 1)
    return (field_value ^ half) - half


_PREDICATES: dict[str, Callable[[list[Value]], Value]] = {
    "and": lambda v: v[0] & v[1],
    "or": lambda v: v[0] | v[1],
    "xor": lambda v: v[0] ^ v[1],
    "not": lambda v: ~v[0] if isinstance(v[0], np.ndarray) else not v[0],
    "mov": lambda v: v[0],
}
_PLAIN: dict[str, Callable[..., Value]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "neg": lambda a: -a,
    "abs": abs,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "min": lambda a, b: _select(a, b, a < b),
    "max": lambda a, b: _select(a, b, a > b),
    "mov": lambda a: a,
    "bfi": lambda a, b, start, count: (b & ~(((1 << count) - 1) << start)) | ((a & ((1 << count) - 1)) << start),
    "lop3": _lop3,
    "prmt": _byte_permutation,
}
