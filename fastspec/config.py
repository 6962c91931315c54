"""What this installation is made of: versions, native code, threads, and why a backend is not there."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from fastspec.ops import backends, library

LABORATORY = ("tyro", "rich", "matplotlib", "xarray", "h5netcdf", "h5py", "safetensors", "scipy", "scikit-learn")


def version() -> str:
    """fastspec's version, "unknown" where it runs from a source tree that was never installed."""
    return _version_of("fastspec") or "unknown"


def config() -> dict[str, dict[str, str]]:
    """Facts about the installation, by section; every value is a short text."""
    return {
        "versions": {
            "fastspec": f"{version()} in {Path(__file__).parent}",
            "python": f"{platform.python_version()} on {platform.platform()}",
            "torch": torch.__version__,
            "numpy": _version_of("numpy") or "not installed",
        },
        "cpu": {
            "processor": cpu_name(),
            "cores": str(_cores()),
            "torch threads": str(torch.get_num_threads()),
            "torch vectors": torch.backends.cpu.get_cpu_capability(),
        },
        "native code": _native(),
        "gpu": {
            "CUDA": _cuda(),
            "Triton": _triton(),
            "CUDA kernels": _cuda_kernels(),
            "experiments use": backends.default_device(),
            "backend": backends.forced() or "by the tensors' device",
        },
        "laboratory": {name: _version_of(name) or "not installed (extra: lab)" for name in LABORATORY},
    }


def show_config() -> str:
    """Print `config()` as a readable page, and return the text."""
    lines = []
    for section, facts in config().items():
        lines.append(section)
        width = max(map(len, facts))
        lines += [f"  {name:<{width}}  {value}" for name, value in facts.items()]
    text = "\n".join(lines)
    print(text)
    return text


def cpu_name() -> str:
    """The processor as its maker calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _native() -> dict[str, str]:
    error = library.native_error()
    facts = {"CPU kernels": "in use" if error is None else f"not in use: {error}"}
    try:
        host = import_module("fastspec._host")
    except ImportError as reason:
        return facts | {"host module": f"not there: {reason}"}
    return facts | {str(name).replace("_", " "): str(value) for name, value in host.build_facts().items()}


def _cuda_kernels() -> str:
    error = library.cuda_error()
    return error or f"for sm_{import_module('fastspec._cuda').architectures.replace(' ', ', sm_')}, and later"


def _cuda() -> str:
    if torch.version.cuda is None:
        return "not available: this torch was built without CUDA"
    if not torch.cuda.is_available():
        return f"not available: torch was built for CUDA {torch.version.cuda}, and sees no device"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}, {', '.join(names)}"


def _triton() -> str:
    if find_spec("triton") is None:
        return "not installed"
    return _version_of("triton") or "installed, version unknown"
