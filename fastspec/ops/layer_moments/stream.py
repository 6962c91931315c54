"""Activations that go through memory in chunks of samples, of a student's nodes or of a block of students at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    p, n, d = student.weight.shape
    students, each = Block.of(n, precision)
    blocks, more = -(-p // students), (0, each - n, 0, -p % students)
    weights = _aligned(student.weight, (0, 0, *more)).view(blocks, students * each, d)
    biases = None if student.bias is None else _aligned(student.bias, more).view(blocks, students * each)
    coactive = out[7].split(students) if out[7].dim() > 1 else [out[7]] * blocks
    of_students = [*(out[i].split(students) for i in (1, 3, 4, 6)), coactive]
    outs = _with_teacher(out, zip(*of_students, strict=True))
    places = [None] * blocks if kept is None else kept.split(students)
    for i, (place, some) in enumerate(zip(places, outs, strict=True)):
        layer = Layer(student.x, weights[i], None if biases is None else biases[i])
        yield Part(layer, place, (len(some[1]), each, n)), some


def _aligned(tensor: Tensor, more: tuple[int, ...]) -> Tensor:
    """The tensor with so many zeros more at its ends, or as it is if it lies in memory as a new one would."""
    if any(more):
        return pad(tensor, more)
    as_new = tensor.is_contiguous() and tensor.data_ptr() % 16 == 0
    return tensor if as_new else tensor.clone(memory_format=torch.contiguous_format)


def _one_by_one(out: Outputs, kept: Tensor | None, student: Layer, slab: int) -> Iterator[tuple[Part, Outputs]]:
    """Every student on its own, in slabs of its nodes."""
    x, weight, bias = student
    _, s_mean, _, s_scatter, cross, _, s_active, coactive = out
    parts: list[Part] = []
    outs: list[Outputs] = []
    for p in [...] if weight.dim() == 2 else range(len(weight)):
        own = x if x.dim() == 2 else x[p]
        for k in range(0, weight.shape[-2], slab):
            nodes = slice(k, min(k + slab, weight.shape[-2]))
            layer = Layer(own, weight[p][nodes], None if bias is None else bias[p][nodes])
            parts.append(Part(layer, None if kept is None else kept[p][:, nodes]))
            counts = coactive[p][:, nodes] if coactive.dim() > 1 else coactive
            outs.append((s_mean[p][nodes], s_scatter[p][nodes], cross[p][:, nodes], s_active[p][nodes], counts))
    yield from zip(parts, _with_teacher(out, outs), strict=True)


def _with_teacher(out: Outputs, of_students: Iterable[Outputs]) -> Iterator[Outputs]:
    """Outputs of parts of the students with those of the teacher, which are written anew with every part: all but the
    first part's go elsewhere."""
    teacher = out[0], out[2], out[5]
    elsewhere = tuple(torch.empty_like(x) for x in teacher)
    for i, (s_mean, s_scatter, cross, s_active, coactive) in enumerate(of_students):
        t_mean, t_scatter, t_active = elsewhere if i else teacher
        yield t_mean, s_mean, t_scatter, s_scatter, cross, t_active, s_active, coactive
