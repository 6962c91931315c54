"""The Triton kernels of linear_relu, and when torch takes their place."""

from __future__ import annotations

import math

import pytest
import torch
from placed import KINDS, placed
from problems import POPULATIONS, draw

from fastspec.ops.linear_relu import reference
from fastspec.ops.linear_relu import triton as linear
from fastspec.ops.precision import PRECISIONS

pytestmark = pytest.mark.usefixtures("small")


def assert_exact(args, slope, precision="fp32"):
    got, want = linear.linear_relu(*args, slope, precision), reference.linear_relu(*args, slope, precision)
    for name, a, w in zip(("activation", "gates", "node_sum", "active"), got, want, strict=True):
        assert a.dtype == w.dtype and torch.equal(a, w), name


@pytest.mark.parametrize("population, own", POPULATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("n, d, bias, slope", [(21, 6, True, 0.0), (8, 8, False, 0.25), (1, 0, True, 0.25)])
def test_exact(population, own, dtype, n, d, bias, slope):
    x = draw(*(population if own else ()), 27, d, dtype=dtype)
    weight, b = draw(*population, n, d, dtype=dtype), draw(*population, n, dtype=dtype)
    args = (placed(x, "rows"), placed(weight, "rows"), placed(b, "rows") if bias else None)
    assert_exact(args, slope, "fp64" if dtype == torch.float64 else "fp32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [8, 6])
@pytest.mark.parametrize("population, own", POPULATIONS)
def test_any_strides(kind, d, population, own):
    x = draw(*(population if own else ()), 19, d)
    assert_exact([placed(a, kind) for a in (x, draw(*population, 21, d), draw(*population, 21))], 0.0)


def test_exact_in_tiles_of_their_true_size(monkeypatch):
    monkeypatch.undo()
    assert_exact([draw(150, 20), draw(2, 70, 20), draw(2, 70)], 0.0)


@pytest.mark.parametrize("precision", PRECISIONS[2:])
def test_every_precision(precision):
    assert_exact([draw(19, 6), draw(21, 6), draw(21)], 0.0, precision)


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_nan_is_not_swallowed_by_the_gate(where, slope):
    args = [draw(27, 5), draw(21, 5), draw(21)]
    args[where].view(-1)[7] = math.nan
    got, want = linear.linear_relu(*args, slope, "fp32"), reference.linear_relu(*args, slope, "fp32")
    for a, w in zip(got, want, strict=True):
        torch.testing.assert_close(a, w, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 0), (4, 3, 5, 0), (0, 3, 5, 2)], ids=str)
def test_empty_problems(shape):
    samples, d, n, *population = shape
    assert_exact([draw(samples, d), draw(*population, n, d), draw(*population, n)], 0.0)


def test_torch_is_asked_for_fp32_only_where_it_is_true():
    matmul, vendor = torch.backends.cuda.matmul, linear.vendor
    before = torch.get_float32_matmul_precision()
    assert vendor("fp64") and vendor("fp32") and not any(map(vendor, ("tf32x3", "tf32", "bf16")))
    try:
        matmul.allow_tf32 = True
        assert not vendor("fp32") and vendor("fp64")
        matmul.allow_tf32 = False
        assert vendor("fp32")
        for precision, true in (("high", False), ("highest", True), ("medium", False)):
            torch.set_float32_matmul_precision(precision)
            assert vendor("fp32") == true
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has one way to allow tf32")
def test_the_newer_ways_to_allow_tf32():
    matmul, vendor = torch.backends.cuda.matmul, linear.vendor
    before = torch.backends.fp32_precision, matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert not vendor("fp32") and vendor("fp64")
        matmul.fp32_precision = "ieee"
        assert vendor("fp32")
        torch.backends.fp32_precision = "tf32"
        assert vendor("fp32")
        matmul.fp32_precision = "none"
        assert not vendor("fp32")
    finally:
        torch.backends.fp32_precision, matmul.fp32_precision = before
