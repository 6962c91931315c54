"""Specification of `backward_gram` in plain torch (see README.md of this op for the mathematics)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops.precision import rounded

ROWS = 4096  # of a factor, multiplied at a time, so that memory does not grow with the number of samples


def backward_gram(
    teacher_factor: Tensor,
    teacher_gate: Tensor | None,
    student_factor: Tensor,
    student_gate: Tensor | None,
    ungated: bool,
    within: bool,
    precision: str,
) -> tuple[Tensor, ...]:
    """Grams of teacher [N, R, m] and student [*P, N, R, n] factors, and of both gated by [N, m] and [*P, N, n]."""
    samples, rows, _ = teacher_factor.shape
    at_a_time = max(1, ROWS // max(1, rows))
    results = []
    for wanted, gates in ((ungated, (None, None)), (teacher_gate is not None, (teacher_gate, student_gate))):
        factors = tuple(zip((teacher_factor, student_factor), gates, strict=True))
        for left, right in ((0, 1), (0, 0), (1, 1)):
            if not wanted or (left == right and not within):
                results.append(teacher_factor.new_empty(0, dtype=torch.float64))
                continue
            total = _zeros(factors[left][0], factors[right][0])
            for start in range(0, samples, at_a_time):
                part = slice(start, start + at_a_time)
                a, b = (_rows(*factors[side], part, precision) for side in (left, right))
                total += a.mT @ b
            results.append(total)
    return tuple(results)


def _rows(factor: Tensor, gate: Tensor | None, part: slice, precision: str) -> Tensor:
    """Samples `part` of a factor [.., N, R, nodes], gated, as rows [.., samples * R, nodes] in float32 or better."""
    compute = torch.promote_types(factor.dtype, torch.float32)
    taken = factor[..., part, :, :].to(compute)
    if gate is not None:
        taken = taken * gate[..., part, :].to(compute).unsqueeze(-2)
    return rounded(taken.flatten(-3, -2), precision)


def _zeros(left: Tensor, right: Tensor) -> Tensor:
    """Sums of a product, [.., nodes of left, nodes of right] with the population of right."""
    return right.new_zeros(*right.shape[:-3], left.shape[-1], right.shape[-1], dtype=torch.float64)
