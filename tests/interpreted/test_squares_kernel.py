"""The loss of populations on a GPU: squared residuals, and `measure` by the kernels from end to end."""

from __future__ import annotations

import sys

import pytest
import torch
from placed import placed
from problems import draw

import fastspec as fs
from fastspec.ops.gpu import squares
from fastspec.ops.gpu.squares import summed_squares
from fastspec.ops.layer_moments import plans


@pytest.fixture
def short(monkeypatch):
    """So short spans that a few samples have several."""
    monkeypatch.setattr(squares, "SPAN", 64)
    monkeypatch.setattr(squares, "VALUES", 16)


@pytest.mark.parametrize("students", [None, 1, 7])
@pytest.mark.parametrize("samples, outputs", [(1, 1), (9, 7), (64, 2), (33, 21)])
@pytest.mark.parametrize("bias", [False, True])
def test_exact(short, students, samples, outputs, bias):
    y, f = draw(samples, outputs), draw(*(() if students is None else (students,)), samples, outputs)
    b = draw(students, outputs) if bias and students else None
    want = (f + (0 if b is None else b.unsqueeze(-2)) - y).double().square().sum((-2, -1)) / 2
    got = summed_squares(placed(y, "rows"), placed(f, "rows"), b)
    assert got.dtype == torch.float64 and got.shape == want.shape and torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_float64_from_the_start(dtype):
    """Residuals are not rounded, and squares do not overflow."""
    large = torch.finfo(dtype).max / 4
    y, f, b = (
        torch.full((3, 2), large, dtype=dtype),
        torch.full((1, 3, 2), -large, dtype=dtype),
        draw(1, 2, dtype=dtype),
    )
    want = (y.double() - f.double() - b.double()).square().sum() / 2
    torch.testing.assert_close(summed_squares(y, f, b), want[None], rtol=1e-15, atol=0)


def test_a_student_does_not_depend_on_the_others(short):
    y, f, b = draw(50, 3, integer=False), draw(9, 50, 3, integer=False), draw(9, 3, integer=False)
    together = summed_squares(y, f, b)
    for some in (slice(4, 5), slice(2, 7)):
        assert torch.equal(summed_squares(y, f[some], b[some]), together[some])
    f[3, 7, 1] = torch.nan
    spoilt = summed_squares(y, f, b)
    assert spoilt.isnan().nonzero().tolist() == [[3]] and torch.equal(spoilt[4:], together[4:])


def test_nothing():
    assert summed_squares(draw(0, 3), draw(4, 0, 3)).tolist() == [0.0] * 4
    assert summed_squares(draw(5, 3), draw(0, 5, 3)).shape == (0,)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("coactivation", [False, True])
def test_a_population_is_measured_as_by_the_cpu(coactivation, slope, monkeypatch):
    teacher = fs.teachers.two_layer(d=5, m=3, c=4, seed=0)
    teacher.negative_slope = slope
    students = fs.Population.two_layer(teacher, multi=[2, 1], seeds=range(3), std=0.5)
    students.b1.normal_(), students.b2.normal_()
    x = fs.data.gaussian(90, 5, seed=1)
    want = fs.measure(teacher, students, x, coactivation=coactivation)
    for name in ("batches", "layerwise", "running", "measure"):
        monkeypatch.setattr(sys.modules[f"fastspec.{name}"], "waits", lambda device: True)
    with fs.backend("triton"), plans.force("blocks"):
        got = fs.measure(teacher, students, x, coactivation=coactivation)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=0)
    for a, b in zip(got, want, strict=True):
        for name, tensor in b.layers["hidden1"].tensors().items():
            torch.testing.assert_close(a.layers["hidden1"].tensors()[name], tensor, rtol=1e-5, atol=1e-5)
