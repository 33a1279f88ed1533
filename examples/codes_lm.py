"""Trains a small transformer on a folder of codes, in MusicGen's delay pattern, and lets it play: codes, then audio.

    encodec-fast tokenize recordings/ --out codes/
    python examples/codes_lm.py codes/ --steps 5000 --checkpoint lm.pt
    python examples/codes_lm.py codes/ --steps 5000 --checkpoint lm.pt --sample played.wav --sample-seconds 5

The same command goes on where it was stopped, at the last checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import encodec_fast
from encodec_fast.audio import write_wav

# What a checkpoint is of: another value is another model, or another order of the data
FIXED = ("levels", "crop_frames", "width", "layers", "batch_size", "seed")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codes", help="folder of `encodec-fast tokenize`, of a model without chunks")
    parser.add_argument("--checkpoint", type=Path, default=Path("lm.pt"), help="read if it is there, and written (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5000, help="in all, with those of the checkpoint (default: %(default)d)")
    parser.add_argument("--save-every", type=int, default=100, help="steps between two checkpoints (default: %(default)d)")
    parser.add_argument("--batch-size", type=int, default=8, help="pieces of clips per step (default: %(default)d)")
    parser.add_argument("--crop-frames", type=int, default=375, help="length of a piece; 75 are a second (default: %(default)d)")
    parser.add_argument("--levels", type=int, default=4, help="codebooks that are learnt, the first ones (default: %(default)d)")
    parser.add_argument("--width", type=int, default=384, help="of the transformer, a multiple of 64 (default: %(default)d)")
    parser.add_argument("--layers", type=int, default=6, help="of the transformer (default: %(default)d)")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of AdamW (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and sampling (default: %(default)d)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    parser.add_argument("--sample", type=Path, help="WAV file that is played after the last step")
    parser.add_argument("--sample-seconds", type=float, default=5.0, help="at most what --crop-frames are (default: %(default)g)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the sampling; lower is safer (default: %(default)g)")
    options = parser.parse_args(words)
    if options.width % 64 or min(options.width, options.steps, options.save_every) < 1 or options.temperature <= 0:
        parser.error("--width must be a multiple of 64, counts of steps 1 or more, and --temperature above 0")
    return options


class Block(nn.Module):
    """A layer of a transformer that looks back only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, S, width] of as much."""
        heads = [part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in self.project(self.norm_in(x)).chunk(3, dim=-1)]
        x = x + self.join(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.feed(self.norm_out(x))


class CodesLM(nn.Module):
    """Predicts the next step of all levels of a pattern with a stream per level, whose levels share one vocabulary."""

    def __init__(self, pattern: encodec_fast.TokenPattern, steps: int, width: int, layers: int) -> None:
        super().__init__()
        self.pattern = pattern
        self.tokens, self.places = nn.Embedding(pattern.vocabulary_size, width), nn.Embedding(steps, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)), nn.LayerNorm(width))
        self.head = nn.Linear(width, pattern.num_codes)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits [B, S, K, N] for what comes after each step of tokens [B, K, S]."""
        places = self.places.weight[: tokens.shape[-1]]
        return self.head(self.blocks(self.tokens(tokens).sum(1) + places)).unflatten(-1, (self.pattern.levels, -1))

    def bits(self, tokens: Tensor) -> Tensor:
        """Returns the mean bits per code of tokens [B, K, S]; what is no code, at corners and ends, doesn't count."""
        before = F.pad(tokens, (1, 0), value=self.pattern.pad_token)[..., :-1]
        targets = torch.where(tokens == self.pattern.pad_token, -100, tokens % self.pattern.codebook_size)
        return F.cross_entropy(self(before).flatten(0, 2).float(), targets.transpose(1, 2).flatten(), ignore_index=-100) / math.log(2)

    @torch.no_grad()
    def sample(self, frames: int, temperature: float, generator: torch.Generator) -> Tensor:
        """Returns codes [K, frames], drawn step by step."""
        pattern, device = self.pattern, self.head.weight.device
        tokens = torch.full((1, pattern.levels, 1), pattern.pad_token, device=device)
        levels = torch.arange(pattern.levels, device=device)
        for step in range(pattern.length(frames)):
            odds = torch.softmax(self(tokens)[0, -1].float() / temperature, dim=-1)
            drawn = torch.multinomial(odds.cpu(), 1, generator=generator)[:, 0].to(device) + levels * pattern.codebook_size
            # a level begins so many steps later, and ends later
            drawn = torch.where((levels <= step) & (step < levels + frames), drawn, pattern.pad_token)
            tokens = torch.cat([tokens, drawn[None, :, None]], dim=-1)
        return pattern.decode(tokens[0, :, 1:].cpu())


