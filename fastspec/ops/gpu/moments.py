"""The one-pass kernel of `cross_moments` and `layer_moments`: sums of products of shifted activations, span by span.

Every program takes a tile of teacher nodes, a tile of student nodes and a span of samples, makes (or reads) both
activations block by block, and keeps its tile of the cross product in registers. A span's sums are about provisional
means of its own; `merge` puts spans together in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastspec.ops.gpu.tiles import activations, product, provisional_mean


@triton.jit
def student_nodes(first_tile, i_column, students, n, NODES: tl.constexpr, FLAT: tl.constexpr):
    """Student, node and validity of columns that start at a tile: of all students side by side if FLAT, else each
    student's in tiles of its own."""
    i_column = i_column.to(tl.int64) + first_tile * NODES
    if FLAT:
        i_student, i_node = i_column // n, i_column % n
    else:
        tiles = tl.cdiv(n, NODES)
        i_tile = i_column // NODES
        i_student, i_node = i_tile // tiles, (i_tile % tiles) * NODES + i_column % NODES
    return i_student, i_node, (i_student < students) & (i_node < n)


@triton.jit
def moments_kernel(
    p_tx,  # layered: input [N, d_t]; else activations [N, m, *space]
    p_tw,  # [m, d_t]; None: not layered
    p_tb,  # [m] or None
    p_sx,  # layered: input [N, d_s] or [P, N, d_s]; else activations [P, N, n, *space]
    p_sw,  # [P, n, d_s]
    p_sb,  # [P, n] or None
    p_cross,  # out [spans, m, width]
    p_coactive,  # out [spans, m, width] int32, or None
    p_teacher,  # out [spans, 4, m]: first, shift, sum, sum of squares
    p_student,  # out [spans, 4, width]
    p_teacher_active,  # out [spans, m] int32
    p_student_active,  # out [spans, width] int32
    p_ta,  # out activations [N, m], contiguous, or None
    p_sa,  # out activations [P, N, n], contiguous
    samples,
    m,
    n,
    students,
    d_t,
    d_s,
    s_tx_row,
    s_tx_column,
    s_tw_node,
    s_tw_input,
    s_tb_node,
    s_sx_student,
    s_sx_row,
    s_sx_column,
    s_sw_student,
    s_sw_node,
    s_sw_input,
    s_sb_student,
    s_sb_node,
    size1,
    size2,
    size3,
    s_tx_1,
    s_tx_2,
    s_tx_3,
    s_sx_1,
    s_sx_2,
    s_sx_3,
    first_span,
    first_tile,
    width,
    span,
    slope: tl.float64,
    SPACE: tl.constexpr,
    FLAT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    TEACHERS: tl.constexpr,
    STUDENTS: tl.constexpr,
    INPUTS: tl.constexpr,
    INDEX: tl.constexpr,  # of offsets within a tile
    GRAIN: tl.constexpr,  # the unit of d_t, d_s and of the strides of samples, nodes and students
    NODE_GRAIN: tl.constexpr,  # the unit of m and n
):
    SUM: tl.constexpr = tl.float64 if PRECISION == "fp64" else tl.float32
    if GRAIN > 1:  # a multiple of a constant lets the compiler load whole vectors; it may not fit 32 bits
        s_tx_row, s_tw_node = tl.cast(s_tx_row, INDEX) * GRAIN, tl.cast(s_tw_node, INDEX) * GRAIN
        s_sx_row, s_sw_node = tl.cast(s_sx_row, INDEX) * GRAIN, tl.cast(s_sw_node, INDEX) * GRAIN
        s_sx_student, s_sw_student = tl.cast(s_sx_student, tl.int64) * GRAIN, tl.cast(s_sw_student, tl.int64) * GRAIN
    m, n = m * NODE_GRAIN, n * NODE_GRAIN
    tiles_m = tl.cdiv(m, TEACHERS)
    i_m, i_s, i_span = tl.program_id(0) % tiles_m, tl.program_id(0) // tiles_m, tl.program_id(1).to(tl.int64)
    i_j = i_m * TEACHERS + tl.arange(0, TEACHERS)  # teacher nodes
    m_j = i_j // NODE_GRAIN < m // NODE_GRAIN
    i_column = i_s * STUDENTS + tl.arange(0, STUDENTS)
    i_p, i_k, m_k = student_nodes(first_tile, i_column, students, n, STUDENTS, FLAT)
    b_tb, b_sb = tl.zeros([TEACHERS], SUM), tl.zeros([STUDENTS], SUM)
    if p_tb is not None:
        b_tb = tl.load(p_tb + i_j.to(tl.int64) * s_tb_node, mask=m_j, other=0.0).to(SUM)
    if p_sb is not None:
        b_sb = tl.load(p_sb + (i_p * s_sb_student + i_k * s_sb_node), mask=m_k, other=0.0).to(SUM)
    if p_tw is not None:
        o_j, o_k = i_j.to(INDEX) * s_tw_node, (i_p * s_sw_student + i_k * s_sw_node).to(INDEX)
        if not FLAT:
            p_sx += tl.max(i_p, 0) * s_sx_student
    else:
        o_j, o_k = i_j.to(INDEX) * s_tx_column, (i_p * s_sx_student + i_k * s_sx_column).to(INDEX)

    start = (first_span + i_span) * span
    rows = tl.minimum(samples - start, span).to(tl.int32)
    m_row = tl.arange(0, ROWS) < rows
    b_t = activations(
        p_tx, start, m_row, s_tx_row, s_tx_column, size1, size2, size3, s_tx_1, s_tx_2, s_tx_3,
        p_tw, o_j, m_j, s_tw_input, b_tb, d_t, slope, SPACE, ROWS, TEACHERS, INPUTS, PRECISION, INDEX, GRAIN,
    )  # fmt: skip
    b_s = activations(
        p_sx, start, m_row, s_sx_row, s_sx_column, size1, size2, size3, s_sx_1, s_sx_2, s_sx_3,
        p_sw, o_k, m_k, s_sw_input, b_sb, d_s, slope, SPACE, ROWS, STUDENTS, INPUTS, PRECISION, INDEX, GRAIN,
    )  # fmt: skip
    b_t_first, b_t_shift = provisional_mean(b_t, m_row, tl.minimum(rows, ROWS))
    b_s_first, b_s_shift = provisional_mean(b_s, m_row, tl.minimum(rows, ROWS))

    b_t_sum, b_t_square = tl.zeros([TEACHERS], SUM), tl.zeros([TEACHERS], SUM)
    b_s_sum, b_s_square = tl.zeros([STUDENTS], SUM), tl.zeros([STUDENTS], SUM)
    b_t_active, b_s_active = tl.zeros([TEACHERS], tl.int32), tl.zeros([STUDENTS], tl.int32)
    b_cross = tl.zeros([TEACHERS, STUDENTS], SUM)
    if p_coactive is not None:
        b_coactive = tl.zeros([TEACHERS, STUDENTS], tl.float32)
    for i_block in range(0, tl.cdiv(rows, ROWS)):
        first = start + i_block * ROWS
        m_row = tl.arange(0, ROWS) < rows - i_block * ROWS
        b_t = activations(
            p_tx, first, m_row, s_tx_row, s_tx_column, size1, size2, size3, s_tx_1, s_tx_2, s_tx_3,
            p_tw, o_j, m_j, s_tw_input, b_tb, d_t, slope, SPACE, ROWS, TEACHERS, INPUTS, PRECISION, INDEX, GRAIN,
        )  # fmt: skip
        b_s = activations(
            p_sx, first, m_row, s_sx_row, s_sx_column, size1, size2, size3, s_sx_1, s_sx_2, s_sx_3,
            p_sw, o_k, m_k, s_sw_input, b_sb, d_s, slope, SPACE, ROWS, STUDENTS, INPUTS, PRECISION, INDEX, GRAIN,
        )  # fmt: skip
        if p_ta is not None:
            o_row = tl.arange(0, ROWS).to(INDEX)[None, :]
            if i_s + first_tile == 0:
                o_t = o_row * m + i_j[:, None]
                tl.store(p_ta + first * m + o_t, b_t.to(p_ta.dtype.element_ty), mask=m_row[None, :] & m_j[:, None])
            if i_m == 0:
                o_s = o_row * n + (i_p * samples * n + i_k).to(INDEX)[:, None]
                tl.store(p_sa + first * n + o_s, b_s.to(p_sa.dtype.element_ty), mask=m_row[None, :] & m_k[:, None])
        b_t_on, b_s_on = (b_t > 0) & m_row[None, :], (b_s > 0) & m_row[None, :]
        b_t = tl.where(m_row[None, :], b_t - b_t_shift[:, None], 0.0)
        b_s = tl.where(m_row[None, :], b_s - b_s_shift[:, None], 0.0)
        if i_s == 0:
            b_t_sum += tl.sum(b_t, 1)
            b_t_square += tl.sum(b_t * b_t, 1)
            b_t_active += tl.sum(b_t_on.to(tl.int32), 1)
        if i_m == 0:
            b_s_sum += tl.sum(b_s, 1)
            b_s_square += tl.sum(b_s * b_s, 1)
            b_s_active += tl.sum(b_s_on.to(tl.int32), 1)
        b_cross = product(b_t, tl.trans(b_s), b_cross, PRECISION)
        if p_coactive is not None:
            b_coactive = tl.dot(b_t_on.to(tl.float16), tl.trans(b_s_on.to(tl.float16)), b_coactive)

    o_cross = i_j[:, None] * width + i_column[None, :]
    m_cross = m_j[:, None] & m_k[None, :]
    tl.store(p_cross + i_span * m * width + o_cross, b_cross, mask=m_cross)
    if p_coactive is not None:
        tl.store(p_coactive + i_span * m * width + o_cross, b_coactive.to(tl.int32), mask=m_cross)
    if i_s == 0:
        p_of_teacher = p_teacher + (i_span * 4 * m + i_j)
        tl.store(p_of_teacher, b_t_first, mask=m_j)
        tl.store(p_of_teacher + m, b_t_shift, mask=m_j)
        tl.store(p_of_teacher + 2 * m, b_t_sum, mask=m_j)
        tl.store(p_of_teacher + 3 * m, b_t_square, mask=m_j)
        tl.store(p_teacher_active + i_span * m + i_j, b_t_active, mask=m_j)
    if i_m == 0:
        p_of_student = p_student + (i_span * 4 * width + i_column)
        tl.store(p_of_student, b_s_first, mask=m_k)
        tl.store(p_of_student + width, b_s_shift, mask=m_k)
        tl.store(p_of_student + 2 * width, b_s_sum, mask=m_k)
        tl.store(p_of_student + 3 * width, b_s_square, mask=m_k)
        tl.store(p_student_active + i_span * width + i_column, b_s_active, mask=m_k)
