"""Where, when and with what a run was made."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastspec import config
from fastspec.ops import library
from fastspec.ops.backends import default_device


def provenance(dtype: str | None = None) -> dict[str, Any]:
    """Versions, commit, device, dtype (torch's default where none is given), threads and date, as JSON takes them."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "fastspec": config.version(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in ("torch", "numpy", "xarray")},
        "device": f"cpu: {config.cpu_name()}",
        "measured on": _accelerator(),
        "dtype": dtype or str(torch.get_default_dtype()).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "native code": library.native_error() or "in use",
    }


def _accelerator() -> str:
    device = default_device()
    return device if device == "cpu" else f"{device}: {torch.cuda.get_device_name(device)}"


def commit() -> str | None:
    """The commit of the source tree that fastspec runs from, marked where files differ; None outside a checkout."""
    root = Path(config.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
