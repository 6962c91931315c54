"""Initial weights of students: independent of the teacher, near it, or turned away from it.

The rules act on lists of linear and convolutional layers, lowest first; `fastspec.networks.student_like` applies them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastspec.ops.checks import check_real, refuse

Rule = Literal["default", "normal", "perturb", "same_direction", "same_sign", "adv", "help"]
WeightLayer = nn.Linear | nn.Conv2d

STD = {"normal": 0.005, "perturb": 0.1, "adv": 0.005, "help": 0.005}


def normal_(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with N(0, std^2); the numbers do not depend on the tensor's device."""
    with torch.no_grad():
        tensor.copy_(std * torch.randn(tensor.shape, dtype=torch.float64, generator=generator, device="cpu"))


def uniform_(tensor: Tensor, low: float, high: float, generator: torch.Generator) -> None:
    """Fill with U(low, high); the numbers do not depend on the tensor's device."""
    with torch.no_grad():
        tensor.copy_(
            low + (high - low) * torch.rand(tensor.shape, dtype=torch.float64, generator=generator, device="cpu")
        )


def default_(layers: Sequence[WeightLayer], generator: torch.Generator) -> None:
    """The distribution of torch's own layers: weights and biases U(-1, 1) / sqrt(fan-in)."""
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        uniform_(layer.weight, -bound, bound, generator)
        if layer.bias is not None:
            uniform_(layer.bias, -bound, bound, generator)


def initialize_(
    student: Sequence[WeightLayer],
    teacher: Sequence[WeightLayer],
    *,
    rule: Rule,
    generator: torch.Generator,
    std: float | None = None,
    scale: float = 1.0,
) -> None:
    """Set the weights and biases of the student's layers, in place.

    rule:
      "default"         torch's own: U(-1, 1) / sqrt(fan-in).
      "normal"          weights N(0, std^2), biases 0: the two-layer students of Student Specialization (Tian,
                        ICML 2020), where std = .005, the default here.
      "perturb"         N(0, std^2) everywhere, std = .1 by default; student node j is teacher node j plus this noise
                        in every layer, further nodes are noise alone (Luck Matters, Tian et al. 2019, theorem 5).
      "same_direction"  every layer the teacher's, rescaled to the norm of the default student. Equal widths only.
      "same_sign"       the default student with each weight and bias flipped to the sign of the teacher's, where that
                        is not 0. Equal widths only.
      "adv", "help"     "normal", with the first-layer weights of a node flipped when their inner product with those of
                        the last teacher node is positive ("adv") or negative ("help").
    std: for the rules with noise only.
    scale: multiplies all weights and biases in the end, > 0.

    Raises ValueError naming the argument for an unknown rule, a std with a rule that has none, a non-positive std or
    scale, students narrower than the teacher, or unequal widths where a rule needs equal ones.
    """
    if rule not in get_args(Rule):
        refuse("init", repr(rule), f"one of {', '.join(get_args(Rule))}")
    if std is None:
        std = STD.get(rule, 0.0)
    elif rule not in STD:
        refuse("std", repr(std), f"no value with init={rule!r}, which has no noise")
    else:
        check_real("std", std, "a finite number of at least 0", 0.0)
    check_real("scale", scale, "a finite positive number", math.ulp(0.0))
    _check_shapes(student, teacher, equal=rule in ("same_direction", "same_sign"))

    if rule in STD:
        for s in student:
            normal_(s.weight, std, generator)
            if s.bias is not None and rule == "perturb":
                normal_(s.bias, std, generator)
            elif s.bias is not None:
                nn.init.zeros_(s.bias)
    else:
        default_(student, generator)
    with torch.no_grad():
        if rule in ("adv", "help"):
            _flip(student[0].weight, teacher[0].weight[-1], toward=rule == "help")
        for s, t in zip(student, teacher, strict=True):
            if rule == "perturb":
                _add(s, t)
            elif rule == "same_direction":
                _follow_direction(s, t)
            elif rule == "same_sign":
                _follow_signs(s, t)
            for parameter in s.parameters():
                parameter.mul_(scale)


def _check_shapes(student: Sequence[WeightLayer], teacher: Sequence[WeightLayer], equal: bool) -> None:
    for s, t in zip(student, teacher, strict=True):
        own, its = list(s.weight.shape), list(t.weight.shape)
        if equal and own != its:
            refuse("multi", f"a student layer of shape {own}", f"1: this init needs the teacher's shape {its}")
        if len(own) != len(its) or any(a < b for a, b in zip(own, its, strict=True)):
            refuse("student", f"a layer of shape {own}", f"at least the teacher's shape {its}")


def _add(student: WeightLayer, teacher: WeightLayer) -> None:
    block = tuple(slice(size) for size in teacher.weight.shape)
    student.weight[block] += teacher.weight
    if student.bias is not None and teacher.bias is not None:
        student.bias[: len(teacher.bias)] += teacher.bias


def _follow_direction(student: WeightLayer, teacher: WeightLayer) -> None:
    norm = teacher.weight.norm()
    if norm == 0:
        refuse("teacher", "a layer whose weights are all 0", "layers with a direction, for init='same_direction'")
    ratio = student.weight.norm() / norm
    student.weight.copy_(ratio * teacher.weight)
    if student.bias is not None and teacher.bias is not None:
        student.bias.copy_(ratio * teacher.bias)


def _follow_signs(student: WeightLayer, teacher: WeightLayer) -> None:
    for s, t in ((student.weight, teacher.weight), (student.bias, teacher.bias)):
        if s is not None and t is not None:
            s.copy_(torch.where(t == 0, s, s.abs() * t.sign()))


def _flip(student: Tensor, last_teacher: Tensor, toward: bool) -> None:
    """student [nodes, ...]: flip the rows on the wrong side of last_teacher [...]."""
    inner = (student * last_teacher).flatten(1).sum(1)  # [nodes]
    wrong = inner < 0 if toward else inner > 0
    student[wrong] *= -1
