"""Tiles of deep students' products on matrix units, from shapes and precision alone. It needs no Triton."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from fastspec.ops.mlp_sgd_step.shapes import Layout, Tiles

PRECISIONS = ("tf32x3", "tf32", "bf16")  # that are the matrix units'
SLICE = 64  # columns of a tile that the epilogue of a product takes at a time
FULL = 132  # tiles of a product from which they may be large: one for each multiprocessor of an H200


class MatrixTiles(NamedTuple):
    """Products forward and backward are [rows, nodes], sums of `inner` terms; updates [nodes, inner], of `rows`."""

    layer: Tiles
    update: Tiles

    @property
    def width(self) -> int:
        """That widths are padded to."""
        return max(self.layer.nodes, self.layer.inner, self.update.nodes, self.update.inner)

    @property
    def batch(self) -> int:
        """That batches are padded to."""
        return max(self.layer.rows, self.update.rows)


def matrix_tiles(widths: tuple[int, ...], batch: int, precision: str, warpgroups: bool) -> MatrixTiles:
    """The largest tiles of which the widest layer has enough for a device; 128 bytes of each row at a time.

    They depend on the shape of one student, not on a population. warpgroups: see `fastspec.ops.gpu.devices`.
    """
    terms = 64 if precision == "bf16" else 32

    def fills(rows: int, nodes: int) -> bool:
        return -(-batch // rows) * -(-max(widths[1:]) // nodes) >= FULL

    if precision == "tf32x3" or not fills(128, 128) or not (warpgroups or precision == "tf32"):
        return MatrixTiles(Tiles(64, 64, terms, 4, 3), Tiles(terms, 64, 64, 4, 3))
    nodes, stages = (256, 4) if fills(128, 256) and warpgroups else (128, 3)
    return MatrixTiles(Tiles(128, nodes, terms, 8, stages), Tiles(terms, 128, nodes, 8, stages))


def slice_of_update(tiles: MatrixTiles, buffers: bool) -> int:
    """Columns that the epilogue of an update takes at a time: as many as compile without spills."""
    return SLICE // (2 if not buffers else 4 if tiles.update.nodes > 64 else 8)


def update_starts(layout: Layout, tiles: Tiles) -> list[int]:
    """Where the tiles of each layer's update start among all of them, and their number."""
    wide = layout.padded
    return [0, *accumulate(wide[i + 1] // tiles.nodes * (wide[i] // tiles.inner) for i in range(layout.layers))]
