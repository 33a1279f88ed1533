"""`encodec-fast export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encodec_fast.cli.app import CLIPS_FAILED, OK, OverwriteOption, WrongArgument, checking_arguments, command, quiet_transformers
from encodec_fast.cli.terminal import ProgressBar, say


@command(
    "[bold]Examples[/bold]\n\nencodec-fast export facebook/encodec_24khz --out graphs/ --verify\n\n"
    "encodec-fast export my-model -o phone/ --stream --frames 8"
)
def export(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face name, a folder, an original checkpoint, or demo.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the graphs.")],
    format: Annotated[str, typer.Option(metavar="NAME", help="onnx.")] = "onnx",
    stream: Annotated[bool, typer.Option("--stream", help="Graphs of the pieces of streams, in place of whole clips.")] = False,
    frames: Annotated[int | None, typer.Option(metavar="N", help="Fixed shapes: one clip or stream, N codec frames a call.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Run them in onnxruntime; compare with transformers.")] = False,
    overwrite: OverwriteOption = False,
) -> int:
    """Write a model as graphs for onnxruntime, OpenVINO, browsers and phones.

    encoder.onnx and decoder.onnx take any batch, and any length from one sample on. With --stream they are encoder_stream.onnx and
    decoder_stream.onnx, which take a state and return the next one. Needs pip install 'encodec-fast[onnx]'.
    """
    with checking_arguments():
        from encodec_fast.graphs.export import export as write_graphs
        from encodec_fast.pretrained import load_model

        quiet_transformers()
        try:
            model = load_model(source)
            for path in write_graphs(model, out, format=format, stream=stream, frames=frames, overwrite=overwrite):
                say(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")
            if not verify:
                return OK
            import torch

            from encodec_fast.audio import read_audio
            from encodec_fast.demo import bundled_clips
            from encodec_fast.graphs.check import OnnxCodec, OnnxStreams, check_export

            codec = OnnxStreams(out) if stream else OnnxCodec(out)
            config = model.config
            clips = [torch.from_numpy(read_audio(path, config.sampling_rate, config.audio_channels)[0]) for path in bundled_clips()]
            with ProgressBar(len(clips), "clips") as bar:
                report = check_export(codec, model, clips, progress=bar.update)
        except ImportError as error:
            raise WrongArgument(str(error)) from error
    say(str(report))
    return OK if report.passed else CLIPS_FAILED
