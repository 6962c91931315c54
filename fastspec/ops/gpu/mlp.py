"""Triton kernels of `mlp_sgd_step`: products forward and backward, the loss, the update, norms.

Prefixes as in `fastspec.ops.gpu.tiles`. Padded widths (`terms`, `width`, `inputs`), strides `s_` and offsets `o_` of
arguments come in units of GRAIN values; what lies beyond a true width is zero. A student that has stopped changes
nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastspec.ops.gpu.tiles import product


@triton.jit
def finish(
    b_z, p_b, p_h, p_across, p_out, i_node, i_row, m_node, m_row, s_across, s_out, nodes, slope, HIDDEN: tl.constexpr
):
    """Bias and ReLU on the way up (both optional), the gates on the way down; then the tile is written, both ways."""
    m_tile = m_node[:, None] & m_row[None, :]
    o_across = (i_node.to(tl.int64) * s_across)[:, None] + i_row[None, :]
    if p_b is not None:
        b_z += tl.load(p_b + i_node, mask=m_node, other=0.0)[:, None]
    if p_h is not None:
        b_h = tl.load(p_h + o_across, mask=m_tile, other=0.0)
        b_z = tl.where(b_h > 0, b_z, tl.cast(slope, b_z.dtype) * b_z)
    elif HIDDEN:
        b_z = tl.where(b_z > 0, b_z, tl.cast(slope, b_z.dtype) * b_z)
    b_z = tl.where((i_node < nodes)[:, None], b_z, 0.0)
    tl.store(p_across + o_across, b_z, mask=m_tile)
    tl.store(p_out + (i_row.to(tl.int64) * s_out)[:, None] + i_node[None, :], tl.trans(b_z), mask=tl.trans(m_tile))


@triton.jit(
    do_not_specialize=[
        "batch",
        "terms",
        "width",
        "nodes",
        "s_a",
        "s_parameters",
        "s_across",
        "s_out",
        "chunk",
        "splits",
    ]
)
def layer_kernel(
    p_a,  # [P, terms, B]: activations below, or gradients above
    p_w,  # weight of the first student: [width, terms], with DOWN [terms, width]
    p_b,  # its bias [width], or None
    p_h,  # with DOWN, activations [P, width, B] whose signs are the gates
    p_across,  # out [P, width, B], for the next product
    p_out,  # out [P, B, width], for the update
    p_parts,  # room for parts of the sums [P, tiles, splits, NODES, ROWS], or None: sums are not divided
    p_count,  # [P, tiles] int32 zeros, and zeros again in the end
    p_diverged,  # [P] int64
    batch,
    terms,
    width,
    nodes,  # the true width
    s_a,
    s_parameters,
    s_across,
    s_out,
    chunk,  # terms of a part, in units of INNER
    splits,
    slope: tl.float64,
    DOWN: tl.constexpr,
    HIDDEN: tl.constexpr,  # the outputs are of hidden nodes
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    INNER: tl.constexpr,
    GRAIN: tl.constexpr,
):
    """out = w a + b and its ReLU, or DOWN: the gates times w^T a. The last program of a tile adds up its parts."""
    SUM: tl.constexpr = p_out.dtype.element_ty
    tiles, rows = tl.cdiv(width * GRAIN, NODES), tl.cdiv(batch, GRAIN)
    here = tiles * tl.cdiv(batch, ROWS)
    i_split, i_all = tl.program_id(0) % splits, tl.program_id(0) // splits
    i_tile, i_p = i_all % here, (i_all // here).to(tl.int64)
    if tl.load(p_diverged + i_p) >= 0:
        return
    i_row = (i_tile // tiles) * ROWS + tl.arange(0, ROWS)
    i_node = (i_tile % tiles) * NODES + tl.arange(0, NODES)
    m_row, m_node = i_row // GRAIN < rows, i_node // GRAIN < width
    s_term, s_node = tl.cast(terms, tl.int64) * GRAIN, tl.cast(width, tl.int64) * GRAIN
    s_row = tl.cast(rows, tl.int64) * GRAIN
    first = i_split * chunk * INNER
    i_k = tl.arange(0, INNER)
    o_w = i_p * (tl.cast(s_parameters, tl.int64) * GRAIN)
    if DOWN:
        p_tile_w = p_w + (o_w + first * s_node) + (i_k * s_node)[:, None] + i_node[None, :]
        s_tile_w = INNER * s_node
    else:
        p_tile_w = p_w + (o_w + first) + (i_node * s_term)[:, None] + i_k[None, :]
        s_tile_w = INNER
    p_tile = p_a + (i_p * (tl.cast(s_a, tl.int64) * GRAIN) + first * s_row) + (i_k * s_row)[:, None] + i_row[None, :]
    b_z = tl.zeros([NODES, ROWS], SUM)
    for k in range(first, tl.minimum(first + chunk * INNER, terms * GRAIN), INNER):
        m_k = (k + i_k) // GRAIN < terms
        if DOWN:
            b_w = tl.trans(tl.load(p_tile_w, mask=m_k[:, None] & m_node[None, :], other=0.0))
        else:
            b_w = tl.load(p_tile_w, mask=m_node[:, None] & m_k[None, :], other=0.0)
        b_a = tl.load(p_tile, mask=m_k[:, None] & m_row[None, :], other=0.0)
        b_z = product(b_w, b_a, b_z, PRECISION)
        p_tile_w += s_tile_w
        p_tile += INNER * s_row

    m_row = i_row < batch
    if p_b is not None:
        p_b += i_p * (tl.cast(s_parameters, tl.int64) * GRAIN)
    if p_h is not None:
        p_h += i_p * (tl.cast(s_across, tl.int64) * GRAIN)
    p_across += i_p * (tl.cast(s_across, tl.int64) * GRAIN)
    p_out += i_p * (tl.cast(s_out, tl.int64) * GRAIN)
    if p_parts is not None:
        o_part = tl.arange(0, NODES)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        p_tiles = p_parts + i_all.to(tl.int64) * splits * (NODES * ROWS)
        tl.store(p_tiles + i_split * (NODES * ROWS) + o_part, b_z)
        tl.debug_barrier()  # all of this part is written before it is counted
        if tl.atomic_add(p_count + i_all, 1, sem="acq_rel") == splits - 1:
            tl.store(p_count + i_all, 0)
            b_z = tl.zeros([NODES, ROWS], SUM)
            for i in tl.range(0, splits, loop_unroll_factor=3):
                b_z += tl.load(p_tiles + i * (NODES * ROWS) + o_part, cache_modifier=".cg")
            finish(b_z, p_b, p_h, p_across, p_out, i_node, i_row, m_node, m_row, s_row, s_node, nodes, slope, HIDDEN)
    else:
        finish(b_z, p_b, p_h, p_across, p_out, i_node, i_row, m_node, m_row, s_row, s_node, nodes, slope, HIDDEN)


@triton.jit(do_not_specialize=["batch", "width", "outputs", "s_out", "s_across", "s_y"])
def loss_kernel(
    p_out,  # [P, B, width], outputs of the students
    p_y,  # answers [P or 1, B, width], or labels int64 [P or 1, B]
    p_gradient,  # out [P, B, width]
    p_across,  # out [P, width, B], the same
    p_loss,  # out [P] float64
    p_diverged,  # [P] int64
    p_step,  # int64, the number of this step
    batch,
    width,
    outputs,  # the true width
    s_out,
    s_across,
    s_y,  # in values
    limit: tl.float64,  # finite
    LABELS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    GRAIN: tl.constexpr,
):
    """The loss of a batch, its gradient with respect to the outputs, and whether the student stops here."""
    i_p = tl.program_id(0).to(tl.int64)
    if tl.load(p_diverged + i_p) >= 0:
        tl.store(p_loss + i_p, float("nan"))
        return
    p_out += i_p * (tl.cast(s_out, tl.int64) * GRAIN)
    p_gradient += i_p * (tl.cast(s_out, tl.int64) * GRAIN)
    p_across += i_p * (tl.cast(s_across, tl.int64) * GRAIN)
    p_y += i_p * s_y
    s_row = tl.cdiv(batch, GRAIN) * GRAIN
    i_c = tl.arange(0, WIDTH)
    m_true = (i_c < outputs)[None, :]
    b_total = tl.zeros([ROWS], tl.float64)
    for first in range(0, batch, ROWS):
        i_row = first + tl.arange(0, ROWS)
        m_row = i_row < batch
        o_tile = (i_row.to(tl.int64) * (tl.cast(width, tl.int64) * GRAIN))[:, None] + i_c[None, :]
        m_tile = m_row[:, None] & (i_c // GRAIN < width)[None, :]
        b_out = tl.load(p_out + o_tile, mask=m_tile, other=0.0)
        if LABELS:
            b_label = tl.load(p_y + i_row, mask=m_row, other=0)
            b_z = tl.where(m_true, b_out, float("-inf"))
            b_z -= tl.max(b_z, 1)[:, None]
            b_e = tl.exp(b_z)
            b_sum = tl.sum(b_e, 1)
            m_label = i_c[None, :] == b_label[:, None]
            b_g = b_e / b_sum[:, None] - m_label.to(b_e.dtype)
            b_loss = tl.log(b_sum) - tl.sum(tl.where(m_label, b_z, 0.0), 1)
        else:
            b_g = b_out - tl.load(p_y + o_tile, mask=m_tile, other=0.0)
            b_wide = b_g.to(tl.float64)
            b_loss = tl.sum(b_wide * b_wide, 1) / 2
        b_g = tl.where(m_true, b_g, 0.0)
        tl.store(p_gradient + o_tile, b_g, mask=m_tile)
        tl.store(p_across + i_row[:, None] + (i_c.to(tl.int64) * s_row)[None, :], b_g, mask=m_tile)
        b_total += tl.where(m_row, b_loss.to(tl.float64), 0.0)
    loss = tl.sum(b_total, 0) / batch
    tl.store(p_loss + i_p, loss)
    if (loss <= limit) == 0:  # NaN too
        tl.store(p_diverged + i_p, tl.load(p_step))


@triton.jit(do_not_specialize=["batch", "tiles", "o_x", "s_x", "o_h", "o_g", "s_activations", "s_parameters"])
def update_kernel(
    p_parameters,  # [P, parameters]
    p_buffers,  # like them, or None: no momentum
    p_work,  # inputs of this batch from o_x on, activations from o_h, gradients from o_g
    p_table,  # [tiles, FIELDS] int64, see `Layout.updates`
    p_rate,  # float64
    p_squares,  # out [P, tiles] float64: squares of the sums over the batch, or None
    p_diverged,  # [P] int64
    batch,
    tiles,
    o_x,
    s_x,
    o_h,
    o_g,
    s_activations,
    s_parameters,
    momentum: tl.float64,
    decay: tl.float64,
    PRECISION: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    NODES: tl.constexpr,
    INPUTS: tl.constexpr,
    GRAIN: tl.constexpr,
):
    """A tile of a weight, and with the first inputs the bias, moved by the gradient that is in registers."""
    SUM: tl.constexpr = p_parameters.dtype.element_ty
    i_tile, i_p = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    if tl.load(p_diverged + i_p) >= 0:
        return
    p_row = p_table + i_tile * FIELDS
    o_weight, o_bias = tl.load(p_row) * GRAIN, tl.load(p_row + 1)
    o_below, o_above = tl.load(p_row + 2), tl.load(p_row + 3)
    inputs, width = tl.load(p_row + 4), tl.load(p_row + 5)
    n_in, n_out = tl.load(p_row + 6), tl.load(p_row + 7)
    first_node, first_input = tl.load(p_row + 8) * NODES, tl.load(p_row + 9) * INPUTS
    lowest = o_below < 0
    o_below = tl.where(lowest, o_x + i_p * s_x, o_h + i_p * s_activations + o_below) * GRAIN
    o_above = (o_g + i_p * s_activations + o_above) * GRAIN
    i_o, i_i = first_node + tl.arange(0, NODES), first_input + tl.arange(0, INPUTS)
    m_o, m_i = i_o // GRAIN < width, i_i // GRAIN < inputs
    inputs, width = inputs * GRAIN, width * GRAIN
    b_sum, b_bias = tl.zeros([NODES, INPUTS], SUM), tl.zeros([NODES], SUM)
    for first in range(0, batch, ROWS):
        i_row = first + tl.arange(0, ROWS)
        m_row = i_row < batch
        p_g = p_work + o_above + (i_row * width)[:, None] + i_o[None, :]
        p_h = p_work + o_below + (i_row * inputs)[:, None] + i_i[None, :]
        b_g = tl.load(p_g, mask=m_row[:, None] & m_o[None, :], other=0.0)
        b_h = tl.load(p_h, mask=m_row[:, None] & m_i[None, :], other=0.0)
        b_sum = product(tl.trans(b_g), b_h, b_sum, PRECISION)
        b_bias += tl.sum(b_g, 0)

    o_weight += i_p * (tl.cast(s_parameters, tl.int64) * GRAIN)
    o_tile = o_weight + (i_o * inputs)[:, None] + i_i[None, :]
    m_tile = (i_o < n_out)[:, None] & (i_i < n_in)[None, :]
    rate = tl.load(p_rate)
    has_bias = (o_bias >= 0) & (first_input == 0)
    o_bias = o_bias * GRAIN + i_p * (tl.cast(s_parameters, tl.int64) * GRAIN) + i_o
    m_bias = (i_o < n_out) & has_bias
    if p_squares is not None:
        b_wide = tl.where(m_tile, b_sum, 0.0).to(tl.float64)
        b_wide_bias = tl.where(m_bias, b_bias, 0.0).to(tl.float64)
        squares = tl.sum(tl.sum(b_wide * b_wide, 1), 0) + tl.sum(b_wide_bias * b_wide_bias, 0)
        tl.store(p_squares + i_p * tiles + i_tile, squares)
    step(p_parameters, p_buffers, o_tile, m_tile, b_sum, rate, momentum, decay, batch)
    step(p_parameters, p_buffers, o_bias, m_bias, b_bias, rate, momentum, decay, batch)


@triton.jit
def moved(b_w, b_sum, rate, decay, batch):
    """Values after a step of torch.optim.SGD without momentum by the gradient b_sum / batch."""
    return tl.cast(1 - rate * decay, b_w.dtype) * b_w + tl.cast(-rate / batch, b_w.dtype) * b_sum


@triton.jit
def gathered(b_v, b_w, b_sum, momentum, decay, batch):
    """Momentum buffers after it; the values then move by -rate times these."""
    SUM: tl.constexpr = b_w.dtype
    mean = tl.cast(tl.cast(1.0, tl.float64) / batch, SUM)  # to divide every element would cost registers
    return tl.cast(momentum, SUM) * b_v + mean * b_sum + tl.cast(decay, SUM) * b_w


@triton.jit
def step(p_parameters, p_buffers, o_block, m_block, b_sum, rate, momentum, decay, batch):
    """A block of parameters moved, and of their buffers if there are any."""
    b_w = tl.load(p_parameters + o_block, mask=m_block, other=0.0)
    if p_buffers is None:
        b_w = moved(b_w, b_sum, rate, decay, batch)
    else:
        b_v = tl.load(p_buffers + o_block, mask=m_block, other=0.0)
        b_v = gathered(b_v, b_w, b_sum, momentum, decay, batch)
        tl.store(p_buffers + o_block, b_v, mask=m_block)
        b_w -= tl.cast(rate, b_w.dtype) * b_v
    tl.store(p_parameters + o_block, b_w, mask=m_block)


@triton.jit(do_not_specialize=["batch", "tiles", "layers"])
def norms_kernel(p_squares, p_starts, p_norms, p_diverged, batch, tiles, layers, BLOCK: tl.constexpr):
    """Norms [P, layers] float64 of the gradients, from the squares of a layer's tiles in their order."""
    i_layer, i_p = tl.program_id(0) % layers, (tl.program_id(0) // layers).to(tl.int64)
    p_out = p_norms + i_p * layers + i_layer
    if tl.load(p_diverged + i_p) >= 0:
        tl.store(p_out, float("nan"))
        return
    start, end = tl.load(p_starts + i_layer), tl.load(p_starts + i_layer + 1)
    b_sum = tl.zeros([BLOCK], tl.float64)
    for first in range(start, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        b_sum += tl.load(p_squares + i_p * tiles + i, mask=i < end, other=0.0)
    tl.store(p_out, tl.sqrt(tl.sum(b_sum, 0)) / batch)


@triton.jit(do_not_specialize=["blocks", "s_parameters"])
def normalize_kernel(
    p_parameters,
    p_table,  # [blocks, 4] int64, see `Layout.hidden`
    p_diverged,
    blocks,
    s_parameters,
    NODES: tl.constexpr,
    INPUTS: tl.constexpr,
    GRAIN: tl.constexpr,
):
    """Divide the weight vectors of a block of hidden nodes by their norms; one of norm 0 stays."""
    i_block, i_p = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    if tl.load(p_diverged + i_p) >= 0:
        return
    p_row = p_table + i_block * 4
    o_weight, inputs = tl.load(p_row), tl.load(p_row + 1)
    i_node = tl.load(p_row + 2) + tl.arange(0, NODES)
    m_node = i_node < tl.load(p_row + 3)
    p_rows = p_parameters + (o_weight + i_p * s_parameters) * GRAIN + (i_node * inputs * GRAIN)[:, None]
    b_sum = tl.zeros([NODES, INPUTS], p_parameters.dtype.element_ty)
    for first in range(0, inputs * GRAIN, INPUTS):
        i = first + tl.arange(0, INPUTS)
        b_w = tl.load(p_rows + i[None, :], mask=m_node[:, None] & (i // GRAIN < inputs)[None, :], other=0.0)
        b_sum += b_w * b_w
    b_norm = tl.sqrt(tl.sum(b_sum, 1))
    b_norm = tl.where(b_norm == 0, 1.0, b_norm)
    for first in range(0, inputs * GRAIN, INPUTS):
        i = first + tl.arange(0, INPUTS)
        m_tile = m_node[:, None] & (i // GRAIN < inputs)[None, :]
        b_w = tl.load(p_rows + i[None, :], mask=m_tile, other=0.0)
        tl.store(p_rows + i[None, :], b_w / b_norm[:, None], mask=m_tile)
