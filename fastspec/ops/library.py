"""The `fastspec` operator namespace: schemas are defined here once, implementations register under them.

Importing this module loads the compiled extension when it is there. A failure to load is kept, not raised:
`native_error()` says why, and every op runs on its torch reference path instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from fastspec.ops.checks import refuse

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

_library = torch.library.Library("fastspec", "DEF")


class Implementations(NamedTuple):
    """What can compute an op besides native code, which registers itself."""

    reference: Callable
    triton: Callable | None  # None if the op has no Triton kernel
    cuda: Callable | None  # None if the op has no CUDA C++ kernel
    faster: Callable | None = None  # the same in torch, where the reference is not written for speed


ops: dict[str, Implementations] = {}


def define(
    name: str,
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    triton: str | None = None,
    cuda: str | None = None,
    faster: Callable | None = None,
) -> None:
    """Define one op: its schema, its fake, and what runs where no native kernel is registered.

    triton, cuda: "module:function" for CUDA tensors, with a Triton or a CUDA C++ kernel, imported at its first call;
    without one, or where Triton or the CUDA kernels are not installed, and on the CPU, the reference runs.
    faster: another function of the reference's signature, in torch operations, that runs in its place.
    `fastspec.ops.backends` forces another choice.
    """
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"fastspec::{name}", fake, lib=_library)
    kernels = [None if target is None else _imported_when_called(target) for target in (triton, cuda)]
    ops[name] = Implementations(reference, kernels[0], kernels[1], faster)
    on_gpu = (ops[name].triton if has_triton() else None) or (ops[name].cuda if cuda_error() is None else None)
    in_torch = faster or reference
    for key, function in (("CPU", in_torch), ("CUDA", on_gpu or in_torch)):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastspec::{name}", key):
            _library.impl(name, function, key)


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; it is not imported for that."""
    return find_spec("triton") is not None


@cache
def cuda_error() -> str | None:
    """Why the CUDA C++ kernels are not in use, or None when they can be loaded."""
    try:
        import_module("fastspec._cuda")
    except ImportError as error:
        built = find_spec("fastspec._cuda") is not None
        return f"could not be loaded: {error}" if built else "not built (no nvcc, or FASTSPEC_CUDA=0)"
    return None


def _imported_when_called(target: str) -> Callable:
    module, _, name = target.partition(":")

    @cache
    def function() -> Callable:
        return getattr(import_module(module), name)

    return lambda *args: function()(*args)


def native_error() -> str | None:
    """Why the compiled extension is not in use, or None when it is."""
    return _native_error


def _load_native() -> str | None:
    asked = os.environ.get("FASTSPEC_ISA")
    if asked is not None and asked not in INSTRUCTION_SETS:
        refuse("FASTSPEC_ISA", repr(asked), " or ".join(INSTRUCTION_SETS))
    binaries = sorted(Path(__file__).parents[1].glob("_C.*"))
    if not binaries:
        return "fastspec was installed without its native code (no C++ compiler, no pybind11, or FASTSPEC_NATIVE=0)"
    try:
        torch.ops.load_library(str(binaries[0]))
    except OSError as error:
        return f"{binaries[0].name} could not be loaded: {error}"
    return None


_native_error = _load_native()
