"""Op `backward_gram`: inner products of the backward maps of teacher and student nodes, summed over the samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.backward_gram import reference
from fastspec.ops.checks import check_same_kind, check_tensor, refuse, shape
from fastspec.ops.precision import check_precision


class BackwardGram(NamedTuple):
    """What `backward_gram` returns: float64 sums over samples and rows; `*P` is an optional population axis.

    Every teacher-student matrix is [teacher, student]. What was not asked for is empty, [0].
    """

    beta_student_teacher: Tensor  # [*P, m, n]
    beta_teacher_teacher: Tensor  # [m, m]
    beta_student_student: Tensor  # [*P, n, n]
    h_student_teacher: Tensor  # [*P, m, n], of gated factors
    h_teacher_teacher: Tensor  # [m, m]
    h_student_student: Tensor  # [*P, n, n]


def _fake(
    teacher_factor: Tensor,
    teacher_gate: Tensor | None,
    student_factor: Tensor,
    student_gate: Tensor | None,
    ungated: bool,
    within: bool,
    precision: str,
) -> tuple[Tensor, ...]:
    *population, _, _, n = student_factor.shape
    m = teacher_factor.shape[-1]
    sizes = ((*population, m, n), (m, m), (*population, n, n))
    results = []
    for wanted in (ungated, teacher_gate is not None):
        for i, size in enumerate(sizes):
            asked = wanted and (within or i == 0)
            results.append(teacher_factor.new_empty(size if asked else (0,), dtype=torch.float64))
    return tuple(results)


library.define(
    "backward_gram",
    "(Tensor teacher_factor, Tensor? teacher_gate, Tensor student_factor, Tensor? student_gate, "
    "bool ungated, bool within, str precision) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.backward_gram,
    fake=_fake,
    triton="fastspec.ops.backward_gram.triton:backward_gram",
)

_op = torch.ops.fastspec.backward_gram.default

_TEACHER, _STUDENT = "[samples, rows, nodes]", "[*students, samples, rows, nodes]"


def backward_gram(
    teacher_factor: Tensor,
    teacher_gate: Tensor | None,
    student_factor: Tensor,
    student_gate: Tensor | None,
    *,
    ungated: bool = True,
    within: bool = True,
    precision: str | None = None,
) -> BackwardGram:
    """Sums over samples x and rows r of V*[x, r, j] V[x, r, k], and of the same with both factors gated.

    teacher_factor: [N, R, m], the backward maps of N samples: row r is the derivative of output r by the activations of
        a layer's nodes. student_factor: [N, R, n] or [P, N, R, n]; one teacher for all students.
    teacher_gate, student_gate: [N, m] and [N, n] or [P, N, n], the derivatives of activations by pre-activations (for a
        ReLU 0 and 1), or both None. All have one dtype (float64, float32, float16, bfloat16) and device, any strides.
    ungated: compute beta; h is computed where there are gates. within: compute the matrices of one network with itself.
    precision: of the products, see `fastspec.ops.precision.check_precision`; None is that of the dtype.
    Divided by N these are the means over samples of beta and H in Luck Matters (Tian et al. 2019, section 3): with R
    the number of outputs, beta* = V^T V* there is the transpose of `beta_student_teacher`.
    Memory beyond the results does not grow with N. Raises ValueError or TypeError, naming the argument, for wrong
    ranks, shapes, dtypes, devices or precisions, one gate without the other, and where nothing is asked for.
    """
    check_tensor("teacher_factor", teacher_factor, (3,), _TEACHER)
    check_tensor("student_factor", student_factor, (3, 4), _STUDENT)
    _check_gate("teacher_gate", teacher_gate, "teacher_factor", teacher_factor)
    _check_gate("student_gate", student_gate, "student_factor", student_factor)
    check_same_kind(
        teacher_factor=teacher_factor,
        teacher_gate=teacher_gate,
        student_factor=student_factor,
        student_gate=student_gate,
    )
    if student_factor.shape[-3:-1] != teacher_factor.shape[:-1]:
        refuse(
            "student_factor", shape(student_factor), f"the samples and rows of teacher_factor, {shape(teacher_factor)}"
        )
    if (teacher_gate is None) != (student_gate is None):
        lacks, has = ("teacher_gate", "student_gate") if teacher_gate is None else ("student_gate", "teacher_gate")
        refuse(lacks, "None", f"a tensor, as {has} is one, or None for both")
    if teacher_gate is None and not ungated:
        refuse("ungated", "False without gates", "True, or gates")
    found = check_precision(precision, teacher_factor.dtype)
    return BackwardGram(*_op(teacher_factor, teacher_gate, student_factor, student_gate, ungated, within, found))


def _check_gate(name: str, gate: Tensor | None, factor_name: str, factor: Tensor) -> None:
    """Check that a gate [.., N, nodes] fits the factor [.., N, R, nodes]."""
    if gate is None:
        return
    layout = "[*students, samples, nodes]" if factor.dim() == 4 else "[samples, nodes]"
    check_tensor(name, gate, (factor.dim() - 1,), layout)
    if gate.shape != (*factor.shape[:-2], factor.shape[-1]):
        refuse(name, shape(gate), f"{layout} of {factor_name}, {shape(factor)}")
