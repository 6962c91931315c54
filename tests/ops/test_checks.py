"""Looks for NaN and infinity."""

from __future__ import annotations

import math

import pytest
import torch

from fastspec.ops.checks import FLOATING, all_finite, check_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_what_is_not_finite_is_found(dtype, value):
    most = torch.full((2, 3), torch.finfo(dtype).max, dtype=dtype)
    tensors = [torch.zeros(4, dtype=dtype), -most, torch.ones(0, dtype=dtype), torch.arange(3)]
    assert all_finite(tensors)
    for tensor in tensors:
        check_finite("x", tensor)
    tensors[1][1, 2] = value
    assert not all_finite(tensors)
    with pytest.raises(ValueError, match=r"x: got 1 of 6 values NaN or infinite; takes finite values"):
        check_finite("x", tensors[1])


@pytest.mark.filterwarnings("error")
def test_parameters_are_looked_at_without_a_warning():
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        assert all_finite([torch.nn.Parameter(torch.ones(3))])
    finally:
        torch.set_warn_always(before)
