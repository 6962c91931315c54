"""`layer_moments` on a GPU: one pass of the shared kernel, or activations streamed through it in chunks."""

from __future__ import annotations

from torch import Tensor

from fastspec.ops.cross_moments import fake_moments
from fastspec.ops.gpu.accumulate import Accumulator, Side
from fastspec.ops.gpu.devices import rates_of
from fastspec.ops.layer_moments import plans, reference
from fastspec.ops.layer_moments.stream import Layer, stream


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
    own = student_input.dim() == 3
    plan = plans.choose(
        samples, teacher_input.shape[1], m, n, precision, student_inputs=student_input.shape[-1],
        blocks=bool(population) and not own, coactivation=coactivation, activations=activations,
        device=rates_of(teacher_input),
    )  # fmt: skip
    if plan.name == "recompute":
        Accumulator(out, samples, precision, plan.tiles, own).add(Side(*teacher), Side(*student), negative_slope, kept)
    else:
        stream(out, kept, teacher, student, negative_slope, precision, plan)
    return (*out, *(kept or (new(0), new(0))))
