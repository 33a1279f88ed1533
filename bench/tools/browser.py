"""Times the page in examples/browser in headless Chromium, and onnxruntime itself on the same graphs.

npm install --prefix examples/browser && python bench/tools/browser.py [--models demo demo-48khz] [--threads 1 2]

Rows of the page's speed are appended to bench/results/browser.jsonl. Real time is 1: the seconds of the clip by those of the call.
Of several runs the median counts, and the first is left out.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

# bench/, which holds bench_lib
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import soundfile
import torch

import encodec_fast
from bench_lib import results
from bench_lib.cases import Case
from bench_lib.machine import environment
from encodec_fast.audio import read_audio
from encodec_fast.graphs.check import OnnxCodec
from encodec_fast.plan.geometry import chunks_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["demo", "demo-48khz"], help="as for encodec-fast (default: both built-in ones)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of the browser (default 1 2)")
    parser.add_argument("--bandwidth", type=float, default=6, help="kbps (default 6)")
    parser.add_argument("--seconds", type=int, default=10, help="length of the clip (default 10)")
    parser.add_argument("--runs", type=int, default=5, help="of each, behind one that is left out (default 5)")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "browser.jsonl", help="rows are appended to it")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("browser.py: needs `pip install playwright`, and Chromium: `apt install chromium`.")
    if not (EXAMPLE / "node_modules").exists():
        sys.exit("browser.py: needs `npm install --prefix examples/browser`.")

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        for path in EXAMPLE.iterdir():
            (folder / path.name).symlink_to(path)
        example = runpy.run_path(str(EXAMPLE / "serve.py"))
        example["Isolated"].log_message = lambda *_: None
        http = example["server"](folder, 0)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        print(f"{'model':<12} {'runtime':<24} {'threads':>7} {'encode':>8} {'decode':>8}   x real time, median of {options.runs}")
        for model_name in options.models:
            model = encodec_fast.load_model(model_name)
            encodec_fast.export(model, folder / f"{model_name}-graphs")
            clip = clip_of(model.config, options.seconds)
            soundfile.write(folder / "clip.wav", clip.numpy().T, model.config.sampling_rate, subtype="FLOAT")
            for threads in options.threads:
                query = f"models={model_name}-graphs&threads={threads}&bandwidth={options.bandwidth:g}&seconds={options.seconds:g}"
                speeds = in_page(browser, f"http://localhost:{http.server_port}/?{query}", folder / "clip.wav", options.runs)
                show(model_name, f"Chromium {browser.version}", threads, speeds)
                results.append(options.out, rows(model_name, browser.version, threads, speeds, options))
            native = in_onnxruntime(OnnxCodec(folder / f"{model_name}-graphs", 1), model.config, clip, options)
            show(model_name, "onnxruntime", 1, native)
        browser.close()
        http.shutdown()


def rows(model: str, version: str, threads: int, speeds: tuple[float, float], options: argparse.Namespace) -> list[results.Row]:
    """Returns a row of encode and one of decode, as `bench/report.py` reads them."""
    about = environment(threads)
    about["versions"]["Chromium"] = version
    about["versions"]["onnxruntime-web"] = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]["onnxruntime-web"]
    found = []
    for call, speed in zip(("encode", "decode"), speeds, strict=True):
        case = Case(model, call, 1, options.seconds, options.bandwidth)
        measured = {"median": options.seconds / speed, "x_real_time": speed, "runs": options.runs, "disturbed": None}
        found.append({"suite": "browser", "environment": about, "case": case.fields(), "contender": "browser", **measured})
    return found


def clip_of(config, seconds: float) -> torch.Tensor:
    """Returns bundled speech and music in the model's rate and channels, [C, T], repeated to the length."""
    parts = [read_audio(path, config.sampling_rate, config.audio_channels)[0] for path in encodec_fast.demo.bundled_clips()]
    samples = np.concatenate(parts, 1)
    length = round(seconds * config.sampling_rate)
    return torch.from_numpy(np.tile(samples, -(-length // samples.shape[1]))[:, :length].astype(np.float32))


def in_page(browser, url: str, clip: Path, runs: int) -> tuple[float, float]:
    """Returns how many times real time the page encodes and decodes."""
    page = browser.new_page()
    page.set_default_timeout(600_000)
    page.goto(url)
    found = []
    for _ in range(runs + 1):
        page.locator("#file:enabled").wait_for()
        page.locator("#file").set_input_files([])
        page.locator("#file").set_input_files(clip)
        page.locator("#file:disabled").wait_for()
        page.locator("#file:enabled").wait_for()
        found.append(page.evaluate("[encodec.encodeSpeed, ...Object.values(encodec.decodes).map((each) => each.speed)]"))
    page.close()
    encode, decode = (statistics.median(values) for values in zip(*found[1:]))
    return encode, decode


def in_onnxruntime(codec: OnnxCodec, config, clip: torch.Tensor, options: argparse.Namespace) -> tuple[float, float]:
    """Returns how many times real time onnxruntime encodes and decodes, chunk by chunk as the page does."""
    levels = json.loads(codec.metadata["quantizers_of_bandwidth"])[f"{options.bandwidth:g}"]
    chunks = [clip[None, :, start : start + length].contiguous() for length, start in chunks_of(config, clip.shape[1])]
    spent = []
    for _ in range(options.runs + 1):
        start = time.perf_counter()
        codes = [codec.encode(chunk, levels) for chunk in chunks]
        between = time.perf_counter()
        for each in codes:
            codec.decode(*each)
        spent.append((between - start, time.perf_counter() - between))
    encode, decode = (statistics.median(values) for values in zip(*spent[1:]))
    return options.seconds / encode, options.seconds / decode


def show(model: str, runtime: str, threads: int, speeds: tuple[float, float]) -> None:
    """Prints a row."""
    print(f"{model:<12} {runtime:<24} {threads:>7} {speeds[0]:>8.2f} {speeds[1]:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
