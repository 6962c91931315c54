"""What the experiments share: checks of their options, and their use of the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fastspec.ops.checks import check_real, refuse


def check_each(name: str, values: Sequence[Any], check: Callable[[str, Any], object]) -> None:
    """Check that there is one value or more, and each with `check`."""
    if not values:
        refuse(name, "no values", "one or more")
    for value in values:
        check(name, value)


def check_grid(name: str, values: Sequence[Any], check: Callable[[str, Any], object]) -> None:
    """As `check_each`, for an axis of a grid: the values are also all different."""
    check_each(name, values, check)
    if len(set(values)) != len(values):
        refuse(name, repr(tuple(values)), "values that are all different")


def check_not_negative(name: str, value: float) -> None:
    check_real(name, value, "a finite number of at least 0", 0.0)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: products of this size take longer on two, and much longer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
