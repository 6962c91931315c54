"""How students lie in the GPU's memory, and the tiles of their products, from shapes alone. It needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

GRAIN = 4  # widths are padded to a multiple of it, so that rows start at whole vectors
PROGRAMS = 396  # of a product, three to a multiprocessor, until its sums are not divided further
SHORTEST = 128  # terms of a divided sum
FIELDS = 10  # of a row of the table of updates


class Tiles(NamedTuple):
    """What one program works on at a time."""

    rows: int  # of the batch
    nodes: int
    inner: int  # terms of the sums; inputs of a weight matrix in an update
    warps: int
    stages: int


def layer_tiles(batch: int, fp64: bool) -> Tiles:
    """Of a product forward or backward, [batch, nodes]."""
    if fp64:
        return Tiles(32 if batch > 16 else 16, 32, 16, 4, 2)
    return Tiles(64 if batch > 32 else 32 if batch > 16 else 16, 32, 32, 4, 3)


def update_tiles(batch: int, fp64: bool) -> Tiles:
    """Of an update, [nodes, inputs], by sums over the batch."""
    return Tiles(16, 32, 32, 4, 2) if fp64 else Tiles(16, 64, 64, 4, 3)


def chunk_of(tiles: Tiles, batch: int, terms: int, width: int) -> int:
    """Terms that one program sums: all, or a part where there are too few tiles to fill a device.

    It depends on the shape of one student alone, as its bits must.
    """
    programs = -(-batch // tiles.rows) * -(-width // tiles.nodes)
    least = max(-(-terms // max(PROGRAMS // programs, 1)), SHORTEST)
    return min(-(-least // tiles.inner), -(-terms // tiles.inner)) * tiles.inner


def padded(width: int, unit: int = GRAIN) -> int:
    return -(-width // unit) * unit


@dataclass(frozen=True)
class Layout:
    """Students of one shape: every width padded, weights [out, in] and biases layer by layer in one row of values.

    Activations of the layers above the input lie in one row too, [batch, width] each, and once more in another row,
    [width, batch] each; gradients lie like them. Students that matrix units train have theirs elsewhere.
    """

    widths: tuple[int, ...]
    bias: tuple[bool, ...]
    batch: int
    fp64: bool
    unit: int = GRAIN  # that widths are padded to, a multiple of GRAIN

    @cached_property
    def padded(self) -> list[int]:
        return [padded(width, self.unit) for width in self.widths]

    @property
    def layers(self) -> int:
        return len(self.bias)

    @cached_property
    def weights(self) -> list[int]:
        """Where each layer's weight starts; its bias, if any, follows it. The last number is the length of a row."""
        return [0, *accumulate(o * (i + b) for (i, o), b in zip(pairwise(self.padded), self.bias, strict=True))]

    @cached_property
    def activations(self) -> list[int]:
        """Where the activations of layers 1, 2, ... start, sample by sample, and the length of a row."""
        return [0, *accumulate(self.batch * width for width in self.padded[1:])]

    @cached_property
    def across(self) -> list[int]:
        """The same where they lie node by node, [width, padded batch]."""
        return [0, *accumulate(padded(self.batch) * width for width in self.padded[1:])]

    def bias_of(self, layer: int) -> int:
        return self.weights[layer] + self.padded[layer] * self.padded[layer + 1]

    def updates(self, nodes: int, inputs: int) -> list[list[int]]:
        """The table of updates: a row for each tile of each weight matrix.

        Offsets and padded widths are in grains; the last two numbers say which tile of its matrix it is.
        """
        rows = []
        for layer in range(self.layers):
            n_in, n_out = self.widths[layer : layer + 2]
            where = [
                self.weights[layer] // GRAIN,
                self.bias_of(layer) // GRAIN if self.bias[layer] else -1,
                self.activations[layer - 1] // GRAIN if layer else -1,
                self.activations[layer] // GRAIN,
                self.padded[layer] // GRAIN,
                self.padded[layer + 1] // GRAIN,
                n_in,
                n_out,
            ]
            rows += [[*where, o, i] for o in range(-(-n_out // nodes)) for i in range(-(-n_in // inputs))]
        return rows

    def tiles_of(self, nodes: int, inputs: int) -> list[int]:
        """Where the tiles of each layer start in that table, and their number."""
        each = [-(-o // nodes) * -(-i // inputs) for i, o in pairwise(self.widths)]
        return [0, *accumulate(each)]

    def hidden(self, nodes: int) -> list[list[int]]:
        """For blocks of hidden nodes: where their layer's weight starts, its padded inputs (in grains), node, nodes."""
        return [
            [self.weights[layer] // GRAIN, self.padded[layer] // GRAIN, first, self.widths[layer + 1]]
            for layer in range(self.layers - 1)
            for first in range(0, self.widths[layer + 1], nodes)
        ]
