"""Streams live audio through the codec: microphone, codes, speaker. Either end may be a file.

    python examples/microphone.py                                          # hear yourself at 6 kbps
    python examples/microphone.py --bandwidth 1.5 --output me.wav --seconds 10
    python examples/microphone.py --input talk.wav --output again.wav --codes talk.npy

Wear headphones: the microphone hears a speaker.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import encodec_fast
from encodec_fast.audio import AudioError, audio_blocks, open_audio


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="audio file instead of the microphone, as fast as it goes")
    parser.add_argument("--output", type=Path, help="WAV file instead of the speaker")
    parser.add_argument("--codes", type=Path, help=".npy file for the codes, as `encodec-fast decode` takes it")
    parser.add_argument("--model", default="facebook/encodec_24khz", help="one that can stream (default: %(default)s)")
    parser.add_argument("--bandwidth", type=float, default=6.0, help="kbps (default: %(default)g)")
    parser.add_argument("--block-ms", type=float, default=20.0, help="audio that is taken at once (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so many; else at Ctrl-C or the file's end")
    parser.add_argument("--sound-device", help="number or part of the name; `python -m sounddevice` lists them")
    options = parser.parse_args(words)
    if options.block_ms <= 0 or options.seconds <= 0:
        parser.error("--block-ms and --seconds must be above 0")
    return options


def sound_card() -> Any:
    """Returns the module sounddevice; ends the program with what to install where it or its library is missing."""
    try:
        import sounddevice
    except ImportError:
        sys.exit("microphone.py: microphone and speaker need `pip install sounddevice`; --input FILE and --output FILE do without.")
    except OSError as error:
        sys.exit(f"microphone.py: sounddevice: {error}; install PortAudio, on Debian and Ubuntu `apt install libportaudio2`.")
    return sounddevice


def sound_options(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Returns what a sound card's stream is opened with."""
    device = int(options.sound_device) if (options.sound_device or "").isdecimal() else options.sound_device
    return {"samplerate": config.sampling_rate, "channels": config.audio_channels, "dtype": "float32", "device": device, "latency": "low"}


def blocks_in(options: argparse.Namespace, config: Any, stack: ExitStack) -> Iterator[np.ndarray]:
    """Yields the audio in blocks [C, T] of about --block-ms."""
    if options.input is not None:
        file = stack.enter_context(open_audio(options.input))
        duration = None if math.isinf(options.seconds) else options.seconds
        yield from audio_blocks(file, config.sampling_rate, config.audio_channels, options.block_ms / 1000, duration=duration)
        return
    block = max(1, round(config.sampling_rate * options.block_ms / 1000))
    microphone = stack.enter_context(sound_card().InputStream(blocksize=block, **sound_options(options, config)))
    taken = lost = 0
    while taken < options.seconds * config.sampling_rate:
        samples, overflowed = microphone.read(block)
        taken, lost = taken + block, lost + bool(overflowed)
        if overflowed:
            print(f"the microphone was {lost} times ahead of this program; a larger --block-ms helps", file=sys.stderr)
        yield np.ascontiguousarray(samples.T)


def sink(options: argparse.Namespace, config: Any, stack: ExitStack) -> Callable[[np.ndarray], Any]:
    """Returns what takes audio [T, C]: the speaker's stream, or the file's."""
    if options.output is None:
        return stack.enter_context(sound_card().OutputStream(**sound_options(options, config))).write
    return stack.enter_context(soundfile.SoundFile(options.output, "w", config.sampling_rate, config.audio_channels)).write


class Link:
    """Encodes blocks, decodes their codes, and measures both.

    delays: ms from each piece's first sample to its block's end, when the piece can be heard.  work: seconds of computing per block.
    """

    def __init__(self, model: encodec_fast.EncodecModel, bandwidth: float) -> None:
        self._encoder, self._decoder = encodec_fast.StreamingEncoder(model, bandwidth), encodec_fast.StreamingDecoder(model)
        self._rate, self._bits = model.config.sampling_rate, math.log2(model.config.codebook_size)
        # the first call lays out the weights, which takes longer than a block
        self._encoder.push(torch.zeros(model.config.audio_channels, self._rate))
        self._encoder.reset()
        self.codes: list[torch.Tensor] = []
        self.received = self.given = 0
        self.delays: list[float] = []
        self.work: list[float] = []

    def push(self, block: np.ndarray | None) -> np.ndarray:
        """Returns the audio [T, C] that this block [C, T] completes.  None: the last of it, as long as what came in."""
        start = time.perf_counter()
        (codes,) = self._encoder.flush() if block is None else self._encoder.push(torch.from_numpy(block))
        (audio,) = self._decoder.push(codes)
        if block is None:
            audio = torch.cat([audio, *self._decoder.flush()], dim=1)
        self.work.append(time.perf_counter() - start)
        self.codes.append(codes)
        self.received += 0 if block is None else block.shape[1]
        # the decoder returns whole frames, and the last one may be longer than the sound
        audio = audio[:, : self.received - self.given]
        if audio.shape[1] and block is not None:
            self.delays.append(1000 * (self.received - self.given) / self._rate)
        self.given += audio.shape[1]
        return audio.T.contiguous().numpy()

    def __str__(self) -> str:
        seconds, bits = self.received / self._rate, self._bits * sum(codes.numel() for codes in self.codes)
        return f"{seconds:7.2f} s  {bits / max(seconds, 1e-9) / 1000:.2f} kbps  {seconds / sum(self.work):.1f} x real time"


def main() -> None:
    """Runs the stream to its end and prints what was measured."""
    options = parse()
    # a block is too little work to be divided
    torch.set_num_threads(1)
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        model = encodec_fast.load_model(options.model)
        link = Link(model, options.bandwidth)
        with ExitStack() as stack:
            write, said = sink(options, model.config, stack), 1
            for block in blocks_in(options, model.config, stack):
                write(link.push(block))
                if link.received >= said * model.config.sampling_rate:
                    print(link)
                    said = link.received // model.config.sampling_rate + 1
                if stop.is_set():
                    break
            write(link.push(None))
    except (AudioError, ValueError, OSError, soundfile.SoundFileError) as error:
        sys.exit(f"microphone.py: {error}")
    print(f"{link}, in all; a block took {1000 * max(link.work):.1f} ms of work at most")
    if link.delays:
        print(f"latency without sound card: {link.delays[0]:.1f} ms to the first sound, {max(link.delays[1:], default=0):.1f} ms later")
    if options.codes is not None:
        np.save(options.codes, torch.cat(link.codes, dim=1)[None].numpy().astype(np.uint16))


if __name__ == "__main__":
    main()
