"""The model of what a kernel costs: what is planted in a kernel is what it finds."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from projection import compile_ahead, ptx, sass
from projection.calls import Case, project
from projection.cost import cost_of, launch_cost
from projection.hardware import GPUS
from projection.trace import Block, wavefronts

ROUNDS, THREADS = 100, 128
# {stride}: bytes between the words that neighbours read from shared memory, {pitch} from global memory
LOOP = """
.version 8.4
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry planted(
	.param .u64 .ptr .global .align 1 planted_param_0,
	.param .u32 planted_param_1
)
.reqntid {threads}
{{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<12>;
	.reg .b64 	%rd<6>;
	.loc	1 7 0
	ld.param.b64 	%rd1, [planted_param_0];
	ld.param.b32 	%r1, [planted_param_1];
	mov.u32 	%r2, %tid.x;
	mul.lo.s32 	%r3, %r2, {stride};
	and.b32 	%r3, %r3, 16383;
	mov.b32 	%r4, global_smem;
	add.s32 	%r5, %r4, %r3;
	mul.wide.s32 	%rd2, %r2, {pitch};
	add.s64 	%rd3, %rd1, %rd2;
	mov.b32 	%r6, 0;
	mov.b32 	%r7, 0f00000000;
$L__BB0_1:
	ld.global.b32 	%r8, [%rd3];
	st.shared.b32 	[%r5], %r8;
	bar.sync 	0;
	ld.shared.b32 	%r9, [%r5+128];
	add.f32 	%r7, %r7, %r9;
	bar.sync 	0;
	add.s64 	%rd3, %rd3, 4096;
	add.s32 	%r6, %r6, 1;
	setp.lt.s32 	%p1, %r6, %r1;
	@%p1 bra 	$L__BB0_1;
	mul.wide.s32 	%rd4, %r2, 4;
	add.s64 	%rd5, %rd1, %rd4;
	st.global.b32 	[%rd5], %r7;
	ret;
}}
"""


def planted(tmp_path, stride=4, pitch=4):
    """The cost of 1,320 blocks of the loop."""
    text = LOOP.format(stride=stride, pitch=pitch, threads=THREADS)
    source, cubin = tmp_path / "planted.ptx", tmp_path / "planted.cubin"
    source.write_text(text)
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    subprocess.run([assembler, "-arch=sm_90a", source, "-o", cubin], check=True)
    metadata = SimpleNamespace(num_warps=THREADS // 32, shared=20_000, name="planted")
    made = SimpleNamespace(asm={"ptx": text, "cubin": cubin.read_bytes()}, metadata=metadata)
    return cost_of(made, [1 << 40, ROUNDS], (1320,), 1 << 30, GPUS["sm_90"])


def loop_of(cost):
    return max(cost.regions, key=lambda region: region.rounds)


def test_a_loop_without_conflicts_has_none(tmp_path):
    cost = planted(tmp_path)
    assert loop_of(cost).rounds == ROUNDS
    assert loop_of(cost).conflicts == 0 and not loop_of(cost).bound_by_conflicts
    assert cost.sectors == cost.least_sectors == ROUNDS * THREADS * 4 / 32


def test_a_planted_bank_conflict_is_found_and_bounds_its_loop(tmp_path):
    loop = loop_of(planted(tmp_path, stride=128))
    # a store and a load of four warps, 32 words of one bank each
    assert loop.conflicts == ROUNDS * 2 * 4 * 31
    assert loop.bound == "shared" and loop.bound_by_conflicts


# 36 and 132 bytes are 9 and 33 words, coprime to 32 banks
@pytest.mark.parametrize("stride, ways", [(8, 2), (16, 4), (32, 8), (36, 1), (132, 1)])
def test_conflicts_are_those_of_the_stride(tmp_path, stride, ways):
    assert loop_of(planted(tmp_path, stride=stride)).conflicts / (ROUNDS * 2 * 4) + 1 == ways


def test_a_planted_uncoalesced_load_is_found(tmp_path):
    cost = planted(tmp_path, pitch=128)
    assert cost.sectors == 8 * cost.least_sectors


def test_wider_lanes_are_served_in_halves_and_quarters_of_a_warp():
    lanes, everyone = np.arange(32), np.ones(32, bool)
    assert wavefronts(4 * lanes, everyone, 4) == 1
    assert wavefronts(0 * lanes, everyone, 4) == 1
    assert wavefronts(8 * lanes, everyone, 8) == 2
    assert wavefronts(16 * lanes, everyone, 16) == 4
    assert wavefronts(128 * lanes, everyone, 16) == 32
    assert wavefronts(128 * lanes, lanes < 8, 16) == 8


@triton.jit
def _rows_kernel(x_ptr, y_ptr, rows, width, pitch, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    columns = tl.arange(0, BLOCK)
    for row in tl.range(0, rows):
        total += tl.load(x_ptr + row * width + columns * pitch)
    tl.store(y_ptr + tl.program_id(0) * BLOCK + columns, total)


@pytest.mark.parametrize("arch", GPUS)
@pytest.mark.parametrize("pitch, share", [(1, 1.0), (8, 8.0)])
def test_loops_of_a_compiled_kernel_run_as_often_as_its_arguments_say(arch, pitch, share):
    def call():
        x, y = torch.empty(1 << 20, device="meta"), torch.empty(1 << 20, device="meta")
        # 37 rounds: the assembler takes four in one
        _rows_kernel[(10,)](x, y, 37, 2048, pitch, BLOCK=128, num_warps=4)

    (launch,) = compile_ahead.record_launches(call, arch)
    cost = launch_cost(launch, arch)
    assert cost.sectors == 37 * 128 * 4 / 32 * share
    assert cost.least_sectors == 37 * 128 * 4 / 32
    made = compile_ahead.compiled(launch, arch)
    program, code = ptx.parse(made.asm["ptx"]), sass.parse(compile_ahead.disassembly(made))
    executions = Block(program, [1 << 40, 2 << 40, 37, 2048, pitch], 128, (0, 0, 0), (10,)).run().executions
    times = [count for _, count in sass.weights(code, program, executions)]
    loads = sum(count for (opcode, _), count in zip(code.instructions, times, strict=True) if opcode.startswith("LDG"))
    # those left over stand outside the loop, each behind a condition that is not followed
    assert 37 <= loads <= 37 + 3


def test_loops_of_the_machine_code_alone_are_an_error():
    program = ptx.parse(LOOP.format(stride=4, pitch=4, threads=32))
    code = sass.MachineCode([("FADD", ""), ("BRA", ""), ("FADD", ""), ("BRA", "")], [(0, 1), (2, 3)])
    with pytest.raises(sass.LoopsDiffer, match="1 loops in the PTX, 2 in the machine code"):
        sass.weights(code, program, [1.0] * len(program.instructions))


def test_a_loop_that_the_assembler_wrote_out_is_carried_out_once():
    program = ptx.parse(LOOP.format(stride=4, pitch=4, threads=32))
    assert sass.weights(sass.MachineCode([("FADD", "")], []), program, [1.0] * len(program.instructions)) == [(-1, 1.0)]


# ms of an H100 for 10 s of each clip: a call of encode or decode, and its recurrence
BARS = {
    Case("demo", 32, "parity"): (15.0, 4.0),
    Case("demo", 32, "fast"): (9.0, 4.0),
    Case("demo", 1, "parity"): (4.0, 2.0),
    Case("demo-48khz", 8, "parity"): (12.0, 4.0),
}
MOST_SEARCH = 0.6
# of a call at 24 kHz, without those that write the rows of padding of the first and the last tile
MOST_LAUNCHES = 16


@pytest.mark.parametrize("case", BARS, ids=str)
def test_calls_cost_what_they_should(case):
    found, (most, most_recurrence) = project(case, "sm_90"), BARS[case]
    for stage in found.stages:
        cost, what = stage.cost, f"{stage.stage} {stage.cost.kernel}"
        assert cost.stack == 0, what
        assert not any(region.bound_by_conflicts for region in cost.regions), what
        # what is bound by memory reads every byte once: the first layer's rows, which overlap, and the sound, whose channels stand apart
        # a few numbers may begin in the middle of a sector
        assert cost.sectors <= max(1.3 * cost.least_sectors, cost.least_sectors + 16) or cost.bound == "memory", what
        thin = any(name in cost.kernel for name in ("few", "rvq_decode", "arrange", "group_norm", "overlap_add"))
        assert cost.matrix != thin, what
    for call in ("encode", "decode"):
        assert found.milliseconds(call) <= most
        assert time_of(found, call, "lstm") <= most_recurrence
    assert time_of(found, "encode", "rvq_encode") <= MOST_SEARCH
    if case.model == "demo":
        for call in ("encode", "decode"):
            assert sum(stage.times for stage in found.part(call) if "arrange" not in stage.cost.kernel) <= MOST_LAUNCHES


def time_of(found, call, kernel):
    return sum(stage.cost.time for stage in found.part(call) if kernel in stage.cost.kernel)
