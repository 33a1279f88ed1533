"""Tokenizes a folder of audio on a Ray cluster, and says what the folder of codes holds.

    python examples/tokenize_ray.py recordings/ codes/                          # a cluster on this machine, for a try
    python examples/tokenize_ray.py s3://bucket/audio /shared/codes --address auto

All nodes must reach the audio and the folder of codes, and have this package. The same command goes on after any interruption.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import encodec_fast

# Seconds between two lines of progress
QUIET = 5.0


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="folders, files, manifests, tars, tables, or URLs of them")
    parser.add_argument("out", help="folder for the codes")
    parser.add_argument("--model", default="facebook/encodec_24khz", help="name on the hub, or a folder (default: %(default)s)")
    parser.add_argument("--bandwidth", type=float, default=6.0, help="kbps (default: %(default)g)")
    parser.add_argument("--address", help="of the cluster, such as auto or ray://head:10001; default: one on this machine")
    parser.add_argument("--actors", type=int, default=0, help="encoders; 0: as many as fit into the cluster (default)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU of each encoder's own (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each encoder (default: %(default)d)")
    parser.add_argument("--minutes-per-shard", type=float, default=10.0, help="what the loss of a node costs (default: %(default)g)")
    parser.add_argument("--retry-failed", action="store_true", help="try the clips again that failed before")
    return parser.parse_args(words)


class Progress:
    """Prints a line now and then: clips, hours, speed, and the time that is left."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, progress: encodec_fast.TokenizeProgress) -> None:
        """Prints, if the last line is a while ago or everything is done."""
        now, so_far = time.monotonic(), progress.summary
        if now - self._said < QUIET and progress.done < progress.total:
            return
        self._said = now
        line = f"{progress.phase}: {progress.done} of {progress.total} clips"
        if so_far is not None and so_far.seconds:
            left = (so_far.planned_seconds - so_far.seconds) / so_far.times_real_time
            line += (
                f", {so_far.seconds / 3600:.2f} h of audio, {so_far.times_real_time:.0f} x real time, {max(0.0, left) / 60:.1f} min left"
            )
        print(line, flush=True)


def tokenize(options: argparse.Namespace) -> int:
    """Runs, and returns the exit code of `encodec-fast tokenize`: 0, or 1 where clips failed."""
    summary = encodec_fast.tokenize(
        options.sources,
        options.out,
        model=options.model,
        device=options.device,
        threads=options.threads,
        ray=encodec_fast.RayCluster(options.address, options.actors),
        retry_failed=options.retry_failed,
        options=encodec_fast.TokenizeOptions(bandwidth=options.bandwidth, shard_seconds=60 * options.minutes_per_shard),
        progress=Progress(),
    )
    print(
        f"encoded {summary.clips} clips, {summary.seconds:.1f} s of audio in {summary.wall_seconds:.1f} s, "
        f"{summary.times_real_time:.1f} x real time; {summary.done_before} clips were done before, {len(summary.files)} shards were written"
    )
    for warning in summary.warnings:
        print(f"warning: {warning}")
    for failure in summary.failures:
        print(f"failed: {failure.id}: {failure.reason}", file=sys.stderr)
    return 1 if summary.failures else 0


def print_statistics(folder: str) -> None:
    """Prints what the folder holds, of all runs together."""
    found = encodec_fast.folder_statistics(folder)
    size, an_hour = found.bytes / 1e6, found.bytes_per_hour / 1e6
    print(f"{folder}: {found.clips} clips, {found.seconds / 3600:.3f} h, {found.failed} failed, {size:.3f} MB in {found.shards} shards")
    print(f"  {found.tokens} codes at {found.bandwidth:g} kbps; an hour is {found.tokens_per_hour:.0f} codes and {an_hour:.1f} MB")
    for book in found.codebooks:
        print(f"  level {book.level}: {book.used} of {found.codebook_size} entries in use, {book.entropy:.2f} bits per code")


def main() -> int:
    """Returns the exit codes that docs/data-sets.md has: 2 for a wrong argument, 3 where the machines stopped the run."""
    options = parse()
    try:
        code = tokenize(options)
        print_statistics(options.out)
        return code
    except (ValueError, OSError, encodec_fast.RayError) as error:
        print(f"tokenize_ray.py: {error}", file=sys.stderr)
        return 2
    except encodec_fast.RunStopped as error:
        print(f"tokenize_ray.py: {error} The same command goes on.", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("tokenize_ray.py: interrupted; what was finished is kept, and the same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
