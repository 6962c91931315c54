"""The loss of networks' outputs, summed over the samples, without the residuals themselves."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspec.ops.gpu.layout import on_device_of
from fastspec.ops.gpu.linear import sum_blocks_kernel
from fastspec.ops.gpu.sizes import ceil_div

SPAN, VALUES = 16_384, 1024  # summed by a program, and of them at a time


@triton.jit(do_not_specialize=["size", "outputs", "students"])
def squares_kernel(
    p_y,  # [size], the answers
    p_f,  # [P, size], those of the students
    p_b,  # [P, outputs], which are added to them, or None
    p_sums,  # out [spans, P] float64
    size,
    outputs,
    students,
    SPAN: tl.constexpr,
    VALUES: tl.constexpr,
):
    i_span, i_p = (tl.program_id(0) // students).to(tl.int64), (tl.program_id(0) % students).to(tl.int64)
    first = i_span * SPAN
    column = (first % outputs).to(tl.int32)
    p_f += i_p * size
    b_sum = tl.zeros([VALUES], tl.float64)
    for i in range(0, SPAN, VALUES):
        i_value = i + tl.arange(0, VALUES)
        m = first + i_value < size
        b_r = tl.load(p_f + first + i_value, mask=m, other=0.0).to(tl.float64)
        if p_b is not None:
            i_column = (column + i_value) % outputs
            b_r += tl.load(p_b + i_p * outputs + i_column, mask=m, other=0.0).to(tl.float64)
        b_r -= tl.load(p_y + first + i_value, mask=m, other=0.0).to(tl.float64)
        b_sum += b_r * b_r / 2
    tl.store(p_sums + i_span * students + i_p, tl.sum(b_sum, 0))


def summed_squares(teacher: Tensor, student: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sum of 1/2 (student + bias - teacher)^2 in float64, in an order that depends on the shape of `teacher` alone.

    teacher [*shape], student [*shape] or [P, *shape], bias [P, shape[-1]] or None; of any dtypes. Returns [] or [P].
    """
    population = student.shape[: student.dim() - teacher.dim()]
    size, students = teacher.numel(), population.numel()
    if not size * students:
        return student.new_zeros(population, dtype=torch.float64)
    spans = ceil_div(size, SPAN)
    sums = student.new_empty(spans, students, dtype=torch.float64)
    out = student.new_empty(population, dtype=torch.float64)
    teacher, student = teacher.contiguous(), student.contiguous()
    bias = None if bias is None else bias.contiguous()
    with on_device_of(student):
        squares_kernel[(spans * students,)](
            teacher, student, bias, sums, size, teacher.shape[-1], students, SPAN=SPAN, VALUES=VALUES, num_warps=4
        )
        sum_blocks_kernel[(ceil_div(students, 32),)](sums, None, out, None, spans, students, COLUMNS=32, num_warps=1)
    return out
