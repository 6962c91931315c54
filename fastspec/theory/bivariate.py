"""Two correlated standard normal variables, shifted: P(both positive) and E[product of positive parts], differentiable.

A and C are N(0, 1) with correlation rho; a and c are their shifts. Everything is float64 and broadcasts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-300  # stands for 0 in denominators


def density(a: Tensor) -> Tensor:
    """The density of N(0, 1)."""
    return torch.exp(-a * a / 2) / math.sqrt(2 * math.pi)


def distribution(a: Tensor) -> Tensor:
    """P(A + a > 0), the distribution function of N(0, 1)."""
    return torch.special.ndtr(a)


def positive_part(a: Tensor) -> Tensor:
    """E[(A + a)+]."""
    return a * distribution(a) + density(a)


def square_of_positive_part(a: Tensor) -> Tensor:
    """E[(A + a)+^2]."""
    return (1 + a * a) * distribution(a) + a * density(a)


def both_positive(a: Tensor, c: Tensor, rho: Tensor) -> Tensor:
    """P(A + a > 0, C + c > 0): (pi - arccos rho) / 2 pi without shifts, with them by Owen's T function (scipy).

    Differentiable, but in rho at rho = 1 and -1, where it has a cusp and its derivative is taken as 0.
    """
    return _BothPositive.apply(*torch.broadcast_tensors(a, c, rho))


def product_of_positive_parts(a: Tensor, c: Tensor, rho: Tensor) -> Tensor:
    """E[(A + a)+ (C + c)+]: (sin theta + (pi - theta) cos theta) / 2 pi without shifts, theta = arccos rho.

    Cho & Saul, Kernel Methods for Deep Learning (2009); with shifts, Rosenbaum, J. R. Stat. Soc. B 23 (1961).
    """
    return _ProductOfPositiveParts.apply(*torch.broadcast_tensors(a, c, rho))


class _BothPositive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, rho: Tensor) -> Tensor:
        ctx.save_for_backward(a, c, rho)
        return _probability(a, c, rho)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, c, rho = ctx.saved_tensors
        r = _sine(rho)
        return (
            grad * _edge(a, c, rho),
            grad * _edge(c, a, rho),
            grad * _joint_density(a, c, rho) / (r * r).clamp(min=SMALLEST),
        )


class _ProductOfPositiveParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, rho: Tensor) -> Tensor:
        ctx.save_for_backward(a, c, rho)
        edges = c * _edge(a, c, rho) + a * _edge(c, a, rho)
        return (rho + a * c) * _probability(a, c, rho) + edges + _joint_density(a, c, rho)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, c, rho = ctx.saved_tensors
        both, edge_a, edge_c = both_positive(a, c, rho), _edge(a, c, rho), _edge(c, a, rho)
        return grad * (rho * edge_a + edge_c + c * both), grad * (edge_a + rho * edge_c + a * both), grad * both


def _sine(rho: Tensor) -> Tensor:
    return ((1 - rho) * (1 + rho)).clamp(min=0).sqrt()


def _gap(a: Tensor, c: Tensor, rho: Tensor) -> Tensor:
    """c - rho a, without cancellation where the variables are nearly parallel."""
    return torch.where(rho >= 0, (c - a) + (1 - rho) * a, (c + a) - (1 + rho) * a)


def _edge(a: Tensor, c: Tensor, rho: Tensor) -> Tensor:
    """The density of A at -a, times P(C + c > 0) given A = -a."""
    return density(a) * distribution(_gap(a, c, rho) / _sine(rho).clamp(min=SMALLEST))


def _joint_density(a: Tensor, c: Tensor, rho: Tensor) -> Tensor:
    """(1 - rho^2) times the joint density at (-a, -c); 0 at rho = 1 and -1."""
    r = _sine(rho)
    distance = a * a + (_gap(a, c, rho) / r.clamp(min=SMALLEST)) ** 2
    return torch.where(r > 0, r / (2 * math.pi) * torch.exp(-distance / 2), 0.0)


def _probability(a: Tensor, c: Tensor, rho: Tensor) -> Tensor:
    """Owen, Ann. Math. Stat. 27 (1956)."""
    without = 0.25 + rho.asin() / (2 * math.pi)
    if not (bool(a.any()) or bool(c.any())):
        return without
    a, c = a + 0.0, c + 0.0  # no -0.0, which would divide wrong
    r, p_a, p_c = _sine(rho), distribution(a), distribution(c)
    tails = _owens_t(a, _gap(a, c, rho) / (a * r)) + _owens_t(c, _gap(c, a, rho) / (c * r))
    opposite = (a * c < 0) | ((a * c == 0) & (a + c < 0))
    found = (p_a + p_c) / 2 - tails - torch.where(opposite, 0.5, 0.0)
    parallel = torch.where(rho > 0, torch.minimum(p_a, p_c), p_a + p_c - 1)
    found = torch.where(r == 0, parallel, torch.where((a == 0) & (c == 0), without, found))
    return found.clamp(0, 1)


def _owens_t(h: Tensor, slope: Tensor) -> Tensor:
    from scipy.special import owens_t

    return torch.as_tensor(owens_t(h.cpu().numpy(), slope.cpu().numpy())).to(h)
