"""What `train_two_layer` is given, checked and brought into the op's form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.adapters import check_placement, evaluation_mode, forward
from fastspec.data import FreshGaussian, gaussian
from fastspec.networks import MLP
from fastspec.ops.checks import check_finite, check_integer, check_tensor, refuse, shape
from fastspec.ops.two_layer_sgd import Fresh, Packed
from fastspec.populations import Population

PROBE = 4096  # fresh inputs from which the scale of the loss is found


def targets(teacher: torch.nn.Module, students: Population, x: Tensor) -> Tensor:
    """Check the data against both networks; the teacher's outputs [N, C]."""
    if not isinstance(students, Population):
        refuse("students", type(students).__name__, "a Population", TypeError)
    check_tensor("x", x, (2,), "[samples, inputs]")
    if len(x) == 0:
        refuse("x", shape(x), "one sample or more")
    if x.dtype != students.w1.dtype or x.device != students.w1.device:
        refuse("x", f"{x.dtype} on {x.device}", f"the students' {students.w1.dtype} on {students.w1.device}", TypeError)
    if x.shape[1] != students.w1.shape[1]:
        refuse("x", shape(x), f"[samples, {students.w1.shape[1]}], the inputs of the students")
    check_finite("x", x)
    if not isinstance(teacher, torch.nn.Module):
        refuse("teacher", type(teacher).__name__, "a Module", TypeError)
    check_placement("x", x, teacher=teacher)
    teacher_inputs = getattr(teacher, "widths", [x.shape[1]])[0]
    if teacher_inputs != x.shape[1]:
        refuse("teacher", f"{teacher_inputs} inputs", f"the {x.shape[1]} inputs of x")
    with torch.no_grad(), evaluation_mode(teacher):
        y = torch.cat([forward("teacher", teacher, part) for part in x.split(65536)])
    if y.dim() != 2 or y.shape[1] != students.b2.shape[1]:
        refuse("teacher", f"outputs of {shape(y)}", f"[samples, {students.b2.shape[1]}], the outputs of the students")
    check_finite("teacher outputs", y)
    return y.to(x.dtype)


class Source(NamedTuple):
    """Where batches come from, as the op takes it, and the loss of a student that answers 0."""

    x: Tensor | None  # [N, d]
    y: Tensor | None  # [N, C]
    fresh: Fresh | None
    scale: float


def source(teacher: torch.nn.Module, students: Population, x: Tensor | FreshGaussian) -> Source:
    """Check the data against both networks; the teacher answers samples here, and fresh inputs inside the op."""
    if not isinstance(x, FreshGaussian):
        y = targets(teacher, students, x)
        return Source(x, y, None, _scale(y))
    if not isinstance(students, Population):
        refuse("students", type(students).__name__, "a Population", TypeError)
    layers = teacher.folded() if isinstance(teacher, MLP) else []
    if len(layers) != 2:
        got = f"{len(layers) - 1} hidden layers" if layers else type(teacher).__name__
        refuse("teacher", got, "an MLP with one hidden layer, where x is FreshGaussian", TypeError)
    like = students.w1
    probe = gaussian(PROBE, like.shape[1], std=x.std, dtype=like.dtype).to(like.device)
    (w1, b1), (w2, b2) = [(w.detach(), w.new_zeros(len(w)) if b is None else b.detach()) for w, b in layers]
    fresh = Fresh(Packed(w1, b1, w2.mT.contiguous(), b2[None]), float(x.std))
    return Source(None, None, fresh, _scale(targets(teacher, students, probe)))


def _scale(y: Tensor) -> float:
    return float(y.double().square().sum(1).mean() / 2)


def default_seeds(students: Population) -> Sequence[int]:
    """The label `seed` of every student, else its place."""
    return students.labels.get("seed", range(len(students)))


def per_student(argument: str, value: object, students: int, dtype: torch.dtype) -> Tensor:
    """One number, or one per student -> [P]."""
    if isinstance(value, bool):
        refuse(argument, repr(value), f"numbers, one for each of the {students} students", TypeError)
    try:
        values = value if isinstance(value, (Tensor, float, int)) else list(value)  # type: ignore[call-overload]
        table = torch.as_tensor(values, dtype=None if dtype == torch.int64 else dtype)
    except (TypeError, ValueError, RuntimeError):
        refuse(argument, repr(value), f"numbers, one for each of the {students} students", TypeError)
    if dtype == torch.int64 and table.dtype != dtype:
        refuse(argument, repr(value), f"integers, one for each of the {students} students", TypeError)
    if table.shape not in ((), (students,)):
        refuse(argument, shape(table), f"one number for all, or [{students}]")
    if dtype == torch.float64:
        check_finite(argument, table)
        if bool((table < 0).any()):
            refuse(argument, f"{float(table.min())}", "numbers >= 0")
    return table.expand(students).clone()


def multipliers_of(schedule: object, steps: int) -> Tensor | None:
    """A table, or a function of the step -> [steps] float64."""
    if schedule is None:
        return None
    factors = [schedule(step) for step in range(steps)] if callable(schedule) else schedule
    try:
        table = torch.as_tensor(factors, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        refuse("schedule", repr(schedule), f"{steps} numbers, or a function of the step that gives one", TypeError)
    if table.shape != (steps,):
        refuse("schedule", shape(table), f"[{steps}], one factor per step")
    check_finite("schedule", table)
    if bool((table < 0).any()):
        refuse("schedule", f"{float(table.min())}", "factors >= 0")
    return table


def snapshot_steps(snapshots: Iterable[int], steps: int) -> set[int]:
    """The distinct steps, each in [0, steps]."""
    if not isinstance(snapshots, Iterable):
        refuse("snapshots", repr(snapshots), "numbers of steps", TypeError)
    stops = list(snapshots)
    for step in stops:
        check_integer("snapshots", step, 0, steps)
    return set(stops)
