"""Audio files: finding them, reading them at a model's rate and channels, naming and writing decoded ones. Without torch."""

from encodec_fast.audio.files import AUDIO_SUFFIXES, AudioFile, find_audio, utf8_name
from encodec_fast.audio.opened import AudioError, AudioInfo
from encodec_fast.audio.reading import MAX_CLIP_BYTES, audio_blocks, audio_info, open_audio, read_audio
from encodec_fast.audio.samples import RESAMPLE_QUALITY, mix_channels, resample
from encodec_fast.audio.wav import WAV_SUBTYPES, wav_paths, wav_targets, write_wav

__all__ = [
    "AUDIO_SUFFIXES",
    "MAX_CLIP_BYTES",
    "RESAMPLE_QUALITY",
    "WAV_SUBTYPES",
    "AudioError",
    "AudioFile",
    "AudioInfo",
    "audio_blocks",
    "audio_info",
    "find_audio",
    "mix_channels",
    "open_audio",
    "read_audio",
    "resample",
    "utf8_name",
    "wav_paths",
    "wav_targets",
    "write_wav",
]
