"""Why a call can't be served by the plan, each as half a sentence: `explain` shows it, and the log once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from encodec_fast.plan import Network, convolutions
from encodec_fast.plan.reader import inner_modules, weight_norm_hook
from encodec_fast.serving.request import REFERENCE, Request

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CODE_DTYPES = (torch.int64, torch.int32)

# Whether torch.export is at work; torch before 2.7 does not tell
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

# torch counts these itself from 2.7 on
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")

# Where the methods of an encoder, decoder or quantizer are defined that do what the plan does.
_KNOWN_METHODS = ("encodec_fast.model", "transformers.models.encodec.modeling_encodec", "torch.nn.modules.module")


def reference_reason(module: nn.Module, x: Tensor, request: Request) -> str | None:
    """Why only the reference modules can serve this call, or None."""
    if request.backend == REFERENCE:
        return "asked for by name"
    return call_reason(x) or hook_reason(module)


def call_reason(x: Tensor) -> str | None:
    """What about this call only the reference modules can serve, whatever the module, or None."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.jit.is_scripting():
        return "the call is being traced or compiled"
    if type(x) not in (Tensor, nn.Parameter) or torch._C._functorch.peek_interpreter_stack() is not None:
        return "the input is a tensor subclass or inside a functional transform"
    # a level that is entered: the tangents of inputs and weights are not seen where no gradient is asked for
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if x.device.type == "meta":
        return "the tensors are on the meta device"
    if x.layout is not torch.strided or x.numel() == 0:
        return "the input is empty or sparse"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    return None


def hook_reason(module: nn.Module) -> str | None:
    """Which hook or patched forward inside `module` needs the modules to be called one by one, or None."""
    if any(getattr(nn.modules.module, hooks) for hooks in _GLOBAL_HOOKS):
        return "a global module hook is registered"
    for child in inner_modules(module):
        if _is_hooked(child):
            return f"an inner module ({type(child).__name__}) has a hook or a patched forward"
        if child._forward_pre_hooks and (len(child._forward_pre_hooks) > 1 or weight_norm_hook(child) is None):
            return f"an inner module ({type(child).__name__}) has a forward pre-hook"
    return None


def own_hook_reason(module: nn.Module) -> str | None:
    """Which hook or method of somebody's own on `module` itself needs it to be called as a whole, or None."""
    if _is_hooked(module) or module._forward_pre_hooks:
        return f"{type(module).__name__} has a hook or a patched forward"
    for name in ("forward", "encode", "decode"):
        method = getattr(type(module), name, None)
        if name in module.__dict__ or (method is not None and method.__module__ not in _KNOWN_METHODS):
            return f"{type(module).__name__} has a {name} of its own"
    return None


def _is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says; pre-hooks, which weight norm has, are not looked at."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in module.__dict__)


def mismatch(x: Tensor, channels: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a network of `channels` inputs, this dtype and device can't take x, or None."""
    if x.dim() != 3 or x.shape[1] != channels:
        return f"the input has shape {list(x.shape)}, not [B, {channels}, T]"
    if x.dtype != dtype or dtype not in FLOAT_DTYPES:
        return f"the input is {x.dtype}, the weights are {dtype}"
    if x.device != device:
        return f"the input is on {x.device}, the weights are on {device}"
    return None


def codes_mismatch(codes: Tensor, codebooks: Tensor) -> str | None:
    """Why codes [K, ...] can't be looked up in codebooks [levels, N, D], or None; their values are not looked at."""
    if codes.shape[0] <= codebooks.shape[0] and codes.dtype in CODE_DTYPES and codes.device == codebooks.device:
        return None
    return f"codes of shape {list(codes.shape)}, {codes.dtype} on {codes.device}"


def single_value_reason(network: Network, x: Tensor) -> str | None:
    """Why torch refuses this input: a group norm would see one value.  None for every other input."""
    length = x.shape[-1]
    for stage in network.stages if x.shape[0] == 1 else ():
        length = stage.output_length(length)
        if length == 1 and any(conv.norm is not None and conv.out_channels == 1 for conv in convolutions(stage)):
            return f"{stage.name} would normalise a single value"
    return None
