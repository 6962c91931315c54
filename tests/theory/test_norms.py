"""Formulas for the norms of random ReLU layers, against the exact distribution and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastspec.theory import norms


def exact_tail(width: int, error: float) -> float:
    """||h||^2 / ||u||^2 is (2 / width) chi^2 with K degrees of freedom, K binomial: a node is active with p = 1/2."""
    active = np.arange(width + 1)
    weights = stats.binom.pmf(active, width, 0.5)
    above = stats.chi2.sf(width * (1 + error) / 2, np.maximum(active, 1)) * (active > 0)
    below = np.where(active > 0, stats.chi2.cdf(width * (1 - error) / 2, np.maximum(active, 1)), float(error <= 1))
    return float((weights * (above + below)).sum())


@pytest.mark.parametrize("width", [3, 30, 300, 3000])
@pytest.mark.parametrize("error", [0.01, 0.1, 0.3, 0.9, 1.5, 4.0])
def test_tail_bound_bounds_the_exact_tail(width, error):
    bound, exact = norms.tail_bound(width, error), exact_tail(width, error)
    assert exact <= bound <= 1
    if exact > 1e-250 and bound < 1e-3:  # and it is no empty promise
        assert math.log(bound) < 0.6 * math.log(exact)


def test_exponent():
    for error in (1e-6, 1e-3, 1.001e-3, 0.1, 2.0):
        direct = np.longdouble(error) / 4 + np.log(2 / (1 + np.sqrt(1 + np.longdouble(error))))
        assert norms.exponent(error) == pytest.approx(float(direct), rel=1e-9 if error > 1e-5 else 1e-4)
    assert norms.exponent(1e-9) == pytest.approx(3e-18 / 32)


@pytest.mark.parametrize(("width", "layers"), [(40, 1), (40, 3), (15, 6)])
def test_energy_variance_is_that_of_random_networks(width, layers):
    draws, draw = 20_000, torch.Generator().manual_seed(0)
    energy = torch.ones(draws, 1, dtype=torch.float64)
    for _ in range(layers):  # given its input, a layer's squared norm is a sum over nodes that are rectified normals
        nodes = torch.randn(draws, width, generator=draw, dtype=torch.float64).relu().square()
        energy = energy * 2 / width * nodes.sum(1, keepdim=True)
    variance = (energy - 1).square()
    error = float(variance.std()) / math.sqrt(draws)
    assert abs(float(energy.mean()) - 1) < 4 * math.sqrt(norms.energy_variance(width, layers) / draws)
    assert abs(float(variance.mean()) - norms.energy_variance(width, layers)) < 4 * error
    assert norms.energy_variance(width, layers) == pytest.approx((1 + 5 / width) ** layers - 1)


def test_width_rule_and_its_inverse():
    for error, confidence, samples, layers in ((0.1, 0.95, 2000, 10), (0.5, 0.5, 1, 1), (2.0, 0.99, 100, 50)):
        width = norms.width_for(error, confidence, samples=samples, layers=layers)
        budget = (1 - confidence) / (samples * layers)
        assert norms.tail_bound(width, error) <= budget * (1 + 1e-9)
        assert 2 * math.exp(-(width - 1) * norms.exponent(error)) > budget
        inverse = norms.error_for(width, confidence, samples=samples, layers=layers)
        assert inverse <= error < norms.error_for(width - 1, confidence, samples=samples, layers=layers)
        assert norms.exponent(inverse) * width == pytest.approx(math.log(2 / budget), rel=1e-9)


def test_published_bound():
    found = norms.published_bound(1000, 0.95, samples=2000, layers=10)
    assert found == pytest.approx((1 + 4 / 1000 * math.log(4 * 2000 * 10 / 0.05)) ** 10 - 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norms.energy_variance(0), "width: got 0"),
        (lambda: norms.energy_variance(5, layers=0), "layers: got 0"),
        (lambda: norms.tail_bound(5, 0.0), "error: got 0.0; takes a finite number above 0"),
        (lambda: norms.tail_bound(5, math.nan), "error: got nan"),
        (lambda: norms.width_for(0.1, 1.0), "confidence: got 1.0"),
        (lambda: norms.error_for(100, 0.5, samples=0), "samples: got 0"),
        (lambda: norms.error_for(1.5, 0.5), "width: got 1.5"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
