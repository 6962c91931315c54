"""Triton kernels of `mlp_sgd_step` on matrix units: products of operands that are rounded where they are written.

Prefixes as in `fastspec.ops.gpu.tiles`, and `d_` for descriptors of matrices, through which whole tiles come to shared
memory. The matrices of all students are one, student after student. Sizes are padded to whole tiles with zeros, which
every kernel writes anew, so that nothing is masked where it is read. A matrix `across` is the same transposed: only
bf16 can be read along either axis. A student that has stopped changes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastspec.ops.gpu.mlp import gathered, moved, step
from fastspec.ops.gpu.mlp_operands import operand, write


@triton.jit
def tile_of(tiles_a, tiles_b, GROUP: tl.constexpr):
    """A program's student and its tile: neighbours share columns of a and rows of b, which stay in the cache."""
    here = tiles_a * tiles_b
    i_p, i = tl.program_id(0) // here, tl.program_id(0) % here
    first = i // (GROUP * tiles_b) * GROUP
    size = tl.minimum(tiles_a - first, GROUP)
    i %= GROUP * tiles_b
    return i_p, first + i % size, i // size


@triton.jit
def product_of(
    d_a, d_b, row_a, column_a, row_b, column_b, terms, A_DOWN: tl.constexpr, B_DOWN: tl.constexpr,
    PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Sums [M, N] over terms, which lie along the rows of a matrix, or down its columns."""
    b_sum = tl.zeros([M, N], tl.float32)
    for k in range(0, terms, INNER):
        b_a = tl.trans(d_a.load([row_a + k, column_a])) if A_DOWN else d_a.load([row_a, column_a + k])
        b_b = d_b.load([row_b + k, column_b]) if B_DOWN else tl.trans(d_b.load([row_b, column_b + k]))
        b_sum = tl.dot(b_a, b_b, b_sum, input_precision="ieee" if PRECISION == "bf16" else PRECISION)
    return b_sum


@triton.jit
def slices(b_a, COLUMNS: tl.constexpr):
    """A tile from left to right in slices of so many columns: an epilogue of all would not fit in registers."""
    if b_a.shape[1] <= COLUMNS:
        return (b_a,)
    else:
        b_left, b_right = tl.split(tl.permute(tl.reshape(b_a, [b_a.shape[0], 2, b_a.shape[1] // 2]), [0, 2, 1]))
        return slices(b_left, COLUMNS) + slices(b_right, COLUMNS)


@triton.jit
def packed(b_on):
    """Gates [rows, nodes] as bytes [rows, nodes / 8]: bit k % 8 of byte k // 8 is that of node k."""
    b_eights = tl.reshape(b_on.to(tl.int32), [b_on.shape[0], b_on.shape[1] // 8, 8])
    return tl.sum(b_eights << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def unpacked(b_bytes):
    """The opposite."""
    b_bits = (b_bytes.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(b_bits, [b_bytes.shape[0], b_bytes.shape[1] * 8]) == 1


@triton.jit
def end_up(
    b_z, p_b, p_y, p_out, p_across, p_bits, p_sums, i_row, first, rows, width, batch, nodes, slope,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Bias and ReLU with its gates; or outputs; or residuals, of whose squares it returns the sums down columns."""
    i_node = first + tl.arange(0, b_z.shape[1])
    m_tile = (i_row < batch)[:, None] & (i_node < nodes)[None, :]
    if p_b is not None:
        b_z += tl.load(p_b + i_node)[None, :]
    b_squares = tl.zeros([b_z.shape[1]], tl.float64)
    if KIND == "hidden":
        b_on = (b_z > 0) & m_tile
        i_byte = first // 8 + tl.arange(0, b_z.shape[1] // 8)
        tl.store(p_bits + (i_row.to(tl.int64) * (width // 8))[:, None] + i_byte[None, :], packed(b_on))
        b_z = tl.where(m_tile, tl.where(b_on, b_z, tl.cast(slope, tl.float32) * b_z), 0.0)
        write(p_out, p_across, operand(b_z, PRECISION), i_row, i_node, rows, width)
    elif KIND == "outputs":
        write(p_out, None, tl.where(m_tile, b_z, 0.0), i_row, i_node, rows, width)
    else:
        b_y = tl.load(p_y + (i_row.to(tl.int64) * width)[:, None] + i_node[None, :])
        b_z = tl.where(m_tile, b_z - b_y, 0.0)
        b_squares += tl.sum(b_z * b_z, 0).to(tl.float64)
        b_g = operand(b_z, PRECISION)
        write(p_out, p_across, b_g, i_row, i_node, rows, width)
        if p_sums is not None:
            tl.store(p_sums + i_node, tl.sum(b_g.to(tl.float32), 0))
    return b_squares


@triton.jit(do_not_specialize=["batch", "nodes", "shared", "shared_y"])
def up_kernel(
    d_a,  # [P or 1, rows, terms], activations below
    d_w,  # [P, width, terms]
    p_b,  # bias of the first student, or None
    p_y,  # answers [P or 1, rows, width] float32, for residuals
    p_out,  # out [P, rows, width]; the outputs in float32
    p_across,  # out [P, width, rows], or None
    p_bits,  # out [P, rows, width / 8] uint8, of hidden nodes
    p_sums,  # out [P, rows / ROWS, width]: sums of residuals over rows, or None
    p_loss,  # out [P, tiles] float64: their squares
    p_diverged,  # [P] int64
    rows,
    width,
    terms,
    batch,  # true rows
    nodes,  # true width
    shared,  # 1 where all students take the same inputs, else 0
    shared_y,
    s_parameters,
    slope: tl.float64,
    KIND: tl.constexpr,  # hidden, outputs, or residuals
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    INNER: tl.constexpr,
    SLICE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Activations of a layer from those below it."""
    i_p, i_m, i_n = tile_of(rows // ROWS, width // NODES, GROUP)
    if tl.load(p_diverged + i_p) >= 0:
        return
    i_x = i_p * (1 - shared)
    b_z = product_of(
        d_a, d_w, i_x * rows + i_m * ROWS, 0, i_p * width + i_n * NODES, 0, terms, False, False,
        PRECISION, ROWS, NODES, INNER,
    )  # fmt: skip
    i_wide = i_p.to(tl.int64)
    here = i_wide * rows * width
    if p_b is not None:
        p_b += i_wide * s_parameters
    if p_y is not None:
        p_y += i_wide * (1 - shared_y) * rows * width
    if p_bits is not None:
        p_bits += i_wide * rows * (width // 8)
    if p_out is not None:
        p_out += here
    if p_across is not None:
        p_across += here
    if p_sums is not None:
        p_sums += (i_wide * (rows // ROWS) + i_m) * width
    i_row, first = i_m * ROWS + tl.arange(0, ROWS), i_n * NODES
    b_slices = slices(b_z, SLICE)
    b_squares = tl.zeros([b_slices[0].shape[1]], tl.float64)
    for i in tl.static_range(len(b_slices)):
        b_squares += end_up(
            b_slices[i], p_b, p_y, p_out, p_across, p_bits, p_sums, i_row, first + i * b_slices[i].shape[1],
            rows, width, batch, nodes, slope, KIND, PRECISION,
        )  # fmt: skip
    if KIND == "residuals":
        tiles = width // NODES
        p_loss += (i_wide * (rows // ROWS) + i_m) * tiles + i_n
        # of two axes: Triton 3.6 cannot compile the sum of a vector for sm_100 where it comes from a product
        tl.store(p_loss + tl.arange(0, 1), tl.sum(b_squares[None, :], 1) / 2)


@triton.jit
def end_down(
    b_g, p_bits, p_out, p_across, p_sums, i_row, first, rows, width, batch, nodes, slope, PRECISION: tl.constexpr
):
    """The gates, and the sums over rows of what is written."""
    i_node, i_byte = first + tl.arange(0, b_g.shape[1]), first // 8 + tl.arange(0, b_g.shape[1] // 8)
    m_tile = (i_row < batch)[:, None] & (i_node < nodes)[None, :]
    b_on = unpacked(tl.load(p_bits + (i_row.to(tl.int64) * (width // 8))[:, None] + i_byte[None, :]))
    b_g = tl.where(m_tile, tl.where(b_on, b_g, tl.cast(slope, tl.float32) * b_g), 0.0)
    b_g = operand(b_g, PRECISION)
    write(p_out, p_across, b_g, i_row, i_node, rows, width)
    if p_sums is not None:
        tl.store(p_sums + i_node, tl.sum(b_g.to(tl.float32), 0))


@triton.jit(do_not_specialize=["batch", "nodes"])
def down_kernel(
    d_g,  # [P, rows, terms], gradients with respect to the pre-activations above
    d_w,  # [P, terms, width], or with ACROSS [P, width, terms]
    p_bits,  # [P, rows, width / 8] uint8, the gates of this layer
    p_out,  # out [P, rows, width], or None
    p_across,  # out [P, width, rows], or None
    p_sums,  # out [P, rows / ROWS, width], or None
    p_diverged,  # [P] int64
    rows,
    width,
    terms,
    batch,
    nodes,
    slope: tl.float64,
    ACROSS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    INNER: tl.constexpr,
    SLICE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradients with respect to a layer's pre-activations from those above it."""
    i_p, i_m, i_n = tile_of(rows // ROWS, width // NODES, GROUP)
    if tl.load(p_diverged + i_p) >= 0:
        return
    if ACROSS:
        row_w, column_w = i_p * width + i_n * NODES, 0
    else:
        row_w, column_w = i_p * terms, i_n * NODES
    b_g = product_of(
        d_g, d_w, i_p * rows + i_m * ROWS, 0, row_w, column_w, terms, False, not ACROSS, PRECISION, ROWS, NODES, INNER
    )
    i_wide = i_p.to(tl.int64)
    here = i_wide * rows * width
    p_bits += i_wide * rows * (width // 8)
    if p_out is not None:
        p_out += here
    if p_across is not None:
        p_across += here
    if p_sums is not None:
        p_sums += (i_wide * (rows // ROWS) + i_m) * width
    i_row, first = i_m * ROWS + tl.arange(0, ROWS), i_n * NODES
    b_slices = slices(b_g, SLICE)
    for i in tl.static_range(len(b_slices)):
        end_down(
            b_slices[i], p_bits, p_out, p_across, p_sums, i_row, first + i * b_slices[i].shape[1], rows, width, batch,
            nodes, slope, PRECISION,
        )  # fmt: skip


@triton.jit
def end_update(
    b_sum, p_w, p_v, p_plain, p_across, first_o, first_i, n_out, n_in, width, inputs, rate, momentum, decay, batch,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A step of some weights, which are also written as operands."""
    i_o, i_i = first_o + tl.arange(0, b_sum.shape[0]), first_i + tl.arange(0, b_sum.shape[1])
    m_tile = (i_o < n_out)[:, None] & (i_i < n_in)[None, :]
    o_tile = (i_o.to(tl.int64) * inputs)[:, None] + i_i[None, :]
    b_w = tl.load(p_w + o_tile)
    if p_v is None:
        b_w = moved(b_w, b_sum, rate, decay, batch)
    else:
        b_v = tl.where(m_tile, gathered(tl.load(p_v + o_tile), b_w, b_sum, momentum, decay, batch), 0.0)
        tl.store(p_v + o_tile, b_v)
        b_w -= tl.cast(rate, tl.float32) * b_v
    b_w = tl.where(m_tile, b_w, 0.0)
    tl.store(p_w + o_tile, b_w)
    write(p_plain, p_across, operand(b_w, PRECISION), i_o, i_i, width, inputs)


@triton.jit(do_not_specialize=["batch", "n_out", "n_in", "shared", "parts", "s_squares"])
def update_matrix_kernel(
    d_g,  # gradients [P, rows, width], or with ACROSS [P, width, rows]
    d_h,  # what the layer takes in [P or 1, rows, inputs], or with ACROSS [P or 1, inputs, rows]
    p_w,  # weight [width, inputs] of the first student, float32
    p_b,  # its bias [width], or None
    p_vw,  # momentum buffers that lie alike, or None
    p_vb,
    p_plain,  # out [P, width, inputs]: the weight as an operand, or None
    p_across,  # out [P, inputs, width], or None
    p_sums,  # [P, parts, width], gradients summed over rows, in parts
    p_rate,  # float64
    p_squares,  # out: squares of a student's tiles, or None
    p_diverged,  # [P] int64
    rows,
    width,
    inputs,
    batch,
    n_out,
    n_in,
    shared,
    parts,
    s_parameters,
    s_squares,
    momentum: tl.float64,
    decay: tl.float64,
    ACROSS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    INPUTS: tl.constexpr,
    SLICE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A layer moved by the gradient that is in registers; a bias goes with the first inputs."""
    i_p, i_o, i_i = tile_of(width // NODES, inputs // INPUTS, GROUP)
    if tl.load(p_diverged + i_p) >= 0:
        return
    i_x = i_p * (1 - shared)
    if ACROSS:
        b_sum = product_of(
            d_g, d_h, i_p * width + i_o * NODES, 0, i_x * inputs + i_i * INPUTS, 0, rows, False, False,
            PRECISION, NODES, INPUTS, ROWS,
        )  # fmt: skip
    else:
        b_sum = product_of(
            d_g, d_h, i_p * rows, i_o * NODES, i_x * rows, i_i * INPUTS, rows, True, True,
            PRECISION, NODES, INPUTS, ROWS,
        )  # fmt: skip
    i_wide = i_p.to(tl.int64)
    here, o_parameters = i_wide * width * inputs, i_wide * s_parameters
    p_w += o_parameters
    if p_vw is not None:
        p_vw += o_parameters
    if p_plain is not None:
        p_plain += here
    if p_across is not None:
        p_across += here
    rate = tl.load(p_rate)
    first_o, first_i = i_o * NODES, i_i * INPUTS
    i_node = first_o + tl.arange(0, NODES)
    b_squares = tl.zeros([NODES], tl.float64)
    if p_squares is not None:
        m_tile = (i_node < n_out)[:, None] & (first_i + tl.arange(0, INPUTS) < n_in)[None, :]
        b_squares += tl.sum(tl.where(m_tile, b_sum * b_sum, 0.0), 1).to(tl.float64)
    b_slices = slices(b_sum, SLICE)
    for i in tl.static_range(len(b_slices)):
        end_update(
            b_slices[i], p_w, p_vw, p_plain, p_across, first_o, first_i + i * b_slices[i].shape[1], n_out, n_in, width,
            inputs, rate, momentum, decay, batch, PRECISION,
        )  # fmt: skip
    if p_b is not None and i_i == 0:
        b_bias = tl.zeros([NODES], tl.float32)
        for i_part in range(0, parts):
            b_bias += tl.load(p_sums + (i_wide * parts + i_part) * width + i_node)
        b_squares += (b_bias * b_bias).to(tl.float64)
        if p_vb is not None:
            p_vb += o_parameters
        step(p_b + o_parameters, p_vb, i_node, i_node < n_out, b_bias, rate, momentum, decay, batch)
    if p_squares is not None:
        tl.store(p_squares + i_wide * s_squares + i_o * (inputs // INPUTS) + i_i, tl.sum(b_squares, 0))
