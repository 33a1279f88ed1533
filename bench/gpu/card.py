"""What card this is and what it can do; and every kernel compiled for it, so that no later phase waits for a compiler."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch
from transformers import EncodecModel

from encodec_fast.backends.triton_backend import MODES as PRODUCTS
from encodec_fast.plan.reader import read_plan
from gpu.setting import MODELS, PRECISIONS, Item, Row, Setting
from gpu.timing import in_turn, median

PACKAGES = ("torch", "triton", "transformers", "numpy", "soundfile", "pyarrow")
# (clips, seconds) that the timed phases run, so that what is compiled ahead is what they launch
SHAPES = ((32, 10.0), (1, 10.0), (1, 1.0))


def card(setting: Setting) -> Iterator[Item]:
    yield Item("card", lambda: [about(setting)])
    yield Item("rates", lambda: rates(setting))


def about(setting: Setting) -> Row:
    """Returns card, driver, versions. `arch` is what the phases after this one are told."""
    versions = {name: _version(name) for name in PACKAGES}
    row: Row = {"device": "none", "arch": setting.arch, "python": platform.python_version(), "cores": os.cpu_count(), **versions}
    if torch.cuda.is_available():
        from encodec_fast.kernels.tiles import arch_of

        properties = torch.cuda.get_device_properties(0)
        row |= {
            "device": properties.name,
            "arch": arch_of(torch.device("cuda")),
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "smi": _smi(),
        }
    return row


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _smi() -> str:
    """Driver, clocks in MHz and power in W, as nvidia-smi reads them."""
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return done.stdout.strip()


def rates(setting: Setting) -> Iterator[Row]:
    """Yields copy in GB/s read and written, products in TFLOP/s, the time of an empty launch: the ceilings of everything that follows."""
    device = setting.device
    if device.type != "cuda" and not setting.toy:
        yield {"left_out": "no GPU"}
        return
    floats, side = (1 << 28, 8192) if not setting.toy else (1 << 10, 16)
    source, target = torch.randn(floats, device=device), torch.empty(floats, device=device)
    times = in_turn({"copy": lambda: target.copy_(source)}, device, 1.0)["copy"]
    yield {"what": "copy", "GB/s": 2 * source.nbytes / median(times) / 1e6}
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    half = {dtype: (a.to(dtype), b.to(dtype)) for dtype in (torch.float16, torch.bfloat16)}

    def product(allow_tf32: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        torch.mm(a, b)
        torch.backends.cuda.matmul.allow_tf32 = False

    calls = {"float32 product": lambda: product(False), "tf32 product": lambda: product(True)}
    calls |= {f"{str(dtype).removeprefix('torch.')} product": lambda pair=pair: torch.mm(*pair) for dtype, pair in half.items()}
    for name, runs in in_turn(calls, device, 3.0, rounds=7).items():
        yield {"what": name, "TFLOP/s": 2 * side**3 / median(runs) / 1e9}
    one = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(100):
            one.add_(1)

    yield {"what": "a small launch of torch's", "us": 10 * median(in_turn({"launch": launches}, device, 1.0)["launch"])}


def compile_ahead(setting: Setting) -> Iterator[Item]:
    """Compiles on all cores before anything touches the GPU; Triton's cache hands the kernels to the phases that launch them."""
    for model in MODELS if not setting.toy else ("24 kHz",):
        for precision in PRECISIONS if not setting.toy else ("fast",):
            yield Item(f"{model} {precision}", lambda m=model, p=precision: [compiled(setting, m, p)])
    if not setting.toy:
        yield Item("other tiles", lambda: [other_tiles(setting)])


def compiled(setting: Setting, model: str, precision: str) -> Row:
    """Returns counts of kernels, of those that failed, spilled or ask for too much shared memory; the longest compilation."""
    from projection.launches import model_launches

    products, search = PRODUCTS[precision], "ieee" if setting.arch.startswith("gfx") else "rerank"
    config = setting.config(model)
    length = [(clips, setting.samples(seconds)) for clips, seconds in (SHAPES if not setting.toy else SHAPES[:1])]
    if config.chunk_length is not None:
        length = [(88, config.chunk_length), (1, config.chunk_length)]
    launches = [
        launch
        for clips, samples in length
        for _, launch, _ in model_launches(config, setting.arch, products, search, batch=clips, samples=samples)
    ]
    # the same kernels with each clip's own length
    clips, samples = length[0]
    launches += [
        launch for _, launch, _ in model_launches(config, setting.arch, products, search, batch=clips, samples=samples - 1, ragged=True)
    ]
    return _compiled(launches, setting.arch)


def other_tiles(setting: Setting) -> Row:
    """Compiles what the phase `variants` launches; a tile that doesn't compile is one of those to leave out."""
    from encodec_fast.kernels import tiles
    from gpu.variants import OTHERS, all_tiles, kernel_run
    from projection import compile_ahead

    launches = []
    with torch.device("meta"), compile_ahead.as_on(setting.arch):
        plan = read_plan(EncodecModel(setting.config("24 kHz")))
        for key in OTHERS:
            run = kernel_run(plan, key, 32, setting.samples(10.0), torch.device("meta"))
            assert run is not None, key
            for tile in all_tiles(key, tiles.lookup(key[0], setting.arch, *key[1:])):
                launches += compile_ahead.record_launches(lambda run=run, tile=tile: run(tile), setting.arch)
    row = _compiled(launches, setting.arch)
    return {**row, "passed": True}


def _compiled(launches: list[Any], arch: str) -> Row:
    from projection import compile_ahead

    results = compile_ahead.compile_all(launches, arch)
    failed = sorted({f"{launch.name}: {made}" for launch, made in zip(launches, results, strict=True) if isinstance(made, Exception)})
    # a tile that spills, or asks for more memory than there is, runs nowhere
    made = list({id(result): result for result in results if isinstance(result, compile_ahead.Resources)}.values())
    limit = compile_ahead.SHARED_LIMITS.get(arch)
    spilled = sum(resources.stack > 0 for resources in made)
    over = sum(limit is not None and resources.shared > limit for resources in made)
    return {
        "kernels": len({id(result) for result in results}),
        "failed_kernels": failed,
        "spilled": spilled,
        "over_shared_memory": over,
        "longest_s": max((resources.seconds for resources in made), default=0.0),
        "passed": not failed and not spilled and not over,
    }
