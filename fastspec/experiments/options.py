"""Checks of options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
