"""Layout and tiles of `mlp_sgd_step` on a GPU: everything has its place, and devices are filled."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fastspec.ops.mlp_sgd_step import layers_of, matrix_shapes
from fastspec.ops.mlp_sgd_step.matrix_shapes import matrix_tiles, slice_of_update, update_starts
from fastspec.ops.mlp_sgd_step.shapes import FIELDS, GRAIN, Layout, chunk_of, layer_tiles, update_tiles

WIDTHS = [(20, 500, 750, 1000, 1250, 100), (7, 33, 1, 18, 3), (5, 2), (4096, 4096, 4096)]
LAYOUTS = [
    Layout(widths, tuple(i % 3 != 1 for i in range(len(widths) - 1)), batch, fp64)
    for widths in WIDTHS
    for batch in (1, 17, 64)
    for fp64 in (False, True)
]


def whole(number: int) -> int:
    return -(-number // GRAIN) * GRAIN


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_everything_starts_at_whole_vectors_and_overlaps_nothing(layout):
    for offsets in (layout.weights, layout.activations, layout.across, layout.padded):
        assert all(offset % GRAIN == 0 for offset in offsets)
    assert layout.padded == [whole(width) for width in layout.widths]
    views = layers_of(torch.empty(layout.weights[-1], device="meta"), layout.padded, layout.bias)
    for i, (weight, bias) in enumerate(views):
        assert weight.storage_offset() == layout.weights[i]
        assert (bias is not None) == layout.bias[i]
        assert bias is None or bias.storage_offset() == layout.bias_of(i)
    for row, batch in ((layout.activations, layout.batch), (layout.across, whole(layout.batch))):
        assert [end - start for start, end in pairwise(row)] == [batch * width for width in layout.padded[1:]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_weight_is_in_one_tile_of_the_update(layout):
    tiles = update_tiles(layout.batch, layout.fp64)
    rows, starts = layout.updates(tiles.nodes, tiles.inner), layout.tiles_of(tiles.nodes, tiles.inner)
    assert starts[-1] == len(rows) and {len(row) for row in rows} == {FIELDS}
    for layer, (start, end) in enumerate(pairwise(starts)):
        n_in, n_out = layout.widths[layer : layer + 2]
        covered = torch.zeros(n_out, n_in, dtype=torch.int8)
        for weight, bias, below, above, inputs, outputs, *sizes, o, i in rows[start:end]:
            assert sizes == [n_in, n_out] and (inputs * GRAIN, outputs * GRAIN) == (whole(n_in), whole(n_out))
            assert weight * GRAIN == layout.weights[layer] and above * GRAIN == layout.activations[layer]
            assert bias * GRAIN == layout.bias_of(layer) if layout.bias[layer] else bias == -1
            assert below * GRAIN == layout.activations[layer - 1] if layer else below == -1
            covered[o * tiles.nodes :, i * tiles.inner :][: tiles.nodes, : tiles.inner] += 1
        assert bool((covered == 1).all())


def test_every_hidden_node_is_normalised_once():
    layout = LAYOUTS[0]
    found = [(weight, node) for weight, _, first, nodes in layout.hidden(8) for node in range(first, nodes)[:8]]
    assert len(set(found)) == len(found) == 500 + 750 + 1000 + 1250


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_parts_of_a_sum(layout):
    """They make the sum, none is empty, and they are there where tiles alone leave a device idle."""
    tiles = layer_tiles(layout.batch, layout.fp64)
    for terms, width in [*pairwise(layout.padded), *pairwise(reversed(layout.padded))]:
        chunk = chunk_of(tiles, layout.batch, terms, width)
        parts = -(-terms // chunk)
        assert chunk % tiles.inner == 0 and 0 < terms - (parts - 1) * chunk <= chunk
        assert parts == 1 or chunk >= 128
        programs = -(-layout.batch // tiles.rows) * -(-width // tiles.nodes) * parts
        assert programs >= 256 or chunk == min(128, terms + -terms % tiles.inner)


def test_programs_of_the_largest_student_fill_an_h200():
    layout = LAYOUTS[4]
    tiles, wide = layer_tiles(64, False), layout.padded
    programs = [
        -(-out // tiles.nodes) * -(-terms // chunk_of(tiles, 64, terms, out)) for terms, out in pairwise(wide[1:])
    ]
    assert programs == [96, 192, 320, 40] and len(layout.updates(64, 64)) > 4 * 132


ON_UNITS = [
    (widths, batch, precision, warpgroups)
    for widths in (*WIDTHS, (20, 1000, 1000, 10))
    for batch in (1, 64, 1000, 8192)
    for precision in matrix_shapes.PRECISIONS
    for warpgroups in (False, True)
]


@pytest.mark.parametrize("widths, batch, precision, warpgroups", ON_UNITS, ids=str)
def test_sizes_on_matrix_units_are_whole_tiles(widths, batch, precision, warpgroups):
    tiles = matrix_tiles(widths, batch, precision, warpgroups)
    layer, update = tiles
    assert all(tiles.width % size == 0 for size in (layer.nodes, layer.inner, update.nodes, update.inner, GRAIN))
    assert tiles.batch % layer.rows == 0 and tiles.batch % update.rows == 0
    size = 2 if precision == "bf16" else 4
    assert layer.inner * size == update.rows * size == 128  # bytes of a row, as wide as descriptors swizzle
    assert 64 % matrix_shapes.SLICE == 0 and 8 <= slice_of_update(tiles, True) < slice_of_update(tiles, False)
    shared = layer.stages * layer.inner * size * (layer.rows + layer.nodes)
    assert shared <= 192 * 1024 and layer.rows * layer.nodes <= 128 * layer.warps * 32  # sums in a thread's registers
    layout = Layout(widths, (True,) * (len(widths) - 1), batch, False, tiles.width)
    assert all(n % tiles.width == 0 and n - true < tiles.width for n, true in zip(layout.padded, widths, strict=True))
    starts, wide = update_starts(layout, update), layout.padded
    assert [end - start for start, end in pairwise(starts)] == [
        o * i // (update.nodes * update.inner) for i, o in pairwise(wide)
    ]


def test_tiles_on_matrix_units_fill_a_device_or_are_small():
    for widths, batch, precision, warpgroups in ON_UNITS:
        rows, nodes, *_ = matrix_tiles(widths, batch, precision, warpgroups).layer
        tiles = -(-batch // rows) * -(-max(widths[1:]) // nodes)
        assert tiles >= 132 or (rows, nodes) == (64, 64)
    large = matrix_tiles((4096,) * 5, 8192, "bf16", True)
    assert large == ((128, 256, 64, 8, 4), (64, 128, 256, 8, 4))
    assert matrix_tiles((4096,) * 5, 8192, "bf16", False).layer.nodes == 64
