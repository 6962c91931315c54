"""Where and with what a result was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.harness import Entry
from fastspec.ops import library

ROOT = Path(__file__).parents[1]


def device_name(device: str) -> str:
    """The model of the GPU, or of the CPU with the number of cores that this process may use."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = next((v for k, v in _cpuinfo() if k == "model name"), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def slug(name: str) -> str:
    """A folder name: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def provenance(device: str) -> Entry:
    """Device, versions, commit and date, as every result file carries them."""
    flags = next((v for k, v in _cpuinfo() if k == "flags"), "").split()
    return {
        "device": device_name(device),
        "instruction_sets": [f for f in ("avx2", "fma", "avx512f", "amx_tile") if f in flags],
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "system": platform.system()},
        "native": library.native_error() or "loaded",
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "fastspec", "csrc")),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cpuinfo() -> list[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
