"""Peak memory of one long clip, encoded and decoded in one call each: ours, or stock transformers with --stock.

    /usr/bin/time -v python bench/long_clip.py --hours 10

The process holds the model, the audio and the result; what lies above them is printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from transformers.models.encodec import modeling_encodec as hf

import encodec_fast
from encodec_fast.demo import demo_model
from encodec_fast.verify import Reference

MIB = 1 << 20


def memory(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak since it was last reset) of the process, MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))


def reset_peak() -> float:
    """Starts a new peak; returns the memory now, MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def clip(hours: float, rate: int) -> torch.Tensor:
    """Noise under a slow envelope, float32 [1, 1, T], made in place."""
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
        inputs = audio.numel() * 4 / MIB
        before = reset_peak()
        start = time.perf_counter()
        codes = model.encode(audio, bandwidth=options.bandwidth).audio_codes
        seconds = time.perf_counter() - start
        report("encode", options, before, inputs, codes.numel() * 8 / MIB, seconds)
        if options.encode_only:
            return
        del audio
        start = time.perf_counter()
        before = reset_peak()
        sound = model.decode(codes, [None]).audio_values
        seconds = time.perf_counter() - start
        report("decode", options, before, codes.numel() * 8 / MIB, sound.numel() * 4 / MIB, seconds)


def report(name: str, options: argparse.Namespace, before: float, inputs: float, outputs: float, seconds: float) -> None:
    side = "transformers" if options.stock else f"encodec_fast {encodec_fast.__version__}"
    print(
        f"{side} {name}, {options.hours:g} h, {options.threads} threads: {options.hours * 3600 / seconds:.1f} x real time; "
        f"{memory('VmHWM') - before - outputs:.0f} MiB above model, input ({inputs:.0f} MiB) and output ({outputs:.0f} MiB)",
        flush=True,
    )


if __name__ == "__main__":
    main()
