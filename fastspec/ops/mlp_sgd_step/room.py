"""Students of one shape on a GPU in kernels of float32 and float64, and the launches that make a step."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastspec.ops.gpu.layout import on_device_of
from fastspec.ops.gpu.mlp import layer_kernel, loss_kernel, update_kernel
from fastspec.ops.mlp_sgd_step import shapes
from fastspec.ops.mlp_sgd_step.shapes import GRAIN, Layout, Tiles, padded
from fastspec.ops.mlp_sgd_step.students import NORMALIZED, Problem, Students, steps_within

LOSSES = 4096  # values that the loss takes at a time


class Tables(NamedTuple):
    """What the kernels look up, int64."""

    updates: Tensor  # [tiles, FIELDS]
    starts: Tensor  # [layers + 1], of the layers' tiles
    hidden: Tensor  # [blocks of hidden nodes, 4]


@lru_cache(maxsize=64)
def tables(layout: Layout, tiles: Tiles, device: torch.device) -> Tables:
    """Kept for later calls: nothing can be copied from the host while a stream is captured."""
    new = partial(torch.tensor, dtype=torch.int64, device=device)
    updates = new(layout.updates(tiles.nodes, tiles.inner))
    return Tables(updates, new(layout.tiles_of(tiles.nodes, tiles.inner)), new(layout.hidden(NORMALIZED[0])))


class Room(Students):
    """Students, the batches of some steps, activations, gradients."""

    def __init__(self, problem: Problem):
        layout, students = problem.layout, problem.students
        batch, own = layout.batch, students if problem.own else 1
        self.layer, self.update = shapes.layer_tiles(batch, layout.fp64), shapes.update_tiles(batch, layout.fp64)
        dtype = torch.float64 if layout.fp64 else torch.float32
        self.inputs = own * batch * layout.padded[0]  # values of a step
        answers = (own, padded(batch)) if problem.labels else (own, batch, layout.padded[-1])
        gathered = dtype.itemsize * (self.inputs + own * batch * layout.padded[-1] * (not problem.labels))
        super().__init__(problem, steps_within(gathered))
        zeros = partial(torch.zeros, dtype=dtype, device=problem.device)
        self.tables = tables(layout, self.update, problem.device)
        values = students * layout.activations[-1]
        self.work = zeros(self.steps * self.inputs + 2 * values)
        x, h, g = self.work.split([self.steps * self.inputs, values, values])
        self.x = x.view(self.steps, own, batch, layout.padded[0])
        self.h, self.g = h.view(students, -1), g.view(students, -1)
        self.x_across = zeros(self.steps, own, layout.padded[0], padded(batch))
        self.h_across, self.g_across = (zeros(students, layout.across[-1]) for _ in range(2))
        self.y = zeros(self.steps, *answers, dtype=torch.int64 if problem.labels else dtype)
        self.squares = (
            zeros(students, len(self.tables.updates), dtype=torch.float64) if problem.gradient_norms else None
        )
        products = [self._product(i, down) for i in range(layout.layers) for down in ((False, True) if i else (False,))]
        most, most_tiles = (students * max(column) for column in zip(*(p["room"] for p in products), strict=True))
        self.parts = zeros(most * self.layer.rows * self.layer.nodes) if most else None
        self.counts = zeros(most_tiles, dtype=torch.int32)

    def gather(self, x: Tensor, y: Tensor, rows: Tensor, rates: Tensor, first_step: int) -> None:
        """Take the batches of the next steps: rows [steps, batch], or [steps, P, batch] of their own."""
        steps, batch = len(rows), rows.shape[-1]
        flat = rows.reshape(-1)
        for table, place in ((x, self.x), (y, self.y)):
            true = place[:steps, :, :batch]
            found = table.index_select(0, flat).view(*true.shape[:3], *table.shape[1:])
            (true if found.dim() == 3 else true[..., : table.shape[1]]).copy_(found)
        self.x_across[:steps, ..., :batch].copy_(self.x[:steps].mT)
        self.at(rates, first_step)

    def launch(self, steps: int) -> None:
        """Make the steps that were gathered."""
        layout = self.problem.layout
        with on_device_of(self.work):
            for t in range(steps):
                for i in range(layout.layers):
                    self._layer(i, False, t)
                self._loss(t)
                for i in reversed(range(1, layout.layers)):
                    self._layer(i, True, t)
                self._update(t)

    def _product(self, i: int, down: bool) -> dict[str, Any]:
        """How layer i's product is divided: terms of a part, parts of a sum; tiles and parts of one student."""
        layout, tiles = self.problem.layout, self.layer
        terms, width = layout.padded[i + down], layout.padded[i + 1 - down]
        chunk = shapes.chunk_of(tiles, layout.batch, terms, width)
        splits, here = (
            triton.cdiv(terms, chunk),
            triton.cdiv(layout.batch, tiles.rows) * triton.cdiv(width, tiles.nodes),
        )
        divided = splits > 1
        return {"chunk": chunk, "splits": splits, "programs": here * splits, "room": (here * splits * divided, here)}

    def _layer(self, i: int, down: bool, t: int) -> None:
        """The activations of layer i from those below, or the gradient below it from the one above."""
        problem, layout, tiles, plan = self.problem, self.problem.layout, self.layer, self._product(i, down)
        kept, across = (self.g, self.g_across) if down else (self.h, self.h_across)
        source, target = (i, i - 1) if down else (i - 1, i)  # the layers whose nodes these are
        if source < 0:
            a, s_a = self.x_across[t], self.x_across.stride(1) if problem.own else 0
        else:
            a, s_a = across[:, layout.across[source] :], across.stride(0)
        layer_kernel[(problem.students * plan["programs"],)](
            a,
            self.parameters[:, layout.weights[i] :],
            self.parameters[:, layout.bias_of(i) :] if layout.bias[i] and not down else None,
            self.h_across[:, layout.across[target] :] if down else None,
            across[:, layout.across[target] :],
            kept[:, layout.activations[target] :],
            self.parts if plan["splits"] > 1 else None,
            self.counts if plan["splits"] > 1 else None,
            self.diverged,
            layout.batch,
            layout.padded[i + down] // GRAIN,
            layout.padded[i + 1 - down] // GRAIN,
            layout.widths[i + 1 - down],
            s_a // GRAIN,
            self.parameters.stride(0) // GRAIN,
            across.stride(0) // GRAIN,
            kept.stride(0) // GRAIN,
            plan["chunk"] // tiles.inner,
            plan["splits"],
            problem.negative_slope,
            DOWN=down,
            HIDDEN=down or i < layout.layers - 1,
            PRECISION=problem.precision,
            ROWS=tiles.rows,
            NODES=tiles.nodes,
            INNER=tiles.inner,
            GRAIN=GRAIN,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            enable_fp_fusion=True,
        )

    def _loss(self, t: int) -> None:
        problem, layout = self.problem, self.problem.layout
        top, across, width = layout.activations[-2], layout.across[-2], triton.next_power_of_2(layout.padded[-1])
        loss_kernel[(problem.students,)](
            self.h[:, top:],
            self.y[t],
            self.g[:, top:],
            self.g_across[:, across:],
            self.losses[t],
            self.diverged,
            self.numbers[t],
            layout.batch,
            layout.padded[-1] // GRAIN,
            layout.widths[-1],
            self.h.stride(0) // GRAIN,
            self.g_across.stride(0) // GRAIN,
            self.y.stride(1) if problem.own else 0,
            min(problem.loss_limit, torch.finfo(torch.float64).max),
            LABELS=problem.labels,
            ROWS=min(max(LOSSES // width, 1), triton.next_power_of_2(layout.batch)),
            WIDTH=width,
            GRAIN=GRAIN,
            num_warps=8,
            num_stages=1,
            enable_fp_fusion=True,
        )

    def _update(self, t: int) -> None:
        """Move the weights; what may follow: the norms of the gradients, and normalised weight vectors."""
        problem, layout, tiles, students = self.problem, self.problem.layout, self.update, self.problem.students
        count = len(self.tables.updates)
        update_kernel[(students * count,)](
            self.parameters,
            self.buffers,
            self.work,
            self.tables.updates,
            self.rates[t],
            self.squares,
            self.diverged,
            layout.batch,
            count,
            t * self.inputs // GRAIN,
            self.x.stride(1) // GRAIN if problem.own else 0,
            self.h.storage_offset() // GRAIN,
            self.g.storage_offset() // GRAIN,
            self.h.stride(0) // GRAIN,
            self.parameters.stride(0) // GRAIN,
            problem.momentum,
            problem.weight_decay,
            PRECISION=problem.precision,
            FIELDS=shapes.FIELDS,
            ROWS=tiles.rows,
            NODES=tiles.nodes,
            INPUTS=tiles.inner,
            GRAIN=GRAIN,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            enable_fp_fusion=True,
        )
        if self.squares is not None:
            self.write_norms(t, self.squares, self.tables.starts)
        if problem.normalize:
            self.normalize(self.tables.hidden)
