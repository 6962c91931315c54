"""Kernels of `linear_relu`: the layer with gates and sums in its epilogue, and the sums' end."""

from __future__ import annotations

import triton
import triton.language as tl

from fastspec.ops.gpu.tiles import activations


@triton.jit
def linear_relu_kernel(
    p_x,  # [N, d] or [P, N, d]
    p_w,  # [P, n, d]
    p_b,  # [P, n] or None
    p_a,  # out [P, N, n], contiguous
    p_gates,  # out [P, N, bytes] uint8, contiguous, or None: bit k % 8 of byte k // 8 is the gate of node k
    p_sums,  # out [row blocks, P, n]: activations summed over a block's rows, or None with p_gates
    p_active,  # out [row blocks, P, n] int32
    samples,
    n,
    d,
    students,
    s_x_student,
    s_x_row,
    s_x_column,
    s_w_student,
    s_w_node,
    s_w_input,
    s_b_student,
    s_b_node,
    slope: tl.float64,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    INPUTS: tl.constexpr,
    INDEX: tl.constexpr,  # of offsets within a tile
    GRAIN: tl.constexpr,  # the unit of d and of the strides of samples and nodes
):
    SUM: tl.constexpr = tl.float64 if PRECISION == "fp64" else tl.float32
    tiles = tl.cdiv(n, NODES)
    i_p, i_tile, i_block = tl.program_id(1).to(tl.int64), tl.program_id(0) % tiles, tl.program_id(0) // tiles
    first = i_block.to(tl.int64) * ROWS
    i_row = first + tl.arange(0, ROWS)
    i_k = i_tile.to(tl.int64) * NODES + tl.arange(0, NODES)
    m_row, m_k = i_row < samples, i_k < n
    s_x_row, s_w_node = tl.cast(s_x_row, INDEX) * GRAIN, tl.cast(s_w_node, INDEX) * GRAIN
    b_bias = tl.zeros([NODES], SUM)
    if p_b is not None:
        b_bias = tl.load(p_b + (i_p * s_b_student + i_k * s_b_node), mask=m_k, other=0.0).to(SUM)
    b_a = activations(
        p_x + i_p * s_x_student, first, m_row, s_x_row, s_x_column, 1, 1, 1, 0, 0, 0,
        p_w + i_p * s_w_student, i_k.to(INDEX) * s_w_node, m_k, s_w_input, b_bias, d, slope,
        False, ROWS, NODES, INPUTS, PRECISION, INDEX, GRAIN,
    )  # fmt: skip
    m_a = m_row[None, :] & m_k[:, None]
    p_out = p_a + ((i_p * samples + i_row) * n)[None, :] + i_k[:, None]
    tl.store(p_out, b_a.to(p_a.dtype.element_ty), mask=m_a)
    if p_gates is not None:
        b_on = (b_a > 0) & m_a
        b_bits = tl.reshape(b_on.to(tl.int32), [NODES // 8, 8, ROWS]) << tl.arange(0, 8)[None, :, None]
        i_byte = i_tile.to(tl.int64) * (NODES // 8) + tl.arange(0, NODES // 8)
        size = tl.cdiv(n, 8)
        p_byte = p_gates + ((i_p * samples + i_row) * size)[None, :] + i_byte[:, None]
        tl.store(p_byte, tl.sum(b_bits, 1).to(tl.uint8), mask=m_row[None, :] & (i_byte < size)[:, None])
        o_sum = (i_block.to(tl.int64) * students + i_p) * n + i_k
        tl.store(p_sums + o_sum, tl.sum(tl.where(m_row[None, :], b_a, 0.0), 1), mask=m_k)
        tl.store(p_active + o_sum, tl.sum(b_on.to(tl.int32), 1), mask=m_k)


@triton.jit
def sum_blocks_kernel(p_sums, p_active, p_sum, p_count, blocks, columns, COLUMNS: tl.constexpr):
    """[blocks, columns] -> [columns] in float64 and int64, in the blocks' order; counts may be None."""
    i_c = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    m_c = i_c < columns
    b_sum, b_count = tl.zeros([COLUMNS], tl.float64), tl.zeros([COLUMNS], tl.int64)
    for i in range(0, blocks):
        o_c = i_c + (i + tl.zeros([1], tl.int64)) * columns
        b_sum += tl.load(p_sums + o_c, mask=m_c, other=0.0).to(tl.float64)
        if p_active is not None:
            b_count += tl.load(p_active + o_c, mask=m_c, other=0).to(tl.int64)
    tl.store(p_sum + i_c, b_sum, mask=m_c)
    if p_active is not None:
        tl.store(p_count + i_c, b_count, mask=m_c)
