"""Small calls of every op, plan and precision against the specification; compute-sanitizer runs this file too."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE, EVERY_PLAN, errors, layers, normal, roundoff
from moments_oracle import two_pass

from benchmarks.precision import dtype_of
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.layer_moments import layer_moments, plans, reference
from fastspec.ops.linear_relu import linear_relu
from fastspec.ops.linear_relu import reference as linear_relu_reference
from fastspec.ops.mlp_sgd_step import mlp_sgd_step, parameter_count
from fastspec.ops.precision import PRECISIONS

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
# odd sizes, and sizes whose rows can be read in whole vectors
SHAPES = [(333, 13, 7, 37, 3), (700, 24, 40, 200, 2), (300, 5, 33, 18)]


def close(got, want, precision):
    found = errors(got, want)
    assert max(found.values()) <= 8 * roundoff(precision), found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("plan", EVERY_PLAN)
@pytest.mark.parametrize("everything", [False, True])
def test_layer_moments(plan, shape, precision, everything):
    args = layers(*shape, dtype=dtype_of(precision), own=len(shape) > 4 and everything)
    exact = [a.double() for a in args]
    want = reference.layer_moments(*exact, 0.1, "fp64", True, True)
    with plans.force(plan):
        got, kept = layer_moments(*args, 0.1, everything, everything, precision=precision)
    close(got, want, precision)
    assert (got.teacher_active - want[5]).abs().max() <= 2 + shape[0] * roundoff(precision) * 8
    if everything:
        assert (got.coactive - want[7]).abs().max() <= 2 + shape[0] * roundoff(precision) * 8
        for activation, exact_one in zip(kept, want[8:], strict=True):
            assert (activation - exact_one).abs().max() <= 8 * roundoff(precision) * exact_one.abs().max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("space", [(), (9,), (5, 6)])
def test_cross_moments(space, precision):
    t = normal(200, 11, *space, dtype=dtype_of(precision)).relu()
    s = normal(2, 200, 21, *space, dtype=dtype_of(precision)).relu()
    got = cross_moments(t, s, True, precision)
    want = two_pass(t.movedim(1, -1).flatten(0, -2), s.movedim(2, -1).flatten(1, -2))
    close(got, want, precision)
    assert torch.equal(got.teacher_active, want[5]) and torch.equal(got.coactive, want[7])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape, population", [((333, 13, 37), (3,)), ((700, 24, 200), ())])
def test_linear_relu(shape, population, precision):
    samples, d, n = shape
    dtype = dtype_of(precision)
    x, weight = normal(*population, samples, d, dtype=dtype), normal(*population, n, d, dtype=dtype) / d**0.5
    bias = normal(*population, n, dtype=dtype)
    got = linear_relu(x, weight, bias, negative_slope=0.1, precision=precision)
    want = linear_relu_reference.linear_relu(x.double(), weight.double(), bias.double(), 0.1, "fp64")
    size = want[0].abs().max()
    assert (got.activation - want[0]).abs().max() <= 8 * roundoff(precision) * size
    assert (got.node_sum - want[2]).abs().max() <= 8 * roundoff(precision) * size * samples
    on = linear_relu_reference.packed(got.activation > 0)
    assert torch.equal(got.gates, on) and torch.equal(got.active, (got.activation > 0).sum(-2))
    assert got.activation.device.type == DEVICE


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("labels", [False, True], ids=["squares", "labels"])
@pytest.mark.parametrize(("widths", "batch"), [([7, 33, 150, 5], 33), ([300, 2], 3)], ids=str)
def test_mlp_sgd_step(widths, batch, labels, precision):
    dtype = dtype_of(precision)
    x, y = normal(50, widths[0], dtype=dtype), normal(50, widths[-1], dtype=dtype)
    flat = 0.1 * normal(2, parameter_count(widths, [True] * (len(widths) - 1)), dtype=dtype)
    rows = torch.randint(50, (2, 2, batch), device=DEVICE)
    given, options = (
        [x, y.argmax(1) if labels else y, flat],
        {"momentum": 0.5, "normalize": True, "gradient_norms": True},
    )
    got = mlp_sgd_step(*given, widths, indices=rows, lr=0.01, precision=precision, **options)
    exact = [t.double().cpu() if t.is_floating_point() else t.cpu() for t in given]
    want = mlp_sgd_step(*exact, widths, indices=rows.cpu(), lr=0.01, **options)
    for a, b in zip(got, want, strict=True):
        assert (a.double().cpu() - b.double()).norm() <= 24 * roundoff(precision) * b.double().norm()
