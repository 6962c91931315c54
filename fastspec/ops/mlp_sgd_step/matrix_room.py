"""Students that the matrix units of a GPU train: memory of their operands, and the launches that make a step in it."""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastspec.ops.gpu.layout import on_device_of
from fastspec.ops.gpu.mlp_matrix import down_kernel, up_kernel, update_matrix_kernel
from fastspec.ops.gpu.mlp_operands import gather_kernel, labels_kernel, operands_kernel, stop_kernel
from fastspec.ops.mlp_sgd_step import matrix_shapes
from fastspec.ops.mlp_sgd_step.matrix_shapes import MatrixTiles, update_starts
from fastspec.ops.mlp_sgd_step.shapes import Layout, Tiles, padded
from fastspec.ops.mlp_sgd_step.students import NORMALIZED, Problem, Students, steps_within

GROUP = 8  # tiles that share columns run side by side
BLOCK = 64  # rows and columns of what is gathered or rounded at a time
LABELS, LOSSES = 8192, 1024  # values of outputs, and parts of the loss, that a program takes at a time


class Matrix(NamedTuple):
    """An operand of products [P, rows, columns], and across [P, columns, rows]; None where nothing reads it so."""

    plain: Tensor | None
    across: Tensor | None

    def at(self, t: int) -> Matrix:
        return Matrix(*(None if one is None else one[t] for one in self))


def tiled(matrix: Tensor | None, rows: int, columns: int) -> TensorDescriptor:
    """The matrices of all students as one, to be read in tiles."""
    assert matrix is not None
    flat = matrix.view(-1, matrix.shape[-1])
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [rows, columns])


def tiled_down(matrix: Matrix, terms: int, columns: int) -> TensorDescriptor:
    """The same of terms that lie down the columns: across where that is there."""
    if matrix.across is None:
        return tiled(matrix.plain, terms, columns)
    return tiled(matrix.across, columns, terms)


class Tables(NamedTuple):
    """What the kernels look up, int64."""

    starts: Tensor  # [layers + 1], of the updates' tiles
    hidden: Tensor  # see `Layout.hidden`


@lru_cache(maxsize=64)
def tables(layout: Layout, tiles: Tiles, device: torch.device) -> Tables:
    """Kept for later calls: nothing can be copied from the host while a stream is captured."""
    new = partial(torch.tensor, dtype=torch.int64, device=device)
    return Tables(new(update_starts(layout, tiles)), new(layout.hidden(NORMALIZED[0])))


