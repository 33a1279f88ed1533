"""Runs every code block of a page of the documentation, in order: `python doc_snippets.py PAGE MODEL`, in a folder with its files.

Python blocks share one namespace. Shell blocks run by bash, where `encodec-fast` takes the model MODEL unless one is named.
MODEL stands for the published models, which a test can't download. Blocks of ```text and lines that install are left out.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What pages speak of as the reader's own.
PRELUDE = """
import numpy as np, torch, transformers
import encodec_fast
from encodec_fast.audio import read_audio

class Rows:
    def map(self, function, batched, batch_size):
        return function({"audio": ["speech.wav"] * 2})
    def map_batches(self, kind, fn_constructor_args, concurrency):
        return kind(*fn_constructor_args)({"audio": ["speech.wav"] * 2})

ds = Rows()
model = encodec_fast.load_model("facebook/encodec_24khz")
musicgen = torch.nn.Module()
musicgen.audio_encoder = transformers.EncodecModel.from_pretrained("facebook/encodec_24khz")
samples = torch.from_numpy(read_audio("speech.wav", 24_000, 1)[0])
pieces = samples.split(5000, dim=1)
waveforms = [samples, samples[:, :9000]]
input_values = long_audio = samples[None]
"""
SHIM = """#!/bin/sh
command="$1"
case "$command" in tokenize|roundtrip|verify) shift; set -- "$command" --model "$MODEL" "$@";; esac
exec "$PYTHON" -m encodec_fast "$@"
"""


def main(page: Path, model: str) -> None:
    text = page.read_text(encoding="utf-8").replace("facebook/encodec_24khz", model)
    shim = Path("bin/encodec-fast")
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(SHIM)
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent.absolute()}:{os.environ['PATH']}", "MODEL": model, "PYTHON": sys.executable}
    namespace = {"__name__": "page"}
    exec(PRELUDE.replace("facebook/encodec_24khz", model), namespace)
    count = 0
    for language, block in BLOCK.findall(text):
        count += 1
        print(f"--- {language}\n{block}", flush=True)
        if language == "python":
            exec(compile(block, f"{page.name}, block {count}", "exec"), namespace)
        elif language == "bash":
            lines = [line for line in block.splitlines() if not line.startswith(("pip install", "python bench/"))]
            subprocess.run(["bash", "-ec", "\n".join(lines)], env=environment, check=True)
        else:
            assert language == "text", f"a block of {language}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
