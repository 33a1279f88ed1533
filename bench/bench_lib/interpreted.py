"""Makes Triton's interpreter quicker: what it makes anew at every operation is made once. No value changes."""

import builtins
from types import SimpleNamespace

import numpy as np
import triton
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

# Whose inner functions are replaced. Another version runs as it comes.
_WRITTEN_FOR = "3.9."
_NAMES = ("int1", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "bfloat16", "float32", "float64")


def quicken() -> None:
    """Replaces what takes most of the time of kernels on small tensors, for the rest of the process.

    Triton patches its language for every launch and every nested call, asserts on every integer sum, and makes every type anew.
    """
    if not triton.__version__.startswith(_WRITTEN_FOR):
        return
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": core}))
    patched = SimpleNamespace(restore=lambda: None)
    interpreter._patch_lang = lambda function: patched
    interpreter.InterpretedFunction.__call__ = lambda function, *args, **kwargs: function.rewrite()(*args, **kwargs)
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter._get_np_dtype = _numpy_types(interpreter._get_np_dtype)
    core.block_type.__init__ = _block_types(core.block_type.__init__)
    core.tensor.__init__ = _tensor_shapes(core.tensor.__init__)
    core.tuple.__eq__ = _tuples_compared(core.tuple.__eq__)
    core.dtype.__eq__ = _types_compared(core.dtype.__eq__)
    core._unwrap_if_constexpr = _unwrapped(core._unwrap_if_constexpr)


def _numpy_types(made_anew):
    # the interpreter fills a table of all types to look one up
    table = {dtype.name: made_anew(dtype) for dtype in (getattr(core, name) for name in _NAMES)}
    pointer = np.dtype(np.uint64)

    def numpy_type(dtype):
        element = dtype.element_ty if isinstance(dtype, core.block_type) else dtype
        return pointer if isinstance(element, core.pointer_type) else table.get(element.name) or made_anew(dtype)

    return numpy_type


def _block_types(init):
    found = {}

    def block_type(self, element_ty, shape):
        # by the id of the element's type, which stays its own: the type is kept
        key = (id(element_ty), *[side.value if type(side) is core.constexpr else side for side in shape])
        if key not in found:
            init(self, element_ty, shape)
            found[key] = dict(vars(self))
        vars(self).update(found[key])

    return block_type


def _tensor_shapes(init):
    found = {}

    def tensor(self, handle, type):
        shape = type.shape if type.is_block() else ()
        if id(shape) not in found:
            init(self, handle, type)
            # the shape too, so that its id stays its own
            found[id(shape)] = shape, self.shape, self.numel
        _, self.shape, self.numel = found[id(shape)]
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return tensor


def _tuples_compared(plain):
    def equal(self, other):
        values = other.values if type(other) is core.tuple else other
        if type(values) not in (list, builtins.tuple):
            return plain(self, other)
        return core.constexpr(self.values == list(values))

    return equal


def _types_compared(plain):
    return lambda self, other: self is other or plain(self, other)


def _unwrapped(plain):
    def unwrapped(value):
        kind = type(value)
        if kind is core.constexpr:
            return value.value
        return value if kind is core.tensor or kind is int else plain(value)

    return unwrapped
