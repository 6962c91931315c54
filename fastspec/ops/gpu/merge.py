"""Puts the sums of spans together in float64, and makes moments of them at the end."""

from __future__ import annotations

import triton
import triton.language as tl

from fastspec.ops.gpu.moments import student_nodes


@triton.jit
def merge_kernel(
    p_cross,  # [spans, m, width]
    p_coactive,  # [spans, m, width] int32
    p_teacher,  # [spans, 4, m]: first, shift, sum, sum of squares
    p_student,  # [spans, 4, width]
    p_teacher_active,  # [spans, m] int32
    p_student_active,  # [spans, width] int32
    p_t_before,  # [2, m] float64: reference, sum about it, of earlier rounds
    p_t_after,  # the same, of earlier rounds and this one
    p_s_before,  # [2, P, n] float64
    p_s_after,
    p_mean_t,  # out [m] float64, on the last round
    p_mean_s,  # out [P, n]
    p_scatter_t,  # in and out [m]: sum of squares about the reference, at the end the scatter
    p_scatter_s,  # [P, n]
    p_scatter,  # [P, m, n], any strides but of nodes: the same for products
    p_active_t,  # [m] int64
    p_active_s,  # [P, n] int64
    p_co,  # [P, m, n] int64, strides of p_scatter, or None
    total,
    samples,
    m,
    n,
    students,
    s_scatter_student,
    s_scatter_row,
    spans,
    first_span,
    first_tile,
    width,
    span,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    FLAT: tl.constexpr,
    STUDENTS: tl.constexpr,  # the tile of `moments_kernel`
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tiles_m = tl.cdiv(m, ROWS)
    i_m, i_c = tl.program_id(0) % tiles_m, tl.program_id(0) // tiles_m
    i_j = i_m.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_j = i_j < m
    i_column = i_c.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    i_p, i_k, m_k = student_nodes(first_tile, i_column, students, n, STUDENTS, FLAT)
    m_k = m_k & (i_column < width)
    o_k = i_p * n + i_k
    nodes = students * n + tl.zeros([1], tl.int64)  # so that P * n does not overflow
    o_cross = (i_p * s_scatter_student + i_k)[None, :] + i_j[:, None] * s_scatter_row
    m_cross = m_j[:, None] & m_k[None, :]
    m_t, m_s = m_j & (i_c + first_tile == 0), m_k & (i_m == 0)  # one program for each teacher node, each student node

    b_cross = tl.zeros([ROWS, COLUMNS], tl.float64)
    b_co = tl.zeros([ROWS, COLUMNS], tl.int64)
    b_t1, b_t2, b_ta = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.int64)
    b_s1, b_s2 = tl.zeros([COLUMNS], tl.float64), tl.zeros([COLUMNS], tl.float64)
    b_sa = tl.zeros([COLUMNS], tl.int64)
    if FIRST:
        b_tc = tl.load(p_teacher + i_j, mask=m_j, other=0.0).to(tl.float64)
        b_sc = tl.load(p_student + i_column, mask=m_k, other=0.0).to(tl.float64)
    else:
        b_tc, b_t1 = tl.load(p_t_before + i_j, mask=m_j, other=0.0), tl.load(p_t_before + m + i_j, mask=m_j, other=0.0)
        b_sc = tl.load(p_s_before + o_k, mask=m_k, other=0.0)
        b_s1 = tl.load(p_s_before + nodes + o_k, mask=m_k, other=0.0)
        b_cross = tl.load(p_scatter + o_cross, mask=m_cross, other=0.0)
        b_t2, b_s2 = tl.load(p_scatter_t + i_j, mask=m_t, other=0.0), tl.load(p_scatter_s + o_k, mask=m_s, other=0.0)
        b_ta, b_sa = tl.load(p_active_t + i_j, mask=m_t, other=0), tl.load(p_active_s + o_k, mask=m_s, other=0)
        if p_co is not None:
            b_co = tl.load(p_co + o_cross, mask=m_cross, other=0)

    for i in range(0, spans):
        i_span = i + tl.zeros([1], tl.int64)
        rows = tl.minimum(samples - (first_span + i_span) * span, span).to(tl.float64)
        p_t, p_s = p_teacher + (i_span * 4 * m + i_j), p_student + (i_span * 4 * width + i_column)
        b_a = tl.load(p_t + m, mask=m_j, other=0.0).to(tl.float64) - b_tc
        b_b = tl.load(p_s + width, mask=m_k, other=0.0).to(tl.float64) - b_sc
        b_t = tl.load(p_t + 2 * m, mask=m_j, other=0.0).to(tl.float64)
        b_s = tl.load(p_s + 2 * width, mask=m_k, other=0.0).to(tl.float64)
        b_tt = tl.load(p_t + 3 * m, mask=m_j, other=0.0).to(tl.float64)
        b_ss = tl.load(p_s + 3 * width, mask=m_k, other=0.0).to(tl.float64)
        o_span = (i_span * m + i_j)[:, None] * width + i_column[None, :]
        b_ts = tl.load(p_cross + o_span, mask=m_cross, other=0.0).to(tl.float64)
        b_cross += b_ts + b_a[:, None] * (b_s + rows * b_b)[None, :] + b_t[:, None] * b_b[None, :]
        b_t2 += b_tt + b_a * (2 * b_t + rows * b_a)
        b_s2 += b_ss + b_b * (2 * b_s + rows * b_b)
        b_t1 += b_t + rows * b_a
        b_s1 += b_s + rows * b_b
        b_ta += tl.load(p_teacher_active + (i_span * m + i_j), mask=m_j, other=0).to(tl.int64)
        b_sa += tl.load(p_student_active + (i_span * width + i_column), mask=m_k, other=0).to(tl.int64)
        if p_co is not None:
            b_co += tl.load(p_coactive + o_span, mask=m_cross, other=0).to(tl.int64)

    if LAST:
        count = total + tl.zeros([1], tl.float64)
        b_cross -= b_t1[:, None] * b_s1[None, :] / count
        b_t2 -= b_t1 * b_t1 / count
        b_s2 -= b_s1 * b_s1 / count
        tl.store(p_mean_t + i_j, b_tc + b_t1 / count, mask=m_t)
        tl.store(p_mean_s + o_k, b_sc + b_s1 / count, mask=m_s)
    else:
        tl.store(p_t_after + i_j, b_tc, mask=m_t)
        tl.store(p_t_after + m + i_j, b_t1, mask=m_t)
        tl.store(p_s_after + o_k, b_sc, mask=m_s)
        tl.store(p_s_after + nodes + o_k, b_s1, mask=m_s)
    tl.store(p_scatter + o_cross, b_cross, mask=m_cross)
    tl.store(p_scatter_t + i_j, b_t2, mask=m_t)
    tl.store(p_scatter_s + o_k, b_s2, mask=m_s)
    tl.store(p_active_t + i_j, b_ta, mask=m_t)
    tl.store(p_active_s + o_k, b_sa, mask=m_s)
    if p_co is not None:
        tl.store(p_co + o_cross, b_co, mask=m_cross)
