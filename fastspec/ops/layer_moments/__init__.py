"""Op `layer_moments`: linear + bias + (leaky) ReLU on both sides, then the moments, in one pass over the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.checks import check_real, check_same_kind, check_tensor, refuse, shape
from fastspec.ops.cross_moments import Moments, fake_moments
from fastspec.ops.layer_moments import reference


def _fake(
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    student_input: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    negative_slope: float,
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
    "float negative_slope, bool coactivation, bool activations) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.layer_moments,
    fake=_fake,
)


_op = torch.ops.fastspec.layer_moments.default

_TEACHER = ("teacher_input", "teacher_weight", "teacher_bias"), (2,)
_STUDENT = ("student_input", "student_weight", "student_bias"), (2, 3)
_INPUT, _WEIGHT, _BIAS = "[*networks, samples, inputs]", "[*networks, nodes, inputs]", "[*networks, nodes]"


def _check_side(names: tuple[str, str, str], ranks: tuple[int, ...], x: Tensor, w: Tensor, b: Tensor | None) -> int:
    """The side's number of samples."""
    check_tensor(names[0], x, ranks, _INPUT)
    check_tensor(names[1], w, ranks, _WEIGHT)
    inputs, weights = x.shape, w.shape
    if weights[-1] != inputs[-1]:
        refuse(names[1], shape(w), f"{_WEIGHT} with {inputs[-1]} inputs, the width of {names[0]}")
    if len(inputs) == 3 and inputs[:1] != weights[:-2]:
        refuse(names[0], shape(x), f"one input for all networks, or one for each network of {names[1]}, {shape(w)}")
    if b is not None:
        check_tensor(names[2], b, (len(weights) - 1,), _BIAS)
        if b.shape != weights[:-1]:
            refuse(names[2], shape(b), f"shape {list(weights[:-1])}, the nodes of {names[1]}")
    return inputs[-2]


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
) -> tuple[Moments, tuple[Tensor, Tensor] | None]:
    """Moments of teacher against student activations of one layer, without storing the activations.

    teacher_input [N, d_t], teacher_weight [m, d_t], teacher_bias [m] or None;
    student_input [N, d_s] shared by all students or [P, N, d_s], student_weight [n, d_s] or [P, n, d_s],
    student_bias [n] or [P, n] or None; one dtype (float64, float32, float16, bfloat16) and device, any strides.
    negative_slope: in [0, 1]; 0 is ReLU. At a pre-activation of 0 the gate is off.
    Returns `Moments`, and with `activations=True` the activations ([N, m], [*P, N, n]) as input of the next layer.
    Raises ValueError or TypeError, naming the argument, for wrong ranks, shapes, dtypes, devices or slopes.
    """
    samples = _check_side(*_TEACHER, teacher_input, teacher_weight, teacher_bias)
    student_samples = _check_side(*_STUDENT, student_input, student_weight, student_bias)
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
        coactivation,
        activations,
    )
    return Moments(*out[:8]), out[8:] if activations else None
