"""The native code, built for the torch that is there. It imports nothing of what it builds."""

from __future__ import annotations

import sys
import time

from benchmarks.gpu.processes import GRACE, run


def build(until: float) -> dict[str, str]:
    """The native code, in place; without it everything goes on, and says so."""
    run([sys.executable, "setup.py", "build_ext", "--inplace"], until)
    check = "from fastspec.ops import library; print(library.native_error() or 'loaded')"
    said = run([sys.executable, "-c", check], time.time() + GRACE).output.strip().rpartition("\n")[2]
    if said == "loaded":
        return {"state": "passed", "why": "native code built and loaded"}
    return {"state": "not there", "why": f"going on without native code: {said}"}
