"""The `fastspec` operator namespace: schemas are defined here once, native code registers under them.

Importing this module loads the compiled extension when it is there. A failure to load is kept, not raised:
`native_error()` says why, and every op runs on its torch reference path instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from fastspec.ops.checks import refuse

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

_library = torch.library.Library("fastspec", "DEF")


def define(name: str, schema: str, *, reference: Callable, fake: Callable) -> None:
    """Define one op: its schema, its fake, and the reference for every device no kernel is registered for."""
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"fastspec::{name}", fake, lib=_library)
    for key in ("CPU", "CUDA"):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastspec::{name}", key):
            _library.impl(name, reference, key)


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
