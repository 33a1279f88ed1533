"""The `cpu` backend: the native engine of kernels/cpu, float32 on this machine's CPU.

Bits depend on a clip's own samples and the weights alone: not on the batch, the pieces, the thread count or the instruction set.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from encodec_fast.backends.base import Backend, Precision, QuantizerProgram, StageProgram
from encodec_fast.kernels.cpu import library as native
from encodec_fast.plan import LSTM, Conv, Quantizer, ResidualBlock, Stage, Upsample


class NativeClips:
    """Clips [C, T_b] as the engine takes them, whatever their strides."""

    def __init__(self, clips: Sequence[Tensor]) -> None:
        for clip in clips:
            if not _taken(clip):
                raise ValueError(f"a clip is {clip.dtype}, on {clip.device}; the cpu backend takes float32 on the CPU")
        # held: the record has bare addresses
        self.clips = [clip if clip.shape[1] <= 1 or clip.stride(1) == 1 else clip.contiguous() for clip in clips]
        self.lengths = _ints(clip.shape[1] for clip in self.clips)
        self.record = native.ClipsRecord(_addresses(self.clips), self.lengths, _ints(clip.stride(0) for clip in self.clips))


class NativeState:
    """One clip on its way through a program."""

    def __init__(self, program: CpuStageProgram, handle: int | None) -> None:
        self.program = program  # the engine's state points into it
        self.handle = native.check_handle(program.library, handle)
        _close_with(self, program.library.encodec_close)


class CpuStageProgram(StageProgram):
    """Consecutive stages, packed for one instruction set."""

    exact = True

    def __init__(self, library: ctypes.CDLL, stages: tuple[Stage, ...]) -> None:
        self.library = library
        self.in_channels, self.out_channels = stages[0].in_channels, stages[-1].out_channels
        self.handle = native.check_handle(library, library.encodec_program_new(native.requested_tier()))
        _close_with(self, library.encodec_program_free)
        for stage in stages:
            native.check(library, _append(library, self.handle, stage))

    def run(self, x: Tensor) -> Tensor:
        """Runs whole clips [B, C_in, T] -> [B, C_out, T_out]."""
        x = _batch(x, self.in_channels)
        batch, _, steps = x.shape
        length = native.check(self.library, self.library.encodec_output_length(self.handle, steps))
        y = torch.empty(batch, self.out_channels, length, dtype=torch.float32, device="cpu")
        ran = self.library.encodec_run(
            self.handle, batch, x.data_ptr(), steps, x.stride(0), x.stride(1), torch.get_num_threads(),
            y.data_ptr(), length, y.stride(0), y.stride(1),
        )  # fmt: skip
        native.check(self.library, ran)
        return y

    def run_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Runs whole clips [C_in, T_b] of any lengths, as one batch, -> [C_out, T_out_b] each."""
        return self.push(clips, [self.open() for _ in clips], [True] * len(clips))

    def open(self) -> NativeState:
        """Returns the state of one clip at time zero."""
        return NativeState(self, self.library.encodec_open(self.handle))

    def push(self, pieces: Sequence[Tensor], states: Sequence[NativeState], final: Sequence[bool]) -> list[Tensor]:
        """Returns the output that each clip's next piece of time completes, as the base class says.

        Raises EngineError after a clip's end, and for a piece where a stage needs the whole clip.
        """
        call = self._call(pieces, states, final)
        y = [_floats(self.out_channels, length) for length in call.ready()]
        call.push(y)
        return y

    def save(self, state: NativeState) -> list[Tensor]:
        """Returns a clip's state as bytes, the same for every instruction set."""
        size = native.check(self.library, self.library.encodec_save(state.handle, None, 0))
        saved = torch.empty(size, dtype=torch.uint8, device="cpu")
        native.check(self.library, self.library.encodec_save(state.handle, saved.data_ptr(), size))
        return [saved]

    def load(self, saved: Sequence[Tensor]) -> NativeState:
        """Returns the state that `save` wrote.  Raises ValueError as the base class says.

        The engine checks all that it counts and indexes by.
        """
        try:
            (tensor,) = saved
            if tensor.dtype != torch.uint8 or tensor.dim() != 1:
                raise ValueError(f"found {tensor.dtype}, {list(tensor.shape)}")
            content = bytes(tensor.to("cpu").numpy())
            return NativeState(self, self.library.encodec_load(self.handle, content, len(content)))
        except (native.EngineError, AttributeError, TypeError, ValueError) as error:
            raise ValueError("this is not the state of a clip in such a program") from error

    def ended(self, state: NativeState) -> bool:
        """Tells whether the clip has ended."""
        return native.check(self.library, self.library.encodec_ended(state.handle)) == 1

    def _call(self, pieces: Sequence[Tensor], states: Sequence[NativeState], final: Sequence[bool]) -> _Call:
        if len({id(state) for state in states}) != len(pieces) or len(final) != len(pieces):
            raise ValueError(f"{len(pieces)} pieces came with {len(states)} states and {len(final)} ends; each piece needs its own")
        for piece in pieces:
            if piece.dim() != 2 or piece.shape[0] != self.in_channels:
                raise ValueError(f"a clip is {list(piece.shape)}; the cpu backend takes [{self.in_channels}, T]")
        return _Call(self.library, pieces, states, final)


