"""Makes Triton's interpreter do what the compiled kernel does, where it differs: float64 arguments, tf32 and bf16.

And makes it faster: functions that a kernel calls find the language patched already.
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter


def float64(value: float) -> tl.tensor:
    return tl.tensor(interpreter.TensorHandle(np.array([value]), tl.float64), tl.float64)


def operand(block: interpreter.TensorHandle, truncated: bool) -> interpreter.TensorHandle:
    """As the matrix units take it: 10 bits of mantissa of what is truncated; bf16, whose bits came as integers."""
    if block.dtype == tl.bfloat16:
        return interpreter.TensorHandle((block.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    if truncated:
        bits = np.ascontiguousarray(block.data).view(np.uint32) & np.uint32(0xFFFFE000)
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)
    return block


def nearest_bf16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values in bf16, ties to even; the interpreter by itself truncates."""
    found = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return found.view(torch.int16).numpy().view(np.uint16)


def correct(monkeypatch) -> None:
    builder, call = type(interpreter.interpreter_builder), interpreter.GridExecutor.__call__
    dot, cast, patch, patched = builder.create_dot, builder.cast_impl, interpreter._patch_lang, set()

    def launch(self, *args, **kwargs):
        named = dict(zip(self.arg_names, args, strict=False)) | kwargs
        for name, annotation in self.fn.__annotations__.items():
            if str(annotation) == "tl.float64":
                named[name] = float64(named[name])
        patched.clear()
        return call(self, **named)

    def patch_once(function):
        modules = frozenset(id(x) for x in function.__globals__.values() if x is tl or x is tl.core)
        if modules not in patched:
            patched.add(modules)
            return patch(function)

    def product(self, a, b, total, precision, *rest):
        truncated = precision == ir.INPUT_PRECISION.TF32 and a.dtype == tl.float32
        return dot(self, operand(a, truncated), operand(b, truncated), total, precision, *rest)

    def converted(self, source, kind):
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return interpreter.TensorHandle(nearest_bf16(source.data), tl.bfloat16)
        return cast(self, source, kind)

    monkeypatch.setattr(builder, "cast_impl", converted)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    monkeypatch.setattr(builder, "create_dot", product)
