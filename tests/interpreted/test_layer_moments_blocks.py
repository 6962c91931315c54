"""Students of a population side by side in blocks: on exact integers, and whatever the rest of the population is."""

from __future__ import annotations

import math

import pytest
import torch
from placed import KINDS, placed
from problems import assert_exact_layers, layers

from fastspec.ops.layer_moments import plans
from fastspec.ops.layer_moments.triton import layer_moments

pytestmark = pytest.mark.usefixtures("small", "blocks")
TEACHERS = (0, 2, 5, 8)  # of the op's outputs


@pytest.fixture(autouse=True)
def in_blocks(monkeypatch):
    """The plans that were taken: all of them blocks of two students."""
    found, choose = [], plans.choose
    monkeypatch.setattr(plans, "choose", lambda *a, **k: found.append(choose(*a, **k)) or found[-1])
    yield
    assert found and all((plan.name, plan.students) == ("blocks", 2) for plan in found)


def assert_exact(args, slope=0.0, coactivation=False, activations=True, precision="fp32"):
    got = layer_moments(*args, slope, precision, coactivation, activations)
    assert_exact_layers(got, args, slope, coactivation, activations)


@pytest.mark.parametrize("students", [1, 3])
@pytest.mark.parametrize(
    "bias, slope, coactivation, activations",
    [(True, 0.0, True, False), (False, 0.25, False, True), (True, 0.25, True, True), (True, 0.0, False, False)],
)
def test_exact(students, bias, slope, coactivation, activations):
    args = layers(75, 6, 9, 35, (students,), bias=bias)
    assert_exact([placed(a, "rows") for a in args], slope, coactivation, activations)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("coactivation", [False, True])
def test_other_dtypes(dtype, coactivation):
    args = layers(40, 5, 3, 9, (3,), dtype=dtype)
    assert_exact(args, 0.25, coactivation, True, "fp64" if dtype == torch.float64 else "fp32")


@pytest.mark.parametrize("n, d, m, k", [(1, 1, 1, 1), (2, 3, 1, 4), (64, 16, 8, 32), (33, 4, 17, 5), (75, 0, 2, 3)])
def test_edges_of_blocks_spans_and_tiles(n, d, m, k):
    assert_exact(layers(n, d, m, k, (3,)))


def test_inputs_of_the_students_that_are_not_the_teachers():
    x, w_t, b_t, _, w_s, b_s = layers(40, 5, 3, 9, (3,))
    assert_exact((x[:, :2], w_t[:, :2], b_t, x, w_s, b_s))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [8, 5])
def test_any_strides(kind, width):
    assert_exact([placed(a, kind) for a in layers(40, 5, 4, width, (3,))])


@pytest.mark.parametrize("coactivation", [False, True])
@pytest.mark.parametrize("width", [6, 12])
def test_a_student_is_the_same_bit_for_bit_in_any_company(width, coactivation):
    x, w_t, b_t, _, w_s, b_s = layers(75, 7, 5, width, (4,), integer=False)

    def measured(students):
        return layer_moments(x, w_t, b_t, x, w_s[students], b_s[students], 0.1, "fp32", coactivation, True)

    together = measured([0, 1, 2, 3])
    for company, place in (([3], 0), ([2, 0, 3], 2)):
        for i, (among, all_of_them) in enumerate(zip(measured(company), together, strict=True)):
            if i in TEACHERS or not all_of_them.numel():
                assert torch.equal(among, all_of_them)
            else:
                assert torch.equal(among[place], all_of_them[3])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_student_that_is_not_finite_spoils_nobody_else(value):
    args = layers(40, 5, 4, 6, (3,))
    args[4][1] = value
    got = layer_moments(*args, 0.0, "fp32", False, True)
    others = [0, 2]
    without = (*args[:4], args[4][others], args[5][others])
    want = layer_moments(*without, 0.0, "fp32", False, True)
    for i, (among, alone) in enumerate(zip(got, want, strict=True)):
        if alone.numel():
            assert torch.equal(among if i in TEACHERS else among[others], alone)
    assert not got[1][1].isfinite().any() and not got[4][1].isfinite().any()
