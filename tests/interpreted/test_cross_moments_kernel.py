"""The Triton kernels of cross_moments, on exact integers."""

from __future__ import annotations

import math

import pytest
import torch
from moments_oracle import assert_bitwise
from placed import KINDS, placed
from problems import assert_exact_cross, draw

from fastspec.ops.cross_moments import reference
from fastspec.ops.cross_moments.triton import cross_moments
from fastspec.ops.precision import PRECISIONS

DTYPES = (torch.float64, torch.float32, torch.float16)


def precision_of(dtype):
    return "fp64" if dtype == torch.float64 else "fp32"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coactivation", [False, True])
@pytest.mark.parametrize("n, m, k, population", [(75, 9, 7, (5,)), (64, 8, 64, ()), (1, 1, 1, ()), (33, 3, 35, (2,))])
@pytest.mark.usefixtures("small")
def test_exact(dtype, coactivation, n, m, k, population):
    t, s = placed(draw(n, m, dtype=dtype), "rows"), placed(draw(*population, n, k, dtype=dtype), "rows")
    assert_exact_cross(cross_moments(t, s, precision_of(dtype), coactivation), t, s, coactivation)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_exact_in_tiles_of_their_true_size(dtype):
    t, s = draw(300, 70, dtype=dtype), draw(2, 300, 40, dtype=dtype)
    assert_exact_cross(cross_moments(t, s, precision_of(dtype), True), t, s, True)


@pytest.mark.parametrize("precision", PRECISIONS[2:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("small")
def test_every_precision_is_exact(precision, dtype):
    t, s = draw(75, 9, dtype=dtype), draw(75, 5, dtype=dtype)
    assert_exact_cross(cross_moments(t, s, precision, True), t, s, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m, k, unit", [(8, 12, 4), (9, 12, 1), (8, 13, 1)])
@pytest.mark.usefixtures("small")
def test_any_strides(launched, kind, m, k, unit):
    t, s = placed(draw(40, m), kind), placed(draw(3, 40, k), kind)
    assert_exact_cross(cross_moments(t, s, "fp32", True), t, s, True)
    grain = 1 if kind in ("transposed", "slice") else unit
    assert [call["GRAIN"] for call in launched] == [call["NODE_GRAIN"] for call in launched] == [grain]


def spatial(kind):
    """Activations [N, nodes, *space] of a teacher and two students, and the axes that are left to the kernel."""
    if kind == "sequence":
        return draw(30, 5, 7), draw(2, 30, 9, 7), 1
    if kind == "volume":
        return draw(4, 3, 2, 3, 5), draw(2, 4, 9, 2, 3, 5), 1
    if kind == "volume, transposed on one side":
        return draw(4, 3, 2, 3, 5), draw(2, 4, 9, 5, 3, 2).transpose(-1, -3), 3
    if kind == "one position":
        return draw(60, 5, 1, 1), draw(2, 60, 9, 1, 1), 0
    t, s = draw(6, 5, 7, 4), draw(2, 6, 9, 7, 4)
    channels_last = s.movedim(2, -1).contiguous().movedim(-1, 2)
    return {
        "image": (t, s, 1),
        "channels last": (t.to(memory_format=torch.channels_last), channels_last, 1),
        "channels last on one side": (t, channels_last, 1),
        "transposed": (t.mT.contiguous().mT, s.mT.contiguous().mT, 2),
        "transposed on one side": (t, s.mT.contiguous().mT, 2),
        "cropped": (t[..., 1:-1], s[..., 1:-1], 2),
        "cropped and thinned": (t[1:, :, 2:-1, ::2], s[:, 1:, :, 2:-1, ::2], 1),
        "expanded": (t[:1].expand(6, -1, -1, -1), s, 1),
    }[kind]


SPATIAL = ("sequence", "volume", "volume, transposed on one side", "one position", "image", "channels last")
SPATIAL += ("channels last on one side", "transposed", "transposed on one side", "cropped")
SPATIAL += ("cropped and thinned", "expanded")


@pytest.mark.parametrize("kind", SPATIAL)
@pytest.mark.usefixtures("small")
def test_positions_in_space(launched, kind):
    t, s, axes = spatial(kind)
    assert_exact_cross(cross_moments(t, s, "fp32", True), t, s, True)
    sizes = [launched[0][f"size{i}"] for i in (1, 2, 3)]
    assert math.prod(sizes) == math.prod(t.shape[2:]) and sum(size > 1 for size in sizes) == axes


@pytest.mark.parametrize("shape", [(0, 3, 4), (0, 3, 4, 2), (5, 0, 4), (5, 3, 0), (5, 3, 0, 2), (5, 3, 4, 0)], ids=str)
def test_empty_problems(shape):
    n, m, k, *population = shape
    args = draw(n, m), draw(*population, n, k)
    assert_bitwise(cross_moments(*args, "fp32", True), reference.cross_moments(*args, "fp32", True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 5, 40, 74])
@pytest.mark.usefixtures("small")
def test_a_value_that_is_not_finite_spoils_its_nodes_alone(value, row):
    t, s = draw(75, 9), draw(2, 75, 5)
    t[row, 3] = s[1, row, 2] = value
    moments = cross_moments(t, s, "fp32", True)
    bad_t, bad_s = torch.zeros(9, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    bad_t[3] = bad_s[1, 2] = True
    for field, bad in zip(moments, (bad_t, bad_s, bad_t, bad_s, bad_t[:, None] | bad_s[:, None]), strict=False):
        assert torch.equal(~field.isfinite(), bad)
    for got, want in zip(moments[5:], reference.cross_moments(t, s, "fp32", True)[5:], strict=True):
        assert torch.equal(got, want)
