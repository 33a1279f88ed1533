"""`encodec-fast demo`."""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from encodec_fast.cli.app import CLIPS_FAILED, OK, ThreadsOption, checking_arguments, command, prepared_model
from encodec_fast.cli.decode import decode_rows
from encodec_fast.cli.terminal import console, say
from encodec_fast.cli.tokenize import RunDisplay, naming_ends, tokenize_sources
from encodec_fast.cli.verify import verify_tasks
from encodec_fast.wording import counted

if TYPE_CHECKING:
    from encodec_fast.dataset.run import Summary
    from encodec_fast.model import EncodecModel
    from encodec_fast.verify import VerifyReport


@command("[bold]Example[/bold]\n\nencodec-fast demo --out encodec-demo\n\nNeeds no download.")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for codes and audio.")] = Path("encodec-fast-demo"),
    threads: ThreadsOption = 0,
) -> int:
    """Tokenize the bundled clips with the built-in models, decode them, and compare with Hugging Face transformers.

    Speech runs through the 24 kHz architecture and music through the 48 kHz stereo one, at 6 kbps. Their weights are a
    small stand-in for the official ones: speech can be understood, and music is muffled and noisy.
    Both become compressed files, too, which another process reads back on other threads and instructions.
    """
    from encodec_fast.audio import wav_targets
    from encodec_fast.corpus.sources import find_tasks
    from encodec_fast.dataset.decoding import StoredRows
    from encodec_fast.dataset.options import TokenizeOptions
    from encodec_fast.demo import bundled_clips

    bandwidth = 6.0
    columns: dict[str, dict[str, str]] = {}
    written: list[Path] = []
    compressed: dict[str, CompressedClips] = {}
    passed = True
    for name, kind in (("demo", "speech"), ("demo-48khz", "music")):
        sources = [str(path) for path in bundled_clips() if path.name.startswith(kind)]
        with prepared_model(name, "cpu", "auto", threads) as (model, _):
            codes, wavs = out / name / "codes", out / name / "wavs"
            options = TokenizeOptions(bandwidth, workers=0)
            with naming_ends(), RunDisplay() as display:
                encoded = tokenize_sources(sources, codes, model=model, options=options, overwrite=True, progress=display)
            rows = StoredRows(codes)
            with checking_arguments():
                targets = wav_targets(wavs, rows.ids, overwrite=True)
            decoded = decode_rows(rows, model, targets)
            report, _ = verify_tasks(find_tasks(sources), model, bandwidth)
            speeds = side_by_side(model, sources, bandwidth)
            compressed[name] = compress_clips(model, sources, bandwidth, out / name / f"{kind}.ecdc")
        assert report is not None
        good = report.passed and not encoded.failures and not decoded.failures
        passed = passed and good
        columns[name] = demo_column(kind, model, encoded, decoded, report, speeds, good)
        written += [*encoded.files, *decoded.files]
    other, same = read_elsewhere([each.path for each in compressed.values()], [each.audio_sha256 for each in compressed.values()])
    for (name, each), equal in zip(compressed.items(), same, strict=True):
        columns[name] |= each.column(bandwidth)
        columns[name][f"read back on {other}"] = "the same bits" if equal else "OTHER BITS"
    passed = passed and all(same)
    written += [each.path for each in compressed.values()]
    table = Table(title=f"Bundled clips at {bandwidth:g} kbps, on the CPU", title_justify="left", pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name)
    for line in next(iter(columns.values())):
        table.add_row(line, *(column[line] for column in columns.values()))
    console().print(table)
    for path in written:
        say(f"wrote {path}")
    return OK if passed else CLIPS_FAILED


@dataclass(frozen=True)
class CompressedClips:
    """A compressed file of clips end to end.

    seconds: of audio.  encode, decode: seconds that compressing and decompressing took.  audio_sha256: of what it decodes to.
    """

    path: Path
    coder: str
    seconds: float
    encode: float
    decode: float
    audio_sha256: str

    def column(self, bandwidth: float) -> dict[str, str]:
        """Returns its lines of the demo's table.  bandwidth: kbps before coding."""
        kbps = self.path.stat().st_size * 8 / 1000 / self.seconds
        return {
            "compressed": f"{bandwidth:.2f} to {kbps:.2f} kbps, coder {self.coder}",
            "compress / decompress": f"{self.encode:.2f} / {self.decode:.2f} s",
        }


