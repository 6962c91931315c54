"""`backward_gram` on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastspec.ops.backward_gram import reference
from fastspec.ops.gpu.gram import gram_kernel
from fastspec.ops.gpu.layout import on_device_of, strides

SPAN = 4096  # rows whose products are summed before they go to float64
WORKSPACE = 64 * 2**20  # bytes of the spans' sums

# rows, teacher nodes, student nodes of a tile; warps; stages
TILES = {
    "fp64": (16, 32, 32, 4, 1),
    "fp32": (16, 64, 64, 8, 1),
    "tf32x3": (16, 64, 32, 8, 1),
    "tf32": (32, 64, 64, 8, 2),
    "bf16": (32, 64, 64, 8, 2),
}


class Side(NamedTuple):
    """A factor [N, R, nodes] or [P, N, R, nodes] and its gate, or None."""

    factor: Tensor
    gate: Tensor | None


def backward_gram(
    teacher_factor: Tensor,
    teacher_gate: Tensor | None,
    student_factor: Tensor,
    student_gate: Tensor | None,
    ungated: bool,
    within: bool,
    precision: str,
) -> tuple[Tensor, ...]:
    """Signature and results of the op; any strides."""
    arguments = (teacher_factor, teacher_gate, student_factor, student_gate, ungated, within, precision)
    if not teacher_factor.numel() or not student_factor.numel():
        return reference.backward_gram(*arguments)
    teacher, student = Side(teacher_factor, teacher_gate), Side(student_factor, student_gate)
    none = teacher_factor.new_empty(0, dtype=torch.float64)
    pairs = [_products(teacher, student, ungated, precision)]
    if within:
        pairs += [_products(teacher, teacher, ungated, precision), _products(student, student, ungated, precision)]
    found = [[none if matrix is None else matrix for matrix in which] for which in zip(*pairs, strict=True)]
    return tuple(matrix for which in found for matrix in (*which, *[none] * (3 - len(which))))


def _products(left: Side, right: Side, ungated: bool, precision: str) -> tuple[Tensor | None, Tensor | None]:
    """beta and h, [m, n] or [P, m, n] float64 each; None for what is not wanted."""
    population, own = right.factor.dim() == 4, left.factor.dim() == 4
    *_, samples, each, n = right.factor.shape
    m, students, rows = left.factor.shape[-1], right.factor.shape[0] if population else 1, samples * each
    wanted = (ungated, left.gate is not None)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    tile_rows, teachers, nodes, warps, stages = TILES[precision]
    spans = triton.cdiv(rows, SPAN)
    most = min(spans, max(1, WORKSPACE // (sum(wanted) * students * m * n * dtype.itemsize)))
    new = right.factor.new_empty
    work = [new((most, students, m, n), dtype=dtype) if asked else None for asked in wanted]
    totals = [new((students, m, n), dtype=torch.float64).zero_() if asked else None for asked in wanted]
    with on_device_of(right.factor):
        for first in range(0, spans, most):
            here = min(most, spans - first)
            grid = triton.cdiv(m, teachers) * triton.cdiv(n, nodes), here, students
            gram_kernel[grid](
                *left,
                *right,
                *work,
                first * SPAN,
                rows,
                each,
                SPAN,
                m,
                n,
                students,
                *strides(left.factor, own, 3),
                *strides(left.gate, own, 2),
                *strides(right.factor, population, 3),
                *strides(right.gate, population, 2),
                PRECISION=precision,
                ROWS=tile_rows,
                TEACHERS=teachers,
                STUDENTS=nodes,
                num_warps=warps,
                num_stages=stages,
                enable_fp_fusion=True,
            )
            for total, part in zip(totals, work, strict=True):
                if total is not None and part is not None:
                    total += part[:here].sum(0, dtype=torch.float64)
    beta, h = (total if total is None or population else total[0] for total in totals)
    return beta, h
