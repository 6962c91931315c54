"""Operands of the products of `fastspec.ops.gpu.mlp_matrix`: how they are rounded and written, and what makes them.

Prefixes as there; a matrix `across` is the same transposed.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def operand(b_a, PRECISION: tl.constexpr):
    """Values of float32 as products take them, ties to even."""
    if PRECISION == "bf16":
        return b_a.to(tl.bfloat16)
    elif PRECISION == "tf32":
        b_bits = b_a.to(tl.int32, bitcast=True)
        b_near = ((b_bits + 0xFFF + ((b_bits >> 13) & 1)) & -0x2000).to(tl.float32, bitcast=True)
        return tl.where(b_a == b_a, b_near, b_a)  # NaN stays NaN
    else:
        return b_a


@triton.jit
def write(p_out, p_across, b_a, i_row, i_node, rows, width):
    """A tile of [rows, width], and of what lies across."""
    if p_out is not None:
        tl.store(p_out + (i_row.to(tl.int64) * width)[:, None] + i_node[None, :], b_a)
    if p_across is not None:
        tl.store(p_across + (i_node.to(tl.int64) * rows)[None, :] + i_row[:, None], b_a)


@triton.jit(do_not_specialize=["batch", "outputs", "shared"])
def labels_kernel(
    p_z,  # outputs [P, rows, width] float32
    p_y,  # labels [P or 1, rows] int64
    p_out,  # out [P, rows, width], gradients with respect to the outputs
    p_across,  # out [P, width, rows], or None
    p_sums,  # out [P, rows / ROWS, width], or None
    p_loss,  # out [P, rows / ROWS] float64
    p_diverged,  # [P] int64
    rows,
    width,
    batch,
    outputs,  # the true width
    shared,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    SOME: tl.constexpr,  # rows at a time
    WIDTH: tl.constexpr,  # a power of two
):
    """Cross-entropy of some rows, and its gradient."""
    i_p, i_m = (tl.program_id(0) // (rows // ROWS)).to(tl.int64), tl.program_id(0) % (rows // ROWS)
    if tl.load(p_diverged + i_p) >= 0:
        return
    here = i_p * rows * width
    p_y += i_p * (1 - shared) * rows
    if p_across is not None:
        p_across += here
    i_c = tl.arange(0, WIDTH)
    m_true, m_c = (i_c < outputs)[None, :], i_c < width
    b_sums, b_total = tl.zeros([WIDTH], tl.float32), tl.zeros([SOME], tl.float64)
    for first in range(i_m * ROWS, i_m * ROWS + ROWS, SOME):
        i_row = first + tl.arange(0, SOME)
        m_row = i_row < batch
        m_tile = m_row[:, None] & m_c[None, :]
        o_tile = (i_row.to(tl.int64) * width)[:, None] + i_c[None, :]
        b_label = tl.load(p_y + i_row, mask=m_row, other=0)
        b_z = tl.where(m_true, tl.load(p_z + here + o_tile, mask=m_tile, other=0.0), float("-inf"))
        b_z -= tl.max(b_z, 1)[:, None]
        b_e = tl.exp(b_z)
        b_sum = tl.sum(b_e, 1)
        m_label = i_c[None, :] == b_label[:, None]
        b_g = operand(tl.where(m_true & m_row[:, None], b_e / b_sum[:, None] - m_label.to(tl.float32), 0.0), PRECISION)
        b_loss = tl.log(b_sum) - tl.sum(tl.where(m_label, b_z, 0.0), 1)
        b_total += tl.where(m_row, b_loss.to(tl.float64), 0.0)
        b_sums += tl.sum(b_g.to(tl.float32), 0)
        tl.store(p_out + here + o_tile, b_g, mask=m_c[None, :])
        if p_across is not None:
            tl.store(p_across + (i_c.to(tl.int64) * rows)[None, :] + i_row[:, None], b_g, mask=m_c[None, :])
    if p_sums is not None:
        tl.store(p_sums + (i_p * (rows // ROWS) + i_m) * width + i_c, b_sums, mask=m_c)
    tl.store(p_loss + i_p * (rows // ROWS) + i_m, tl.sum(b_total, 0))


@triton.jit(do_not_specialize=["batch", "parts"])
def stop_kernel(p_parts, p_loss, p_diverged, p_step, batch, parts, limit: tl.float64, BLOCK: tl.constexpr):
    """The loss [P] float64 of a batch from its parts [P, parts], in their order, and whether a student stops here."""
    i_p = tl.program_id(0).to(tl.int64)
    if tl.load(p_diverged + i_p) >= 0:
        tl.store(p_loss + i_p, float("nan"))
        return
    b_sum = tl.zeros([BLOCK], tl.float64)
    for first in range(0, parts, BLOCK):
        i = first + tl.arange(0, BLOCK)
        b_sum += tl.load(p_parts + i_p * parts + i, mask=i < parts, other=0.0)
    loss = tl.sum(b_sum, 0) / batch
    tl.store(p_loss + i_p, loss)
    if (loss <= limit) == 0:  # NaN too
        tl.store(p_diverged + i_p, tl.load(p_step))


@triton.jit
def operands_kernel(
    p_w,  # weight [width, inputs] of the first student, float32
    p_plain,  # out [P, width, inputs]
    p_across,  # out [P, inputs, width], or None
    width,
    inputs,
    s_parameters,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Weights as operands."""
    across = inputs // BLOCK
    here = width // BLOCK * across
    i_p, i = (tl.program_id(0) // here).to(tl.int64), tl.program_id(0) % here
    i_o, i_i = i // across * BLOCK + tl.arange(0, BLOCK), i % across * BLOCK + tl.arange(0, BLOCK)
    b_w = tl.load(p_w + i_p * s_parameters + (i_o.to(tl.int64) * inputs)[:, None] + i_i[None, :])
    if p_across is not None:
        p_across += i_p * width * inputs
    write(p_plain + i_p * width * inputs, p_across, operand(b_w, PRECISION), i_o, i_i, width, inputs)


@triton.jit(do_not_specialize=["batch", "columns", "s_row", "s_column"])
def gather_kernel(
    p_x,  # [N, columns], any strides
    p_rows,  # [batches, batch] int64, rows of x
    p_plain,  # out [batches, rows, width]
    p_across,  # out [batches, width, rows], or None
    batch,
    columns,
    s_row,
    s_column,
    rows,
    width,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Batches as operands, zeros around them."""
    across = width // BLOCK
    here = rows // BLOCK * across
    i_b, i = (tl.program_id(0) // here).to(tl.int64), tl.program_id(0) % here
    i_row, i_c = i // across * BLOCK + tl.arange(0, BLOCK), i % across * BLOCK + tl.arange(0, BLOCK)
    m_row, m_c = i_row < batch, i_c < columns
    b_at = tl.load(p_rows + i_b * batch + i_row, mask=m_row, other=0)
    o_x = (b_at * tl.cast(s_row, tl.int64))[:, None] + (i_c * tl.cast(s_column, tl.int64))[None, :]
    b_x = tl.load(p_x + o_x, mask=m_row[:, None] & m_c[None, :], other=0.0)
    if p_across is not None:
        p_across += i_b * rows * width
    write(p_plain + i_b * rows * width, p_across, operand(b_x, PRECISION), i_row, i_c, rows, width)
