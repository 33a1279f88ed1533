"""Generates music with MusicGen, and switches its audio decoder to encodec_fast in place.

    python examples/musicgen.py "a slow waltz for accordion" --output waltz.wav --seconds 10
    python examples/musicgen.py --unconditional --output anything.wav

Both decoders decode the same codes. Their audio is compared, and their speed is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

import encodec_fast
from encodec_fast.audio import write_wav

# Half a step of a 16-bit file, of full scale
INAUDIBLE = 2.0**-16


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", help="what to play, in English")
    parser.add_argument("--unconditional", action="store_true", help="play without a prompt; needs no tokenizer")
    parser.add_argument("--model", default="facebook/musicgen-small", help="name on the hub, or a folder (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("music.wav"), help="WAV file (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the music (default: %(default)g)")
    parser.add_argument("--guidance", type=float, default=3.0, help="weight of the prompt (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: %(default)d)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="timed decodes of each decoder (default: %(default)d)")
    options = parser.parse_args(words)
    if (options.prompt is None) != options.unconditional:
        parser.error("give either a prompt or --unconditional")
    if options.seconds <= 0 or options.repeats < 1:
        parser.error("--seconds must be above 0, and --repeats 1 or more")
    return options


@contextmanager
def noted_codes(codec: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Notes the codes [1, B, K, F] that `codec.decode` is called with: one tensor, or left and right of a stereo model."""
    noted: list[Tensor] = []
    decode = codec.decode

    def noting(audio_codes: Tensor, *args: object, **kwargs: object) -> object:
        noted.append(audio_codes)
        return decode(audio_codes, *args, **kwargs)

    codec.decode = noting
    try:
        yield noted
    finally:
        del codec.decode


def generate(model: MusicgenForConditionalGeneration, options: argparse.Namespace) -> list[Tensor]:
    """Returns the codes of the music.  Raises ValueError for more seconds than the model has positions for."""
    config = model.config.decoder
    frames = max(1, round(options.seconds * model.config.audio_encoder.frame_rate))
    # the last level is this much later than the first one, and one position is the start's
    steps = frames + config.num_codebooks - 1
    if steps >= config.max_position_embeddings:
        most = (config.max_position_embeddings - config.num_codebooks) / model.config.audio_encoder.frame_rate
        raise ValueError(f"--seconds is {options.seconds:g}; this model plays {most:.1f} s at most.")
    if options.unconditional:
        inputs = dict(model.get_unconditional_inputs(num_samples=1))
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        inputs = dict(tokenizer([options.prompt], return_tensors="pt").to(model.device), guidance_scale=options.guidance)
        inputs.pop("token_type_ids", None)
    torch.manual_seed(options.seed)
    with noted_codes(model.audio_encoder) as noted:
        model.generate(**inputs, do_sample=True, max_new_tokens=steps)
    return noted


def decode(model: MusicgenForConditionalGeneration, codes: list[Tensor]) -> Tensor:
    """Returns the audio [C, T] of the codes."""
    with torch.no_grad():
        return torch.cat([model.audio_encoder.decode(part, [None]).audio_values[0] for part in codes]).float().cpu()


def timed(call: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    """Returns what the call returns, and the median of its seconds. The first call lays out weights, and is not counted."""
    result, spent = call(), []
    for _ in range(repeats):
        start = time.perf_counter()
        # it comes back to the CPU, so nothing is left to wait for
        result = call()
        spent.append(time.perf_counter() - start)
    return result, statistics.median(spent)


def main() -> None:
    """Generates once, decodes the codes with both decoders, compares, and writes the WAV file."""
    options = parse()
    # at 10 bits, as a GPU's convolutions are by default, two decoders can't be compared
    torch.backends.cudnn.allow_tf32 = False
    try:
        model = MusicgenForConditionalGeneration.from_pretrained(options.model).eval().to(options.device)
        start = time.perf_counter()
        codes = generate(model, options)
    except (OSError, ValueError) as error:
        sys.exit(f"musicgen.py: {error}")
    print(f"generated {codes[0].shape[-1]} frames of {codes[0].shape[-2]} codes in {time.perf_counter() - start:.2f} s, decoding included")

    before, slow = timed(lambda: decode(model, codes), options.repeats)
    changes = encodec_fast.accelerate(model)
    if not changes.changes:
        sys.exit(f"musicgen.py: {options.model} holds no EnCodec model of transformers, so there is nothing to accelerate.")
    after, fast = timed(lambda: decode(model, codes), options.repeats)

    rate = model.config.audio_encoder.sampling_rate
    seconds = after.shape[1] / rate
    for name, spent in (("transformers", slow), ("encodec_fast", fast)):
        print(f"decoding {seconds:.2f} s with {name}: {spent:.3f} s, {seconds / spent:.1f} x real time")
    error = (after - before).abs().max().item()
    if not error <= INAUDIBLE * max(1.0, before.abs().max().item()):
        sys.exit(f"musicgen.py: the two decoders differ by {error:.1e} of full scale, more than half a step of a 16-bit file.")
    print(f"the audio is the same: it differs by {error:.1e} of full scale at most, half a step of a 16-bit file is {INAUDIBLE:.1e}")
    write_wav(options.output, after.numpy(), rate)
    print(f"wrote {options.output}: {seconds:.2f} s, {rate / 1000:g} kHz, {after.shape[0]} channel(s)")


if __name__ == "__main__":
    main()
