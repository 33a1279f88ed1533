"""`encodec-fast train-lm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encodec_fast.cli.app import OK, DeviceOption, checking_arguments, command
from encodec_fast.cli.terminal import ProgressBar, say
from encodec_fast.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

# As the published models have them
CROP_SECONDS, CONTEXT_SECONDS = 5.0, 3.5
# Of the learning rate, at most; short runs take a tenth of their steps
WARMUP_STEPS = 200


@command(
    "[bold]Examples[/bold]\n\nencodec-fast train-lm codes/ --out lm/\n\n"
    "encodec-fast train-lm codes/ --out small/ --dim 64 --layers 2 --heads 4 --steps 2000",
    resumes=True,
)
def train_lm(
    codes: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `encodec-fast tokenize` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run; one with a checkpoint is gone on with.")],
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Updates in all.")] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Crops of five seconds in a batch.")] = 16,
    learning_rate: Annotated[float, typer.Option(metavar="RATE", help="Of Adam, at its highest.")] = 5e-4,
    levels: Annotated[int | None, typer.Option(min=1, metavar="K", help="Only the first K levels. Default: all.")] = None,
    dim: Annotated[
        int, typer.Option(min=4, metavar="D", help="Width of the Transformer; its hidden layers have four times as much.")
    ] = 200,
    heads: Annotated[int, typer.Option(min=1, metavar="N", help="Heads of attention.")] = 8,
    layers: Annotated[int, typer.Option(min=1, metavar="N", help="Layers of the Transformer.")] = 5,
    held_out: Annotated[float, typer.Option(metavar="SHARE", help="Share of clips that are measured and not trained on.")] = 0.05,
    validation_steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps from one measurement to the next.")] = 250,
    codec: Annotated[
        str | None, typer.Option(metavar="NAME", help="The codec's model: begin with its codebooks. Needs a dim of theirs or more.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the weights, the order of clips, levels and positions.")] = 0,
    device: DeviceOption = "auto",
) -> int:
    """Train a language model over the codes of a data set, which makes compressed files smaller.

    DIR gets config.json and model.safetensors, of the step with the fewest bits per code on held-out clips. It also gets checkpoint.pt
    and metrics.csv. Ctrl-C and SIGTERM end with a checkpoint; the same command goes on from it, on a CPU to the same bits.
    """
    with checking_arguments():
        from encodec_fast.dataset.stream import CodesDataset
        from encodec_fast.language_model.model import LanguageModelConfig
        from encodec_fast.pretrained import torch_device
        from encodec_fast.training.language_model import LanguageModelOptions, train_language_model

        target = torch_device(device)
        whole = CodesDataset(codes)
        first = next(iter(whole))
        chunks, stored, frames = first["audio_codes"].shape
        # of the first clip: to the whole number, unless it is of a few frames
        rate = round((chunks * frames - first["last_frame_pad_length"]) * first["sampling_rate"] / first["num_samples"])
        config = LanguageModelConfig(
            levels or stored, whole.info.codebook_size, dim, heads, layers, 4 * dim, max(1, int(CONTEXT_SECONDS * rate))
        )
        rows = CodesDataset(codes, shuffle=True, seed=seed, levels=config.codebooks, crop_frames=max(1, round(CROP_SECONDS * rate)))
        options = LanguageModelOptions(
            steps,
            batch_size,
            learning_rate,
            min(WARMUP_STEPS, steps // 10),
            held_out=held_out,
            validation_steps=validation_steps,
            seed=seed,
            most_offset=180 * rate,
        )
        codebooks = None if codec is None else _codebooks(codec, whole.info.weights_sha256, config.codebooks)
        say(f"{counted(config.codebooks, 'level')} of {config.codebook_size} codes, {rate} frames a second, on {target}")
        with ProgressBar(steps, "steps") as bar:
            summary = train_language_model(
                rows, out, config, options, target, lambda done, _, bits: bar.update(done, note=_bits(bits)), codebooks
            )
    say(f"{counted(summary.steps, 'step')}, {summary.steps - summary.first} of them now; the model is in {out}")
    gain = 1 - summary.bits / summary.plain_bits
    say(f"held-out clips: {_bits(summary.bits)}, {gain:.0%} fewer than the {summary.plain_bits:.4g} of plain codes")
    return OK


def _codebooks(name: str, weights: str, levels: int) -> list[Tensor]:
    """Returns the codebooks of a codec.  Raises ValueError where it did not make the codes."""
    from encodec_fast.plan.weights import weights_sha256
    from encodec_fast.pretrained import load_model

    model = load_model(name)
    if weights_sha256(model) != weights:
        raise ValueError(f"--codec is {name}, which did not make these codes; give the model that did.")
    return [layer.codebook.embed for layer in model.quantizer.layers[:levels]]


def _bits(bits: float | None) -> str:
    return "" if bits is None else f"{bits:.3f} bits per code"
