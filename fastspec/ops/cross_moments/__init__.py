"""Op `cross_moments`: the moments of two given activation arrays, in one pass and without permuted copies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.checks import check_same_kind, check_tensor, refuse, shape
from fastspec.ops.cross_moments import reference
from fastspec.ops.precision import check_precision


class Moments(NamedTuple):
    """Raw moments of one layer pair; `scatter` is a sum over samples of products of centred activations.

    Shapes: `m` teacher nodes, `n` student nodes, `*P` an optional population axis on the student side.
    """

    teacher_mean: Tensor  # [m] float64
    student_mean: Tensor  # [*P, n] float64
    teacher_scatter: Tensor  # [m] float64
    student_scatter: Tensor  # [*P, n] float64
    cross_scatter: Tensor  # [*P, m, n] float64
    teacher_active: Tensor  # [m] int64
    student_active: Tensor  # [*P, n] int64
    coactive: Tensor  # [*P, m, n] int64, or [0] when not asked for


def fake_moments(like: Tensor, m: int, population: tuple[int, ...], n: int, coactivation: bool) -> tuple[Tensor, ...]:
    """Empty outputs of the right shapes, for fakes of every op that returns `Moments`."""

    def f64(*size: int) -> Tensor:
        return like.new_empty(size, dtype=torch.float64)

    def i64(*size: int) -> Tensor:
        return like.new_empty(size, dtype=torch.int64)

    return (
        f64(m),
        f64(*population, n),
        f64(m),
        f64(*population, n),
        f64(*population, m, n),
        i64(m),
        i64(*population, n),
        i64(*population, m, n) if coactivation else i64(0),
    )


def _fake(teacher: Tensor, student: Tensor, precision: str, coactivation: bool) -> tuple[Tensor, ...]:
    has_population = student.dim() - teacher.dim()
    population = tuple(student.shape[:has_population])
    return fake_moments(teacher, teacher.shape[1], population, student.shape[1 + has_population], coactivation)


library.define(
    "cross_moments",
    "(Tensor teacher, Tensor student, str precision, bool coactivation) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.cross_moments,
    fake=_fake,
    triton="fastspec.ops.cross_moments.triton:cross_moments",
)

_op = torch.ops.fastspec.cross_moments.default


def cross_moments(
    teacher: Tensor, student: Tensor, coactivation: bool = False, precision: str | None = None
) -> Moments:
    """Moments of every teacher node against every student node over all samples (and spatial positions).

    teacher: [N, m] or [N, m, *space], float64 / float32 / float16 / bfloat16, any strides.
    student: [N, n] or [N, n, *space] of the same dtype, device and samples; a leading population axis is allowed.
    precision: of the cross product, see `fastspec.ops.precision.check_precision`; None is that of the dtype.
    Returns `Moments`, statistics in float64, counts in int64. The result does not depend on the number of threads.
    Raises ValueError or TypeError, naming the argument, for wrong ranks, shapes, dtypes, devices or precisions.
    """
    check_tensor("teacher", teacher, (2, 3, 4, 5), "[samples, nodes] or [samples, nodes, *space]")
    takes = "the teacher's layout, with an optional leading population axis"
    check_tensor("student", student, (teacher.dim(), teacher.dim() + 1), takes)
    check_same_kind(teacher=teacher, student=student)
    own = student.shape[student.dim() - teacher.dim() :]
    if own[0] != teacher.shape[0] or own[2:] != teacher.shape[2:]:
        refuse("student", shape(student), f"the samples and positions of the teacher, {shape(teacher)}")
    return Moments(*_op(teacher, student, check_precision(precision, teacher.dtype), coactivation))
