"""Host checks: every message names the argument, says what it got, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def refuse(argument: str, got: object, takes: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise `error` in the one form that every message of this package has."""
    raise error(f"{argument}: got {got}; takes {takes}")


def shape(tensor: Tensor) -> str:
    """A tensor's shape, as messages print it."""
    return f"shape {list(tensor.shape)}"


def check_tensor(argument: str, value: object, ranks: Sequence[int], layout: str) -> None:
    """Check that `value` is a floating tensor of one of `ranks`; `layout` spells the shapes it takes."""
    if not isinstance(value, Tensor):
        refuse(argument, type(value).__name__, f"a tensor {layout}", TypeError)
    if value.dtype not in FLOATING:
        refuse(argument, f"dtype {value.dtype}", "float64, float32, float16 or bfloat16", TypeError)
    if value.dim() not in ranks:
        refuse(argument, shape(value), layout)


def check_floating(argument: str, dtype: object) -> None:
    """Check that `dtype` is one that weights and data may have."""
    if dtype not in FLOATING:
        refuse(argument, f"{dtype}", "float64, float32, float16 or bfloat16", TypeError)


def check_same_kind(**tensors: Tensor | None) -> None:
    """Check that all tensors share dtype and device with the first."""
    dtype = device = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if dtype is None:
            first, dtype, device = name, tensor.dtype, tensor.device
        elif tensor.dtype is not dtype:
            refuse(name, f"dtype {tensor.dtype}", f"the dtype of {first}, {dtype}", TypeError)
        elif tensor.device != device:
            refuse(name, f"device {tensor.device}", f"the device of {first}, {device}")


def check_real(argument: str, value: float, takes: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Check that a hyper-parameter is a finite number in [low, high]; True and False are none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        refuse(argument, repr(value), takes)


def check_integer(argument: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Check that `value` is an integer in [low, high]; True and False are not."""
    bounds = f"an integer of at least {low}" + ("" if high is None else f" and at most {high}")
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        refuse(argument, repr(value), bounds)


def check_finite(argument: str, tensor: Tensor) -> None:
    """Check that no element is NaN or infinite, and say how many are."""
    if all_finite((tensor,)):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    refuse(argument, f"{bad} of {tensor.numel()} values NaN or infinite", "finite values")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element of any tensor is NaN or infinite; a GPU is waited for once."""
    some = [tensor.detach() for tensor in tensors if tensor.numel() and tensor.is_floating_point()]
    if len(some) > 1 and some[0].is_cuda:
        return math.isfinite(get_total_norm(some, math.inf))
    return all(_finite(tensor) for tensor in some)


def _finite(tensor: Tensor) -> bool:
    """A sum is ten times as fast as a look at each element. One that overflows decides nothing."""
    total = tensor.sum(dtype=torch.float32 if tensor.dtype.itemsize < 4 else None)
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())
