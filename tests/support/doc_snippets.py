"""Runs every code block of a page of the documentation, in order: `python doc_snippets.py PAGE MODEL`, in a folder with its files.

Python blocks share one namespace. Of shell blocks the calls of `encodec-fast` run, with the model MODEL unless one is named.
MODEL stands for the published models, which a test can't download. Blocks of ```text and lines of pip and python are left out.
"""

import re
import shlex
import sys
from pathlib import Path

from encodec_fast import cli

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
# These take a model of their own where the page names none.
TAKE_MODEL = ("tokenize", "roundtrip", "compress", "decompress", "verify", "quality")


def run_command(line: str, model: str) -> None:
    """A line of a shell block: a call of the command, which runs here, for a process of its own takes seconds to begin."""
    words = shlex.split(line, comments=True)
    if not words or words[0] in ("pip", "python"):
        return
    assert words[0] == "encodec-fast" and not {"|", ">", "&&", ";"} & {*words}, f"no call of encodec-fast: {line}"
    named = ["--model", model] if words[1] in TAKE_MODEL else []
    code = cli.main([words[1], *named, *words[2:]])
    assert code == cli.OK, f"exit code {code} of {line}"


def main(page: Path, model: str) -> None:
    text = page.read_text(encoding="utf-8").replace("facebook/encodec_24khz", model)
    namespace = {"__name__": "page"}
    exec(PRELUDE.replace("facebook/encodec_24khz", model), namespace)
    count = 0
    for language, block in BLOCK.findall(text):
        count += 1
        print(f"--- {language}\n{block}", flush=True)
        if language == "python":
            exec(compile(block, f"{page.name}, block {count}", "exec"), namespace)
        elif language == "bash":
            for line in block.splitlines():
                run_command(line, model)
        else:
            assert language == "text", f"a block of {language}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
