"""Activations that go through memory in chunks of samples, of a student's nodes or of a block of students at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastspec.ops.gpu.accumulate import Accumulator, Centred, Outputs, Side, Workspace, centre
from fastspec.ops.gpu.sizes import span_of
from fastspec.ops.layer_moments.plans import EACH, Block, Plan
from fastspec.ops.linear_relu.triton import vendor, write_activations, write_pre_activations


class Layer(NamedTuple):
    """A network's layer and its input."""

    x: Tensor  # [N, d] or [P, N, d]
    weight: Tensor  # [nodes, d] or [P, nodes, d]
    bias: Tensor | None  # [nodes] or [P, nodes]


class Part(NamedTuple):
    """What goes through at a time, as one network: nodes of the teacher or of a student, or students side by side."""

    layer: Layer  # x [N, d], weight [columns, d], bias [columns] or None
    kept: Tensor | None  # where activations are handed out: [N, n], or [students, N, n] of a block
    block: tuple[int, int, int] | None = None  # students, columns of each, and nodes: the first of its columns

    def of_students(self, columns: Tensor) -> Tensor:
        """[N, columns] as [N, n], or [students, N, n] of a block."""
        if self.block is None:
            return columns
        students, each, n = self.block
        return columns.unflatten(1, (-1, each)).movedim(1, 0)[:students, :, :n]


def stream(
    out: Outputs,
    kept: tuple[Tensor, Tensor] | None,
    teacher: Layer,
    student: Layer,
    slope: float,
    precision: str,
    plan: Plan,
) -> None:
    """Chunks of samples: the teacher's activations once, then those of each part of the students, then the moments."""
    samples, m = len(teacher.x), len(teacher.weight)
    span, dtype = span_of(samples, m), torch.float64 if precision == "fp64" else torch.float32
    by_vendor, blocks = vendor(precision) and out[7].dim() == 1, plan.name == "blocks"
    t_kept, s_kept = kept or (None, None)
    cut = _blocks(out, s_kept, student, precision) if blocks else _one_by_one(out, s_kept, student, plan.slab)
    parts, outs = zip(*cut, strict=True)
    tiles, work = plan.tiles, None
    if not by_vendor:
        columns = max(some[1].numel() for some in outs)
        work = Workspace.fitting(out[0], plan.chunk, span, m, columns, tiles.students, dtype, out[7].dim() > 1)
    elif blocks:
        tiles = tiles._replace(students=EACH)  # so that every student has whole tiles
    sums = [Accumulator(some, samples, precision, tiles, blocks and by_vendor, work) for some in outs]
    buffers = [out[0].new_empty(plan.chunk * columns, dtype=dtype) for columns in (m, plan.slab)]

    def activations(part: Part, buffer: Tensor, rows: slice) -> Centred | Tensor:
        """Of some samples, in `buffer` and where they are handed out; centred where the products are torch's."""
        x, weight, bias = part.layer
        size = rows.stop - rows.start
        columns = buffer[: -(-size // span) * span * len(weight)].view(-1, len(weight))
        to = None if part.kept is None else part.kept[..., rows, :]
        if by_vendor:
            write_pre_activations(columns[:size], x[rows], weight, bias)
            return centre(columns, size, span, slope, to, part.block and part.block[1])
        write_activations(columns[:size], x[rows], weight, bias, slope, precision)
        found = part.of_students(columns[:size])
        if to is not None:
            to.copy_(found)
        return found

    for start in range(0, samples, plan.chunk):
        rows = slice(start, min(start + plan.chunk, samples))
        t = activations(Part(teacher, t_kept), buffers[0], rows)
        for part, moments in zip(parts, sums, strict=True):
            s = activations(part, buffers[1], rows)
            if isinstance(t, Centred) and isinstance(s, Centred):
                moments.add_centred(t, s, rows.stop - rows.start)
            elif isinstance(t, Tensor) and isinstance(s, Tensor):
                moments.add(Side(t), Side(s))


def _blocks(out: Outputs, kept: Tensor | None, student: Layer, precision: str) -> Iterator[tuple[Part, Outputs]]:
    """A population's students in full blocks: where there are none, and beyond a student's nodes, all is 0."""
    p, n, _ = student.weight.shape
    students, each = Block.of(n, precision)
    more = (0, each - n, 0, -p % students)
    weight = _aligned(student.weight, (0, 0, *more))
    bias = None if student.bias is None else _aligned(student.bias, more)
    for i, k in enumerate(range(0, p, students)):
        here = slice(k, min(k + students, p))
        block = slice(k, k + students)
        layer = Layer(student.x, weight[block].flatten(0, 1), None if bias is None else bias[block].flatten())
        part = Part(layer, None if kept is None else kept[here], (here.stop - k, each, n))
        yield part, _outputs(out, here, slice(0, n), i == 0)


def _aligned(tensor: Tensor, more: tuple[int, ...]) -> Tensor:
    """The tensor with so many zeros more at its ends, or as it is if it lies in memory as a new one would."""
    if not any(more) and tensor.is_contiguous() and tensor.data_ptr() % 16 == 0:
        return tensor
    return pad(tensor, more) if any(more) else tensor.clone(memory_format=torch.contiguous_format)


def _one_by_one(out: Outputs, kept: Tensor | None, student: Layer, slab: int) -> Iterator[tuple[Part, Outputs]]:
    """Every student on its own, in slabs of its nodes."""
    x, weight, bias = student
    n, first = weight.shape[-2], True
    for p in [None] if weight.dim() == 2 else range(len(weight)):
        for k in range(0, n, slab):
            nodes = slice(k, min(k + slab, n))
            layer, s_kept = Layer(x, weight, bias), kept
            if p is not None:
                layer = Layer(x[p] if x.dim() == 3 else x, weight[p], None if bias is None else bias[p])
                s_kept = None if kept is None else kept[p]
            some = Layer(layer.x, layer.weight[nodes], None if layer.bias is None else layer.bias[nodes])
            yield Part(some, None if s_kept is None else s_kept[:, nodes]), _outputs(out, p, nodes, first)
            first = False


def _outputs(out: Outputs, students: int | slice | None, nodes: slice, first: bool) -> Outputs:
    """Views of the outputs of some nodes of a student, or of a block of students; the teacher's go to the first ones
    alone."""
    t_mean, s_mean, t_scatter, s_scatter, cross, t_active, s_active, coactive = out
    if not first:
        t_mean, t_scatter, t_active = (torch.empty_like(x) for x in (t_mean, t_scatter, t_active))
    if students is not None:
        s_mean, s_scatter, cross, s_active = (x[students] for x in (s_mean, s_scatter, cross, s_active))
        coactive = coactive[students] if coactive.dim() > 1 else coactive
    s_mean, s_scatter, s_active, cross = (x[..., nodes] for x in (s_mean, s_scatter, s_active, cross))
    coactive = coactive[..., nodes] if coactive.dim() > 1 else coactive
    return t_mean, s_mean, t_scatter, s_scatter, cross, t_active, s_active, coactive
