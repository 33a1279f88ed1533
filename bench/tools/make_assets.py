"""Writes the audio clips that are bundled with the package, from espeak-ng and numpy alone.

    python bench/tools/make_assets.py [FOLDER]        default: encodec_fast/assets

Needs espeak-ng on the PATH (the bundled files were made with 1.51). Speech is kept at espeak-ng's own 22,050 Hz or
resampled to 24,000 Hz, so that both the resampling and the straight path are used; the music clip is 48,000 Hz stereo.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

ASSETS = Path(__file__).resolve().parents[2] / "encodec_fast" / "assets"


@dataclass(frozen=True)
class Speech:
    """One spoken clip: espeak-ng voice, words per minute, pitch (0-99), final rate in Hz, text."""

    voice: str
    speed: int
    pitch: int
    rate: int
    text: str


SPEECH = {
    "speech_en_gb": Speech("en-gb", 165, 45, 24000, "The quick brown fox jumps over the lazy dog, while seven wizards watch."),
    "speech_en_us_f": Speech("en-us+f3", 175, 60, 22050, "She sells sea shells by the sea shore. Are they all hers?"),
    "speech_de": Speech("de", 160, 40, 24000, "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich."),
    "speech_fr_f": Speech("fr-fr+f2", 170, 55, 22050, "Portez ce vieux whisky au juge blond qui fume."),
    "speech_es": Speech("es+m7", 180, 35, 24000, "El veloz murciélago hindú comía feliz cardillo y kiwi."),
    "speech_hi": Speech("hi+f4", 160, 50, 22050, "नमस्ते, आप कैसे हैं?"),
    "speech_yes": Speech("en-gb+m3", 150, 50, 24000, "Yes."),
}


def speak(clip: Speech) -> np.ndarray:
    """Returns the samples of the spoken clip at clip.rate, float64 [T]."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = [
            "espeak-ng",
            "-v",
            clip.voice,
            "-s",
            str(clip.speed),
            "-p",
            str(clip.pitch),
            "-w",
            str(wav),
            clip.text,
        ]
        subprocess.run(command, check=True)
        samples, rate = soundfile.read(wav)
    return soxr.resample(samples, rate, clip.rate, quality="VHQ") if rate != clip.rate else samples


def music(rate: int = 48000) -> np.ndarray:
    """Returns a plucked chord progression with a bass and a soft shaker, panned in stereo, float64 [T, 2], 3.5 seconds."""
    rng = np.random.default_rng(2022)
    out = np.zeros((int(3.5 * rate) + 37, 2))

    def add(samples: np.ndarray, start: float, pan: float) -> None:
        first = int(start * rate)
        samples = samples[: len(out) - first]
        out[first : first + len(samples)] += samples[:, None] * [np.cos(pan * np.pi / 2), np.sin(pan * np.pi / 2)]

    def pluck(midi: int, seconds: float, bright: float) -> np.ndarray:
        t = np.arange(int(seconds * rate)) / rate
        pitch = 440.0 * 2 ** ((midi - 69) / 12)
        partials = [bright**k / (k + 1) * np.sin(2 * np.pi * pitch * (k + 1) * t) for k in range(8)]
        return np.sum(partials, axis=0) * np.exp(-3.0 * t / seconds) * np.minimum(1.0, t / 0.004)

    chords = [(57, 60, 64, 69), (53, 57, 60, 65), (48, 55, 60, 64), (55, 59, 62, 67)]
    for bar, chord in enumerate(chords):
        add(0.30 * pluck(chord[0] - 12, 0.9, 0.45), bar * 0.8, 0.5)
        for step in range(4):
            add(0.16 * pluck(chord[step], 0.7, 0.6), bar * 0.8 + step * 0.2, 0.15 + 0.23 * step)
            shaker = rng.standard_normal(int(0.04 * rate)) * np.exp(-np.arange(int(0.04 * rate)) / (0.008 * rate))
            add(0.012 * shaker, bar * 0.8 + step * 0.2 + 0.1, 0.7)
    return out


def main(folder: Path) -> None:
    if shutil.which("espeak-ng") is None:
        sys.exit("make_assets: espeak-ng is not installed (Debian and Ubuntu: apt-get install espeak-ng).")
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in SPEECH.items():
        soundfile.write(folder / f"{name}.flac", speak(clip), clip.rate, subtype="PCM_16", compression_level=1.0)
    soundfile.write(folder / "music_stereo.flac", music(), 48000, subtype="PCM_16", compression_level=1.0)
    for path in sorted(folder.glob("*.flac")):
        info = soundfile.info(path)
        print(f"{path.name:24} {info.duration:6.2f} s  {info.samplerate} Hz  {path.stat().st_size / 1024:6.1f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS)
