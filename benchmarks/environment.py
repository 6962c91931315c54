"""Where and with what a result was measured."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import version
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
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "system": platform.system(),
            **(_gpu_versions() if device == "cuda" else {}),
        },
        "native": library.native_error() or "loaded",
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "fastspec", "csrc")),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _gpu_versions() -> Entry:
    driver = (
        subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("nvidia-smi")
        else None
    )
    return {
        "cuda": torch.version.cuda,
        "triton": version("triton") if library.has_triton() else None,
        "driver": driver.stdout.split("\n")[0] if driver else None,
    }


class Neighbours:
    """How many cores other processes keep busy (and a hypervisor takes away) from here to `cores()`."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float:
        """Average since the start; meant to be near 0 for a measurement worth quoting."""
        (wall, busy, own), (wall0, busy0, own0) = self._now(), self._start
        return max((busy - busy0) - (own - own0), 0.0) / max(wall - wall0, 1e-9)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        user, nice, system, _idle, _wait, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, sum(os.times()[:4])


def _cpuinfo() -> list[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
