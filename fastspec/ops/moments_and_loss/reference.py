"""Specification of `moments_and_loss` in plain torch (see README.md of this op for the mathematics)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastspec.ops.layer_moments import reference
from fastspec.ops.precision import check_precision


def moments_and_loss(
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    student_input: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_top: Tensor,
    teacher_top_bias: Tensor | None,
    student_top: Tensor,
    student_top_bias: Tensor | None,
    negative_slope: float,
    coactivation: bool,
) -> tuple[Tensor, ...]:
    """Moments of both sides' activations, and the loss of the outputs above them."""
    sides = teacher_input, teacher_weight, teacher_bias, student_input, student_weight, student_bias
    precision = check_precision(None, teacher_input.dtype)
    *moments, t, s = reference.layer_moments(*sides, negative_slope, precision, coactivation, True)
    return *moments, _loss(linear(t, teacher_top, teacher_top_bias), s, student_top, student_top_bias)


def _loss(answers: Tensor, activations: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One student after the other: products of several are rounded otherwise than those of one."""
    if weight.dim() == 2:
        norms = torch.linalg.vector_norm(linear(activations, weight, bias) - answers, dim=-1)
        return norms.double().square().sum() / 2
    biases = [None] * len(weight) if bias is None else bias
    students = [_loss(answers, h, w, b) for h, w, b in zip(activations, weight, biases, strict=True)]
    return torch.stack(students) if students else answers.new_empty(0, dtype=torch.float64)
