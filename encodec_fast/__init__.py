"""EnCodec for PyTorch, several times faster: the same codes from every backend, batch and stream.

from encodec_fast import EncodecModel          # a transformers.EncodecModel
model = EncodecModel.from_pretrained("facebook/encodec_24khz")
codes = model.encode(audio, bandwidth=6.0).audio_codes
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # what type checkers and editors see; a test holds it to _HOMES
    from transformers import EncodecConfig as EncodecConfig
    from transformers import EncodecFeatureExtractor as EncodecFeatureExtractor

    from encodec_fast.acceleration import Acceleration as Acceleration
    from encodec_fast.acceleration import accelerate as accelerate
    from encodec_fast.codec.files import compress as compress
    from encodec_fast.codec.files import decompress as decompress
    from encodec_fast.compression.container import Lost as Lost
    from encodec_fast.compression.segments import CompressedFileError as CompressedFileError
    from encodec_fast.compression.tables import Tables as Tables
    from encodec_fast.compression.tables import fit_tables as fit_tables
    from encodec_fast.compression.tables import read_tables as read_tables
    from encodec_fast.dataset.engines import RunStopped as RunStopped
    from encodec_fast.dataset.ledger import LedgerError as LedgerError
    from encodec_fast.dataset.options import RayCluster as RayCluster
    from encodec_fast.dataset.options import TokenizeOptions as TokenizeOptions
    from encodec_fast.dataset.ray_engine import RayError as RayError
    from encodec_fast.dataset.statistics import FolderStatistics as FolderStatistics
    from encodec_fast.dataset.statistics import folder_statistics as folder_statistics
    from encodec_fast.dataset.stream import CodesDataset as CodesDataset
    from encodec_fast.dataset.stream import collate as collate
    from encodec_fast.dataset.token_file import TokenFile as TokenFile
    from encodec_fast.dataset.token_file import export_tokens as export_tokens
    from encodec_fast.dataset.token_file import open_tokens as open_tokens
    from encodec_fast.dataset.tokenize import TokenizeProgress as TokenizeProgress
    from encodec_fast.dataset.tokenize import tokenize as tokenize
    from encodec_fast.dataset.tokenizer import EncodecTokenizer as EncodecTokenizer
    from encodec_fast.explanation import explain as explain
    from encodec_fast.formats import FormatError as FormatError
    from encodec_fast.formats.folder import load_codes as load_codes
    from encodec_fast.graphs.export import export as export
    from encodec_fast.graphs.torch_modules import exportable as exportable
    from encodec_fast.language_model.loading import LanguageModelError as LanguageModelError
    from encodec_fast.language_model.loading import load_lm as load_lm
    from encodec_fast.model import EncodecModel as EncodecModel
    from encodec_fast.model import EncodedClip as EncodedClip
    from encodec_fast.patterns import TokenPattern as TokenPattern
    from encodec_fast.pretrained import ModelNotFound as ModelNotFound
    from encodec_fast.pretrained import load_model as load_model
    from encodec_fast.serving.request import BackendError as BackendError
    from encodec_fast.serving.request import use_backend as use_backend
    from encodec_fast.serving.request import use_precision as use_precision
    from encodec_fast.streaming import StreamingDecoder as StreamingDecoder
    from encodec_fast.streaming import StreamingEncoder as StreamingEncoder
    from encodec_fast.streaming import decode_pieces as decode_pieces
    from encodec_fast.streaming import encode_pieces as encode_pieces

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
    "load_lm": "encodec_fast.language_model.loading",
    "export": "encodec_fast.graphs.export",
    "exportable": "encodec_fast.graphs.torch_modules",
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
    "LedgerError": "encodec_fast.dataset.ledger",
    "RayError": "encodec_fast.dataset.ray_engine",
    "compress": "encodec_fast.codec.files",
    "decompress": "encodec_fast.codec.files",
    "Lost": "encodec_fast.compression.container",
    "fit_tables": "encodec_fast.compression.tables",
    "read_tables": "encodec_fast.compression.tables",
    "Tables": "encodec_fast.compression.tables",
    "CompressedFileError": "encodec_fast.compression.segments",
    "FormatError": "encodec_fast.formats",
    "ModelNotFound": "encodec_fast.pretrained",
    "LanguageModelError": "encodec_fast.language_model.loading",
}

__all__ = ["__version__", *_HOMES]


# hidden from type checkers, for which every name would be there
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'encodec_fast' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
