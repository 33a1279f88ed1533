"""What is measured: calls on the real 24 and 48 kHz configurations, in named sets, with the inputs that every contender gets."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from encodec_fast import demo
from encodec_fast.audio import read_audio
from encodec_fast.plan.geometry import chunks_of, encoded_length

CACHE = Path(__file__).parents[1] / ".cache"
# of this tree, whichever revision of the package is installed
PACKAGE = Path(__file__).parents[2] / "encodec_fast"
DEMO_SOURCES = (PACKAGE / "demo.py", PACKAGE / "frame_codec.py", PACKAGE / "assets" / "demo.safetensors")
KILOHERTZ = {"demo": 24, "demo-48khz": 48}


@dataclass(frozen=True)
class Case:
    """One call: `batch` clips of `seconds` each.  bandwidth: kbps.  model: a name in `demo.DEMO_MODELS`."""

    model: str
    call: str
    batch: int
    seconds: float
    bandwidth: float

    def __str__(self) -> str:
        return f"{KILOHERTZ[self.model]} kHz {self.call}, {self.batch} x {self.seconds:g} s, {self.bandwidth:g} kbps"

    @property
    def audio_seconds(self) -> float:
        return self.batch * self.seconds

    def fields(self) -> dict[str, Any]:
        return asdict(self)


def _cases(model: str, batches: tuple[int, ...], seconds: tuple[float, ...], bandwidths: tuple[float, ...]) -> tuple[Case, ...]:
    grid = itertools.product(batches, seconds, bandwidths, ("encode", "decode"))
    return tuple(Case(model, call, batch, length, bandwidth) for batch, length, bandwidth, call in grid)


# The 48 kHz model has no 1.5 kbps; its lowest is 3.
FULL = _cases("demo", (1, 4, 8, 32), (1, 10, 60), (1.5, 6, 24)) + _cases("demo-48khz", (1, 4, 8, 32), (1, 10, 60), (3, 6, 24))
SETS: dict[str, tuple[Case, ...]] = {
    "quick": _cases("demo", (1, 4), (1,), (6,)),
    "readme": (
        *_cases("demo", (1,), (10,), (6,)),
        *_cases("demo", (1, 32), (1,), (6,)),
        *_cases("demo-48khz", (1,), (10,), (6,)),
        *_cases("demo", (8,), (10,), (6,)),
        *_cases("demo", (1,), (10,), (1.5, 24)),
        *_cases("demo", (1,), (60,), (6,)),
        *_cases("demo", (4,), (10,), (6,)),
    ),
    "full": FULL,
}
# Stages by themselves. 0.99 s of the 48 kHz model are one chunk, a second is two.
STAGE_SETS = {
    "quick": _cases("demo", (1,), (1,), (6,)),
    "readme": _cases("demo", (4,), (10,), (6,)) + _cases("demo-48khz", (4,), (0.99,), (6,)),
}
STAGE_SETS["full"] = STAGE_SETS["readme"] + _cases("demo", (1,), (10,), (6,))
# Seconds of the clips whose peak memory is measured.
MEMORY_LENGTHS = {"quick": (1, 2), "readme": (1, 10, 60, 300, 3600), "full": (1, 10, 60, 300, 600, 1800, 3600)}
# Copies of the bundled clips that make up a data set.
DATASET_COPIES = {"quick": 1, "readme": 8, "full": 40}


def is_slow_extra(case: Case, contender: str) -> bool:
    """Returns whether a short set leaves the contender out of the case.

    Those about as fast as transformers cost as much time as all others together; torch.compile takes a minute more per shape.
    """
    core = case.seconds == 10 and case.bandwidth == 6
    return {
        "encodec": not (core and case.batch == 1),
        "folded": not (core and case.batch == 1),
        "compile": not (core and case.batch == 1 and case.model == "demo"),
    }.get(contender, False)


def weights_file(model: str) -> Path:
    """Returns the path of a built-in model's state dict, made at the first call: fitting its codebooks takes most of a minute.

    The name carries a hash of the code and data that make the weights, so that no other weights are taken for them.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in DEMO_SOURCES)).hexdigest()[:12]
    path = CACHE / f"{model}-{digest}.pt"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        torch.save(demo.demo_model(model).state_dict(), scratch)
        scratch.replace(path)
    return path


def stock_model(model: str) -> transformers.EncodecModel:
    """Returns stock transformers with the built-in weights, on the CPU."""
    stock = transformers.EncodecModel(demo.demo_config(model)).eval()
    stock.load_state_dict(torch.load(weights_file(model)))
    return stock


def stock_modules(network: Any, name: str) -> nn.Sequential:
    """Returns transformers' modules of a stage: its layer, after the ELU that the plan counts to it."""
    index = int(name.removeprefix("layers."))
    before = network.layers[index - 1] if index else None
    return nn.Sequential(*([before] if isinstance(before, nn.ELU) else []), network.layers[index])


def audio_of(case: Case) -> Tensor:
    """Returns audio [B, C, T], float32: the bundled clips end to end, each clip of the batch from another place, over faint noise.

    The noise keeps digital silence out, where every entry of a codebook is equally near.
    """
    config = demo.demo_config(case.model)
    rate, channels = config.sampling_rate, config.audio_channels
    loop = torch.cat([torch.from_numpy(read_audio(path, rate, channels)[0]) for path in demo.bundled_clips()], dim=1)
    samples = int(case.seconds * rate)
    starts = torch.arange(case.batch)[:, None] * (loop.shape[1] // max(case.batch, 1))
    audio = loop[:, (starts + torch.arange(samples)) % loop.shape[1]].transpose(0, 1).contiguous()
    return audio + 1e-4 * torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))


def codes_of(case: Case, levels: int) -> tuple[Tensor, list[Tensor | None], int]:
    """Returns codes drawn at random, the scale of each chunk or None, and the frames of zeros at the end of the last chunk.

    codes: [chunks, B, levels, F].  Decoding takes as long for any codes, and drawing them costs nothing.
    """
    config, generator = demo.demo_config(case.model), torch.Generator().manual_seed(0)
    samples = int(case.seconds * config.sampling_rate)
    lengths = [encoded_length(config, length) for length, _ in chunks_of(config, samples)]
    # drawn frame by frame: a shorter clip has the beginning of a longer one
    shape = (lengths[0], len(lengths), case.batch, levels)
    codes = torch.randint(config.codebook_size, shape, generator=generator).permute(1, 2, 3, 0).contiguous()
    codes[-1, ..., lengths[-1] :] = 0
    scales: list[Tensor | None] = [None] * len(lengths)
    if config.normalize:
        scales = [0.05 + 0.1 * torch.rand(case.batch, 1, generator=generator) for _ in lengths]
    return codes, scales, lengths[0] - lengths[-1]


def levels_of(case: Case) -> int:
    """Returns the number of codebooks in use at the case's bandwidth."""
    config = demo.demo_config(case.model)
    frame_rate = math.ceil(config.sampling_rate / math.prod(config.upsampling_ratios))
    return int(1000 * case.bandwidth // (frame_rate * math.log2(config.codebook_size)))


def stock_bytes(case: Case) -> int:
    """Returns the bytes that transformers needs for a call beyond model and audio: five activations of the widest layer at once, measured.

    14.8 MiB per second of 24 kHz audio on the CPU; of a chunked model one chunk at a time.
    """
    config = demo.demo_config(case.model)
    seconds = min(case.seconds, config.chunk_length_s or case.seconds)
    return int(5 * 4 * config.num_filters * config.sampling_rate * seconds * case.batch)
