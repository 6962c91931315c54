"""`layer_moments` on a GPU: one pass of the shared kernel, or activations streamed through it in chunks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops.cross_moments import fake_moments
from fastspec.ops.gpu.accumulate import Accumulator, Outputs, Side, Workspace, centre
from fastspec.ops.gpu.devices import rates_of
from fastspec.ops.gpu.sizes import span_of
from fastspec.ops.layer_moments import plans, reference
from fastspec.ops.linear_relu.triton import vendor, write_activations


class Layer(NamedTuple):
    """A network's layer and its input."""

    x: Tensor  # [N, d] or [P, N, d]
    weight: Tensor  # [nodes, d] or [P, nodes, d]
    bias: Tensor | None  # [nodes] or [P, nodes]


def layer_moments(
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    student_input: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    negative_slope: float,
    precision: str,
    coactivation: bool,
    activations: bool,
) -> tuple[Tensor, ...]:
    """Signature and results of the op; any strides."""
    samples, m = teacher_input.shape[0], teacher_weight.shape[0]
    *population, n, _ = student_weight.shape
    teacher = Layer(teacher_input, teacher_weight, teacher_bias)
    student = Layer(student_input, student_weight, student_bias)
    if not student_weight.shape[:-1].numel() * m * samples:
        return reference.layer_moments(*teacher, *student, negative_slope, precision, coactivation, activations)
    out = fake_moments(teacher_input, m, tuple(population), n, coactivation)
    new = teacher_input.new_empty
    kept = (new(samples, m), new(*population, samples, n)) if activations else None
    plan = plans.choose(
        samples, teacher_input.shape[1], m, n, precision, student_inputs=student_input.shape[-1],
        coactivation=coactivation, activations=activations, device=rates_of(teacher_input),
    )  # fmt: skip
    if plan.name == "recompute":
        own = student_input.dim() == 3
        Accumulator(out, samples, precision, plan.tiles, own).add(Side(*teacher), Side(*student), negative_slope, kept)
    else:
        _stream(out, kept, teacher, student, negative_slope, precision, plan)
    return (*out, *(kept or (new(0), new(0))))


def _stream(
    out: Outputs,
    kept: tuple[Tensor, Tensor] | None,
    teacher: Layer,
    student: Layer,
    slope: float,
    precision: str,
    plan: plans.Plan,
) -> None:
    """Chunks of samples: the teacher's activations once, then those of each slab of each student, then the moments."""
    samples, (m, n) = len(teacher.x), out[4].shape[-2:]
    span, dtype = span_of(samples, m), torch.float64 if precision == "fp64" else torch.float32
    by_vendor = vendor(precision) and out[7].dim() == 1
    new, rows, slab = out[0].new_empty, plan.chunk, plan.slab
    t_buffer, s_buffer = new((rows, m), dtype=dtype), new(rows * slab, dtype=dtype)
    tile = plan.tiles.students
    work = None if by_vendor else Workspace.fitting(out[0], rows, span, m, slab, tile, dtype, out[7].dim() > 1)
    parts = [(p, slice(k, min(k + slab, n))) for p in _students(student) for k in range(0, n, slab)]
    spare = tuple(torch.empty_like(x) for x in (out[0], out[2], out[5]))  # the teacher's, of all parts but the first
    sums = [
        Accumulator(_part(out, p, k, spare if i else None), samples, precision, plan.tiles, workspace=work)
        for i, (p, k) in enumerate(parts)
    ]
    for start in range(0, samples, rows):
        here = slice(start, min(start + rows, samples))
        size = here.stop - start
        spans = -(-size // span) * span
        write_activations(t_buffer[:size], teacher.x[here], teacher.weight, teacher.bias, slope, precision)
        if kept is not None:
            kept[0][here] = t_buffer[:size]
        t_centred = centre(t_buffer[:spans], size, span) if by_vendor else None
        for (p, k), part in zip(parts, sums, strict=True):
            s = s_buffer[: spans * (k.stop - k.start)].view(spans, -1)
            write_activations(s[:size], *_layer(student, p, here, k), slope, precision)
            if kept is not None:
                (kept[1] if p is None else kept[1][p])[here, k] = s[:size]
            if t_centred is None:
                part.add(Side(t_buffer[:size]), Side(s[:size]))
            else:
                part.add_centred(t_centred, centre(s, size, span), size)


def _students(student: Layer) -> list[int | None]:
    return [None] if student.weight.dim() == 2 else list(range(len(student.weight)))


def _layer(student: Layer, p: int | None, rows: slice, nodes: slice) -> Layer:
    """Some samples and nodes of one student."""
    x, weight, bias = student
    if p is not None:
        x, weight, bias = x[p] if x.dim() == 3 else x, weight[p], None if bias is None else bias[p]
    return Layer(x[rows], weight[nodes], None if bias is None else bias[nodes])


def _part(out: Outputs, p: int | None, nodes: slice, teacher: Outputs | None) -> Outputs:
    """The outputs of some nodes of one student, as views; the teacher's go to `teacher` where it is given."""
    t_mean, s_mean, t_scatter, s_scatter, cross, t_active, s_active, coactive = out
    if teacher is not None:
        t_mean, t_scatter, t_active = teacher
    if p is not None:
        s_mean, s_scatter, cross, s_active = s_mean[p], s_scatter[p], cross[p], s_active[p]
        coactive = coactive[p] if coactive.dim() > 1 else coactive
    coactive = coactive[:, nodes] if coactive.dim() > 1 else coactive
    return t_mean, s_mean[nodes], t_scatter, s_scatter[nodes], cross[:, nodes], t_active, s_active[nodes], coactive
