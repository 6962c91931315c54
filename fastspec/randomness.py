"""Seeded generators for weights and data; neither the global generator of torch nor its default device is used."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from fastspec.ops.checks import check_integer

SEEDS = 2**32
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for `seed` and `purpose`.

    Different purposes draw different numbers: a student and a data set of one seed share none. For one purpose,
    different seeds give different streams. Raises ValueError for a seed outside [0, 2^32).
    """
    check_integer("seed", seed, 0, SEEDS - 1)
    return torch.Generator().manual_seed((zlib.crc32(purpose.encode()) + seed) % SEEDS)


def on_cpu(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, whose tensors are made on the CPU, where generators are, whatever torch's default device is."""

    @wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return wrapped
