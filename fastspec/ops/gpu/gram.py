"""Kernel of `backward_gram`: products of two factors over samples and rows, gated and not, in one read of both."""

from __future__ import annotations

import triton
import triton.language as tl

from fastspec.ops.gpu.tiles import product


@triton.jit
def gram_kernel(
    p_t,  # [N, R, m] or [P, N, R, m]
    p_tg,  # gates [N, m] or [P, N, m], or None
    p_s,  # [P, N, R, n]
    p_sg,  # [P, N, n] or None
    p_beta,  # out [spans, P, m, n], contiguous, or None: products of a span's rows
    p_h,  # the same of gated factors, or None
    first,  # row of the first span; rows are counted through all samples
    rows,  # N R
    each,  # R
    span,  # a multiple of ROWS
    m,
    n,
    students,
    s_t_student,
    s_t_sample,
    s_t_row,
    s_t_node,
    s_tg_student,
    s_tg_sample,
    s_tg_node,
    s_s_student,
    s_s_sample,
    s_s_row,
    s_s_node,
    s_sg_student,
    s_sg_sample,
    s_sg_node,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    TEACHERS: tl.constexpr,
    STUDENTS: tl.constexpr,
):
    SUM: tl.constexpr = tl.float64 if PRECISION == "fp64" else tl.float32
    tiles = tl.cdiv(n, STUDENTS)
    i_p, i_span = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_t = (tl.program_id(0) // tiles).to(tl.int64) * TEACHERS + tl.arange(0, TEACHERS)
    i_s = (tl.program_id(0) % tiles).to(tl.int64) * STUDENTS + tl.arange(0, STUDENTS)
    m_t, m_s = i_t < m, i_s < n
    p_t += i_p * s_t_student + i_t[:, None] * s_t_node
    p_s += i_p * s_s_student + i_s[None, :] * s_s_node
    b_beta = tl.zeros([TEACHERS, STUDENTS], SUM)
    b_h = tl.zeros([TEACHERS, STUDENTS], SUM)
    start = first + i_span * span
    for k in range(0, tl.minimum(span, rows - start), ROWS):
        i_row = start + k + tl.arange(0, ROWS)
        m_row = i_row < rows
        i_x = i_row // each
        i_r = i_row - i_x * each
        m_tr, m_rs = m_t[:, None] & m_row[None, :], m_row[:, None] & m_s[None, :]
        b_t = tl.load(p_t + (i_x * s_t_sample + i_r * s_t_row)[None, :], mask=m_tr, other=0.0).to(SUM)
        b_s = tl.load(p_s + (i_x * s_s_sample + i_r * s_s_row)[:, None], mask=m_rs, other=0.0).to(SUM)
        if p_beta is not None:
            b_beta = product(b_t, b_s, b_beta, PRECISION)
        if p_h is not None:
            o_tg = i_p * s_tg_student + i_t[:, None] * s_tg_node + (i_x * s_tg_sample)[None, :]
            o_sg = i_p * s_sg_student + i_s[None, :] * s_sg_node + (i_x * s_sg_sample)[:, None]
            b_tg = tl.load(p_tg + o_tg, mask=m_tr, other=0.0).to(SUM)
            b_sg = tl.load(p_sg + o_sg, mask=m_rs, other=0.0).to(SUM)
            b_h = product(b_t * b_tg, b_s * b_sg, b_h, PRECISION)
    o_out = ((i_span * students + i_p) * m + i_t[:, None]) * n + i_s[None, :]
    m_out = m_t[:, None] & m_s[None, :]
    if p_beta is not None:
        tl.store(p_beta + o_out, b_beta, mask=m_out)
    if p_h is not None:
        tl.store(p_h + o_out, b_h, mask=m_out)
