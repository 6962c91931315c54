"""Specification of `chain_gram` in plain torch (see README.md of this op for the mathematics)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 16_384  # of the backward maps, multiplied at a time, so that memory does not grow with the number of samples


def chain_gram(
    teacher_maps: Sequence[Tensor],
    teacher_gates: Sequence[Tensor],
    student_maps: Sequence[Tensor],
    student_gates: Sequence[Tensor],
    within: bool,
) -> list[Tensor]:
    """Three Grams for each hidden layer, lowest first: student-teacher, teacher, student; [0] for the last two without
    `within`. NaN everywhere if a map or a gate is not finite."""
    samples, outputs = teacher_gates[0].shape[0], teacher_maps[-1].shape[0]
    at_a_time = max(1, ROWS // max(1, outputs))
    spoilt = sum((0 * t).sum() for t in (*teacher_maps, *teacher_gates, *student_maps, *student_gates))
    results = []
    for t, s in zip(teacher_gates, student_gates, strict=True):
        population, m, n = s.shape[:-2], t.shape[-1], s.shape[-1]
        none = ((0,), (0,))
        for size in ((*population, m, n), *(((m, m), (*population, n, n)) if within else none)):
            results.append(torch.zeros(size, dtype=torch.float64, device=t.device))
    for start in range(0, samples, at_a_time):
        part = slice(start, start + at_a_time)
        sides = [
            _gated_maps(maps, [gate[..., part, :] for gate in gates])
            for maps, gates in ((teacher_maps, teacher_gates), (student_maps, student_gates))
        ]
        for layer, (t, s) in enumerate(zip(*sides, strict=True)):
            for i, (a, b) in enumerate(((t, s), (t, t), (s, s)) if within else ((t, s),)):
                results[3 * layer + i] += a.mT @ b
    return [result + spoilt for result in results]


def _gated_maps(maps: Sequence[Tensor], gates: Sequence[Tensor]) -> list[Tensor]:
    """V D of every hidden layer, lowest first, as rows [.., samples * outputs, nodes]."""
    factor = maps[-1].unsqueeze(-3) * gates[-1].unsqueeze(-2)  # [.., samples, outputs, nodes]
    found = [factor]
    for weight, gate in zip(reversed(maps[:-1]), reversed(gates[:-1]), strict=True):
        factor = (factor @ weight.unsqueeze(-3)) * gate.unsqueeze(-2)
        found.append(factor)
    return [factor.flatten(-3, -2) for factor in reversed(found)]
