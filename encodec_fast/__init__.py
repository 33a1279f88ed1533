"""EnCodec for PyTorch, several times faster: the same codes from every backend, batch and stream.

from encodec_fast import EncodecModel          # a transformers.EncodecModel
model = EncodecModel.from_pretrained("facebook/encodec_24khz")
codes = model.encode(audio, bandwidth=6.0).audio_codes
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it, imported at first use: `import encodec_fast` itself loads nothing
_HOMES = {
    "EncodecModel": "encodec_fast.model",
    "EncodedClip": "encodec_fast.model",
    "EncodecConfig": "transformers",
    "EncodecFeatureExtractor": "transformers",
    "accelerate": "encodec_fast.acceleration",
    "Acceleration": "encodec_fast.acceleration",
    "use_backend": "encodec_fast.serving.request",
    "use_precision": "encodec_fast.serving.request",
    "BackendError": "encodec_fast.serving.request",
    "explain": "encodec_fast.explanation",
    "load_model": "encodec_fast.pretrained",
    "StreamingEncoder": "encodec_fast.streaming",
    "StreamingDecoder": "encodec_fast.streaming",
    "encode_pieces": "encodec_fast.streaming",
    "decode_pieces": "encodec_fast.streaming",
    "load_codes": "encodec_fast.formats.folder",
    "folder_statistics": "encodec_fast.dataset.statistics",
    "FolderStatistics": "encodec_fast.dataset.statistics",
    "CodesDataset": "encodec_fast.dataset.stream",
    "collate": "encodec_fast.dataset.stream",
    "TokenPattern": "encodec_fast.patterns",
    "export_tokens": "encodec_fast.dataset.token_file",
    "open_tokens": "encodec_fast.dataset.token_file",
    "TokenFile": "encodec_fast.dataset.token_file",
    "EncodecTokenizer": "encodec_fast.dataset.tokenizer",
    "tokenize": "encodec_fast.dataset.tokenize",
    "TokenizeOptions": "encodec_fast.dataset.options",
    "TokenizeProgress": "encodec_fast.dataset.tokenize",
    "RayCluster": "encodec_fast.dataset.options",
    "RunStopped": "encodec_fast.dataset.engines",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'encodec_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
