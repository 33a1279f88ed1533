"""Checkpoints of other packages: facebookresearch/encodec, audiocraft and encodec-pytorch. Read into a model, and written from one."""

from __future__ import annotations

from encodec_fast.checkpoints.reading import config_of_checkpoint, load_checkpoint
from encodec_fast.checkpoints.weights import CheckpointError
from encodec_fast.checkpoints.writing import check_target, write_folder, write_original

__all__ = ["CheckpointError", "check_target", "config_of_checkpoint", "load_checkpoint", "write_folder", "write_original"]