def save(path: Path, options: argparse.Namespace, step: int, parts: dict[str, Any]) -> None:
    """Writes the checkpoint, whole or not at all."""
    state = {name: part.state_dict() for name, part in parts.items()}
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state | {"step": step, "fixed": {name: getattr(options, name) for name in FIXED}}, temporary)
    os.replace(temporary, path)


def load(path: Path, options: argparse.Namespace, parts: dict[str, Any]) -> int:
    """Sets all parts to the checkpoint's state, and returns its step: 0 without one.  Raises ValueError for one of other options."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=options.device, weights_only=True)
    if other := [f"--{name.replace('_', '-')} {value}" for name, value in state["fixed"].items() if getattr(options, name) != value]:
        raise ValueError(f"{path} was begun with {', '.join(other)}; say so too, or choose another --checkpoint.")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def train(options: argparse.Namespace, dataset: encodec_fast.CodesDataset, model: CodesLM) -> None:
    """Trains up to the last step, from the checkpoint if there is one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    step = load(options.checkpoint, options, {"model": model, "optimizer": optimizer, "dataset": dataset})
    print(f"{'goes on' if step else 'begins'} at step {step} of {options.steps}")
    start, bits, codes = time.perf_counter(), [], 0
    # no workers: rows are read in no time, and the dataset's own state says where training is
    loader = DataLoader(dataset, batch_size=options.batch_size, collate_fn=dataset.collate)
    # pass after pass, each in an order of its own
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)) if step < options.steps else ():
        step += 1
        with torch.autocast(options.device.partition(":")[0], torch.bfloat16, enabled=options.device.startswith("cuda")):
            loss = model.bits(batch["tokens"].to(options.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bits, codes = [*bits, loss.detach()], codes + int(batch["lengths"].sum()) * options.levels
        if step % options.save_every == 0 or step == options.steps:
            mean, speed = torch.stack(bits).mean().item(), codes / (time.perf_counter() - start)
            print(f"step {step}: {mean:.3f} bits per code, {speed / 1000:.1f} thousand codes a second", flush=True)
            save(options.checkpoint, options, step, {"model": model, "optimizer": optimizer, "dataset": dataset})
            start, bits, codes = time.perf_counter(), [], 0
        if step == options.steps:
            break


def play(options: argparse.Namespace, model: CodesLM, made_by: str) -> None:
    """Draws codes, decodes them with the model that made the folder, and writes the WAV file."""
    codec = encodec_fast.load_model(made_by, options.device)
    rate = codec.config.sampling_rate
    samples, hop = round(options.sample_seconds * rate), rate // codec.config.frame_rate
    frames = math.ceil(samples / hop)
    if codec.config.chunk_length is not None:
        raise ValueError(f"{made_by} codes chunks with a volume each, which this example doesn't learn; take a model without chunks.")
    if not 1 <= frames <= options.crop_frames:
        raise ValueError(
            f"--sample-seconds is {options.sample_seconds:g}; above 0 and up to {options.crop_frames * hop / rate:g} are learnt."
        )
    codes = model.eval().sample(frames, options.temperature, torch.Generator().manual_seed(options.seed))
    (audio,) = codec.decode_batch([encodec_fast.EncodedClip(codes[None], None, 0, samples)])
    write_wav(options.sample, audio.cpu().numpy(), rate)
    print(f"wrote {options.sample}: {samples / rate:.2f} s of {frames} frames of {options.levels} codes")


def main() -> None:
    """Trains, then plays."""
    options = parse()
    torch.manual_seed(options.seed)
    try:
        size = encodec_fast.CodesDataset(options.codes).info.codebook_size
        pattern = encodec_fast.TokenPattern("delay", options.levels, size, offsets=True)
        dataset = encodec_fast.CodesDataset(
            options.codes, shuffle=True, seed=options.seed, levels=options.levels, crop_frames=options.crop_frames, pattern=pattern
        )
        model = CodesLM(pattern, pattern.length(options.crop_frames), options.width, options.layers).to(options.device)
        print(f"{len(dataset)} clips; {sum(each.numel() for each in model.parameters()) / 1e6:.1f} million parameters on {options.device}")
        train(options, dataset, model)
        if options.sample is not None:
            play(options, model, dataset.info.model_id)
    except (ValueError, OSError) as error:
        sys.exit(f"codes_lm.py: {error}")


if __name__ == "__main__":
    main()
