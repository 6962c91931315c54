"""Probabilities that up to four correlated normal variables are all positive, and what they multiply.

Arrays of covariances [..., k, k], numpy float64, of variables whose own variance is 1. Variables may be one and the
same, as a node with itself, or nodes with equal weights: what they give is the limit of independent noise on each
variable that vanishes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NODES, PANELS = 7, 22  # of the Gauss-Legendre rule, whose panels get shorter towards the end of the path
FIXED = 1e-12  # variance, below which a variable is fixed by those that are given
NOISE = 1e-30  # in place of that variance


def pair(rho: Array) -> Array:
    """P(both > 0) at a correlation."""
    return 0.25 + np.arcsin(np.clip(rho, -1, 1)) / (2 * np.pi)


def correlations(covariance: Array, i: int, j: int) -> Array:
    """The correlation of two variables, 0 where one does not vary."""
    own = covariance[..., i, i] * covariance[..., j, j]
    varies = own > 0
    return np.where(varies, covariance[..., i, j] / np.sqrt(np.where(varies, own, 1.0)), 0.0)


def given(covariance: Array, i: int) -> Array:
    """The covariance of the other variables, given that variable i is 0; of what else was given before, too."""
    rest = [k for k in range(covariance.shape[-1]) if k != i]
    block, shared = covariance[..., rest, :][..., rest], covariance[..., rest, i]
    variance = covariance[..., i, i, None]
    slope = shared / np.where(variance > 0, variance, 1.0)
    left = block - slope[..., :, None] * shared[..., None, :]
    fixed = (_diagonal(left) <= FIXED) & (_diagonal(block) > FIXED)  # now; those fixed before keep their noise
    noise = NOISE * (np.eye(len(rest)) + slope[..., :, None] * slope[..., None, :])  # its own, and that of variable i
    both, one = fixed[..., :, None] & fixed[..., None, :], fixed[..., :, None] ^ fixed[..., None, :]
    return np.where(both, noise, np.where(one, 0.0, left))


def quadruple(corr: Array) -> Array:
    """P(all four > 0) of correlations [..., 4, 4].

    Along the path that multiplies the correlations between the pairs (0, 1) and (2, 3) by t = sin(phi), the derivative
    is Price's, and is integrated from 0, where the pairs are independent, to 1 (Plackett, Biometrika 41, 1954).
    """
    phi, weight = _rule()
    short = 2 * np.sin((np.pi / 2 - phi) / 2) ** 2  # 1 - t, without cancellation
    corr = np.clip(corr, -1, 1)[..., None]
    found = pair(corr[..., 0, 1, 0]) * pair(corr[..., 2, 3, 0])
    for i, k in ((0, 1), (1, 0)):
        for j, m in ((2, 3), (3, 2)):
            rho = corr[..., i, j, :]
            slope = rho / np.sqrt(np.cos(phi) ** 2 + (1 - rho**2) * np.sin(phi) ** 2)  # of arcsin(rho t) in t
            other = pair(_others(corr, i, j, k, m, short))
            found = found + (weight * np.cos(phi) * slope * other).sum(-1) / (2 * np.pi)
    return found


def _others(corr: Array, i: int, j: int, k: int, m: int, short: Array) -> Array:
    """The correlation of k, which is paired with i, and m, with j, given that i and j are 0, at t = 1 - short.

    What i and j tell of them is taken as that of their sum and of their difference: the difference of near clones has
    a small variance, which 1 - (correlation)^2 would round away.
    """
    rho = corr[..., i, j, :]
    less, more = (1 - rho) + rho * short, (1 + rho) - rho * short  # 1 - rho t and 1 + rho t
    near_k, far_k = corr[..., k, i, :], corr[..., k, j, :]  # far ones are to be multiplied by t
    near_m, far_m = corr[..., m, j, :], corr[..., m, i, :]
    sum_k, difference_k = (near_k + far_k) - far_k * short, (near_k - far_k) + far_k * short
    sum_m, difference_m = (far_m + near_m) - far_m * short, (far_m - near_m) - far_m * short
    shared = corr[..., k, m, :] * (1 - short) - (sum_k * sum_m / more + difference_k * difference_m / less) / 2
    left_k = 1 - (sum_k**2 / more + difference_k**2 / less) / 2
    left_m = 1 - (sum_m**2 / more + difference_m**2 / less) / 2
    varies = (left_k > FIXED) & (left_m > FIXED)
    return np.where(varies, shared / np.sqrt(np.where(varies, left_k * left_m, 1.0)), 0.0)


def _diagonal(covariance: Array) -> Array:
    return np.diagonal(covariance, axis1=-2, axis2=-1)


@cache
def _rule() -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on (0, pi / 2), in panels of half the length of the one before."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    edges = np.pi / 2 * (1 - np.append(0.5 ** np.arange(PANELS), 0.0))
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (nodes + 1)).ravel(), (half * weights).ravel()
