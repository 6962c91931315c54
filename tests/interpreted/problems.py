"""Problems for the kernels, and what their results are held against."""

from __future__ import annotations

import math

import torch
from moments_oracle import assert_bitwise, correlation
from torch import Tensor

from fastspec.ops.cross_moments import reference as cross_reference
from fastspec.ops.layer_moments import reference as layer_reference

POPULATIONS = [((), False), ((2,), False), ((2,), True)]  # of students, and whether they have inputs of their own
TEACHER_FIELDS = (0, 2, 5)  # of a moments op's outputs


def draw(*shape: int, dtype: torch.dtype = torch.float32, integer: bool = True) -> Tensor:
    return torch.randint(-3, 4, shape).to(dtype) if integer else torch.randn(shape, dtype=torch.float64).to(dtype)


def layers(n, d, m, k, population=(), own=False, bias=True, **kind) -> list[Tensor | None]:
    """The six tensors of a call of `layer_moments`."""
    x, width = draw(n, d, **kind), d + 4 if own else d
    x_student = draw(*population, n, width, **kind) if own else x
    scale = 1 if kind.get("integer", True) else math.sqrt(d)
    weights = draw(m, d, **kind) / scale, draw(*population, k, width, **kind) / scale
    biases = (draw(m, **kind), draw(*population, k, **kind)) if bias else (None, None)
    return [x, weights[0], biases[0], x_student, weights[1], biases[1]]


def double(tensors) -> list[Tensor | None]:
    return [None if x is None else x.double() for x in tensors]


def assert_exact_cross(got, t: Tensor, s: Tensor, coactivation: bool) -> None:
    assert_bitwise(got, cross_reference.cross_moments(t.double(), s.double(), "fp64", coactivation))


def assert_exact_layers(got, args, slope: float, coactivation: bool, activations: bool) -> None:
    want = layer_reference.layer_moments(*double(args), slope, "fp64", coactivation, activations)
    assert_bitwise(got[:8], want[:8])
    for a, b in zip(got[8:], want[8:], strict=True):
        assert a.dtype == args[0].dtype and torch.equal(a.double(), b)


def of_student(moments, k: int) -> list[Tensor]:
    """The moments of one student of a population."""
    return [x if i in TEACHER_FIELDS or x.dim() < 2 else x[k] for i, x in enumerate(moments)]


def correlation_error(got, want) -> float:
    return float((correlation(got) - correlation(want)).abs().max())
