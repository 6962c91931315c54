"""Statistics of activations that a vendor's product takes: centred in place, span by span."""

from __future__ import annotations

import triton
import triton.language as tl

from fastspec.ops.gpu.tiles import provisional_mean


@triton.jit
def centre_kernel(
    p_a,  # [rows, nodes], contiguous: activations, then activation - shift of the row's span
    p_sums,  # out [spans, 4, nodes]: first, shift, sum, sum of squares
    p_active,  # out [spans, nodes] int32
    rows,
    nodes,
    span,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
):
    SUM: tl.constexpr = p_a.dtype.element_ty
    i_span = tl.program_id(1).to(tl.int64)
    i_k = tl.program_id(0).to(tl.int64) * NODES + tl.arange(0, NODES)
    m_k = i_k < nodes
    start = i_span * span
    here = tl.minimum(rows - start, span).to(tl.int32)
    o_row = tl.arange(0, ROWS).to(tl.int64) * nodes
    m_row = tl.arange(0, ROWS) < here
    p_block = p_a + (start * nodes + o_row[None, :] + i_k[:, None])
    b_a = tl.load(p_block, mask=m_row[None, :] & m_k[:, None], other=0.0)
    b_first, b_shift = provisional_mean(b_a, m_row, tl.minimum(here, ROWS))
    b_sum, b_square, b_active = tl.zeros([NODES], SUM), tl.zeros([NODES], SUM), tl.zeros([NODES], tl.int32)
    for i_block in range(0, tl.cdiv(here, ROWS)):
        m_row = tl.arange(0, ROWS) < here - i_block * ROWS
        m_a = m_row[None, :] & m_k[:, None]
        b_a = tl.load(p_block, mask=m_a, other=0.0)
        b_active += tl.sum(((b_a > 0) & m_a).to(tl.int32), 1)
        b_a = tl.where(m_row[None, :], b_a - b_shift[:, None], 0.0)
        tl.store(p_block, b_a, mask=m_a)
        b_sum += tl.sum(b_a, 1)
        b_square += tl.sum(b_a * b_a, 1)
        p_block += ROWS * nodes
    p_of_span = p_sums + (i_span * 4 * nodes + i_k)
    tl.store(p_of_span, b_first, mask=m_k)
    tl.store(p_of_span + nodes, b_shift, mask=m_k)
    tl.store(p_of_span + 2 * nodes, b_sum, mask=m_k)
    tl.store(p_of_span + 3 * nodes, b_square, mask=m_k)
    tl.store(p_active + i_span * nodes + i_k, b_active, mask=m_k)
