"""Peak memory of one long clip, encoded and decoded in one call each: ours, or stock transformers with --stock.

    /usr/bin/time -v python bench/tools/long_clip.py --hours 10

The process holds the model, the audio and the result; what lies above them is printed. --json prints one JSON line per call instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.models.encodec import modeling_encodec as hf

# bench/, which holds bench_lib
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import encodec_fast
from bench_lib.resident import forget_peak, peak_bytes, resident_bytes
from encodec_fast.demo import demo_model
from encodec_fast.verify import Reference

MIB = 1 << 20


def clip(hours: float, rate: int) -> torch.Tensor:
    """Returns noise under a slow envelope, float32 [1, 1, T], made in place."""
    audio = torch.empty(1, 1, int(hours * 3600 * rate))
    audio.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    for second in range(0, audio.shape[-1], rate):
        audio[..., second : second + rate] *= 0.2 + 0.8 * (second // rate % 7) / 6
    return audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0, help="length of the clip (default 1)")
    parser.add_argument("--bandwidth", type=float, default=6.0, help="kbps (default 6)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own choice)")
    parser.add_argument("--stock", action="store_true", help="stock transformers instead of encodec_fast")
    parser.add_argument("--encode-only", action="store_true", help="leave decode out")
    parser.add_argument("--json", action="store_true", help="one JSON line per call")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model: hf.EncodecModel = demo_model("demo")
    rate = model.config.sampling_rate
    if options.stock:
        model = Reference(model, torch.float32).model
        model._forward_hooks.clear()
        model.encoder._forward_hooks.clear()
    with torch.no_grad():
        # the plan, the threads and the libraries' own buffers
        model.decode(model.encode(torch.zeros(1, 1, rate), bandwidth=options.bandwidth).audio_codes, [None])
        audio = clip(options.hours, rate)
        codes = measured("encode", options, audio, lambda audio: model.encode(audio, bandwidth=options.bandwidth).audio_codes)
        if options.encode_only:
            return
        del audio
        measured("decode", options, codes, lambda codes: model.decode(codes, [None]).audio_values)


def measured(name: str, options: argparse.Namespace, given: torch.Tensor, call: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Returns `call(given)`, after a line about its time and memory."""
    forget_peak()
    before, start = resident_bytes(), time.perf_counter()
    made = call(given)
    seconds = time.perf_counter() - start
    above = peak_bytes() - before - made.nbytes
    side = "transformers" if options.stock else f"encodec_fast {encodec_fast.__version__}"
    rate = options.hours * 3600 / seconds
    if options.json:
        row = {
            "contender": side,
            "call": name,
            "hours": options.hours,
            "threads": options.threads,
            "x_real_time": rate,
            "bytes_above": above,
        }
        print(json.dumps(row), flush=True)
        return made
    print(
        f"{side} {name}, {options.hours:g} h, {options.threads} threads: {rate:.1f} x real time; "
        f"{above / MIB:.0f} MiB above model, input ({given.nbytes / MIB:.0f} MiB) and output ({made.nbytes / MIB:.0f} MiB)",
        flush=True,
    )
    return made


if __name__ == "__main__":
    main()
