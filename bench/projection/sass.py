"""A kernel's machine code: instructions by the pipe that carries them out, and how often each is carried out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from projection.ptx import Program, merged_loops

# What a pipe carries out; what is in none of them takes an issue slot alone.
PIPES = {
    "fma": {"FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2", "FFMA2", "FADD2"},
    "imad": {"IMAD"},
    "alu": {
        "ISETP", "IADD3", "LOP3", "SEL", "FSEL", "FSETP", "FMNMX", "SHF", "PRMT", "IMNMX", "VIMNMX", "LEA", "PLOP3", "IABS", "VIADD",
        "VIADDMNMX", "VIMNMX3", "FMNMX3", "BMSK", "SGXT", "MOV", "P2R", "R2P", "CSEL", "I2FP", "FCHK", "F2FP",
    },
    "special": {"MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV"},
    "memory": {"LDS", "STS", "LDG", "STG", "LDGSTS", "LDSM", "STSM", "LDL", "STL", "ATOMS", "ATOMG", "RED", "SHFL", "UTMALDG", "UTMASTG"},
    "matrix": {"HMMA", "HGMMA", "IMMA", "UTCHMMA"},
}  # fmt: skip
_PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes}


@dataclass(frozen=True)
class MachineCode:
    """instructions: (opcode with its suffixes, operands), in order.  loops: (first, last) instruction of each, by its first."""

    instructions: list[tuple[str, str]]
    loops: list[tuple[int, int]]


def parse(text: str) -> MachineCode:
    """Reads what nvdisasm prints of a cubin with one kernel."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line):
            if found[1] == "NOP":
                continue
            if found[1].startswith("BRA") and (label := re.search(r"\.L_x_\d+", found[2])):
                jumps.append((len(instructions), label[0]))
            instructions.append((found[1], found[2]))
    # the last instruction of a kernel jumps to itself
    return MachineCode(instructions, merged_loops([(labels[label], index) for index, label in jumps if labels[label] < index]))


def pipe_of(opcode: str) -> str:
    return _PIPE_OF.get(opcode.split(".")[0], "other")


class LoopsDiffer(ValueError):
    """The loops of the machine code are not those of the PTX."""


def weights(code: MachineCode, program: Program, executions: Sequence[float]) -> list[tuple[int, float]]:
    """Returns for each machine instruction its innermost loop of the PTX, -1 for none, and how often it is carried out.

    executions: of each instruction of the PTX.
    Raises LoopsDiffer if the machine code has loops that the PTX has not.
    """
    found = [(-1, 1.0)] * len(code.instructions)
    # by their first instruction, so the innermost is written last
    for (first, last), (loop, rounds) in zip(code.loops, _rounds(code, program, executions), strict=True):
        found[first : last + 1] = [(loop, rounds)] * (last + 1 - first)
    return found


def _rounds(code: MachineCode, program: Program, executions: Sequence[float]) -> list[tuple[int, float]]:
    """(loop of the PTX, rounds) of each loop of the machine code.

    The assembler may write all rounds of a short loop one after another. It may also take several rounds of a loop in one; a second loop
    then takes those that are left over.
    """
    theirs = {loop: (first, last, max(executions[first], executions[last])) for loop, (first, last) in enumerate(program.loops())}
    while len(theirs) > len(code.loops):
        # one that waits for other blocks goes round out of line; otherwise the one with the fewest rounds is no loop any more
        waiting = [loop for loop, (first, last, _) in theirs.items() if _waits(program, first, last)]
        del theirs[waiting[0] if waiting else min(theirs, key=lambda loop: theirs[loop][2])]
    found: list[tuple[int, float]] = []
    for place, (loop, (first, last, rounds)) in enumerate(theirs.items()):
        accesses = _global_accesses(instruction.opcode for instruction in program.instructions[first : last + 1])
        ours = [_global_accesses(opcode for opcode, _ in code.instructions[start : end + 1]) for start, end in code.loops[len(found) :][:2]]
        spare = len(code.loops) - len(found) > len(theirs) - place
        if spare and accesses and len(ours) == 2 and ours[1] == accesses < ours[0] and ours[0] % accesses == 0:
            together = ours[0] // accesses
            found += [(loop, rounds // together), (loop, rounds % together)]
        else:
            found.append((loop, rounds))
    if len(found) != len(code.loops):
        raise LoopsDiffer(f"{len(program.loops())} loops in the PTX, {len(code.loops)} in the machine code")
    return found


def _waits(program: Program, first: int, last: int) -> bool:
    """Whether a loop does nothing but look at memory that another block is to change."""
    body = program.instructions[first : last + 1]
    return any(".acquire" in one.opcode for one in body) and not any(one.stem in ("st", "mma") for one in body)


def _global_accesses(opcodes: Iterable[str]) -> int:
    return sum(bool(re.match(r"LDG|STG|RED|ld\.global|st\.global|red\.", opcode)) for opcode in opcodes)
