"""Every launch of both real models, compiled for four architectures: what it takes must be what the hardware has."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from encodec_fast.kernels import aot, tiles
from encodec_fast.kernels.rvq_encode import rvq_encode_triton, search_tables
from encodec_fast.kernels.tile_table import TABLE
from transformers import EncodecConfig

from encodec_fast.executors.triton_launches import model_launches

ARCHS = {
    "sm_80": ("ieee", "tf32", "tf32x3"),
    "sm_90": ("ieee", "tf32", "tf32x3"),
    "sm_100": ("ieee", "tf32"),
    "gfx942": ("ieee", "tf32"),
}
COMPILE_SECONDS = 30
CONFIG_24KHZ = EncodecConfig()
CONFIG_48KHZ = EncodecConfig(
    sampling_rate=48_000,
    audio_channels=2,
    normalize=True,
    chunk_length_s=1.0,
    overlap=0.01,
    norm_type="time_group_norm",
    use_causal_conv=False,
)


def many_frames(arch, search):
    """A search of enough frames for the other row of the table."""
    with torch.device("meta"):
        tables, x = search_tables(torch.empty(8, 1024, 128)), torch.empty(4, 128, 1500)
    return aot.record_launches(lambda: rvq_encode_triton(x, tables, 8, precision=search), arch)


def collect():
    """One case per distinct kernel: (label, architecture, launch)."""
    cases = {}
    for arch, precisions in ARCHS.items():
        searches = ["ieee"] if arch.startswith("gfx") else ["ieee", "rerank", "tf32x3"]
        found = [(search, "many frames", launch) for search in searches for launch in many_frames(arch, search)]
        for index, precision in enumerate(precisions):
            search = searches[min(index, len(searches) - 1)]
            models = [(CONFIG_24KHZ, 24_000, False)]
            if (arch, precision) == ("sm_90", "ieee"):
                # strides that are no multiples of 16, and per-clip lengths
                models.append((CONFIG_24KHZ, 24_001, True))
            if arch in ("sm_80", "sm_90") and precision == "ieee":
                # group norm
                models.append((CONFIG_48KHZ, 48_000, False))
            for config, samples, ragged in models:
                launches = model_launches(config, arch, precision, search, samples=samples, ragged=ragged)
                found += [(precision, f"{stage} of {samples}", launch) for stage, launch in launches]
        for precision, stage, launch in found:
            source, options = aot.specialise(launch, arch)
            cases.setdefault((arch, source.hash(), str(options)), (f"{arch}-{precision}-{launch.name}-{stage}", arch, launch))
    return list(cases.values())


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
    resources = aot.compile_launch(launch, arch)
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
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
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
    assert needs.shared <= aot.SHARED_LIMITS[arch]
    assert needs.registers * needs.threads <= 65_536 * (2 if arch.startswith("gfx") else 1)
    assert needs.seconds <= COMPILE_SECONDS
    precision = launch.kwargs.get("PRECISION")
    if arch.startswith("gfx"):
        # matrix cores that multiply float32 exactly
        assert bool(needs.matrix_instructions) == (precision is not None)
    else:
        assert bool(needs.matrix_instructions) == (precision not in (None, "ieee"))
    if precision == "ieee" and not arch.startswith("gfx"):
        assert needs.instructions["FFMA"] + needs.instructions["FFMA2"] > 0


def test_wide_products_use_the_warpgroup_instruction(compiled):
    kinds = {
        launch.kwargs["BLOCK_M"]: compiled[index].result().matrix_instructions
        for index, (_, arch, launch) in enumerate(CASES)
        if arch == "sm_90" and launch.name == "_causal_conv1d_kernel" and launch.kwargs["PRECISION"] == "tf32"
    }
    assert kinds[64] == {"HGMMA"}
    # 32 rows are fewer than the 64 of a warpgroup
    assert kinds[32] == {"HMMA"}


def test_every_row_of_the_table_is_compiled():
    used = {
        key
        for key in TABLE
        for op, arch, precision, width in looked_up
        if key[0] in (arch, "any") and key[1:] == (op, precision, width) and not (key[0] == "any" and (arch, *key[1:]) in TABLE)
    }
    assert used == set(TABLE)


def test_rows_for_few_and_many_frames_add_in_the_same_order():
    for arch in ARCHS:
        few, many = (tiles.lookup("rvq_encode", arch, "ieee", bucket) for bucket in (0, 1))
        # scalar FMAs run through the sum in ascending order whatever the tile; matrix cores need the same tile
        assert few == many or arch.startswith("sm_")
