"""The Triton kernels of layer_moments, every way through it, on exact integers."""

from __future__ import annotations

import math

import pytest
import torch
from placed import KINDS, placed
from problems import POPULATIONS, assert_exact_layers, layers

from fastspec.ops.gpu.accumulate import Workspace
from fastspec.ops.gpu.layout import Space, grain
from fastspec.ops.layer_moments import plans, reference
from fastspec.ops.layer_moments.triton import layer_moments
from fastspec.ops.precision import PRECISIONS

pytestmark = pytest.mark.usefixtures("small")


def assert_exact(args, slope=0.0, coactivation=True, activations=True, precision="fp32"):
    got = layer_moments(*args, slope, precision, coactivation, activations)
    assert_exact_layers(got, args, slope, coactivation, activations)


@pytest.mark.parametrize("population, own", [*POPULATIONS, ((), True)])
@pytest.mark.parametrize(
    "bias, slope, coactivation, activations", [(True, 0.0, True, False), (False, 0.25, False, True)]
)
def test_exact(way, population, own, bias, slope, coactivation, activations):
    args = layers(75, 6, 9, 35, population, own, bias)
    assert_exact([placed(a, "rows") for a in args], slope, coactivation, activations)


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes(way, dtype, extras):
    args = layers(40, 5, 3, 9, (2,), dtype=dtype)
    assert_exact(args, 0.25, extras, extras, "fp64" if dtype == torch.float64 else "fp32")


@pytest.mark.parametrize("plan", plans.NAMES)
@pytest.mark.parametrize("precision", PRECISIONS[2:])
def test_every_precision(plan, precision):
    with plans.force(plan):
        assert_exact(layers(40, 3, 5, 9), precision=precision)


def test_a_slope_of_float64_is_one(way):
    args = layers(40, 5, 3, 9, dtype=torch.float64, integer=False)
    got, want = layer_moments(*args, 0.1, "fp64", False, True), reference.layer_moments(*args, 0.1, "fp64", False, True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_streaming_by_the_vendor_takes_no_workspace(monkeypatch):
    """Each student of a population has an accumulator of its own."""
    monkeypatch.setattr(Workspace, "fitting", None)
    with plans.force("stream"):
        assert_exact(layers(40, 5, 3, 9, (2,)), coactivation=False)


@pytest.mark.parametrize("n, d, m, k", [(1, 1, 1, 1), (64, 16, 8, 32), (33, 4, 17, 5), (75, 0, 2, 3)])
def test_edges_of_blocks_spans_and_tiles(way, n, d, m, k):
    assert_exact(layers(n, d, m, k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [8, 5])
def test_any_strides(way, launched, kind, d):
    assert_exact([placed(a, kind) for a in layers(40, d, 5, 19, (2,), own=True)], coactivation=False)
    if way == "recompute":
        fours = d == 8 and kind in ("rows", "misaligned", "expanded")
        assert (launched[0]["GRAIN"], launched[0]["NODE_GRAIN"]) == (4 if fours else 1, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", [3, 4, 5])
def test_a_value_that_is_not_finite_spoils_its_nodes_alone(way, value, where):
    args = layers(40, 5, 5, 35, own=True)
    args[4].abs_().clamp_min_(1)  # an infinite input opens every gate
    args[where].view(-1)[38 if where == 4 else 7] = value
    out = layer_moments(*args, 0.0, "fp32", False, False)
    bad = torch.zeros(35, dtype=torch.bool)
    bad[slice(None) if where == 3 else slice(4, 5) if where == 4 else slice(7, 8)] = True
    assert torch.equal(~out[1].isfinite(), bad) and torch.equal(~out[3].isfinite(), bad)
    assert torch.equal(~out[4].isfinite(), bad.expand(5, -1)) and out[2].isfinite().all() and out[0].isfinite().all()


@pytest.mark.parametrize("n, m, k", [(0, 4, 5), (7, 0, 5), (7, 4, 0)])
def test_empty_problems(n, m, k):
    assert_exact(layers(n, 3, m, k))
    assert_exact(layers(n, 3, m, k, (2,)))


def test_axes_that_lie_alike_are_joined():
    whole, cut = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 6)[..., :5]
    assert Space.of(whole, whole) == ([1, 1, 20], [0, 0, 1], [0, 0, 1])
    assert Space.of(whole, cut) == ([1, 4, 5], [0, 5, 1], [0, 6, 1])


def test_when_four_elements_are_read_at_once():
    assert grain((1, 1), (8, 12, 0)) == 4 and grain((1, 2), (8, 12)) == 1 and grain((1,), (8, 6)) == 1
