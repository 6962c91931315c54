"""Layout and tiles of `mlp_sgd_step` on a GPU: everything has its place, and devices are filled."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fastspec.ops.mlp_sgd_step import layers_of
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
