"""Specification of `cross_moments` in plain torch (see README.md of this op for the mathematics)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops.precision import rounded

BLOCK = 4096  # samples accumulated at a time, so that memory does not grow with their number


class ShiftedSums:
    """Float64 sums of products of `activation - shift`, where `shift` is the first sample's activation.

    The cross product is of values rounded to `precision`, and of their own sums: many equal activations, as those of a
    closed gate, are rounded alike, which must not count as covariance. All other sums are of unrounded values.
    Exact, and so independent of order and blocking, whenever the activations are small integers.
    """

    def __init__(
        self,
        teacher_nodes: int,
        student_shape: torch.Size,
        precision: str,
        coactivation: bool,
        device: torch.device,
    ):
        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        *population, n = student_shape
        m = teacher_nodes
        self.count, self.precision = 0, precision
        self.teacher_shift, self.student_shift = zeros(m), zeros(*population, n)
        self.teacher_sum, self.student_sum = zeros(m), zeros(*population, n)
        self.teacher_square, self.student_square = zeros(m), zeros(*population, n)
        self.teacher_rounded, self.student_rounded = zeros(m), zeros(*population, n)
        self.cross = zeros(*population, m, n)
        self.teacher_active = zeros(m, dtype=torch.int64)
        self.student_active = zeros(*population, n, dtype=torch.int64)
        self.coactive = zeros(*population, m, n) if coactivation else None

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Add a block: teacher [samples, m], student [samples, n] or [population, samples, n]."""
        if self.count == 0:
            self.teacher_shift, self.student_shift = teacher[0].double(), student[..., 0, :].double()
        t = teacher.double() - self.teacher_shift
        s = student.double() - self.student_shift.unsqueeze(-2)
        self.count += len(teacher)
        self.teacher_sum += t.sum(0)
        self.student_sum += s.sum(-2)
        self.teacher_square += t.square().sum(0)
        self.student_square += s.square().sum(-2)
        t, s = rounded(t, self.precision), rounded(s, self.precision)
        self.teacher_rounded += t.sum(0)
        self.student_rounded += s.sum(-2)
        self.cross += t.T @ s
        self.teacher_active += (teacher > 0).sum(0)
        self.student_active += (student > 0).sum(-2)
        if self.coactive is not None:
            self.coactive += (teacher > 0).double().T @ (student > 0).double()

    def finish(self) -> tuple[Tensor, ...]:
        """The op's outputs: means, centred scatters, activity counts, co-activation counts (empty if not asked)."""
        n = self.teacher_sum.new_tensor(max(self.count, 1))  # by a number, CUDA multiplies with 1 / n
        t, s = self.teacher_sum, self.student_sum
        coactive = self.cross.new_empty(0) if self.coactive is None else self.coactive
        return (
            self.teacher_shift + t / n,
            self.student_shift + s / n,
            self.teacher_square - t * t / n,
            self.student_square - s * s / n,
            self.cross - self.teacher_rounded.unsqueeze(-1) * self.student_rounded.unsqueeze(-2) / n,
            self.teacher_active,
            self.student_active,
            coactive.to(torch.int64),
        )


def samples_by_nodes(activations: Tensor, sample_dim: int = 0) -> Tensor:
    """[.., N, nodes, *space] -> [.., N * positions, nodes]."""
    return activations.movedim(sample_dim + 1, -1).flatten(sample_dim, -2)


def cross_moments(teacher: Tensor, student: Tensor, precision: str, coactivation: bool) -> tuple[Tensor, ...]:
    """Moments of teacher [N, m, *space] against student [N, n, *space] or [P, N, n, *space]."""
    t = samples_by_nodes(teacher)
    s = samples_by_nodes(student, student.dim() - teacher.dim())
    sums = ShiftedSums(t.shape[1], s.shape[:-2] + s.shape[-1:], precision, coactivation, teacher.device)
    for start in range(0, len(t), BLOCK):
        sums.add(t[start : start + BLOCK], s[..., start : start + BLOCK, :])
    return sums.finish()