class MatrixRoom(Students):
    """Students, and everything that products read, rounded where it is written; sizes are padded to whole tiles."""

    def __init__(self, problem: Problem, tiles: MatrixTiles):
        layout, students = problem.layout, problem.students
        self.layer, self.update = tiles
        self.slice = matrix_shapes.slice_of_update(tiles, bool(problem.momentum))
        self.bf16, self.rows = problem.precision == "bf16", padded(layout.batch, tiles.batch)
        self.dtype, self.own = torch.bfloat16 if self.bf16 else torch.float32, students if problem.own else 1
        wide, rows, own = layout.padded, self.rows, self.own
        one = self.dtype.itemsize * (1 if self.bf16 else 2) * wide[0] + (8 if problem.labels else 4 * wide[-1])
        super().__init__(problem, steps_within(own * rows * one))
        self.starts = update_starts(layout, self.update)
        self.tables = tables(layout, self.update, problem.device)
        new = partial(torch.empty, device=problem.device)
        single, double = partial(new, dtype=torch.float32), partial(new, dtype=torch.float64)
        self.x = self._matrix(self.steps, own, rows, wide[0])
        answers = (self.steps, own, rows)
        self.y = new(answers, dtype=torch.int64) if problem.labels else single(*answers, wide[-1])
        self.weights = [self._matrix(students, o, i) for i, o in pairwise(wide)]
        self.weights[0] = Matrix(self.weights[0].plain, None)  # inputs have no gradient
        self.h = [self._matrix(students, rows, width) for width in wide[1:-1]]
        self.gates = [new(students, rows, width // 8, dtype=torch.uint8) for width in wide[1:-1]]
        self.outputs = single(students, rows, wide[-1]) if problem.labels else None
        self.g = [self._matrix(students * rows * max(wide[1:])) for _ in range(min(layout.layers, 2))]  # taken by turns
        blocks = rows // self.layer.rows
        self.sums = [single(students, blocks, n) if b else None for n, b in zip(wide[1:], layout.bias, strict=True)]
        self.parts = double(students, blocks * (1 if problem.labels else wide[-1] // self.layer.nodes))
        self.squares = double(students, self.starts[-1]) if problem.gradient_norms else None
        self.options: dict[str, Any] = {"PRECISION": problem.precision, "enable_fp_fusion": True}
        self.tiles = {"ROWS": self.layer.rows, "NODES": self.layer.nodes, "INNER": self.layer.inner, "GROUP": GROUP}
        self.tiles |= {"SLICE": matrix_shapes.SLICE, "num_warps": self.layer.warps, "num_stages": self.layer.stages}

    def _matrix(self, *size: int) -> Matrix:
        new = partial(torch.empty, dtype=self.dtype, device=self.problem.device)
        return Matrix(new(size), None if self.bf16 else new(*size[:-2], *size[:-3:-1]))

    def enter(self, parameters: Tensor, buffers: Tensor | None, diverged: Tensor) -> None:
        """Take them, and round the weights."""
        super().enter(parameters, buffers, diverged)
        with on_device_of(self.parameters):
            for i in range(self.problem.layout.layers):
                self._round(i)

    def gather(self, x: Tensor, y: Tensor, rows: Tensor, rates: Tensor, first_step: int) -> None:
        """Take the batches of the next steps: rows [steps, batch], or [steps, P, batch] of their own."""
        rows = rows.contiguous()
        with on_device_of(x):
            self._gather(x, rows, self.x, self.problem.precision)
            if not self.problem.labels:
                self._gather(y, rows, Matrix(self.y, None), "fp32")
        if self.problem.labels:
            found = y.index_select(0, rows.view(-1)).view(len(rows), self.own, -1)
            self.y[: len(rows), :, : found.shape[-1]].copy_(found)
        self.at(rates, first_step)

    def launch(self, steps: int) -> None:
        """Make the steps that were gathered."""
        layers = self.problem.layout.layers
        with on_device_of(self.parameters):
            for t in range(steps):
                for i in range(layers):
                    self._up(i, t)
                self._end(t)
                for i in reversed(range(layers)):
                    if i:
                        self._down(i)
                    self._update(i, t)
                if self.squares is not None:
                    self.write_norms(t, self.squares, self.tables.starts)
                if self.problem.normalize:
                    self.normalize(self.tables.hidden)
                    for i in range(layers - 1):
                        self._round(i)

    def _gradient(self, i: int) -> Matrix:
        """With respect to the pre-activations of layer i: along its terms, and down the batch."""
        width, students = self.problem.layout.padded[i + 1], self.problem.students
        plain, across = (None if one is None else one[: students * self.rows * width] for one in self.g[i % 2])
        assert plain is not None
        down = None if across is None else across.view(students, width, self.rows)
        return Matrix(None if i == 0 and not self.bf16 else plain.view(students, self.rows, width), down)

    def _bias(self, values: Tensor | None, i: int) -> Tensor | None:
        layout = self.problem.layout
        return values[:, layout.bias_of(i) :] if layout.bias[i] and values is not None else None

    def _up(self, i: int, t: int) -> None:
        """The activations of layer i, the outputs, or their residuals."""
        problem, layout = self.problem, self.problem.layout
        below, top, shared = self.h[i - 1] if i else self.x.at(t), i == layout.layers - 1, not i and not problem.own
        if not top:
            kind, out = "hidden", self.h[i]
        else:
            kind, out = ("outputs", Matrix(self.outputs, None)) if problem.labels else ("residuals", self._gradient(i))
        residuals, width = kind == "residuals", layout.padded[i + 1]
        up_kernel[(problem.students * (self.rows // self.layer.rows) * (width // self.layer.nodes),)](
            tiled(below.plain, self.layer.rows, self.layer.inner),
            tiled(self.weights[i].plain, self.layer.nodes, self.layer.inner),
            self._bias(self.parameters, i),
            self.y[t] if residuals else None,
            *out,
            None if top else self.gates[i],
            self.sums[i] if residuals else None,
            self.parts if residuals else None,
            self.diverged,
            self.rows,
            width,
            layout.padded[i],
            layout.batch,
            layout.widths[i + 1],
            int(shared),
            int(not problem.own),
            self.parameters.stride(0),
            problem.negative_slope,
            KIND=kind,
            **self.options,
            **self.tiles,
        )

    def _end(self, t: int) -> None:
        """The loss, and who stops."""
        problem, layout = self.problem, self.problem.layout
        width, top = layout.padded[-1], layout.layers - 1
        if problem.labels:
            whole = triton.next_power_of_2(width)
            labels_kernel[(problem.students * (self.rows // self.layer.rows),)](
                self.outputs, self.y[t], *self._gradient(top), self.sums[top], self.parts, self.diverged,
                self.rows, width, layout.batch, layout.widths[-1], int(not problem.own),
                ROWS=self.layer.rows, SOME=min(max(LABELS // whole, 1), self.layer.rows), WIDTH=whole,
                num_warps=8, num_stages=1, **self.options,
            )  # fmt: skip
        stop_kernel[(problem.students,)](
            self.parts, self.losses[t], self.diverged, self.numbers[t], layout.batch, self.parts.shape[1],
            min(problem.loss_limit, torch.finfo(torch.float64).max),
            BLOCK=LOSSES, num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip

    def _down(self, i: int) -> None:
        """The gradient with respect to the pre-activations below layer i."""
        problem, layout, layer = self.problem, self.problem.layout, self.layer
        width = layout.padded[i]
        down_kernel[(problem.students * (self.rows // layer.rows) * (width // layer.nodes),)](
            tiled(self._gradient(i).plain, layer.rows, layer.inner),
            tiled_down(self.weights[i], layer.inner, layer.nodes),
            self.gates[i - 1],
            *self._gradient(i - 1),
            self.sums[i - 1],
            self.diverged,
            self.rows,
            width,
            layout.padded[i + 1],
            layout.batch,
            layout.widths[i],
            problem.negative_slope,
            ACROSS=not self.bf16,
            **self.options,
            **self.tiles,
        )

    def _update(self, i: int, t: int) -> None:
        """A step of layer i."""
        problem, layout, tiles = self.problem, self.problem.layout, self.update
        inputs, width = layout.padded[i : i + 2]
        below, shared = self.h[i - 1] if i else self.x.at(t), not i and not problem.own
        p_w, p_vw = (None if t is None else t[:, layout.weights[i] :] for t in (self.parameters, self.buffers))
        rounded_later = problem.normalize and i < layout.layers - 1
        update_matrix_kernel[(problem.students * (width // tiles.nodes) * (inputs // tiles.inner),)](
            tiled_down(self._gradient(i), tiles.rows, tiles.nodes),
            tiled_down(below, tiles.rows, tiles.inner),
            p_w,
            self._bias(self.parameters, i),
            p_vw,
            self._bias(self.buffers, i),
            *((None, None) if rounded_later else self.weights[i]),
            self.sums[i],
            self.rates[t],
            None if self.squares is None else self.squares[:, self.starts[i] :],
            self.diverged,
            self.rows,
            width,
            inputs,
            layout.batch,
            layout.widths[i + 1],
            layout.widths[i],
            int(shared),
            self.rows // self.layer.rows,
            self.parameters.stride(0),
            self.starts[-1],
            problem.momentum,
            problem.weight_decay,
            ACROSS=not self.bf16,
            ROWS=tiles.rows,
            NODES=tiles.nodes,
            INPUTS=tiles.inner,
            SLICE=self.slice,
            GROUP=GROUP,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            **self.options,
        )

    def _round(self, i: int) -> None:
        """The weights of layer i as operands."""
        layout, (inputs, width) = self.problem.layout, self.problem.layout.padded[i : i + 2]
        operands_kernel[(self.problem.students * (width // BLOCK) * (inputs // BLOCK),)](
            self.parameters[:, layout.weights[i] :], *self.weights[i], width, inputs, self.parameters.stride(0),
            BLOCK=BLOCK, num_warps=4, num_stages=1, **self.options,
        )  # fmt: skip

    def _gather(self, table: Tensor, rows: Tensor, out: Matrix, precision: str) -> None:
        """Rows of a table as operands, padded."""
        assert out.plain is not None
        batches, width = rows.numel() // rows.shape[-1], out.plain.shape[-1]
        gather_kernel[(batches * (self.rows // BLOCK) * (width // BLOCK),)](
            table, rows, *out, rows.shape[-1], table.shape[1], *table.stride(), self.rows, width,
            BLOCK=BLOCK, num_warps=4, num_stages=1, **{**self.options, "PRECISION": precision},
        )  # fmt: skip