def compress_clips(model: EncodecModel, sources: Sequence[str], bandwidth: float, path: Path) -> CompressedClips:
    """Compresses clips end to end into one file and decompresses it, on the clock."""
    import numpy as np

    from encodec_fast.audio import read_audio
    from encodec_fast.codec.files import OpenedFile, compress, decompress
    from encodec_fast.formats.atomic import write_atomically

    config = model.config
    audio = np.concatenate([read_audio(source, config.sampling_rate, config.audio_channels)[0] for source in sources], axis=1)
    start = time.perf_counter()
    data = compress(audio, model, bandwidth)
    middle = time.perf_counter()
    decoded, _ = decompress(data, model)
    end = time.perf_counter()
    write_atomically(path, data)
    coder = OpenedFile(io.BytesIO(data)).coder
    seconds = audio.shape[1] / config.sampling_rate
    return CompressedClips(path, coder, seconds, middle - start, end - middle, hashlib.sha256(decoded.tobytes()).hexdigest())


def read_elsewhere(paths: Sequence[Path], expected: Sequence[str]) -> tuple[str, list[bool]]:
    """Decompresses files of the built-in models in a process of its own; returns how that runs, and which have the audio that is expected.

    It has other threads than this one and another tier of instructions, as far as the machine has them.  expected: SHA-256.
    Raises RuntimeError where that process fails.
    """
    import torch

    from encodec_fast import processes
    from encodec_fast.kernels.cpu import library

    threads = 2 if torch.get_num_threads() == 1 else 1
    how, environment = counted(threads, "thread"), dict[str, str]()
    try:
        tiers = library.tiers(library.load())
    except library.LibraryMissing:
        tiers = []
    own = (library.requested_tier() or b"").decode() or next(iter(tiers), None)
    if others := [tier for tier in tiers if tier != own]:
        environment[library.ISA_VARIABLE] = others[0]
        how += f", {others[0]}"
    with processes.start("encodec_fast.codec.worker", environment) as child:
        answer, _ = child.communicate(pickle.dumps((threads, paths)))
    if child.returncode:
        raise RuntimeError(f"the process that reads the compressed files back ended with {processes.how_it_ended(child.returncode)}")
    return how, [found == wanted for found, wanted in zip(pickle.loads(answer), expected, strict=True)]


def side_by_side(model: EncodecModel, sources: Sequence[str], bandwidth: float) -> dict[str, tuple[float, float]]:
    """Times transformers and this model in turn, clip by clip; returns (its, our) x real time of "encode" and "decode"."""
    import torch

    from encodec_fast.audio import read_audio
    from encodec_fast.verify import Reference, reference_length

    config = model.config
    clips = [torch.from_numpy(read_audio(source, config.sampling_rate, config.audio_channels)[0])[None] for source in sources]
    clips = [clip[..., : reference_length(config, clip.shape[-1])] for clip in clips]
    contenders = (Reference(model, torch.float32).model, model)
    spent = {"encode": [0.0, 0.0], "decode": [0.0, 0.0]}
    with torch.no_grad():
        for each in contenders:
            # the first call prepares it
            each.decode(*each.encode(min(clips, key=lambda clip: clip.shape[-1]), bandwidth=bandwidth)[:2])
        for clip in clips:
            for index, each in enumerate(contenders):
                start = time.perf_counter()
                encoded = each.encode(clip, bandwidth=bandwidth)
                middle = time.perf_counter()
                each.decode(encoded.audio_codes, encoded.audio_scales)
                spent["encode"][index] += middle - start
                spent["decode"][index] += time.perf_counter() - middle
    seconds = sum(clip.shape[-1] for clip in clips) / config.sampling_rate
    return {name: (seconds / theirs, seconds / ours) for name, (theirs, ours) in spent.items()}


def demo_column(
    kind: str,
    model: EncodecModel,
    encoded: Summary,
    decoded: Summary,
    report: VerifyReport,
    speeds: Mapping[str, tuple[float, float]],
    good: bool,
) -> dict[str, str]:
    """Returns the column of one model in the demo's table."""
    rate, channels = model.config.sampling_rate, model.config.audio_channels
    embeddings, waveform = report.embeddings, report.waveform
    assert embeddings is not None and waveform is not None
    return {
        "clips": f"{encoded.clips} {kind}, {encoded.seconds:.1f} s",
        "model": f"{rate // 1000} kHz {'stereo' if channels == 2 else 'mono'}, a stand-in",
        "tokenize": f"{encoded.times_real_time:.1f} x real time",
        "decode": f"{decoded.times_real_time:.1f} x real time",
        **{
            f"{call}, transformers / ours": f"{theirs:.1f} / {ours:.1f} x real time, {ours / theirs:.1f} x faster"
            for call, (theirs, ours) in speeds.items()
        },
        "codes compared with HF": f"{report.codes}",
        "frames that differ": f"{len(report.flips)}",
        "embedding error, ours / HF": f"{embeddings.ours:.1e} / {embeddings.reference:.1e}",
        "waveform error, ours / HF": f"{waveform.ours:.1e} / {waveform.reference:.1e}",
        "same codec as HF": "yes" if good else "NO",
    }
