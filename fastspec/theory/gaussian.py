"""What layers and two-layer networks do on Gaussian inputs N(0, std^2 I), exactly: no samples, no kernels.

The moments of `layer_moments`, and the loss of a two-layer student, as differentiable functions of the weights. Without
biases they are closed forms in the angle between two weight vectors (Cho & Saul, 2009); with biases they need the
distribution function of two normal variables, which scipy gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.moments import Layer
from fastspec.networks import MLP
from fastspec.ops.checks import check_finite, check_real, check_same_kind, check_tensor, refuse, shape
from fastspec.populations import Group, Population
from fastspec.statistics import Activity
from fastspec.theory.bivariate import (
    both_positive,
    distribution,
    positive_part,
    product_of_positive_parts,
    square_of_positive_part,
)

SMALLEST = 1e-100  # stands for the norm of a weight vector that is 0
NEVER = -1e3  # a shift that no sample reaches
TwoLayer = MLP | Sequence[Layer]


@dataclass(frozen=True)
class GaussianMoments:
    """What `CrossMoments` of ever more samples tend to, float64; `*P` is a population axis, if there is one.

    Fractions of samples take the place of counts.
    """

    teacher_mean: Tensor  # [m]
    student_mean: Tensor  # [*P, n]
    teacher_variance: Tensor  # [m]
    student_variance: Tensor  # [*P, n]
    covariance: Tensor  # [*P, m, n]
    teacher_active: Tensor  # [m]
    student_active: Tensor  # [*P, n]
    coactive: Tensor  # [*P, m, n]

    def correlation(self) -> Tensor:
        """[*P, m, n]; NaN for pairs with a constant node."""
        t, s = (torch.where(v > 0, v, 1.0).sqrt() for v in (self.teacher_variance, self.student_variance))
        both_vary = (self.teacher_variance > 0).unsqueeze(-1) & (self.student_variance > 0).unsqueeze(-2)
        return torch.where(both_vary, self.covariance / (t.unsqueeze(-1) * s.unsqueeze(-2)), torch.nan)

    def activity(self) -> Activity:
        """The probability that each teacher node [m] and each student node [*P, n] is active (above 0)."""
        return Activity(self.teacher_active, self.student_active)

    def coactivation(self) -> Tensor:
        """The probability that both nodes of a pair are active, [*P, m, n]."""
        return self.coactive

    def observation(self) -> Tensor:
        """min(P(t_j > 0, s_k > 0), P(t_j <= 0, s_k > 0)), [*P, m, n]: of the samples, the share that
        `CrossMoments.observation` counts (Student Specialization, Tian, ICML 2020)."""
        other = (self.student_active.unsqueeze(-2) - self.coactive).clamp(min=0)  # not a rounding below it
        return torch.minimum(self.coactive, other)


class _Side(NamedTuple):
    """Nodes whose pre-activations are scale * (a standard normal variable + shift)."""

    direction: Tensor  # [*P, n, d] unit vectors, 0 for a weight vector that is 0
    scale: Tensor  # [*P, n]
    shift: Tensor  # [*P, n]
    varies: Tensor  # [*P, n] bool


def layer_moments(teacher: Layer, student: Layer, *, std: float = 1.0, negative_slope: float = 0.0) -> GaussianMoments:
    """Moments of `relu(x @ weight.T + bias)` of teacher and student nodes for x ~ N(0, std^2 I).

    teacher: (weight [m, d], bias [m] or None); student: (weight [*P, n, d], bias [*P, n] or None). Differentiable, but
    for co-activations of nodes with parallel weights. negative_slope: of a leaky ReLU, in [0, 1].
    Raises ValueError or TypeError, naming the argument, for shapes, dtypes and devices that do not fit, NaN and
    infinity.
    """
    _check_pair(teacher, student)
    check_real("negative_slope", negative_slope, "a number in [0, 1]", 0.0, 1.0)
    t, s = _side(teacher, std), _side(student, std)
    cosine = _cosine(t, s)
    covariance = _product(t, s, cosine, negative_slope) - _mean(t, negative_slope).unsqueeze(-1) * _mean(
        s, negative_slope
    ).unsqueeze(-2)
    both_vary = t.varies.unsqueeze(-1) & s.varies.unsqueeze(-2)
    return GaussianMoments(
        _mean(t, negative_slope),
        _mean(s, negative_slope),
        _variance(t, negative_slope),
        _variance(s, negative_slope),
        torch.where(both_vary, covariance, 0.0),
        distribution(t.shift),
        distribution(s.shift),
        both_positive(t.shift.unsqueeze(-1), s.shift.unsqueeze(-2), cosine),
    )


def generalization_error(
    teacher: TwoLayer,
    student: TwoLayer | Population,
    *,
    std: float = 1.0,
    negative_slope: float | None = None,
) -> Tensor:
    """E[1/2 ||teacher(x) - student(x)||^2] of two-layer networks for x ~ N(0, std^2 I): float64 [*P].

    teacher: an `MLP` with one hidden layer, or its layers [(w1 [m, d], b1 [m] or None), (w2 [C, m], b2 [C] or None)];
    student: the same, its layers with a population axis in front where they have one, or a `Population`.
    Differentiable in the weights. negative_slope: of the ReLUs, by default that of the networks, else 0.
    Raises ValueError or TypeError, naming the argument, for networks that do not fit.
    """
    layers = _two_layers("teacher", teacher)
    slope = _slope(negative_slope, teacher, student)
    if isinstance(student, Population):
        parts = [
            (group.indices, generalization_error(layers, _of_group(group), std=std, negative_slope=slope))
            for group in student.groups()
        ]
        found = parts[0][1].new_empty(len(student))
        for indices, errors in parts:
            found[indices.to(found.device)] = errors
        return found
    (teacher_hidden, teacher_top), (student_hidden, student_top) = layers, _two_layers("student", student)
    _check_pair(teacher_hidden, student_hidden)
    t, s = _side(teacher_hidden, std), _side(student_hidden, std)
    (v_t, b_t), (v_s, b_s) = _top("teacher", teacher_top, t), _top("student", student_top, s)
    if v_t.shape[-2] != v_s.shape[-2]:
        refuse("student", f"{v_s.shape[-2]} outputs", f"the outputs of the teacher, {v_t.shape[-2]}")

    def quadratic(a: _Side, b: _Side, v: Tensor, w: Tensor) -> Tensor:
        """sum_c sum_jk v_cj w_ck E[a_j b_k], [*P]."""
        return ((v.mT @ w) * _product(a, b, _cosine(a, b), slope)).sum((-2, -1))

    hidden = quadratic(t, t, v_t, v_t) - 2 * quadratic(t, s, v_t, v_s) + quadratic(s, s, v_s, v_s)
    offset = b_t - b_s  # [*P, C]
    mean = (v_t @ _mean(t, slope).unsqueeze(-1) - v_s @ _mean(s, slope).unsqueeze(-1)).squeeze(-1)  # [*P, C]
    return (hidden + (offset * (2 * mean + offset)).sum(-1)) / 2


def _side(layer: Layer, std: float) -> _Side:
    check_real("std", std, "a finite positive number", math.ulp(0.0))
    weight, bias = layer[0].double(), layer[1]
    norm = torch.linalg.vector_norm(weight, dim=-1)
    scale = (std * norm).clamp(min=SMALLEST)
    shift = torch.zeros_like(norm) if bias is None else bias.double() / scale
    varies = norm > 0
    shift = torch.where(varies | (shift != 0), shift, NEVER)  # a pre-activation that is always 0 is not above 0
    return _Side(weight / norm.clamp(min=SMALLEST).unsqueeze(-1), scale, shift, varies)


def _cosine(a: _Side, b: _Side) -> Tensor:
    return (a.direction @ b.direction.mT).clamp(-1, 1)


def _mean(side: _Side, slope: float) -> Tensor:
    """E of the activation; max(z, slope z) is slope z + (1 - slope) z+."""
    return side.scale * (slope * side.shift + (1 - slope) * positive_part(side.shift))


def _variance(side: _Side, slope: float) -> Tensor:
    square = slope**2 * (1 + side.shift**2) + (1 - slope**2) * square_of_positive_part(side.shift)
    variance = square - (slope * side.shift + (1 - slope) * positive_part(side.shift)) ** 2
    return torch.where(side.varies, side.scale**2 * variance.clamp(min=0), 0.0)


def _product(a: _Side, b: _Side, cosine: Tensor, slope: float) -> Tensor:
    """E of the product of the activations of every pair, [*P, nodes of a, nodes of b]."""
    p, q = a.shift.unsqueeze(-1), b.shift.unsqueeze(-2)
    found = (1 - slope) ** 2 * product_of_positive_parts(p, q, cosine)
    if slope:
        linear = p * positive_part(q) + q * positive_part(p) + cosine * (distribution(p) + distribution(q))
        found = found + slope**2 * (cosine + p * q) + slope * (1 - slope) * linear
    return a.scale.unsqueeze(-1) * b.scale.unsqueeze(-2) * found


def _check_pair(teacher: Layer, student: Layer) -> None:
    for side, layer, ranks in (("teacher", teacher, (2,)), ("student", student, (2, 3))):
        if not (isinstance(layer, (tuple, list)) and len(layer) == 2):
            refuse(side, type(layer).__name__, "a pair (weight, bias or None)", TypeError)
        weight, bias = layer
        check_tensor(f"{side} weight", weight, ranks, "[*population, nodes, inputs]" if side == "student" else "[m, d]")
        check_finite(f"{side} weight", weight)
        if bias is not None:
            check_tensor(f"{side} bias", bias, (weight.dim() - 1,), "[*population, nodes]")
            check_same_kind(**{f"{side} weight": weight, f"{side} bias": bias})
            check_finite(f"{side} bias", bias)
            if bias.shape != weight.shape[:-1]:
                refuse(f"{side} bias", shape(bias), f"shape {list(weight.shape[:-1])}, the nodes of its weight")
    (t, _), (s, _) = teacher, student
    check_same_kind(**{"teacher weight": t, "student weight": s})
    if t.shape[-1] != s.shape[-1]:
        refuse("student weight", shape(s), f"the {t.shape[-1]} inputs of the teacher's weight")


def _top(side: str, layer: Layer, hidden: _Side) -> tuple[Tensor, Tensor]:
    """The top layer in float64, checked against the nodes below it: weight [*P, C, n], bias [*P, C]."""
    weight, bias = layer
    rank = hidden.direction.dim()
    check_tensor(f"{side} w2", weight, (rank,), "[*population, outputs, nodes]")
    check_finite(f"{side} w2", weight)
    nodes = hidden.scale.shape
    if weight.shape[-1] != nodes[-1] or weight.shape[:-2] != nodes[:-1]:
        refuse(f"{side} w2", shape(weight), f"{[*nodes[:-1], 'outputs', nodes[-1]]}, the nodes of w1")
    if bias is None:
        return weight.double(), weight.new_zeros(weight.shape[:-1], dtype=torch.float64)
    check_tensor(f"{side} b2", bias, (rank - 1,), "[*population, outputs]")
    check_finite(f"{side} b2", bias)
    if bias.shape != weight.shape[:-1]:
        refuse(f"{side} b2", shape(bias), f"shape {list(weight.shape[:-1])}, the outputs of w2")
    return weight.double(), bias.double()


def _two_layers(side: str, network: object) -> tuple[Layer, Layer]:
    if isinstance(network, MLP):
        if network.batch_norm is not None:
            refuse(side, "an MLP with batch norm", "one without, such as MLP.from_weights(network.folded())")
        layers: list[Layer] = [(layer.weight, layer.bias) for layer in network.layers]
    elif isinstance(network, Sequence) and not isinstance(network, str):
        layers = list(network)
    else:
        refuse(side, type(network).__name__, "an MLP with one hidden layer, or [(w1, b1), (w2, b2)]", TypeError)
    if len(layers) != 2:
        refuse(side, f"{len(layers)} layers", "a hidden layer and a top layer")
    return layers[0], layers[1]


def _of_group(group: Group) -> list[Layer]:
    return [(group.w1, group.b1), (group.w2, group.b2)]


def _slope(given: float | None, *networks: object) -> float:
    if given is None:
        slopes = {network.negative_slope for network in networks if isinstance(network, MLP)}
        if len(slopes) > 1:
            refuse("student", f"another negative slope than the teacher's ({sorted(slopes)})", "networks of one slope")
        return slopes.pop() if slopes else 0.0
    check_real("negative_slope", given, "a number in [0, 1]", 0.0, 1.0)
    return given
