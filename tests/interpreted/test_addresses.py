"""Elements more than 2^31 apart: offsets and strides that do not fit 32 bits."""

from __future__ import annotations

import pytest
import torch
from moments_oracle import assert_bitwise
from placed import distant
from problems import assert_exact_cross, assert_exact_layers, draw, layers

from fastspec.ops.cross_moments import fake_moments
from fastspec.ops.cross_moments.triton import cross_moments
from fastspec.ops.gpu.accumulate import Accumulator, Side
from fastspec.ops.gpu.layout import index_type, reach
from fastspec.ops.layer_moments import plans
from fastspec.ops.layer_moments.triton import layer_moments
from fastspec.ops.linear_relu import reference
from fastspec.ops.linear_relu.triton import linear_relu

pytestmark = pytest.mark.usefixtures("small")
FAR = 2**31 + 64
STRIDES = pytest.mark.parametrize("stride", [2**31 - 64, FAR])  # one fits 32 bits, but its multiples do not


@STRIDES
@pytest.mark.parametrize("of_teacher, axis", [(True, 0), (True, 1), (False, 0), (False, 1), (False, 2)])
def test_activations(tmp_path, launched, of_teacher, axis, stride):
    sides = [draw(18, 8), draw(3, 18, 12)]
    sides[not of_teacher] = distant(tmp_path, sides[not of_teacher], axis, stride)
    assert_exact_cross(cross_moments(*sides, "fp32", True), *sides, True)
    last = axis == (1 if of_teacher else 2)
    assert (str(launched[0]["INDEX"]), launched[0]["GRAIN"]) == ("int64", 1 if last else 4)


@STRIDES
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_positions(tmp_path, axis, stride):
    t, s = distant(tmp_path, draw(3, 4, 3, 4), axis, stride), draw(2, 3, 7, 3, 4)
    assert_exact_cross(cross_moments(t, s, "fp32", True), t, s, True)


def test_many_samples_in_tiles_of_few(tmp_path, launched):
    """Offsets within a tile take 32 bits, its first sample's takes more."""
    t, s = distant(tmp_path, draw(18, 8), 0, 2**27), draw(18, 12)
    assert_exact_cross(cross_moments(t, s, "fp32", True), t, s, True)
    assert str(launched[0]["INDEX"]) == "int32" and reach(t) > 2**31


NAMES = ("teacher_input", "teacher_weight", "teacher_bias", "student_input", "student_weight", "student_bias")
AXES = [(name, axis) for i, name in enumerate(NAMES) for axis in range((2, 2, 1, 3, 3, 2)[i])]


@STRIDES
@pytest.mark.parametrize("name, axis", AXES)
def test_layers(tmp_path, name, axis, stride):
    args = layers(18, 8, 3, 5, (3,), own=True)
    args[NAMES.index(name)] = distant(tmp_path, args[NAMES.index(name)], axis, stride)
    with plans.force("recompute"):
        assert_exact_layers(layer_moments(*args, 0.0, "fp32", True, True), args, 0.0, True, True)


@STRIDES
@pytest.mark.parametrize("argument, axis", [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)])
def test_linear_relu(tmp_path, argument, axis, stride):
    args = [draw(3, 11, 8), draw(3, 19, 8), draw(3, 19)]
    args[argument] = distant(tmp_path, args[argument], axis, stride)
    want = reference.linear_relu(*args, 0.0, "fp32")
    for a, b in zip(linear_relu(*args, 0.0, "fp32"), want, strict=True):
        assert torch.equal(a, b)


@STRIDES
def test_matrices_that_are_slices(tmp_path, stride):
    t, s = draw(40, 9), draw(40, 12)
    out = list(fake_moments(t, 9, (), 12, True))
    for field in (4, 7):
        out[field] = distant(tmp_path, torch.zeros_like(out[field]), 0, stride)
    Accumulator(tuple(out), 40, "fp32", plans.tiles_of()).add(Side(t), Side(s))
    assert_bitwise(out, cross_moments(t, s, "fp32", True))


def test_the_type_of_offsets():
    assert str(index_type(2**31 - 1, 5)) == "int32" and str(index_type(5, 2**31)) == "int64"
    x = torch.empty(1).expand(4, 6)
    assert reach(x) == 0 and reach(torch.empty(4, 6)) == 23 and reach(torch.empty(4, 6), 0, 2) == 11
    assert reach(torch.empty(2, 4, 6), 1, 9) == 24 + 48 + 5 and reach(None) == 0