class _Call:
    """The arguments of one push, as the engine takes them."""

    def __init__(self, library: ctypes.CDLL, pieces: Sequence[Tensor], states: Sequence[NativeState], final: Sequence[bool]) -> None:
        self.library = library
        self.x = NativeClips(pieces)
        self.held = states
        self.batch = len(pieces)
        self.states = (c_void_p * self.batch)(*(state.handle for state in states))
        self.final = _ints(map(int, final))

    def ready(self) -> list[int]:
        """Returns the steps that the push will give out, of each clip."""
        lengths = (c_int64 * self.batch)()
        native.check(self.library, self.library.encodec_ready(self.states, self.batch, self.x.lengths, self.final, lengths))
        return list(lengths)

    def push(self, y: Sequence[Tensor]) -> None:
        out, threads = NativeClips(y), torch.get_num_threads()
        native.check(self.library, self.library.encodec_push(self.states, self.batch, self.x.record, self.final, threads, out.record))


class CpuQuantizerProgram(QuantizerProgram):
    """The stacked codebooks, packed for one instruction set."""

    exact = True

    def __init__(self, library: ctypes.CDLL, quantizer: Quantizer) -> None:
        codebooks = quantizer.codebooks.contiguous()
        self.library = library
        self.dim = codebooks.shape[2]
        made = library.encodec_codebooks_new(native.requested_tier(), codebooks.data_ptr(), *codebooks.shape)
        self.handle = native.check_handle(library, made)
        _close_with(self, library.encodec_codebooks_free)

    def encode(self, x: Tensor, num_quantizers: int) -> Tensor:
        """Returns codes [num_quantizers, B, F], int64, of embeddings x [B, D, F]; on equal distances the lowest index."""
        x = _batch(x, self.dim)
        batch, _, frames = x.shape
        codes = torch.empty(num_quantizers, batch, frames, dtype=torch.int64, device="cpu")
        found = self.library.encodec_search_batch(
            self.handle, batch, x.data_ptr(), frames, x.stride(0), x.stride(1), num_quantizers, torch.get_num_threads(), codes.data_ptr()
        )
        native.check(self.library, found)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Sums the entries [B, D, F] that codes [K, B, F] name.  Raises IndexError for a code outside the codebook."""
        if codes.device.type != "cpu" or codes.is_floating_point():
            raise ValueError(f"codes are {codes.dtype}, on {codes.device}; the cpu backend takes integers on the CPU")
        codes = codes.to(torch.int64).contiguous()
        levels, batch, frames = codes.shape
        y = _floats(batch, self.dim, frames)
        clips = NativeClips(y.unbind(0))
        summed = self.library.encodec_lookup(self.handle, *_code_rows(codes), batch, levels, torch.get_num_threads(), clips.record)
        if native.check(self.library, summed) == 1:
            # the words of torch's embedding: the drop-in class raises what transformers raises
            raise IndexError("index out of range in self")
        return y


class CpuBackend(Backend):
    """The native engine, loaded at the first question about it."""

    name = "cpu"

    def unavailable(self) -> str | None:
        """Returns why the engine can't be used and how to change that, or None."""
        try:
            library = native.load()
        except native.LibraryMissing as missing:
            return str(missing)
        tier, known = native.requested_tier(), native.tiers(library)
        if tier is not None and tier.decode() not in known:
            return f"{native.ISA_VARIABLE}={tier.decode()!r} does not run here: unset it or choose one of {', '.join(known)}"
        return None

    def refusal(self, stage: Stage | Quantizer, dtype: torch.dtype, device: torch.device) -> str | None:
        """Returns why the engine can't run this stage on such tensors, or None."""
        if device.type != "cpu":
            return f"runs on the CPU, the tensors are on {device}"
        if dtype != torch.float32:
            return f"runs in float32, the model is {dtype}"
        if isinstance(stage, Upsample) and stage.kernel % stage.stride:
            return f"{stage.name} has kernel {stage.kernel}, not a multiple of its stride {stage.stride}"
        return None

    def prepare(self, stages: tuple[Stage, ...], precision: Precision = Precision.PARITY) -> CpuStageProgram:
        """Packs the weights of consecutive stages; products are float32 whatever the precision."""
        return CpuStageProgram(native.load(), stages)

    def prepare_quantizer(self, quantizer: Quantizer) -> CpuQuantizerProgram:
        """Packs the codebooks."""
        return CpuQuantizerProgram(native.load(), quantizer)

    def function_refusal(self, name: str, tensors: Sequence[Tensor]) -> str | None:
        """Returns why the engine can't run the function on such tensors, or None."""
        return None if all(map(_taken, tensors)) else "runs in float32 on the CPU"

    def normalize(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises as the base class says."""
        library, (batch, channels, _) = native.load(), audio.shape
        clean, scales = _floats(*audio.shape), _floats(batch, 1)
        x, y = NativeClips(audio.unbind(0)), NativeClips(clean.unbind(0))
        threads = torch.get_num_threads()
        native.check(library, library.encodec_normalize(x.record, batch, channels, threads, y.record, scales.data_ptr()))
        return clean, scales

    def overlap_add(self, chunks: Sequence[Tensor], weight: Tensor, stride: int, length: int) -> Tensor:
        """Joins chunks as the base class says, bit for bit as transformers adds."""
        library, (batch, channels, _) = native.load(), chunks[0].shape
        joined = _floats(batch, channels, length)
        x, y = NativeClips([clip for chunk in chunks for clip in chunk.unbind(0)]), NativeClips(joined.unbind(0))
        made = library.encodec_overlap_add(
            x.record, len(chunks), batch, channels, weight.data_ptr(), stride, torch.get_num_threads(), y.record
        )
        native.check(library, made)
        return joined


def _close_with(owner: NativeState | CpuStageProgram | CpuQuantizerProgram, close: Callable[[int], None]) -> None:
    """Gives what the owner's handle stands for back once the owner is gone."""
    # not at exit, where daemon threads may still be at work in it: the memory goes with the process
    weakref.finalize(owner, close, owner.handle).atexit = False


def _append(library: ctypes.CDLL, program: int, stage: Stage) -> int:
    held: list[Tensor] = []  # contiguous copies, until the engine has packed them

    def address(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        held.append(tensor.detach().contiguous())
        return held[-1].data_ptr()

    def record(conv: Conv | Upsample, **geometry: int) -> native.ConvRecord:
        return native.ConvRecord(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            kernel=conv.kernel,
            stride=conv.stride,
            activation=native.ACTIVATIONS[conv.activation],
            weight=address(conv.weight),
            bias=address(conv.bias),
            norm_weight=address(conv.norm.weight if conv.norm else None),
            norm_bias=address(conv.norm.bias if conv.norm else None),
            norm_eps=conv.norm.eps if conv.norm else 0.0,
            **geometry,
        )

    def padded(conv: Conv) -> native.ConvRecord:
        mode = native.PAD_MODES[conv.pad_mode]
        return record(conv, dilation=conv.dilation, pad_left=conv.pad_left, pad_right=conv.pad_right, pad_mode=mode)

    if isinstance(stage, LSTM):
        weights = [w for layer in stage.layers for w in (layer.w_ih, layer.w_hh, layer.b_ih, layer.b_hh)]
        addresses = (c_void_p * len(weights))(*map(address, weights))
        return library.encodec_add_lstm(program, stage.in_channels, len(stage.layers), addresses)
    if isinstance(stage, ResidualBlock):
        shortcut = None if stage.shortcut is None else padded(stage.shortcut)
        return library.encodec_add_residual(program, padded(stage.conv1), padded(stage.conv2), shortcut)
    if isinstance(stage, Upsample):
        trims = {"pad_left": stage.trim_left, "pad_right": stage.trim_right}
        return library.encodec_add_upsample(program, record(stage, dilation=1, **trims))
    return library.encodec_add_conv(program, padded(stage))


def _batch(x: Tensor, channels: int) -> Tensor:
    """Returns x [B, channels, T] as the engine takes it: the steps of a channel follow each other."""
    if x.dim() != 3 or x.shape[1] != channels:
        raise ValueError(f"x is {list(x.shape)}; the cpu backend takes [B, {channels}, T]")
    if not _taken(x):
        raise ValueError(f"a clip is {x.dtype}, on {x.device}; the cpu backend takes float32 on the CPU")
    return x if x.shape[2] <= 1 or x.stride(2) == 1 else x.contiguous()


def _taken(tensor: Tensor) -> bool:
    """Tells whether the engine reads such memory."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _floats(*shape: int) -> Tensor:
    """Returns memory for the engine to write to, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _ints(values: Iterable[int]) -> ctypes.Array[c_int64]:
    items = list(values)
    return (c_int64 * len(items))(*items)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _code_rows(codes: Tensor) -> tuple[ctypes.Array[c_void_p], ctypes.Array[c_int64]]:
    """Returns where each clip's codes begin in codes [K, B, F], and how far apart its levels lie."""
    _, batch, frames = codes.shape
    rows = [codes.data_ptr() + codes.element_size() * frames * b for b in range(batch)]
    return (c_void_p * batch)(*rows), _ints([batch * frames] * batch)
