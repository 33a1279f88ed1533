"""The kernels of both real models with every tile, for six architectures: what they take must be what the hardware has.

Of a kernel and a tile that launch is compiled which has the widest window. test_cost.py compiles every launch for one architecture.
"""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from triton.runtime import jit

from encodec_fast.kernels import tiles
from encodec_fast.kernels.causal_conv1d import causal_conv1d_triton
from encodec_fast.kernels.lstm import lstm_triton
from encodec_fast.kernels.lstm_weights import lstm_weights
from encodec_fast.kernels.rows import Padding, Rows
from encodec_fast.kernels.rvq_encode import rvq_encode_triton, search_tables
from encodec_fast.kernels.tile_table import TABLE
from projection import compile_ahead
from projection.launches import model_launches
from support.models import config_24khz, config_48khz

ARCHS = {
    "sm_80": ("split", "tf32"),
    "sm_90": ("split", "tf32"),
    "sm_100": ("split", "tf32"),
    "gfx942": ("ieee", "tf32"),
    # less shared memory
    "sm_89": ("split", "tf32"),
    "sm_120": ("split", "tf32"),
}
# Where special calls are compiled too.
SPECIAL_CALLS = ("sm_80", "sm_90")
COMPILE_SECONDS = 30
CONFIG_24KHZ = config_24khz()
CONFIG_48KHZ = config_48khz()


def searches_of(arch):
    return ("ieee",) if arch.startswith("gfx") else ("ieee", "rerank")


def many_frames(arch, search):
    """A search of enough frames for the other row of the table."""
    with torch.device("meta"):
        tables, x = search_tables(torch.empty(8, 1024, 128)), torch.empty(4, 128, 1500)
    return compile_ahead.record_launches(lambda: rvq_encode_triton(x, tables, 8, mode=search), arch)


PLAIN = [("", dict(config=CONFIG_24KHZ))]


def variants(precision):
    """(what is special, arguments of `model_launches`) of the calls whose launches are compiled."""
    yield from PLAIN
    if precision == "split":
        yield "odd strides, ragged", dict(config=CONFIG_24KHZ, samples=24_001, ragged=True)
        yield "group norm", dict(config=CONFIG_48KHZ, samples=48_000)
    if precision == "tf32":
        # what models in half precision run in; their quantizer is rounded too
        yield "float16", dict(config=CONFIG_24KHZ, dtype=torch.float16)
        yield "bfloat16, group norm, ragged", dict(config=CONFIG_48KHZ, samples=48_001, ragged=True, dtype=torch.bfloat16)


def one_of_each(found):
    """Of the launches of one kernel with one tile, the one with the widest window."""
    kept = {}
    for stage, launch, times in found:
        blocks = [value for name, value in sorted(launch.kwargs.items()) if name.startswith(("BLOCK", "num_"))]
        key, width = (launch.name, *blocks), launch.kwargs.get("KERNEL", 0)
        if key not in kept or width > kept[key][1].kwargs.get("KERNEL", 0):
            kept[key] = stage, launch, times
    return list(kept.values())


def narrow_layers(arch, precision):
    """Convolutions of widths that neither model has, and of few outputs before a norm."""
    with torch.device("meta"):
        for columns in (16, 32):
            matrix = torch.empty(2 if precision == "split" else 1, columns, 7 * 32)
            rows, padding = Rows(torch.empty(4, 2006, 32), 6, 2000), Padding(6, 0, "reflect")
            yield from compile_ahead.record_launches(
                lambda m=matrix: causal_conv1d_triton(rows, m, None, padding, kernel=7, mode=precision),  # noqa: B023 (called at once)
                arch,
            )


def step_by_step(arch, precision):
    """A step of the recurrence by itself, for devices where one launch can't carry all steps."""
    with torch.device("meta"):
        tile, matrices = tiles.lookup("lstm", arch, precision, 0), [torch.empty(2048, 512)] * 2
        weights = lstm_weights(matrices, matrices, torch.empty(2, 2048), precision, tile.block_n)
        x, hidden, cell = Rows(torch.empty(4, 10, 512), 0, 10), torch.empty(2, 2, 4, 512), torch.empty(2, 4, 512)
        launches = compile_ahead.record_launches(lambda: lstm_triton(x, weights, hidden, cell, tile=tile), arch)
    return [launch for launch in launches if launch.name == "_lstm_step_kernel"][:1]


