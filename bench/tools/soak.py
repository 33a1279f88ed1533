"""Memory of a run over very many short clips, which has to stay flat: `python bench/tools/soak.py [--clips 100000] [--threads 2]`.

The model has a few channels, so that the run itself and not the encoder is looked at. Ends with code 1 where memory grows.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import EncodecConfig

# bench/, which holds bench_lib
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_lib.drawn import drawn_model
from bench_lib.resident import resident_bytes
from encodec_fast.corpus.sources import find_tasks
from encodec_fast.dataset.encoding import dataset_info
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.options import TokenizeOptions
from encodec_fast.dataset.run import Run, Summary, identity, plan
from encodec_fast.plan.weights import weights_sha256

SMALL = dict(sampling_rate=2400, num_filters=4, upsampling_ratios=[4, 2], hidden_size=8, codebook_size=16, target_bandwidths=[2.4])
FILES, SAMPLES = 100, 600
# The first tenth fills caches; after it, memory may grow by this much.
GROWTH = 1.05


def soak(clips: int) -> bool:
    """Prints the memory of a run over `clips` clips; returns whether it stays flat."""
    config = EncodecConfig(**SMALL)
    model = drawn_model(config, 0.1 * torch.randn(4, 1, 2400, generator=torch.Generator().manual_seed(0)))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "clips", Path(folder) / "codes"
        source.mkdir()
        for index in range(FILES):
            noise = 0.1 * np.random.default_rng(index).standard_normal(SAMPLES)
            soundfile.write(source / f"{index}.wav", noise, config.sampling_rate)
        manifest = source / "clips.tsv"
        lines = (f"{index:07d}\t{index % FILES}.wav\t{SAMPLES / config.sampling_rate}\n" for index in range(clips))
        manifest.write_text("id\tpath\tduration\n" + "".join(lines))
        info = dataset_info(model, "soak", weights_sha256(model), {})
        options, ledger = TokenizeOptions(max(config.target_bandwidths), workers=1), Ledger(out)
        plan(ledger, identity(info, model, options, [str(manifest)]), find_tasks([manifest]), options)
        print("| clips | memory, MB |\n|---|---|")
        seen: list[float] = []
        every = max(1, clips // 10)

        def note(summary: Summary) -> None:
            if summary.clips >= every * (len(seen) + 1):
                seen.append(resident_bytes() / 1e6)
                print(f"| {summary.clips} | {seen[-1]:.0f} |", flush=True)

        summary = Run(model, info, ledger, options).run(note)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{summary.clips} clips in {summary.wall_seconds:.0f} s, peak {peak:.0f} MB")
    return seen[-1] < GROWTH * seen[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.exit(0 if soak(options.clips) else 1)


if __name__ == "__main__":
    main()
