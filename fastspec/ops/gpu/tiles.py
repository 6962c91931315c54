"""Pieces of kernels: products at a precision, rows of strided arrays, tiles of activations, provisional means.

Prefixes: `p_` pointer, `b_` block of values, `o_` offsets, `m_` mask, `i_` index.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nearest_tf32(b_a):
    """The nearest value of tf32; the matrix units by themselves truncate, which shrinks every product."""
    b_near = ((b_a.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(b_a == b_a, b_near, b_a)  # NaN stays NaN


@triton.jit
def product(b_a, b_b, b_sum, PRECISION: tl.constexpr):
    """b_sum [M, N] + b_a [M, K] @ b_b [K, N]."""
    if PRECISION == "fp64":
        b_sum = tl.dot(b_a.to(tl.float64), b_b.to(tl.float64), b_sum, input_precision="ieee", out_dtype=tl.float64)
    elif PRECISION == "bf16":
        b_sum = tl.dot(b_a.to(tl.bfloat16), b_b.to(tl.bfloat16), b_sum)
    elif PRECISION == "fp32":
        b_sum = tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_sum, input_precision="ieee")
    elif PRECISION == "tf32":
        b_a, b_b = nearest_tf32(b_a.to(tl.float32)), nearest_tf32(b_b.to(tl.float32))
        b_sum = tl.dot(b_a, b_b, b_sum, input_precision="tf32")
    else:
        b_sum = tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_sum, input_precision=PRECISION)
    return b_sum


@triton.jit
def activations(
    p_x,  # input [N, d] if p_w is there, else activations [N, nodes, *space]
    first_row,  # int64
    m_row,  # [ROWS]
    s_row,
    s_x,
    size1,
    size2,
    size3,
    s_1,
    s_2,
    s_3,
    p_w,  # [nodes, d] or None
    o_node,  # [NODES] offsets into w, or into x without w
    m_node,
    s_w,
    b_bias,  # [NODES]
    inputs,
    slope,
    SPACE: tl.constexpr,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    GRAIN: tl.constexpr,
):
    """Activations [NODES, ROWS] of rows from first_row on: linear + bias + (leaky) ReLU, or read from x.

    The gate is off at 0, and NaN passes it. With SPACE, a row is a sample and a position in [size1, size2, size3].
    Offsets within the tile are of type INDEX. inputs is in units of GRAIN.
    """
    SUM: tl.constexpr = tl.float64 if PRECISION == "fp64" else tl.float32
    if SPACE:
        i_row = first_row.to(INDEX) + tl.arange(0, ROWS)
        i_3, i_row = i_row % size3, i_row // size3
        i_2, i_row = i_row % size2, i_row // size2
        i_1, i_row = i_row % size1, i_row // size1
        o_row = i_row * s_row + i_1 * s_1 + i_2 * s_2 + i_3 * s_3
        p_rows = p_x
    else:
        o_row = tl.arange(0, ROWS).to(INDEX) * s_row
        p_rows = p_x + first_row * s_row
    if p_w is not None:
        b_z = tl.zeros([NODES, ROWS], SUM)
        for k in range(0, inputs * GRAIN, INPUTS):
            i_k = k + tl.arange(0, INPUTS)
            m_k = i_k // GRAIN < inputs
            o_x, o_w = i_k.to(INDEX) * s_x, i_k.to(INDEX) * s_w
            b_w = tl.load(p_w + (o_node[:, None] + o_w[None, :]), mask=m_node[:, None] & m_k[None, :], other=0.0)
            b_x = tl.load(p_rows + (o_row[None, :] + o_x[:, None]), mask=m_row[None, :] & m_k[:, None], other=0.0)
            b_z = product(b_w, b_x, b_z, PRECISION)
        b_z += b_bias[:, None]
        b_a = tl.where(b_z > 0, b_z, tl.cast(slope, SUM) * b_z)
    else:
        b_a = tl.load(p_rows + (o_row[None, :] + o_node[:, None]), mask=m_row[None, :] & m_node[:, None], other=0.0)
        b_a = b_a.to(SUM)
    return b_a


@triton.jit
def provisional_mean(b_a, m_row, count):
    """The first row of a block [nodes, rows], and its mean rounded to a power of two near the standard deviation.

    So a shift has few bits: small integers stay on a coarse grid, on which sums of products are exact, and what is left
    of a closed gate, the negative shift, is exact in any precision. A constant node's shift is its value.
    """
    i_row = tl.arange(0, b_a.shape[1])
    b_first = tl.sum(tl.where((i_row == 0)[None, :], b_a, 0.0), 1)
    b_from = tl.where(m_row[None, :], b_a - b_first[:, None], 0.0)
    b_mean = tl.sum(b_from, 1) / count
    b_rest = tl.where(m_row[None, :], b_from - b_mean[:, None], 0.0)
    b_deviation = tl.sqrt(tl.sum(b_rest * b_rest, 1) / count).to(tl.float32)
    b_grid = (b_deviation.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    m_grid = (b_grid > 0) & (b_grid < float("inf"))
    b_scale = tl.where(m_grid, b_grid, 1.0).to(b_mean.dtype)
    b_mean += b_first
    return b_first, tl.where(m_grid, tl.floor(b_mean / b_scale + 0.5) * b_scale, b_mean)
