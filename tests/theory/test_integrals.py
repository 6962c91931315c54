"""Averages of online learning: every closed form against a quadrature that shares nothing with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from fastspec.theory import orthants
from fastspec.theory.bivariate import positive_part, product_of_positive_parts
from fastspec.theory.integrals import ACTIVATIONS, Erf, Relu, integrals

RELU, ERF = Relu(), Erf()


def covariance(k: int, seed: int) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(k, k))
    return factor @ factor.T


def degenerate(which: tuple[int, ...], seed: int) -> np.ndarray:
    """Of as many variables as `which` has, where equal numbers are one and the same variable."""
    base = covariance(max(which) + 1, seed)
    return base[np.ix_(which, which)]


def half_line(scale: float, nodes: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the integral over z > 0 against N(0, scale^2)."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    z = (x + 1) * 5 * scale  # to 10 standard deviations
    return z, w * 5 * scale * stats.norm.pdf(z, scale=scale)


def relu_noise(c: np.ndarray) -> float:
    """E[1[u > 0] 1[v > 0] w+ z+]: (u, v) = root (a, b) in polar coordinates, w and z given them in closed form."""
    root = np.linalg.cholesky(c[:2, :2])
    high = math.pi / 2  # u = root[0, 0] a > 0 is above -pi / 2 and below it
    low = math.atan2(root[1, 1], root[1, 0]) - math.pi / 2  # v = root[1] @ (a, b) > 0 is above it
    x, wx = np.polynomial.legendre.leggauss(80)
    phi, w_phi = (high - low) / 2 * x + (high + low) / 2, (high - low) / 2 * wx
    r, w_r = 6 * (x + 1), 6 * wx
    a, b = (r[:, None] * f(phi) for f in (np.cos, np.sin))
    weight = w_r[:, None] * w_phi * r[:, None] * np.exp(-(r[:, None] ** 2) / 2) / (2 * math.pi)
    back = np.linalg.solve(root, c[:2, 2:])  # [2, 2]
    mean = a[..., None] * back[0] + b[..., None] * back[1]
    rest = c[2:, 2:] - back.T @ back
    scale = np.sqrt(np.diag(rest))
    shift = torch.from_numpy(mean / scale)
    rho = torch.tensor(rest[0, 1] / scale.prod(), dtype=torch.float64)
    both = product_of_positive_parts(shift[..., 0], shift[..., 1], rho).numpy() * scale.prod()
    return float((weight * both).sum())


@pytest.mark.parametrize("seed", range(8))
def test_relu_noise(seed):
    c = covariance(4, seed)
    assert float(RELU.noise(c)) == pytest.approx(relu_noise(c), rel=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_relu_drift(seed):
    """E[1[u > 0] v w+]: given u, v and w are normal, and E[v w+] of means p, q is p E[w+] + cov P(w > 0)."""
    c = covariance(3, seed)
    u, weight = half_line(math.sqrt(c[0, 0]))
    p, q = (u * c[0, i] / c[0, 0] for i in (1, 2))
    cov, scale = c[1, 2] - c[0, 1] * c[0, 2] / c[0, 0], math.sqrt(c[2, 2] - c[0, 2] ** 2 / c[0, 0])
    ramp = scale * positive_part(torch.from_numpy(q / scale)).numpy()
    exact = float((weight * (p * ramp + cov * special.ndtr(q / scale))).sum())
    assert float(RELU.drift(c)) == pytest.approx(exact, rel=1e-9)


def hermite(c: np.ndarray, function, nodes: int) -> float:
    """E[function(z)] of a smooth function, by a product Gauss-Hermite rule in whitened coordinates."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    k = len(c)
    values, vectors = np.linalg.eigh(c)
    root = vectors * np.sqrt(np.maximum(values, 0))
    grid = np.stack(np.meshgrid(*[x] * k, indexing="ij"), -1).reshape(-1, k) @ root.T
    weight = np.prod(np.stack(np.meshgrid(*[w / math.sqrt(2 * math.pi)] * k, indexing="ij"), -1).reshape(-1, k), 1)
    return float((weight * function(*grid.T)).sum())


def g(z):
    return special.erf(z / math.sqrt(2))


def slope(z):
    return math.sqrt(2 / math.pi) * np.exp(-z * z / 2)


