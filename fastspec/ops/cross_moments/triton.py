"""`cross_moments` on a GPU: one pass of the shared kernel over activations as they lie."""

from __future__ import annotations

import math

from torch import Tensor

from fastspec.ops.cross_moments import fake_moments, reference
from fastspec.ops.gpu.accumulate import Accumulator, Side
from fastspec.ops.gpu.devices import rates_of
from fastspec.ops.gpu.sizes import tiles_of


def cross_moments(teacher: Tensor, student: Tensor, precision: str, coactivation: bool) -> tuple[Tensor, ...]:
    """Signature and results of the op; any strides."""
    population = tuple(student.shape[: student.dim() - teacher.dim()])
    m, n = teacher.shape[1], student.shape[len(population) + 1]
    samples = teacher.shape[0] * math.prod(teacher.shape[2:])
    if not samples * m * n * math.prod(population):
        return reference.cross_moments(teacher, student, precision, coactivation)
    out = fake_moments(teacher, m, population, n, coactivation)
    tiles = tiles_of(precision, False, m, coactivation or teacher.dim() > 2, rates_of(teacher).warpgroups)
    Accumulator(out, samples, precision, tiles).add(Side(teacher), Side(student))
    return out
