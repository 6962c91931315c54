"""What GPUs can do a second, by their makers' figures. This file needs no Triton."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops.precision import PRECISIONS


class Rates(NamedTuple):
    """What a device can do a second."""

    name: str
    products: dict[str, float]  # operations, by precision
    memory: float  # bytes
    cache: float  # bytes, of the second level
    cache_size: int  # bytes
    warpgroups: bool  # matrix units that take operands from shared memory: sm_90 and sm_100


def _rates(
    name: str,
    fp64: float,
    fp32: float,
    tf32: float,
    bf16: float,
    memory: float,
    cache: float,
    mib: int,
    warpgroups: bool,
) -> Rates:
    """Rates in 1e12; fp64 on the matrix units where there are some; tf32x3 is three products of tf32."""
    products = dict(zip(PRECISIONS, (fp64, fp32, tf32 / 3, tf32, bf16), strict=True))
    in_units = {precision: rate * 1e12 for precision, rate in products.items()}
    return Rates(name, in_units, memory * 1e12, cache * 1e12, mib * 2**20, warpgroups)


DEVICES = (  # dense, without sparsity
    _rates("B200", 37, 75, 1100, 2250, 8.0, 10, 126, True),
    _rates("H200", 67, 67, 495, 989, 4.8, 5.5, 50, True),
    _rates("H100", 67, 67, 495, 989, 3.35, 5.5, 50, True),
    _rates("A100", 19.5, 19.5, 156, 312, 2.0, 4, 40, False),
    _rates("a GPU not in the table", 0.5, 15, 60, 120, 0.6, 2, 32, False),
)


def device_rates(name: str | None) -> Rates:
    """The rates of the first device of the table whose name is part of `name`; the last row where there is none."""
    return next((rates for rates in DEVICES if rates.name.lower() in (name or "").lower()), DEVICES[-1])


def rates_of(tensor: Tensor) -> Rates:
    """The rates of the device that a tensor is on."""
    return _of_device(tensor.device)


@cache
def _of_device(device: torch.device) -> Rates:
    if device.type != "cuda":
        return DEVICES[-1]
    major, _ = torch.cuda.get_device_capability(device)
    return device_rates(torch.cuda.get_device_name(device))._replace(warpgroups=major in (9, 10))
