"""Specification of `layer_moments` in plain torch (see README.md of this op for the mathematics)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops.cross_moments.reference import BLOCK, ShiftedSums
from fastspec.ops.linear_relu.reference import activations as activations_of


def layer_moments(
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    student_input: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    negative_slope: float,
    precision: str,
    coactivation: bool,
    activations: bool,
) -> tuple[Tensor, ...]:
    """Moments of both sides' activations; the activations too when asked for, else empty."""
    sums = ShiftedSums(
        teacher_weight.shape[0], student_weight.shape[:-1], precision, coactivation, teacher_input.device
    )
    kept: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(teacher_input), BLOCK):
        rows = slice(start, start + BLOCK)
        t = activations_of(teacher_input[rows], teacher_weight, teacher_bias, negative_slope, precision)
        s = activations_of(student_input[..., rows, :], student_weight, student_bias, negative_slope, precision)
        sums.add(t, s)
        if activations:
            kept.append((t.to(teacher_input.dtype), s.to(teacher_input.dtype)))
    if not activations:
        return *sums.finish(), teacher_input.new_empty(0), teacher_input.new_empty(0)
    if not kept:
        n = len(teacher_input)
        shape = (*student_weight.shape[:-2], n, student_weight.shape[-2])
        return *sums.finish(), teacher_input.new_empty(n, teacher_weight.shape[0]), teacher_input.new_empty(shape)
    return *sums.finish(), torch.cat([t for t, _ in kept]), torch.cat([s for _, s in kept], dim=-2)
