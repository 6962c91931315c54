"""Op `moments_and_loss`: the moments of two-layer networks, or of the two top layers of deeper ones, and their loss."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.checks import check_real, check_same_kind, check_tensor, refuse, shape
from fastspec.ops.cross_moments import Moments, fake_moments
from fastspec.ops.linear_relu import check_layer
from fastspec.ops.moments_and_loss import reference

SideLayers = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]


def _fake(
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    student_input: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_top: Tensor,
    teacher_top_bias: Tensor | None,
    student_top: Tensor,
    student_top_bias: Tensor | None,
    negative_slope: float,
    coactivation: bool,
) -> tuple[Tensor, ...]:
    *population, n, _ = student_weight.shape
    moments = fake_moments(teacher_input, teacher_weight.shape[0], tuple(population), n, coactivation)
    return *moments, teacher_input.new_empty(population, dtype=torch.float64)


library.define(
    "moments_and_loss",
    "(Tensor teacher_input, Tensor teacher_weight, Tensor? teacher_bias, "
    "Tensor student_input, Tensor student_weight, Tensor? student_bias, "
    "Tensor teacher_top, Tensor? teacher_top_bias, Tensor student_top, Tensor? student_top_bias, "
    "float negative_slope, bool coactivation) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.moments_and_loss,
    fake=_fake,
)

_op = torch.ops.fastspec.moments_and_loss.default

_TENSORS = "input", "weight", "bias", "top", "top_bias"


def moments_and_loss(
    teacher: SideLayers, student: SideLayers, *, negative_slope: float = 0.0, coactivation: bool = False
) -> tuple[Moments, Tensor]:
    """Moments of the hidden activations of teacher against student, and the loss of their outputs, in one pass.

    teacher: input [N, d_t], weight [m, d_t], bias [m] or None, and of the layer of outputs weight [outputs, m] and bias
        [outputs] or None. student: the same, [N, d_s] or [*P, N, d_s], [*P, n, d_s], [*P, n], [*P, outputs, n],
        [*P, outputs]; `*P` an optional population axis. All are float64 or all float32, on one device, of any strides.
    negative_slope: in [0, 1]; 0 is ReLU. At a pre-activation of 0 the gate is off.
    Returns `Moments`, and the sum over the samples of 1/2 ||teacher's - student's outputs||^2, [*P] float64.
    Residuals and short sums of their squares are rounded to the dtype; where one is beyond it, the loss is not finite.
    Of the CPU kernel, moreover: a network less itself is exactly 0, a student's results do not depend on the others,
    and memory beyond inputs and results does not grow with N; its sums are up to 16 times the results.
    Raises ValueError or TypeError, naming the argument, for wrong ranks, shapes, dtypes, devices or slopes.
    """
    names = [[f"{side}_{what}" for what in _TENSORS] for side in ("teacher", "student")]
    samples, student_samples = _check_side(names[0], (2,), teacher), _check_side(names[1], (2, 3), student)
    if teacher[0].dtype not in (torch.float64, torch.float32):
        refuse("teacher_input", f"dtype {teacher[0].dtype}", "float64 or float32", TypeError)
    check_same_kind(**dict(zip(names[0] + names[1], (*teacher, *student), strict=True)))
    if student_samples != samples:
        refuse("student_input", shape(student[0]), f"the samples of teacher_input, {shape(teacher[0])}")
    outputs = teacher[3].shape[0]
    if student[3].shape[-2] != outputs:
        refuse("student_top", shape(student[3]), f"{outputs} outputs, those of teacher_top")
    check_real("negative_slope", negative_slope, "a number in [0, 1]", 0.0, 1.0)
    *moments, loss = _op(*teacher[:3], *student[:3], *teacher[3:], *student[3:], negative_slope, coactivation)
    return Moments(*moments), loss


def _check_side(names: list[str], ranks: tuple[int, ...], tensors: SideLayers) -> int:
    """Check that both layers of a side follow each other; its number of samples."""
    if not isinstance(tensors, (tuple, list)) or len(tensors) != len(_TENSORS):
        got = f"{len(tensors)} of them" if isinstance(tensors, (tuple, list)) else type(tensors).__name__
        refuse(names[0].partition("_")[0], got, f"({', '.join(_TENSORS)}), biases may be None", TypeError)
    x, weight, bias, top, top_bias = tensors
    samples = check_layer(names[:3], ranks, x, weight, bias)
    check_tensor(names[3], top, (weight.dim(),), "[*students, outputs, nodes]")
    if (*top.shape[:-2], top.shape[-1]) != weight.shape[:-1]:
        refuse(names[3], shape(top), f"[*students, outputs, nodes] above {names[1]}, {shape(weight)}")
    if top_bias is not None:
        check_tensor(names[4], top_bias, (top.dim() - 1,), "[*students, outputs]")
        if top_bias.shape != top.shape[:-1]:
            refuse(names[4], shape(top_bias), f"shape {list(top.shape[:-1])}, the outputs of {names[3]}")
    return samples
