"""Op `layer_moments`: linear + bias + (leaky) ReLU on both sides, then the moments, in one pass over the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.checks import check_real, check_same_kind, refuse, shape
from fastspec.ops.cross_moments import Moments, fake_moments
from fastspec.ops.layer_moments import reference
from fastspec.ops.linear_relu import check_layer
from fastspec.ops.precision import check_precision


def _fake(
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
    samples, m = teacher_input.shape[0], teacher_weight.shape[0]
    *population, n, _ = student_weight.shape
    moments = fake_moments(teacher_input, m, tuple(population), n, coactivation)
    if not activations:
        return *moments, teacher_input.new_empty(0), teacher_input.new_empty(0)
    return *moments, teacher_input.new_empty(samples, m), teacher_input.new_empty(*population, samples, n)


library.define(
    "layer_moments",
    "(Tensor teacher_input, Tensor teacher_weight, Tensor? teacher_bias, "
    "Tensor student_input, Tensor student_weight, Tensor? student_bias, "
    "float negative_slope, str precision, bool coactivation, bool activations) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.layer_moments,
    fake=_fake,
    triton="fastspec.ops.layer_moments.triton:layer_moments",
)

_op = torch.ops.fastspec.layer_moments.default

_TEACHER = ("teacher_input", "teacher_weight", "teacher_bias"), (2,)
_STUDENT = ("student_input", "student_weight", "student_bias"), (2, 3)


def layer_moments(
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    student_input: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    negative_slope: float = 0.0,
    coactivation: bool = False,
    activations: bool = False,
    precision: str | None = None,
) -> tuple[Moments, tuple[Tensor, Tensor] | None]:
    """Moments of teacher against student activations of one layer, without storing the activations.

    teacher_input [N, d_t], teacher_weight [m, d_t], teacher_bias [m] or None;
    student_input [N, d_s] shared by all students or [P, N, d_s], student_weight [n, d_s] or [P, n, d_s],
    student_bias [n] or [P, n] or None; one dtype (float64, float32, float16, bfloat16) and device, any strides.
    negative_slope: in [0, 1]; 0 is ReLU. At a pre-activation of 0 the gate is off.
    precision: of all three products, see `fastspec.ops.precision.check_precision`; None is that of the dtype.
    Returns `Moments`, and with `activations=True` the activations ([N, m], [*P, N, n]) as input of the next layer.
    Raises ValueError or TypeError, naming the argument, for wrong ranks, shapes, dtypes, devices, slopes or precisions.
    """
    samples = check_layer(*_TEACHER, teacher_input, teacher_weight, teacher_bias)
    student_samples = check_layer(*_STUDENT, student_input, student_weight, student_bias)
    check_same_kind(
        teacher_input=teacher_input,
        teacher_weight=teacher_weight,
        teacher_bias=teacher_bias,
        student_input=student_input,
        student_weight=student_weight,
        student_bias=student_bias,
    )
    if student_samples != samples:
        refuse("student_input", shape(student_input), f"the samples of teacher_input, {shape(teacher_input)}")
    check_real("negative_slope", negative_slope, "a number in [0, 1]", 0.0, 1.0)
    out = _op(
        teacher_input,
        teacher_weight,
        teacher_bias,
        student_input,
        student_weight,
        student_bias,
        negative_slope,
        check_precision(precision, teacher_input.dtype),
        coactivation,
        activations,
    )
    return Moments(*out[:8]), out[8:] if activations else None
