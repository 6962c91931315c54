"""The native code, built for the torch that is there. It imports nothing of what it builds."""

from __future__ import annotations

import os
import sys
import time

import torch

from benchmarks.gpu.processes import GRACE, run


def build(until: float) -> dict[str, str]:
    """The native code, in place; without it everything goes on, and says so."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--parallel", "3"]
    run(command, until, {"FASTSPEC_CUDA_ARCHS": _architecture(), **os.environ})
    check = "from fastspec.ops import library; print(library.native_error() or 'loaded')"
    said = run([sys.executable, "-c", check], time.time() + GRACE).output.strip().rpartition("\n")[2]
    if said == "loaded":
        return {"state": "passed", "why": "native code built and loaded"}
    return {"state": "not there", "why": f"going on without native code: {said}"}


def _architecture() -> str:
    """Of the device, as nvcc names it."""
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return f"{major}{minor}{'a' if major == 9 else ''}"