@pytest.mark.parametrize("seed", range(3))
def test_erf(seed):
    c2, c3, c4 = (0.15 * covariance(k, seed) for k in (2, 3, 4))
    assert float(ERF.product(c2)) == pytest.approx(hermite(c2, lambda u, v: g(u) * g(v), 60), abs=1e-9)
    assert float(ERF.drift(c3)) == pytest.approx(hermite(c3, lambda u, v, w: slope(u) * v * g(w), 50), abs=1e-9)
    noise = hermite(c4, lambda u, v, w, z: slope(u) * slope(v) * g(w) * g(z), 24)
    assert float(ERF.noise(c4)) == pytest.approx(noise, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_relu_product(seed):
    c = covariance(2, seed)
    scale = np.sqrt(np.diag(c))
    zero, rho = torch.zeros((), dtype=torch.float64), torch.tensor(c[0, 1] / scale.prod())
    assert float(RELU.product(c)) == pytest.approx(float(product_of_positive_parts(zero, zero, rho)) * scale.prod())


PATTERNS = [
    (0, 0, 1, 2),
    (0, 1, 2, 2),
    (0, 1, 0, 2),
    (0, 1, 0, 1),
    (0, 1, 1, 0),
    (0, 0, 1, 1),
    (0, 0, 0, 1),
    (0, 1, 0, 0),
]
PATTERNS += [(0, 0, 0, 0), (1, 1, 0, 1), (0, 1, 1, 1)]


@pytest.mark.parametrize("which", PATTERNS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nodes_that_are_the_same(which, activation):
    """As in every step: the noise of a node with itself, the drift along its own weights."""
    c = degenerate(which, seed=sum(which) + len(set(which)))
    z = np.random.default_rng(1).multivariate_normal(np.zeros(4), c, size=400_000, method="svd")
    gate, ramp = (lambda a: a > 0, lambda a: np.maximum(a, 0)) if activation == "relu" else (slope, g)
    u, v, w, y = z.T
    values = gate(u) * gate(v) * ramp(w) * ramp(y)
    found = float(integrals(activation).noise(c))
    assert abs(values.mean() - found) < 4.5 * values.std() / math.sqrt(len(values))
    values = gate(u) * v * ramp(w)
    found = float(integrals(activation).drift(c[:3, :3]))
    assert abs(values.mean() - found) < 4.5 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("which", PATTERNS)
def test_equal_nodes_are_the_limit_of_nearly_equal_ones(which):
    c = degenerate(which, seed=3)
    exact = float(RELU.noise(c))
    for size in (1e-8, 1e-10, 1e-12, 1e-14):
        assert float(RELU.noise(c + size * covariance(4, 7))) == pytest.approx(exact, abs=2e-6 * abs(c).max())
    rounded = c * (1 + 1e-15 * np.random.default_rng(0).normal(size=(4, 4)))
    assert float(RELU.noise((rounded + rounded.T) / 2)) == pytest.approx(exact, abs=2e-6 * abs(c).max())


def test_exact_values():
    c = np.array([[4.0]])
    same = np.broadcast_to(c, (4, 4))
    assert float(RELU.noise(same)) == pytest.approx(2.0)  # E[u+^2]
    assert float(RELU.drift(same[:3, :3])) == pytest.approx(2.0)
    assert float(RELU.product(same[:2, :2])) == pytest.approx(2.0)
    opposite = 4 * np.outer([1, -1, 1, 1], [1, -1, 1, 1]).astype(float)
    assert float(RELU.noise(opposite)) == pytest.approx(0, abs=1e-12)
    independent = np.eye(4)
    assert float(RELU.noise(independent)) == pytest.approx(1 / (8 * math.pi))
    assert float(RELU.drift(np.eye(3))) == 0


def test_nodes_without_weights_do_nothing():
    for which in range(4):
        c = covariance(4, 0)
        c[which], c[:, which] = 0, 0
        assert float(RELU.noise(c)) == 0
        if which in (0, 2):
            assert float(RELU.drift(c[:3, :3])) == 0
    assert float(RELU.product(np.diag([0.0, 1.0]))) == 0


def test_many_at_once():
    stack = np.stack([covariance(4, seed) for seed in range(6)]).reshape(2, 3, 4, 4)
    for activation in (RELU, ERF):
        for name, k in (("product", 2), ("drift", 3), ("noise", 4)):
            together = getattr(activation, name)(stack[..., :k, :k])
            assert together.shape == (2, 3)
            assert together[1, 2] == pytest.approx(float(getattr(activation, name)(stack[1, 2, :k, :k])), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_orthant_probabilities(seed):
    c = covariance(4, seed + 20)
    size = np.sqrt(np.diag(c))
    corr = c / np.outer(size, size)
    exact = stats.multivariate_normal(cov=corr, abseps=1e-7, releps=1e-7, maxpts=10**6, seed=0).cdf(np.zeros(4))
    assert float(orthants.quadruple(corr)) == pytest.approx(exact, abs=2e-6)
    for order in ((1, 0, 2, 3), (2, 3, 0, 1), (0, 2, 1, 3), (3, 1, 2, 0)):  # another path, the same end
        shuffled = corr[np.ix_(order, order)]
        assert float(orthants.quadruple(shuffled)) == pytest.approx(float(orthants.quadruple(corr)), abs=1e-9)


def test_unknown_activation():
    with pytest.raises(ValueError, match="activation: got 'tanh'; takes 'relu' or 'erf'"):
        integrals("tanh")


def test_correlations_that_rounding_takes_beyond_1():
    beyond = np.nextafter(1.0, 2.0)
    assert Relu().product(np.array([[1.0, beyond], [beyond, 1.0]])) == pytest.approx(0.5)
