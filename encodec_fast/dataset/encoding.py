"""Clips to rows of codes: batches of whole clips, long ones piece by piece with carried state."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from torch import Tensor

import encodec_fast
from encodec_fast.audio import AudioError
from encodec_fast.corpus.reader import LongClip
from encodec_fast.corpus.tasks import Clip, Task
from encodec_fast.errors import first_line
from encodec_fast.explanation import explain
from encodec_fast.formats import ClipFailure, ClipRow, DatasetInfo
from encodec_fast.model import EncodecModel, EncodedClip, stacked
from encodec_fast.plan.weights import weights_sha256
from encodec_fast.serving.request import BackendError
from encodec_fast.streaming import StreamingEncoder

Item = TypeVar("Item")
Result = TypeVar("Result")


def failure_of(task: Task, reason: str) -> ClipFailure:
    """Returns the failure of one clip, its path as text that can be stored."""
    return ClipFailure(task.id, task.shown_path, reason)


NOT_FINITE = "some of its samples are NaN or infinite"


class ClipEncoder:
    """Turns clips into rows of codes with one model at one bandwidth (kbps).  embeddings: keeps them in the rows."""

    def __init__(self, model: EncodecModel, bandwidth: float, embeddings: bool = False):
        check_bandwidth(model.config, bandwidth)
        self.model, self.bandwidth, self.embeddings = model, bandwidth, embeddings
        self._code_dtype = np.uint16 if model.config.codebook_size <= 1 << 16 else np.uint32
        self._copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    def upload(self, clips: Sequence[Clip]) -> Callable[[], list[Tensor]]:
        """Begins to copy the clips to the model's device; calling the result waits for the copy and returns it, [C, T] each.

        On CUDA the copy runs from pinned memory on its own stream, while another batch is being encoded.
        """
        if self._copies is None:
            return lambda: [torch.from_numpy(clip.samples) for clip in clips]
        pinned = torch.empty(sum(clip.samples.size for clip in clips), pin_memory=True)
        torch.cat([torch.from_numpy(clip.samples).reshape(-1) for clip in clips], out=pinned)
        with torch.cuda.stream(self._copies):
            flat = pinned.to(self.model.device, non_blocking=True)
            done = self._copies.record_event()

        def waveforms() -> list[Tensor]:
            current = torch.cuda.current_stream(self.model.device)
            current.wait_event(done)
            flat.record_stream(current)
            parts = flat.split([clip.samples.size for clip in clips])
            return [part.view(clip.samples.shape) for part, clip in zip(parts, clips, strict=True)]

        return waveforms

    def encode(self, clips: Sequence[Clip], uploaded: Callable[[], list[Tensor]] | None = None) -> list[ClipRow | ClipFailure]:
        """Returns one row per clip. If the model fails on a batch, its clips are tried one by one and only the culprits fail.

        uploaded: what upload(clips) gave.
        """
        if not clips:
            return []
        waveforms = (uploaded or self.upload(clips))()
        # the last wall: every way of reading refuses them by name, but NaN would become codes like any other
        sound = [bool(np.isfinite(clip.samples).all()) for clip in clips]
        good = [waveform for waveform, fine in zip(waveforms, sound, strict=True) if fine]
        encoded = iter(each_or_reason(self._encode_batch, good) if good else [])
        rows: list[ClipRow | ClipFailure] = []
        for clip, fine in zip(clips, sound, strict=True):
            result = next(encoded) if fine else NOT_FINITE
            if isinstance(result, str):
                rows.append(failure_of(clip.task, f"the model can't encode it ({result})."))
            else:
                rows.append(self._row(clip.task, clip.original_rate, result))
        return rows

    def _encode_batch(self, clips: Sequence[Tensor]) -> list[EncodedClip]:
        return self.model.encode_batch(clips, self.bandwidth, embeddings=self.embeddings)

    def encode_long(self, clip: LongClip) -> ClipRow | ClipFailure:
        """Returns the row of a clip that comes in blocks: the one that `encode` returns for the whole clip. Memory is bounded."""
        try:
            encoded = self._encode_blocks(torch.from_numpy(block) for block in clip)
        except AudioError as error:
            return failure_of(clip.task, error.reason)
        except BackendError:
            raise
        except (RuntimeError, ValueError, MemoryError) as error:
            if is_lost_gpu(error):
                raise
            try:
                clip.close()
            except AudioError as damage:
                return failure_of(clip.task, damage.reason)
            return failure_of(clip.task, f"the model can't encode it ({first_line(error)}).")
        return self._row(clip.task, clip.original_rate, encoded)

    def _encode_blocks(self, blocks: Iterable[Tensor]) -> EncodedClip:
        config = self.model.config
        counted = _Counted(blocks)
        if config.chunk_length is not None:
            return self._encode_chunk_groups(counted)
        if not config.use_causal_conv or config.normalize or config.norm_type == "time_group_norm":
            # every frame depends on the whole clip
            return self._encode_batch([torch.cat(list(counted), dim=1)])[0]
        encoder = StreamingEncoder(self.model, self.bandwidth)
        codes: list[Tensor] = []
        embeddings: list[Tensor] = []

        def keep(pushed: list[Tensor]) -> None:
            codes.append(pushed[0].cpu())
            if self.embeddings:
                embeddings.append(encoder.embeddings[0].to("cpu", torch.float16))

        for block in counted:
            keep(encoder.push(block))
        keep(encoder.flush())
        kept = torch.cat(embeddings, dim=-1)[None] if embeddings else None
        return EncodedClip(torch.cat(codes, dim=-1)[None], None, 0, counted.samples, kept)

    def _encode_chunk_groups(self, blocks: _Counted) -> EncodedClip:
        """Encodes the chunks of one block at a time: chunks are independent of each other."""
        stride, length = self.model.config.chunk_stride, self.model.config.chunk_length
        parts: list[EncodedClip] = []
        rest = torch.zeros(self.model.config.audio_channels, 0)
        for block in blocks:
            rest = torch.cat([rest, block], dim=1)
            # what stays behind holds a full chunk, so the last group has full ones before its ragged end
            group = (rest.shape[1] - length) // stride
            if group > 0:
                whole = self._encode_batch([rest[:, : (group - 1) * stride + length]])[0].to("cpu")
                scales, embeddings = (None if part is None else part[:group] for part in (whole.scales, whole.embeddings))
                parts.append(EncodedClip(whole.codes[:group], scales, 0, group * stride, embeddings))
                rest = rest[:, group * stride :]
        last = self._encode_batch([rest])[0].to("cpu")
        parts.append(last)
        pad = parts[0].codes.shape[-1] - last.codes.shape[-1]
        scales = None if last.scales is None else torch.cat([part.scales for part in parts if part.scales is not None])
        embeddings = None if last.embeddings is None else stacked([part.embeddings for part in parts if part.embeddings is not None])
        codes = stacked([part.codes for part in parts])
        return EncodedClip(codes, scales, last.last_frame_pad_length + pad, blocks.samples, embeddings)

    def _row(self, task: Task, original_rate: int, encoded: EncodedClip) -> ClipRow | ClipFailure:
        embeddings = None if encoded.embeddings is None else encoded.embeddings.to("cpu", torch.float16).numpy()
        if embeddings is not None and not np.isfinite(embeddings).all():
            return failure_of(task, f"its embeddings exceed what float16 holds, {np.finfo(np.float16).max:,.0f}.")
        return ClipRow(
            id=task.id,
            path=task.shown_path,
            codes=encoded.codes.cpu().numpy().astype(self._code_dtype),
            scales=None if encoded.scales is None else encoded.scales.float().cpu().numpy(),
            num_samples=encoded.num_samples,
            last_frame_pad_length=encoded.last_frame_pad_length,
            sampling_rate=self.model.config.sampling_rate,
            original_rate=original_rate,
            bandwidth=self.bandwidth,
            columns=task.columns,
            embeddings=embeddings,
        )


class _Counted:
    """Blocks [C, T_i], and how many samples have passed."""

    def __init__(self, blocks: Iterable[Tensor]):
        self._blocks, self.samples = blocks, 0

    def __iter__(self) -> Iterator[Tensor]:
        for block in self._blocks:
            if not block.isfinite().all():
                raise ValueError(NOT_FINITE)
            self.samples += block.shape[1]
            yield block


def each_or_reason(call: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]) -> list[Result | str]:
    """Returns call(batch); or, if that fails, the result of each item alone, or the reason why it has none.

    Raises what is no clip's fault: BackendError where a backend that was asked for by name can't run, RuntimeError of a lost GPU.
    """
    try:
        return [*call(batch)]
    except BackendError:
        raise
    # RuntimeError: what torch raises, out of memory included
    except (RuntimeError, ValueError, MemoryError) as error:
        if is_lost_gpu(error):
            raise
        if len(batch) > 1:
            return [result for item in batch for result in each_or_reason(call, [item])]
        return [first_line(error)]


def is_lost_gpu(error: BaseException) -> bool:
    """Tells whether it is an error of CUDA after which every call of the process fails. A lack of memory is none."""
    text = str(error)
    # cuBLAS says ALLOC_FAILED
    memory = "out of memory" in text or "ALLOC_FAILED" in text
    return isinstance(error, RuntimeError) and not memory and ("CUDA error" in text or "Triton Error [CUDA]" in text)


def check_bandwidth(config: Any, bandwidth: float) -> None:
    """Raises ValueError for a bandwidth (kbps) that the model of this config lacks, naming those that it has."""
    if bandwidth not in config.target_bandwidths:
        known = ", ".join(f"{each:g}" for each in config.target_bandwidths)
        shown = f"{bandwidth:g}" if isinstance(bandwidth, int | float) else repr(bandwidth)
        raise ValueError(f"bandwidth is {shown}; the model's are {known} kbps.")


def check_made_alike(model: EncodecModel, info: DatasetInfo, where: str) -> None:
    """Raises ValueError where the model in this process would make other codes than those of `info`.  where: this process in words."""
    found = dataset_info(model, info.model_id, weights_sha256(model), {})
    if found.weights_sha256 != info.weights_sha256:
        raise ValueError(f"{where} has weights {found.weights_sha256[:16]}, the run was begun with {info.weights_sha256[:16]}.")
    if found.backend != info.backend:
        raise ValueError(f"{where} runs {found.backend}, the run was begun with {info.backend}; name a --backend for all.")


def dataset_info(
    model: EncodecModel, model_id: str, weights_sha256: str, options: Mapping[str, Any], embeddings: bool = False
) -> DatasetInfo:
    """Returns what makes the codes of a run, for the metadata of its files.

    options: of the run, as JSON can hold them.  embeddings: the run keeps them.
    """
    second = torch.zeros(1, model.config.audio_channels, model.config.sampling_rate, device=model.device)
    backends = dict.fromkeys(row.backend for row in explain(model, second).rows)
    return DatasetInfo(
        model_id=model_id,
        weights_sha256=weights_sha256,
        codebook_size=model.config.codebook_size,
        backend="+".join(backends),
        versions={
            "encodec_fast": encodec_fast.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        options=dict(options),
        embedding_dim=model.config.hidden_size if embeddings else 0,
    )
