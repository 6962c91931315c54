"""`train`: a deep or convolutional network, or a population of plain ones, learns a teacher or labels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastspec.adapters import check_placement
from fastspec.measure import measure
from fastspec.measurement import Measurement
from fastspec.networks import MLP
from fastspec.ops.checks import check_finite, check_integer, check_real, refuse
from fastspec.ops.precision import check_precision
from fastspec.randomness import on_cpu
from fastspec.training.checkpoints import digest
from fastspec.training.deep_run import OnSnapshot, Report, Run, fingerprint
from fastspec.training.inputs import multipliers_of, snapshot_steps
from fastspec.training.lessons import Inputs, Lessons, Loss
from fastspec.training.two_layer import LIMIT
from fastspec.training.updates import ByAutograd, ByOp, MakeOptimizer, Rule, Updates, is_plain

Schedule: TypeAlias = "Mapping[int, float] | Sequence[float] | Tensor | Callable[[int], float]"


@dataclass(frozen=True)
class TrainingHistory:
    """What `train` returns; the networks themselves are trained in place. `*P` is the axis of a population.

    steps: how many were made, fewer than asked for where every student diverged; epoch_steps: of an epoch;
    loss [*P, steps] float64: of every batch before its step, NaN once a student has diverged; diverged_step [*P]
    int64: the step at which a student stopped, -1 for none; measurements: by the number of steps after which they were
    made, with a population axis for a population (none if a callback took them).
    """

    steps: int
    epoch_steps: int
    loss: Tensor
    diverged_step: Tensor
    measurements: dict[int, Measurement] = field(default_factory=dict)


@on_cpu
def train(
    teacher: nn.Module | Tensor,
    student: nn.Module | Sequence[MLP],
    data: Inputs,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    replacement: bool = False,
    loss: Loss | None = None,
    lr: float = 0.01,
    schedule: Schedule | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    optimizer: MakeOptimizer | None = None,
    normalize: bool = False,
    input_noise: float = 0.0,
    precision: str | None = None,
    loss_limit: float | None = None,
    seed: int | Sequence[int] = 0,
    evaluation: Tensor | None = None,
    snapshots: Iterable[int] | None = None,
    on_snapshot: OnSnapshot | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool | Report | None = None,
    group: dist.ProcessGroup | None = None,
) -> TrainingHistory:
    """Train a student, or students of one shape side by side, in place.

    teacher: a module, which answers in evaluation mode; or the answers themselves: labels int64 [N], or outputs [N, C]
        for fixed data.
    student: an `MLP`, any module from [N, ...] to [N, C], or a list of `MLP`s of one shape, which learn side by side.
        Plain `MLP`s (no batch norm, no optimizer, no group) are trained by the op `mlp_sgd_step`, all else by autograd,
        in training mode. Batch norm, its place and a leaky slope are the network's own.
    data: inputs [N, ...] of the student's dtype and device; or a function of the epoch (from 0) that gives N of them,
        for fresh data each epoch. It is called again where an interrupted epoch goes on, and must then give the same.
        With labels as teacher it gives the labelled samples in their order, augmented for instance.
    epochs or steps: how long, one of them. An epoch is N // batch_size steps.
    batch_size: each epoch goes through its samples in a random order; with replacement=True every batch is drawn anew.
    loss: "squared", the mean over the batch of 1/2 ||teacher - student||^2; "cross_entropy", with the teacher's largest
        output as label. None is "cross_entropy" for labels, else "squared".
    lr, momentum, weight_decay: of torch.optim.SGD. optimizer: another one, called as optimizer(parameters, lr=lr).
    schedule: factors on lr: {epoch: factor from this epoch on}, a table [steps], or a function of the step.
    normalize: divide the weights of each node, but those of the last layer, by their norm after every step.
    input_noise: standard deviation of fresh Gaussian noise on every input of a batch; a teacher answers the noisy ones.
    precision: of the products of students that the op trains, on a GPU "tf32x3", "tf32" or "bf16" too (see
        `fastspec.ops.precision.check_precision`); weights keep their dtype, and the C++ kernel computes in it. None is
        that of the dtype.
    loss_limit: batch loss at which a student counts as diverged and stops, before the step; None is 1e8 x the loss of
        a student that answers 0 (x 1 for cross-entropy). NaN and infinity always do.
    seed: of batches and noise; for a list of students one for all, or one each.
    evaluation: inputs [M, ...] on which `fs.measure` compares teacher and student at every snapshot.
    snapshots: numbers of steps after which to measure; None is 0 and the end of every epoch. on_snapshot: called with
        (step, measurement or None), the networks being up to date; then `TrainingHistory.measurements` stays empty.
    checkpoint: a file to save to every `checkpoint_every` steps (None: about every 30 s), on Ctrl-C and at the end. If
        it exists, training goes on from it, bit for bit (unless a module draws random numbers itself).
    progress: True for a bar, None for one on a terminal if it takes long, False for none, or a function of
        (step, steps).
    group: processes of torch.distributed that share the work, all with the same arguments: each takes its share of
        every batch and of the evaluation inputs. Results are those of one process, to rounding, without batch norm,
        whose statistics are each process's own. The first process writes the checkpoint.

    Networks are left in evaluation mode. On one machine the same arguments give the same bits.
    Raises ValueError or TypeError, naming the argument, for whatever does not fit.
    """
    students: list[nn.Module] = list(student) if isinstance(student, (list, tuple)) else [student]  # type: ignore[list-item]
    population = isinstance(student, (list, tuple))
    for name, value, low in (("batch_size", batch_size, 1), ("checkpoint_every", checkpoint_every, 1)):
        if value is not None or name == "batch_size":
            check_integer(name, value, low)
    for name, number in (("lr", lr), ("weight_decay", weight_decay), ("input_noise", input_noise)):
        check_real(name, number, "a finite number of at least 0", 0.0)
    check_real("momentum", momentum, "a number in [0, 1]", 0.0, 1.0)
    if loss_limit is not None and not (isinstance(loss_limit, (int, float)) and loss_limit > 0):
        refuse("loss_limit", repr(loss_limit), "a number > 0, inf for none, or None")
    if optimizer is not None and (momentum or weight_decay):
        refuse("optimizer", "one together with momentum or weight_decay", "options of its own, as by functools.partial")
    _check_students(students, population, optimizer, group)
    by_op = population or (optimizer is None and group is None and is_plain(students[0]))
    if by_op:
        precision = check_precision(precision, next(students[0].parameters()).dtype)
    elif precision is not None:
        refuse("precision", f"{precision!r} with a student that autograd trains", "None, or students of the op")
    seeds = _seeds(seed, len(students))
    lessons = Lessons(
        teacher, students, data, loss,
        batch_size=batch_size, replacement=bool(replacement), input_noise=float(input_noise), seeds=seeds,
    )  # fmt: skip
    _check_batches(students, batch_size, group)
    if (epochs is None) == (steps is None):
        refuse("epochs", f"{epochs} with steps = {steps}", "one of the two")
    check_integer("epochs" if steps is None else "steps", epochs if steps is None else steps, 0)
    total = steps if steps is not None else (epochs or 0) * lessons.epoch_steps
    factors = _multipliers(schedule, total, lessons.epoch_steps)
    stops = (
        {*range(0, total + 1, lessons.epoch_steps), total} if snapshots is None else snapshot_steps(snapshots, total)
    )
    if evaluation is not None:
        _check_evaluation(teacher, evaluation, students[0])
    limit = LIMIT * lessons.scale() or math.inf if loss_limit is None else float(loss_limit)
    rule = Rule(float(momentum), float(weight_decay), bool(normalize), limit, precision)
    updates: Updates
    if by_op:
        updates = ByOp(students, rule, population=population)  # type: ignore[arg-type]
    else:
        updates = ByAutograd(students[0], rule, optimizer=optimizer, lr=lr, group=group)

    def measured() -> Measurement | None:
        updates.put_back()
        return None if evaluation is None else _measured(teacher, student, evaluation, group)

    run = Run(lessons, updates, lr * factors, stops, measured, evaluation is not None, on_snapshot, group)
    if checkpoint is not None:
        options = {
            "lr": float(lr), "schedule": _mark(schedule, factors), "batch_size": batch_size,
            "replacement": bool(replacement), "input_noise": float(input_noise), "loss": lessons.loss,
            "momentum": rule.momentum, "weight_decay": rule.weight_decay, "normalize": rule.normalize,
            "loss_limit": repr(limit), "seeds": seeds, "evaluation": digest(evaluation) if run.keeps else None,
        }  # fmt: skip
        if rule.precision not in (None, "fp32", "fp64"):  # those of checkpoints that do not say
            options["precision"] = rule.precision
        run.resume(checkpoint, fingerprint(options, lessons, updates))
    run.go(checkpoint_every, progress)
    for network in students:
        network.eval()
    state = run.state
    return TrainingHistory(state.step, lessons.epoch_steps, state.loss, updates.diverged_step, state.measurements)


def _check_students(students: Sequence[nn.Module], population: bool, optimizer: object, group: object) -> None:
    if not students:
        refuse("student", "an empty list", "a Module, or a list of one MLP or more")
    for network in students:
        if not isinstance(network, nn.Module):
            refuse("student", type(network).__name__, "a Module, or a list of MLPs", TypeError)
    if not population:
        return
    for name, value in (("optimizer", optimizer), ("group", group)):
        if value is not None:
            refuse(name, f"one, with {len(students)} students side by side", "None with a list of students")
    first = students[0]
    for k, network in enumerate(students):
        if not is_plain(network):
            got = f"a {type(network).__name__}" + (" with batch norm" if getattr(network, "batch_norm", None) else "")
            refuse(f"student[{k}]", got, "a plain float32 or float64 MLP, in a list of students", TypeError)
        assert isinstance(network, MLP) and isinstance(first, MLP)
        same = network.layers[0].weight.dtype == first.layers[0].weight.dtype
        if not same or network.architecture() != first.architecture():
            refuse(f"student[{k}]", f"widths {network.widths}", f"the shape and dtype of student[0], {first.widths}")


def _check_batches(students: Sequence[nn.Module], batch_size: int, group: dist.ProcessGroup | None) -> None:
    """Check that every process has samples in each batch, and batch norm two or more."""
    processes = 1 if group is None else dist.get_world_size(group)
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for network in students for m in network.modules())
    least = processes * (1 + norms)
    if batch_size < least:
        which = " and batch norm" if norms else ""
        refuse("batch_size", batch_size, f"at least {least} with {processes} processes{which}")


def _check_evaluation(teacher: object, evaluation: object, student: nn.Module) -> None:
    if not isinstance(evaluation, Tensor):
        refuse("evaluation", type(evaluation).__name__, "inputs, a tensor [samples, ...], or None", TypeError)
    if not isinstance(teacher, nn.Module):
        refuse("evaluation", "inputs, without a teacher to measure against", "None where the teacher is a tensor")
    check_finite("evaluation", evaluation)
    check_placement("evaluation", evaluation, student=student)


def _seeds(seed: int | Sequence[int], students: int) -> list[int]:
    seeds = [seed] * students if isinstance(seed, int) else list(seed)
    if len(seeds) != students:
        refuse("seed", f"{len(seeds)} seeds", f"one for all, or one for each of the {students} students")
    return seeds


def _multipliers(schedule: Schedule | None, steps: int, epoch_steps: int) -> Tensor:
    """Factors on the learning rate, [steps] float64."""
    if isinstance(schedule, Mapping):
        factors = torch.ones(steps, dtype=torch.float64)
        for epoch in sorted(schedule):
            check_integer("schedule", epoch, 0)
            check_real(f"schedule[{epoch}]", schedule[epoch], "a finite number of at least 0", 0.0)
            factors[epoch * epoch_steps :] = schedule[epoch]
        return factors
    found = multipliers_of(schedule, steps)
    return torch.ones(steps, dtype=torch.float64) if found is None else found


def _mark(schedule: Schedule | None, factors: Tensor) -> object:
    """What a checkpoint keeps of a schedule: all of one by epoch, which does not depend on the number of steps."""
    if schedule is None or isinstance(schedule, Mapping):
        return schedule and sorted(schedule.items())
    return digest(factors)


def _measured(
    teacher: nn.Module | Tensor, student: nn.Module | Sequence[MLP], evaluation: Tensor, group: dist.ProcessGroup | None
) -> Measurement:
    assert isinstance(teacher, nn.Module)
    if group is None:
        return measure(teacher, student, evaluation, progress=False)
    share = evaluation[dist.get_rank(group) :: dist.get_world_size(group)]
    return measure(teacher, student, share, progress=False).all_reduce(group)
