"""linear_relu's kernels, and the products that a stream takes from torch."""

from __future__ import annotations

import pytest
import torch
from guarded import LAYOUTS, guarded

from fastspec.ops.layer_moments import plans
from fastspec.ops.layer_moments.triton import layer_moments
from fastspec.ops.linear_relu import reference
from fastspec.ops.linear_relu import triton as linear

pytestmark = pytest.mark.usefixtures("small", "poisoned")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("population, own", [((), False), ((3,), False), ((2,), True)])
@pytest.mark.parametrize("n, bias, slope", [(21, True, 0.0), (8, False, 0.25), (1, True, 0.0)])
def test_integers_are_exact(layout, population, own, n, bias, slope):
    x = torch.randint(-3, 4, (*(population if own else ()), 70, 6)).float()
    weight, b = torch.randint(-3, 4, (*population, n, 6)).float(), torch.randint(-3, 4, (*population, n)).float()
    got = linear.linear_relu(
        guarded(x, layout), guarded(weight, layout), guarded(b, layout) if bias else None, slope, "fp32"
    )
    want = reference.linear_relu(x, weight, b if bias else None, slope, "fp32")
    for name, a, w in zip(("activation", "gates", "node_sum", "active"), got, want, strict=True):
        assert a.dtype == w.dtype and torch.equal(a, w), name


def test_nothing_to_do():
    x, weight = torch.zeros(0, 3), torch.zeros(4, 3)
    for a, w in zip(
        linear.linear_relu(x, weight, None, 0.0, "fp32"),
        reference.linear_relu(x, weight, None, 0.0, "fp32"),
        strict=True,
    ):
        assert torch.equal(a, w)


def test_torch_is_asked_for_fp32_only_where_it_is_true():
    assert linear.vendor("fp64") and not linear.vendor("tf32") and not linear.vendor("bf16")
    assert linear.vendor("fp32")
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = True
        assert not linear.vendor("fp32") and linear.vendor("fp64")
    finally:
        matmul.allow_tf32 = before
    assert linear.vendor("fp32")


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_a_stream_by_torch_and_one_by_the_kernels_agree(slope, monkeypatch):
    x, w_t, w_s = torch.randint(-3, 4, (300, 7)).float(), torch.randint(-3, 4, (5, 7)).float(), torch.ones(2, 30, 7)
    b_s = torch.randint(-3, 4, (2, 30)).float()
    arguments = (x, w_t, None, x, w_s, b_s, slope, "fp32", False, True)
    with plans.force("stream"):
        by_torch = layer_moments(*arguments)
        monkeypatch.setattr(linear, "vendor", lambda precision: False)
        monkeypatch.setattr("fastspec.ops.layer_moments.triton.vendor", lambda precision: False)
        by_kernels = layer_moments(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(by_torch, by_kernels, strict=True))
