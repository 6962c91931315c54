"""Statistics of activations that a vendor's product takes: gated and centred in place, span by span."""

from __future__ import annotations

import triton
import triton.language as tl

from fastspec.ops.gpu.tiles import provisional_mean


@triton.jit
def gated(p_block, m_a, slope):
    """Activations [nodes, rows] of the pre-activations of a block; the gate is off at 0, and NaN passes it."""
    b_z = tl.load(p_block, mask=m_a, other=0.0)
    return tl.where(b_z > 0, b_z, tl.cast(slope, b_z.dtype) * b_z)


@triton.jit(do_not_specialize=["rows", "students", "n", "each", "s_kept_student", "s_kept_row"])
def centre_kernel(
    p_a,  # [spans * span, nodes]: pre-activations, then activations - shift of the span; 0 in rows that are not there
    p_sums,  # out [spans, 4, nodes]: first, shift, sum, sum of squares
    p_active,  # out [spans, nodes] int32
    p_kept,  # out [students, rows, n], nodes side by side: the activations; or None
    rows,
    nodes,
    span,
    slope: tl.float64,
    students,
    n,
    each,  # student k has the columns from k * each on, the first n of them its nodes
    s_kept_student,
    s_kept_row,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
):
    SUM: tl.constexpr = p_a.dtype.element_ty
    i_span = tl.program_id(1).to(tl.int64)
    i_k = tl.program_id(0).to(tl.int64) * NODES + tl.arange(0, NODES)
    m_k = i_k < nodes
    start = i_span * span
    here = tl.minimum(rows - start, span).to(tl.int32)
    i_row = tl.arange(0, ROWS)
    o_row = i_row.to(tl.int64) * nodes
    m_row = i_row < here
    p_block = p_a + (start * nodes + o_row[None, :] + i_k[:, None])
    b_a = gated(p_block, m_row[None, :] & m_k[:, None], slope)
    b_first, b_shift = provisional_mean(b_a, m_row, tl.minimum(here, ROWS))
    if p_kept is not None:
        m_kept = (i_k // each < students) & (i_k % each < n)
        o_kept = i_k // each * s_kept_student + i_k % each
        p_kept += o_kept[:, None] + ((start + i_row) * s_kept_row)[None, :]
    b_sum, b_square, b_active = tl.zeros([NODES], SUM), tl.zeros([NODES], SUM), tl.zeros([NODES], tl.int32)
    for i_block in range(0, tl.cdiv(span, ROWS)):
        m_row = i_row < here - i_block * ROWS
        m_a = m_row[None, :] & m_k[:, None]
        b_a = gated(p_block, m_a, slope)
        b_active += tl.sum(((b_a > 0) & m_a).to(tl.int32), 1)
        if p_kept is not None:
            tl.store(p_kept, b_a.to(p_kept.dtype.element_ty), mask=m_row[None, :] & m_kept[:, None])
            p_kept += ROWS * s_kept_row
        b_a = tl.where(m_row[None, :], b_a - b_shift[:, None], 0.0)
        tl.store(p_block, b_a, mask=(i_row < span - i_block * ROWS)[None, :] & m_k[:, None])
        b_sum += tl.sum(b_a, 1)
        b_square += tl.sum(b_a * b_a, 1)
        p_block += ROWS * nodes
    p_of_span = p_sums + (i_span * 4 * nodes + i_k)
    tl.store(p_of_span, b_first, mask=m_k)
    tl.store(p_of_span + nodes, b_shift, mask=m_k)
    tl.store(p_of_span + 2 * nodes, b_sum, mask=m_k)
    tl.store(p_of_span + 3 * nodes, b_square, mask=m_k)
    tl.store(p_active + i_span * nodes + i_k, b_active, mask=m_k)
