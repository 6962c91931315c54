"""Closed forms of two shifted normal variables, against scipy's integrals and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from fastspec.theory.bivariate import (
    both_positive,
    positive_part,
    product_of_positive_parts,
    square_of_positive_part,
)

SHIFTS = ((0.0, 0.0), (0.0, 0.8), (0.0, -0.8), (-1.3, 0.4), (2.0, 1.5), (-0.7, -0.7), (-3.0, 2.5))
RHOS = (-0.999, -0.6, 0.0, 0.3, 0.97)
CASES = [(*shift, rho) for shift in SHIFTS for rho in RHOS]


def tensors(*numbers: float):
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


def all_cases():
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*CASES, strict=True)]


def conditional(a: float, c: float, rho: float, moment) -> float:
    """E[(A + a)+^p moment of C given A] by quadrature over A."""
    r = math.sqrt(1 - rho * rho)
    return integrate.quad(lambda x: stats.norm.pdf(x) * moment(x + a, (c + rho * x) / r, r), -a, 12, epsabs=1e-13)[0]


def test_probability_is_scipys_bivariate_normal():
    found = both_positive(*all_cases())
    for (a, c, rho), value in zip(CASES, found.tolist(), strict=True):
        exact = stats.multivariate_normal(cov=[[1, rho], [rho, 1]]).cdf([a, c])
        assert value == pytest.approx(exact, abs=1e-7), (a, c, rho)  # scipy's own tolerance
        exact = conditional(a, c, rho, lambda _, shift, __: stats.norm.cdf(shift))
        assert value == pytest.approx(exact, abs=1e-11), (a, c, rho)


def test_product_is_its_integral():
    found = product_of_positive_parts(*all_cases())

    def moment(above: float, shift: float, r: float) -> float:
        return above * r * (shift * stats.norm.cdf(shift) + stats.norm.pdf(shift))

    for (a, c, rho), value in zip(CASES, found.tolist(), strict=True):
        assert value == pytest.approx(conditional(a, c, rho, moment), abs=1e-11), (a, c, rho)


def test_without_shifts_they_are_functions_of_the_angle():
    theta = torch.linspace(0, math.pi, 9, dtype=torch.float64)
    zero = torch.zeros_like(theta)
    torch.testing.assert_close(both_positive(zero, zero, theta.cos()), (math.pi - theta) / (2 * math.pi))
    product = (theta.sin() + (math.pi - theta) * theta.cos()) / (2 * math.pi)
    torch.testing.assert_close(product_of_positive_parts(zero, zero, theta.cos()), product)
    mixed = both_positive(torch.cat([zero, zero + 1]), torch.cat([zero, zero]), theta.cos().repeat(2))
    torch.testing.assert_close(mixed[:9], (math.pi - theta) / (2 * math.pi))  # among others that have shifts


@pytest.mark.parametrize("a", [-1.2, 0.0, 0.7])
def test_parallel_and_opposite_variables(a):
    shift, one = tensors(a, 1.0)
    cdf = stats.norm.cdf
    assert float(both_positive(shift, shift, one)) == pytest.approx(cdf(a), abs=1e-15)
    assert float(both_positive(shift, shift + 1, one)) == pytest.approx(cdf(a), abs=1e-15)
    assert float(both_positive(shift, shift + 1, -one)) == pytest.approx(max(0, cdf(a) + cdf(a + 1) - 1), abs=1e-15)
    assert float(product_of_positive_parts(shift, shift, one)) == pytest.approx(float(square_of_positive_part(shift)))
    both = integrate.quad(lambda x: stats.norm.pdf(x) * (x + a) * (x + a + 1), -a, 12)[0]
    assert float(product_of_positive_parts(shift, shift + 1, one)) == pytest.approx(both, abs=1e-12)
    opposite = integrate.quad(lambda x: stats.norm.pdf(x) * max(x + a, 0) * max(a + 1 - x, 0), -a, max(a + 1, -a))[0]
    assert float(product_of_positive_parts(shift, shift + 1, -one)) == pytest.approx(opposite, abs=1e-12)


def test_single_variables():
    a = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
    for power, function in ((1, positive_part), (2, square_of_positive_part)):
        for shift, value in zip(a.tolist(), function(a).tolist(), strict=True):
            exact = integrate.quad(lambda x, s=shift, p=power: stats.norm.pdf(x) * (x + s) ** p, -shift, 12)[0]
            assert value == pytest.approx(exact, abs=1e-11)


@pytest.mark.parametrize("function", [both_positive, product_of_positive_parts])
@pytest.mark.parametrize("shifts", [(0.0, 0.0), (-0.4, 0.9)])
def test_derivatives(function, shifts):
    inputs = [t.requires_grad_() for t in tensors(*shifts, 0.35)]
    if shifts == (0.0, 0.0):
        (rho,) = inputs[2:]
        zero = torch.zeros_like(rho)
        assert torch.autograd.gradcheck(lambda rho: function(zero, zero, rho), (rho,))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_derivatives_at_parallel_variables_are_finite():
    inputs = [t.requires_grad_() for t in tensors(0.2, 0.2, 1.0)]
    for function in (both_positive, product_of_positive_parts):
        assert all(grad.isfinite() for grad in torch.autograd.grad(function(*inputs), inputs))