def collect():
    """One case per distinct kernel: (label, architecture, launch)."""
    cases = {}
    for arch, precisions in ARCHS.items():
        searches = searches_of(arch)
        found = [(search, "many frames", launch) for search in searches for launch in many_frames(arch, search)]
        for index, precision in enumerate(precisions):
            search = searches[min(index, len(searches) - 1)]
            for what, call in variants(precision) if arch in SPECIAL_CALLS else PLAIN:
                launches = model_launches(arch=arch, precision=precision, search=search, **call)
                found += [(precision, f"{stage} {what}".strip(), launch) for stage, launch, _ in one_of_each(launches)]
        found += [(precision, "narrow layer", launch) for precision in precisions for launch in narrow_layers(arch, precision)]
        found += [(precision, "step by step", launch) for precision in precisions for launch in step_by_step(arch, precision)]
        for precision, stage, launch in found:
            source, options = compile_ahead.specialise(launch, arch)
            cases.setdefault((arch, source.hash(), str(options)), (f"{arch}-{precision}-{launch.name}-{stage}", arch, launch))
    return list(cases.values())


def test_a_kernel_that_was_specialised_is_as_before():
    _, arch, launch = CASES[0]
    before, driver = dict(vars(launch.kernel)), jit.driver
    compile_ahead.specialise(launch, arch)
    assert vars(launch.kernel) == before and jit.driver is driver


def watched_lookup(*key):
    looked_up.add(key)
    return plain_lookup(*key)


looked_up: set[tuple[str, str, str, int]] = set()
plain_lookup, tiles.lookup = tiles.lookup, watched_lookup
CASES = collect()
tiles.lookup = plain_lookup


def compile_case(index):
    # a compiler that never ends takes its process down, which the pool reports
    signal.alarm(10 * COMPILE_SECONDS)
    _, arch, launch = CASES[index]
    resources = compile_ahead.compile_launch(launch, arch)
    signal.alarm(0)
    return resources


class Compiled(dict):
    """Resources of each case, being compiled by a pool; those not asked for beforehand start when they are."""

    def __init__(self, pool):
        self.pool = pool

    def __missing__(self, index):
        self[index] = self.pool.submit(compile_case, index)
        return self[index]


@pytest.fixture(scope="session")
def compiled(request):
    parameters = [item.callspec.params for item in request.session.items if "index" in getattr(item, "fixturenames", ())]
    # the cases hold kernels, which do not pickle: workers inherit them
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        made = Compiled(pool)
        for case in parameters:
            made[case["index"]]
        yield made


@pytest.mark.parametrize("index", range(len(CASES)), ids=[label for label, _, _ in CASES])
def test_kernel_fits(index, compiled):
    _, arch, launch = CASES[index]
    needs = compiled[index].result()
    assert needs.stack == 0, f"{needs.stack} bytes of registers spilled to the stack ({needs.registers} registers)"
    assert needs.instructions["LDL"] == needs.instructions["STL"] == needs.instructions["scratch_"] == 0
    assert needs.shared <= compile_ahead.SHARED_LIMITS[arch]
    assert needs.registers * needs.threads <= 65_536 * (2 if arch.startswith("gfx") else 1)
    assert needs.seconds <= COMPILE_SECONDS
    precision = launch.kwargs.get("MODE", "thin")
    # gfx942 has matrix cores that multiply float32 exactly
    assert bool(needs.matrix_instructions) == (precision != "thin" and (precision != "ieee" or arch.startswith("gfx")))
    if precision == "ieee" and not arch.startswith("gfx"):
        assert needs.instructions["FFMA"] + needs.instructions["FFMA2"] > 0
    if precision == "split" and launch.name == "_causal_conv1d_kernel":
        # the sum of a block is added to those before it: folded into the products, there would be one chain again
        outputs = launch.kwargs["BLOCK_T"] * launch.kwargs["BLOCK_N"] // needs.threads
        assert needs.instructions["FADD"] + 2 * needs.instructions["FADD2"] >= outputs


def test_products_of_rows_use_the_warpgroup_instruction(compiled):
    kinds = {
        (launch.kwargs["MODE"], kind)
        for index, (_, arch, launch) in enumerate(CASES)
        if arch == "sm_90" and launch.name in ("_causal_conv1d_kernel", "_residual_block_kernel")
        for kind in compiled[index].result().matrix_instructions
    }
    assert kinds == {("split", "HGMMA"), ("tf32", "HGMMA")}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_row_of_the_table_is_compiled(arch):
    # of the search in ieee everywhere, of products where it is the architecture's own
    rows = {key for key in TABLE if key[0] in (arch, "any") and key[2] in (*ARCHS[arch], *searches_of(arch))}
    rows -= {key for key in rows if key[1] in ("conv", "residual", "lstm") and key[2] not in ARCHS[arch]}
    rows -= {("any", *key[1:]) for key in TABLE if key[0] == arch}
    used = {key for key in rows if (key[1], arch, *key[2:]) in looked_up}
    assert used == rows


def test_rows_for_few_and_many_frames_add_in_the_same_order():
    for arch in ARCHS:
        few, many = (tiles.lookup("rvq_encode", arch, "ieee", bucket) for bucket in (0, 1))
        # scalar FMAs run through the sum in ascending order whatever the tile; matrix cores need the same tile
        assert few == many or arch.startswith("sm_")
