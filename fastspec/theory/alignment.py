"""How near a student node's boundary is to a teacher node's, and who sees a boundary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.moments import CrossMoments
from fastspec.ops.checks import check_integer, check_same_kind, refuse, shape
from fastspec.relu_network import Layer, check_layer


class Alignment(NamedTuple):
    """Student node k is specialised to teacher node j where both are small (Student Specialization, Tian, ICML 2020).

    NaN where a weight vector is 0 and has no direction.
    """

    angle: Tensor  # [teacher, student] float64, radians from 0 to pi, between weight vectors
    bias_gap: Tensor  # [teacher, student] float64, |b_k / |w_k| - b*_j / |w*_j||

    @property
    def sin(self) -> Tensor:
        """sin of the angle."""
        return self.angle.sin()


def alignment(teacher: Layer, student: Layer) -> Alignment:
    """Angles and bias gaps of two layers on the same inputs: (weight [nodes, inputs], bias [nodes] or None) each.

    Accurate for small angles as well, to about 1e-16. Raises ValueError or TypeError naming the argument.
    """
    (w_t, b_t), (w_s, b_s) = check_layer("teacher", teacher), check_layer("student", student)
    check_same_kind(**{"teacher weight": w_t, "student weight": w_s, "teacher bias": b_t, "student bias": b_s})
    if w_s.shape[1] != w_t.shape[1]:
        refuse("student weight", shape(w_s), f"[nodes, {w_t.shape[1]}], the inputs of the teacher")
    (u, offset_t), (v, offset_s) = _normal(w_t, b_t), _normal(w_s, b_s)
    exact = "donot_use_mm_for_euclid_dist"
    chords = [torch.cdist(u, side, compute_mode=exact) for side in (v, -v)]
    angle = 2 * torch.atan2(*chords)
    return Alignment(angle, (offset_s - offset_t.unsqueeze(-1)).abs())


def observers(moments: CrossMoments, at_least: int = 1) -> Tensor:
    """[*P, teacher, student] bool: whether a student node sees the boundary of a teacher node.

    moments: of activations, with `coactivation=True`. An observer is active on at least `at_least` samples of either
    side of the boundary; in Student Specialization (Tian, ICML 2020) a teacher node without one cannot be learned.
    """
    check_integer("at_least", at_least)
    return moments.observation() >= at_least


def _normal(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Unit weight vectors [nodes, inputs] and biases in units of their norms [nodes], float64."""
    weight = weight.detach().double()
    norm = torch.linalg.vector_norm(weight, dim=1)
    offset = torch.zeros_like(norm) if bias is None else bias.detach().double()
    return weight / norm.unsqueeze(1), offset / norm
