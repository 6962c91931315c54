"""Peak memory of one call beyond its inputs and its result, in a process of its own.

On the CPU the kernel's high-water mark of resident memory is reset before the call; on a GPU the allocator's is.
`python -m benchmarks.memory PEER [--chunk C] --shape N D M N` prints one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Entry
from benchmarks.peers import LayerPair

ROOT = Path(__file__).parents[1]


def extra_memory(peer: str, shape: Sequence[int], *, chunk: int | None = None, device: str = "cpu") -> Entry:
    """Bytes that a peer of `layer_moments` takes at its peak, measured in a fresh process: {"extra", "result"}."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", peer, "--device", device]
    command += ["--threads", str(torch.get_num_threads()), "--shape", *map(str, shape)]
    if chunk is not None:
        command += ["--chunk", str(chunk)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(call: Callable[[], object], device: str = "cpu") -> Entry:
    """Peak of `call` beyond what is held before it, less the tensors it returns."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # freed pages that the process still holds would hide a peak
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
    tensors = [result] if isinstance(result, Tensor) else list(result)  # type: ignore[call-overload]
    size = sum(t.numel() * t.element_size() for t in tensors)
    return {"extra": max(peak - before - size, 0), "result": size}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("peer", choices=["fastspec", "materialised", "chunked", "chunked_plain", "chunked_lean"])
    parser.add_argument(
        "--shape", type=int, nargs=4, required=True, metavar=("SAMPLES", "INPUTS", "TEACHER", "STUDENT")
    )
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    call = getattr(peers, args.peer)
    if args.chunk is not None:
        call = partial(call, chunk=args.chunk)
    call(LayerPair.random(64, 8, 8, 8, device=args.device))  # code pages and thread pools, not buffers of the real size
    pair = LayerPair.random(*args.shape, device=args.device)
    print(json.dumps(measure(lambda: call(pair), args.device)))


if __name__ == "__main__":
    main()
