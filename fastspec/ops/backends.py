"""Which implementation of the ops runs: chosen by the tensors' device, or forced for the whole process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NoReturn

import torch

from fastspec.ops import library
from fastspec.ops.checks import refuse

BACKENDS = ("reference", "cpu", "triton")

_forced: str | None = None
_overrides: torch.library.Library | None = None  # what `_forced` registers, over the implementations chosen by device


def forced() -> str | None:
    """The backend that is forced, or None."""
    return _forced


def takes_triton(tensor: torch.Tensor) -> bool:
    """Whether ops with a Triton kernel run it on this tensor."""
    on_gpu = tensor.is_cuda and _forced is None
    return library.has_triton() and (on_gpu or _forced == "triton")


def takes_native(tensor: torch.Tensor) -> bool:
    """Whether ops with a native kernel for CPUs run it on this tensor."""
    return tensor.is_cpu and library.native_error() is None and _forced in (None, "cpu")


def backend(name: str | None) -> ExitStack:
    """Force the implementation of every op, for the whole process; in a `with` statement, until its end.

    name: "reference", the specification in plain torch, on any device; "cpu", the native kernels, which take tensors
        of the CPU; "triton", the Triton kernels, which take CUDA tensors (and those of the CPU where Triton's
        interpreter runs, TRITON_INTERPRET=1); None, the default choice: CUDA tensors go to Triton or CUDA C++, those of
        the CPU to the native kernels, and to the reference where there are none. An op without a Triton kernel keeps
        the default choice under "triton".
    Ops, compiled ones too, obey at their next call, with no cost at a call. Not while other threads are in one.
    Raises ValueError for an unknown name and for a backend that is not installed; ops raise it for tensors of a device
    that the backend does not take.
    """
    before = _forced
    _force(name)
    restore = ExitStack()
    restore.callback(_force, before)
    return restore


def default_device() -> str:
    """Where experiments compute: "cuda" where there is a GPU and "cpu" is not forced, else "cpu".

    The environment variable FASTSPEC_DEVICE (cpu, cuda or cuda:<index>) overrides; ValueError if it names no device.
    """
    asked = os.environ.get("FASTSPEC_DEVICE")
    usable = torch.cuda.is_available()
    if asked is None:
        return "cuda" if usable and _forced != "cpu" else "cpu"
    devices = ["cpu", *["cuda"] * usable, *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if asked not in devices:
        refuse("FASTSPEC_DEVICE", repr(asked), " or ".join(devices))
    return asked


def _force(name: str | None) -> None:
    global _forced, _overrides
    if name not in (*BACKENDS, None):
        refuse("backend", repr(name), f"{', '.join(map(repr, BACKENDS))} or None")
    if name == "cpu" and library.native_error() is not None:
        refuse("backend", f"'cpu', but {library.native_error()}", "'reference', 'triton' or None")
    if name == "triton" and not library.has_triton():
        refuse("backend", "'triton', but Triton is not installed", "'reference', 'cpu' or None")
    if _overrides is not None:
        _overrides._destroy()
    _forced, _overrides = name, None if name is None else _registered(name)


def _registered(name: str) -> torch.library.Library:
    overrides = torch.library.Library("fastspec", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # of an override, which is meant
        for op, implementations in library.ops.items():
            for device in ("CPU", "CUDA"):
                function = override(name, implementations, device)
                if function is not None:
                    overrides.impl(op, function, device, allow_override=True)
    return overrides


def override(name: str, op: library.Implementations, device: str) -> Callable | None:
    """What a forced backend runs on tensors of a device, "CPU" or "CUDA"; None is the default choice."""
    if name == "reference":
        return op.reference
    if name == "triton" and op.triton is not None:
        return op.triton if device == "CUDA" or os.environ.get("TRITON_INTERPRET") == "1" else partial(_refuse, name)
    return partial(_refuse, name) if (name, device) == ("cpu", "CUDA") else None


def _refuse(name: str, first: torch.Tensor | Sequence[torch.Tensor], *args: object) -> NoReturn:
    tensor = first if isinstance(first, torch.Tensor) else first[0]
    takes = {"cpu": "tensors of the CPU", "triton": "CUDA tensors; on the CPU, set TRITON_INTERPRET=1"}
    refuse("tensors", f"device {tensor.device} with the forced backend {name!r}", takes[name])
