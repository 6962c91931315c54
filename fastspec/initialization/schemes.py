"""Schemes of initial weights: how each draws a layer, what it does to norms, and where it is from.

He et al., Delving Deep into Rectifiers (arXiv 1502.01852). Salimans & Kingma, Weight Normalization (arXiv 1602.07868).
Saxe et al., Exact solutions to the nonlinear dynamics of learning (arXiv 1312.6120). Arpit & Bengio, The Benefits of
Over-parameterization at Initialization in Deep ReLU Networks (arXiv 1901.03611).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastspec.ops.checks import check_integer, refuse
from fastspec.randomness import generator

Draw = Callable[[int, int, torch.Generator], Tensor]  # (rows, columns, generator) -> float64 [rows, columns]
Factor = Callable[[int, int], float]  # (fan_in, fan_out) -> a number


@dataclass(frozen=True)
class Scheme:
    """draw: directions [rows, columns], float64; scale: what multiplies them.

    energy: E||h_l||^2 / ||h_(l-1)||^2 of a bias-free ReLU layer, by its fan-in and fan-out.
    """

    name: str
    draw: Draw
    scale: Factor
    energy: Factor
    source: str


def _normal(rows: int, columns: int, source: torch.Generator) -> Tensor:
    """Drawn in float32, which takes a third of the time."""
    return torch.randn(rows, columns, dtype=torch.float32, generator=source).double()


def _unit(rows: int, columns: int, source: torch.Generator) -> Tensor:
    drawn = _normal(rows, columns, source)
    return drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)


def _uniform(rows: int, columns: int, source: torch.Generator) -> Tensor:
    return 2 * torch.rand(rows, columns, dtype=torch.float64, generator=source) - 1


def _orthogonal(rows: int, columns: int, source: torch.Generator) -> Tensor:
    """Unit rows, orthogonal to each other in groups of as many as there are columns; every rotation is as likely."""
    groups = []
    for start in range(0, rows, columns):
        q, r = torch.linalg.qr(_normal(columns, min(columns, rows - start), source))
        groups.append((q * r.diagonal().sign()).T)
    return torch.cat(groups)


def _preserving(fan_in: int, fan_out: int) -> float:
    """What keeps norms, of unit rows in random directions."""
    return math.sqrt(2 * fan_in / fan_out)


_ALL = (
    Scheme(
        "he_fan_out",
        _normal,
        lambda fan_in, fan_out: math.sqrt(2 / fan_out),
        lambda fan_in, fan_out: 1.0,
        "N(0, 2 / fan-out). He et al. (2015), eq. 14; Arpit & Bengio (2019): norms are kept in both passes.",
    ),
    Scheme(
        "he_fan_in",
        _normal,
        lambda fan_in, fan_out: math.sqrt(2 / fan_in),
        lambda fan_in, fan_out: fan_out / fan_in,
        "N(0, 2 / fan-in). He et al. (2015), eq. 10, PyTorch's kaiming_normal_: each node's variance is kept.",
    ),
    Scheme(
        "inverse_fan_out",
        _normal,
        lambda fan_in, fan_out: math.sqrt(1 / fan_out),
        lambda fan_in, fan_out: 0.5,
        "N(0, 1 / fan-out). Baseline of Arpit & Bengio (2019), Glorot in their code: norms fall by sqrt(2) a layer.",
    ),
    Scheme(
        "weight_norm",
        _unit,
        lambda fan_in, fan_out: 1.0,
        lambda fan_in, fan_out: fan_out / (2 * fan_in),
        "Unit rows. Salimans & Kingma, Weight Normalization (2016), with gain 1.",
    ),
    Scheme(
        "weight_norm_scaled",
        _unit,
        _preserving,
        lambda fan_in, fan_out: 1.0,
        "Rows of norm sqrt(2 fan-in / fan-out). Arpit & Bengio (2019), for weight-normalised networks.",
    ),
    Scheme(
        "orthogonal",
        _orthogonal,
        _preserving,
        lambda fan_in, fan_out: 1.0,
        "Orthogonal rows of norm sqrt(2 fan-in / fan-out). Arpit & Bengio (2019); Saxe et al. (2014).",
    ),
    Scheme(
        "default",
        _uniform,
        lambda fan_in, fan_out: math.sqrt(1 / fan_in),
        lambda fan_in, fan_out: fan_out / (6 * fan_in),
        "U(-1, 1) / sqrt(fan-in), biases too. PyTorch's own layers.",
    ),
)
SCHEMES = {found.name: found for found in _ALL}


def scheme(name: str) -> Scheme:
    """The scheme of a name; ValueError for an unknown one."""
    if name not in SCHEMES:
        refuse("scheme", repr(name), f"one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def weights(name: str, fan_out: int, fan_in: int, *, seed: int = 0, layer: str = "") -> Tensor:
    """The weights of a fully connected layer by the scheme `name`: float64 [fan_out, fan_in].

    layer: its name in the network; each has numbers of its own for one seed. `draw_` draws the same.
    Raises ValueError naming the argument.
    """
    check_integer("fan_out", fan_out)
    check_integer("fan_in", fan_in)
    found = scheme(name)
    return found.scale(fan_in, fan_out) * found.draw(fan_out, fan_in, stream(seed, layer))


def stream(seed: int, layer: str) -> torch.Generator:
    """The random numbers of a layer."""
    return generator(seed, f"initial weights of layer {layer}")
