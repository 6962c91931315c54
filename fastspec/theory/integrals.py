"""Gaussian averages of the activation g and its derivative that online learning needs, for ReLU and erf(z / sqrt 2).

`covariance` [..., k, k] is that of the k pre-activations of mean 0 in an average, in the order of its name: numpy
float64, and so are the averages [...]. ReLU: by Stein's and Price's theorems from orthant probabilities, of which those
of four variables are a quadrature. erf: Saad & Solla, On-line learning in soft committee machines, Phys. Rev. E 52
(1995).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fastspec.ops.checks import refuse
from fastspec.theory.orthants import Array, correlations, given, pair, quadruple


class Integrals(Protocol):
    """The averages of one activation."""

    def product(self, covariance: Array) -> Array:
        """E[g(u) g(v)]."""
        ...

    def drift(self, covariance: Array) -> Array:
        """E[g'(u) v g(w)]."""
        ...

    def noise(self, covariance: Array) -> Array:
        """E[g'(u) g'(v) g(w) g(z)]."""
        ...


class Relu:
    """g(z) = max(z, 0), g'(z) = 1[z > 0]."""

    def product(self, covariance: Array) -> Array:
        rho = np.clip(correlations(covariance, 0, 1), -1, 1)
        size = np.sqrt(covariance[..., 0, 0] * covariance[..., 1, 1])
        return size * (rho * pair(rho) + np.sqrt(1 - rho**2) / (2 * np.pi))

    def drift(self, covariance: Array) -> Array:
        """E[v F] = C_vu E[dF/du] + C_vw E[dF/dw] of F = 1[u > 0] w+."""
        c, alive = covariance, (covariance[..., 0, 0] > 0) & (covariance[..., 2, 2] > 0)
        sine = np.sqrt(np.maximum(c[..., 0, 0] * c[..., 2, 2] - c[..., 0, 2] ** 2, 0.0))
        boundary = sine / (2 * np.pi * np.where(alive, c[..., 0, 0], 1.0))  # E[delta(u) w+]
        return np.where(alive, c[..., 0, 1] * boundary + c[..., 1, 2] * pair(correlations(c, 0, 2)), 0.0)

    def noise(self, covariance: Array) -> Array:
        """E[w F] = C_wu E[dF/du] + C_wv E[dF/dv] + C_ww E[dF/dw] + C_wz E[dF/dz], F = 1[u > 0] 1[v > 0] 1[w > 0] z+."""
        variance = np.diagonal(covariance, axis1=-2, axis2=-1)
        alive = (variance > 0).all(-1)
        size = np.sqrt(np.where(variance > 0, variance, 1.0))
        c = covariance / (size[..., :, None] * size[..., None, :])
        found = c[..., 2, 3] * quadruple(c)
        for i in range(3):  # u, v, w: each at its boundary, where the other two are to be above 0
            found = found + c[..., 2, i] / np.sqrt(2 * np.pi) * _two_gates(given(c, i))
        return np.where(alive, size[..., 2] * size[..., 3] * found, 0.0)


def _two_gates(c: Array) -> Array:
    """E[1[a > 0] 1[b > 0] z+] of covariances [..., 3, 3] of (a, b, z)."""
    found = c[..., 2, 2] * _density(c[..., 2, 2]) * pair(correlations(given(c, 2), 0, 1))
    for i in (0, 1):
        found = found + c[..., 2, i] * _density(c[..., i, i]) * pair(correlations(given(c, i), 0, 1))
    return found


def _density(variance: Array) -> Array:
    """Of N(0, variance) at 0; 0 where the variance is 0, and with it whatever the density multiplies."""
    varies = variance > 0
    return np.where(varies, 1 / np.sqrt(2 * np.pi * np.where(varies, variance, 1.0)), 0.0)


class Erf:
    """g(z) = erf(z / sqrt 2)."""

    def product(self, covariance: Array) -> Array:
        c = covariance
        return 2 / np.pi * np.arcsin(c[..., 0, 1] / np.sqrt((1 + c[..., 0, 0]) * (1 + c[..., 1, 1])))

    def drift(self, covariance: Array) -> Array:
        c = covariance
        uu, det = 1 + c[..., 0, 0], (1 + c[..., 0, 0]) * (1 + c[..., 2, 2]) - c[..., 0, 2] ** 2
        return 2 / np.pi * (c[..., 1, 2] * uu - c[..., 0, 1] * c[..., 0, 2]) / (np.sqrt(det) * uu)

    def noise(self, covariance: Array) -> Array:
        c = covariance
        uu, vv, uv = 1 + c[..., 0, 0], 1 + c[..., 1, 1], c[..., 0, 1]
        det = uu * vv - uv**2

        def part(i: int, j: int) -> Array:
            """det times the covariance of g's arguments i and j that is left when u and v weigh the average."""
            ui, uj, vi, vj = c[..., 0, i], c[..., 0, j], c[..., 1, i], c[..., 1, j]
            return det * (c[..., i, j] + (i == j)) - vi * vj * uu - ui * uj * vv + uv * (ui * vj + vi * uj)

        angle = np.arcsin(part(2, 3) / np.sqrt(part(2, 2) * part(3, 3)))
        return 4 / np.pi**2 * angle / np.sqrt(det)


ACTIVATIONS: dict[str, Integrals] = {"relu": Relu(), "erf": Erf()}


def integrals(activation: str) -> Integrals:
    """The averages of an activation, "relu" or "erf"."""
    if activation not in ACTIVATIONS:
        refuse("activation", repr(activation), " or ".join(map(repr, ACTIVATIONS)))
    return ACTIVATIONS[activation]
