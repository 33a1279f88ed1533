"""A file as a microphone would give it: pieces of 20 ms in, frames of codes out, on one core.

python bench/tools/microphone.py FILE [--piece-ms 20] [--model demo] [--bandwidth 6]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from encodec_fast import StreamingEncoder, load_model
from encodec_fast.audio import read_audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a recording; it is resampled and mixed as the model needs")
    parser.add_argument("--piece-ms", type=float, default=20.0, help="length of a piece (default 20)")
    parser.add_argument("--model", default="demo", help="as for encodec-fast (default demo)")
    parser.add_argument("--bandwidth", type=float, default=6.0, help="kbps (default 6)")
    parser.add_argument("--quiet", action="store_true", help="the last line only")
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = load_model(options.model)
    rate, channels = model.config.sampling_rate, model.config.audio_channels
    samples = torch.from_numpy(read_audio(options.file, rate, channels)[0])
    encoder = StreamingEncoder(model, options.bandwidth)
    encoder.push(samples[:, :rate])  # the first call lays out the weights
    encoder.reset()

    piece, frames, spent = max(1, round(rate * options.piece_ms / 1000)), 0, []
    for number, part in enumerate(samples.split(piece, 1)):
        start = time.perf_counter()
        (codes,) = encoder.push(part)
        spent.append(time.perf_counter() - start)
        frames += codes.shape[1]
        if not options.quiet:
            print(
                f"{number * piece / rate:8.3f} s  {codes.shape[1]} frames in {1000 * spent[-1]:5.2f} ms  {codes[:, -1:].flatten().tolist()}"
            )
    start = time.perf_counter()
    (codes,) = encoder.flush()
    spent.append(time.perf_counter() - start)
    frames += codes.shape[1]
    seconds = samples.shape[1] / rate
    print(
        f"{seconds:.2f} s of audio, {frames} frames at {options.bandwidth:g} kbps: {seconds / sum(spent):.1f} x real time on one thread; "
        f"a push of {options.piece_ms:g} ms took {1000 * statistics.median(spent):.2f} ms (median), {1000 * max(spent):.2f} ms at most"
    )


if __name__ == "__main__":
    main()
