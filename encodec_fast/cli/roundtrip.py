"""`encodec-fast roundtrip`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encodec_fast.cli.app import (
    OK,
    BackendOption,
    BandwidthOption,
    DeviceOption,
    ModelOption,
    OverwriteOption,
    ThreadsOption,
    WrongArgument,
    command,
    prepared_model,
)
from encodec_fast.cli.one_file import names_file, one_row, read_clip, refuse_existing, speaking_elsewhere
from encodec_fast.cli.terminal import say
from encodec_fast.dataset.options import BANDWIDTH


@command(
    "[bold]Examples[/bold]\n\nencodec-fast roundtrip song.mp3 --out song-6kbps.wav --bandwidth 6\n\n"
    "ffmpeg -i talk.mp4 -f wav - | encodec-fast roundtrip - -o talk.wav -b 3"
)
def roundtrip(
    source: Annotated[str, typer.Argument(metavar="AUDIO", help="A file or URL; - is standard input.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NAME.wav", help="The WAV file; - is standard output.")],
    model: ModelOption = "facebook/encodec_24khz",
    bandwidth: BandwidthOption = BANDWIDTH,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    overwrite: OverwriteOption = False,
) -> int:
    """Encode and decode one file: what does it sound like at this bandwidth?"""
    from encodec_fast.audio.wav import put_wav

    if not names_file(out, (".wav",)):
        raise WrongArgument(f"--out is {out}; a name that ends in .wav is needed, or - for standard output.")
    refuse_existing(out, overwrite)
    with speaking_elsewhere(out) as pipe, prepared_model(model, device, backend, threads, bandwidth) as (loaded, _):
        clip = read_clip(source, loaded)
        row = one_row(loaded, clip, bandwidth)
        from encodec_fast.dataset.decoding import encoded_clip

        (audio,) = loaded.decode_batch([encoded_clip(row)])
        put_wav(pipe or out, audio.float().cpu().numpy(), row.sampling_rate)
        say(
            f"{row.duration:.1f} s at {bandwidth:g} kbps: {row.codes.shape[1]} levels x {row.frames} frames, "
            f"{row.codes.shape[1] * row.frames:,} codes, {bandwidth * row.duration / 8:,.1f} kB"
        )
        if pipe is None:
            say(f"wrote {out}")
    return OK
