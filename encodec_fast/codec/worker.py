"""A process that decompresses files for another one, which `encodec_fast.processes` starts."""

from __future__ import annotations

import hashlib
import pickle
import sys

from encodec_fast.processes import end_with_parent, take_output


def main() -> None:
    """Reads the number of threads and paths of files, and writes the SHA-256 of the audio of each."""
    output = take_output()
    end_with_parent()
    threads, paths = pickle.load(sys.stdin.buffer)

    import torch

    from encodec_fast.codec.files import decompress

    torch.set_num_threads(threads)
    with output:
        pickle.dump([hashlib.sha256(decompress(path)[0].tobytes()).hexdigest() for path in paths], output)
