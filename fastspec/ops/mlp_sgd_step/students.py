"""Students of one shape in the memory of a GPU: what every way to train them there has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from fastspec.ops.gpu.mlp import normalize_kernel, norms_kernel
from fastspec.ops.mlp_sgd_step.matrix_shapes import MatrixTiles
from fastspec.ops.mlp_sgd_step.reference import layers_of
from fastspec.ops.mlp_sgd_step.shapes import GRAIN, Layout

STEPS = 16  # whose batches are gathered at once, and which the longest graph makes; a power of two
GATHERED = 32 * 2**20  # bytes of gathered batches, if one step needs no more
NORMALIZED, SQUARES = (8, 128), 256  # nodes and inputs, and tiles, that a program takes at a time


@dataclass(frozen=True)
class Problem:
    """Everything but the values: calls of one problem can share a room."""

    layout: Layout
    students: int
    own: bool  # batches of their own
    labels: bool
    momentum: float
    weight_decay: float
    negative_slope: float
    loss_limit: float
    normalize: bool
    gradient_norms: bool
    precision: str
    tiles: MatrixTiles | None  # on matrix units
    device: torch.device


def steps_within(gathered: int) -> int:
    """Steps whose batches are gathered at once, where those of one step are so many bytes."""
    return min(1 << (max(GATHERED // gathered, 1).bit_length() - 1), STEPS)


class Students(ABC):
    """Students in their padded layout, and the rates, numbers and results of some steps."""

    def __init__(self, problem: Problem, steps: int):
        self.problem, self.steps, layout, students = problem, steps, problem.layout, problem.students
        dtype = torch.float64 if layout.fp64 else torch.float32
        zeros = partial(torch.zeros, dtype=torch.float64, device=problem.device)
        self.parameters = zeros(students, layout.weights[-1], dtype=dtype)
        self.buffers = torch.zeros_like(self.parameters) if problem.momentum else None
        # each step's part of a table starts at a multiple of 16 bytes
        self.rates, self.numbers = zeros(steps, 2), zeros(steps, 2, dtype=torch.int64)
        self.losses = zeros(steps, students + students % 2)
        norms = students * layout.layers
        self.norms = zeros(steps, norms + norms % 2) if problem.gradient_norms else None
        self.count = torch.arange(steps, device=problem.device)
        self.diverged = zeros(students, dtype=torch.int64)

    @cached_property
    def bytes(self) -> int:
        """Of all memory, of which some tensors are views."""
        storages = (t.untyped_storage() for t in _tensors(vars(self).values()))
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def enter(self, parameters: Tensor, buffers: Tensor | None, diverged: Tensor) -> None:
        """Take parameters and buffers [P, K], and the steps [P] at which students have stopped."""
        self._copy(self.parameters, parameters, inwards=True)
        if self.buffers is not None:
            if buffers is None:
                self.buffers.zero_()
            else:
                self._copy(self.buffers, buffers, inwards=True)
        self.diverged.copy_(diverged)

    def leave(self, parameters: Tensor, buffers: Tensor | None, diverged: Tensor) -> None:
        """Write them."""
        self._copy(self.parameters, parameters, inwards=False)
        if self.buffers is not None and buffers is not None:
            self._copy(self.buffers, buffers, inwards=False)
            buffers.masked_fill_((self.diverged >= 0).unsqueeze(1), 0)
        diverged.copy_(self.diverged)

    def _copy(self, mine: Tensor, theirs: Tensor, inwards: bool) -> None:
        layout = self.problem.layout
        here = layers_of(mine, layout.padded, layout.bias)
        there = layers_of(theirs, layout.widths, layout.bias)
        for pair in zip(here, there, strict=True):
            for padded_one, other in zip(*pair, strict=True):
                if padded_one is None or other is None:
                    continue
                true = padded_one[tuple(slice(size) for size in other.shape)]
                (true if inwards else other).copy_(other if inwards else true)

    def at(self, rates: Tensor, first_step: int) -> None:
        """The rates [steps] float64 and the numbers of the next steps."""
        self.rates[: len(rates), 0].copy_(rates)
        torch.add(self.count[: len(rates)], first_step, out=self.numbers[: len(rates), 0])

    @abstractmethod
    def gather(self, x: Tensor, y: Tensor, rows: Tensor, rates: Tensor, first_step: int) -> None:
        """Take the batches of the next steps: rows [steps, batch], or [steps, P, batch] of their own."""

    @abstractmethod
    def launch(self, steps: int) -> None:
        """Make the steps that were gathered."""

    def write_norms(self, t: int, squares: Tensor, starts: Tensor) -> None:
        """The norms of a step's gradients from squares [P, tiles]; `starts` [layers + 1] says whose they are."""
        if self.norms is None:
            return
        layers = self.problem.layout.layers
        norms_kernel[(self.problem.students * layers,)](
            squares, starts, self.norms[t], self.diverged, self.problem.layout.batch, squares.shape[1], layers,
            BLOCK=SQUARES, num_warps=4, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip

    def normalize(self, hidden: Tensor) -> None:
        """Divide the weight vectors of hidden nodes by their norms; `hidden` is `Layout.hidden`."""
        if len(hidden):
            normalize_kernel[(self.problem.students * len(hidden),)](
                self.parameters, hidden, self.diverged, len(hidden), self.parameters.stride(0) // GRAIN,
                NODES=NORMALIZED[0], INPUTS=NORMALIZED[1], GRAIN=GRAIN, num_warps=4, num_stages=3,
                enable_fp_fusion=True,
            )  # fmt: skip


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """All that are among the values, and in tuples and lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
