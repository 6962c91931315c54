"""`train_two_layer`: a population of two-layer students learns one teacher."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastspec.data import FreshGaussian
from fastspec.ops.checks import check_integer, refuse
from fastspec.ops.two_layer_sgd import Packed, check_indices, check_rule, two_layer_sgd
from fastspec.populations import Population
from fastspec.progress import Progress
from fastspec.randomness import on_cpu
from fastspec.training.checkpoints import State, digest, load_state, save_state
from fastspec.training.inputs import default_seeds, multipliers_of, per_student, snapshot_steps, source
from fastspec.training.shares import Share

OnSnapshot = Callable[[int, Population, Tensor], object]
Report = Callable[[int, int], object]
LIMIT = 1e8  # a batch loss this many times the loss of a student that answers 0 counts as divergence
CALL_SECONDS = 0.4  # aimed length of one call of the op, after which Ctrl-C is heard
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class History:
    """What `train_two_layer` returns.

    population: the students after training; diverged_step [P] int64: the step at which a student stopped, -1 for
    none; snapshots: the population after so many steps, for the steps asked for (none if a callback took them).
    """

    population: Population
    diverged_step: Tensor
    steps: int
    snapshots: dict[int, Population] = field(default_factory=dict)


@on_cpu
def train_two_layer(
    teacher: torch.nn.Module,
    students: Population,
    x: Tensor | FreshGaussian,
    *,
    steps: int,
    batch_size: int | None = 16,
    indices: Tensor | None = None,
    lr: float | Sequence[float] | Tensor = 0.01,
    schedule: Sequence[float] | Tensor | Callable[[int], float] | None = None,
    seeds: Sequence[int] | Tensor | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    normalize: bool = False,
    fixed: str | None = None,
    bias: bool = True,
    negative_slope: float | None = None,
    loss_limit: float | None = None,
    snapshots: Iterable[int] = (),
    on_snapshot: OnSnapshot | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool | Report | None = None,
    group: dist.ProcessGroup | None = None,
) -> History:
    """SGD of every student on the mean over its batch of 1/2 ||teacher(x) - student(x)||^2.

    teacher: a module from [N, d] to [N, C], evaluated once; students: a `Population` with d inputs and C outputs;
    x [N, d] of the students' dtype (float32 or float64) and device; or `fs.data.FreshGaussian(std)` for online
    learning: `batch_size` new inputs for every student and step, from the stream of its seed, answered by the teacher,
    then an `MLP` with one hidden layer.
    batch_size: samples drawn with replacement for each step and student; None: all samples at every step.
    indices: the batches themselves, int64 [steps, batch] for all students or [P, steps, batch].
    lr: one number or one per student. schedule: factors on lr, [steps] or a function of the step (counted from 0).
    seeds: of the students' batches, one each; by default the label `seed` of the students, else 0 .. P - 1.
    momentum, weight_decay: as in torch.optim.SGD. normalize: divide each node's fan-in by its norm after every step.
    fixed: "first" or "top" layer stays as it is. bias=False: no biases. negative_slope: by default the teacher's.
    loss_limit: batch loss at which a student counts as diverged; by default 1e8 x the mean of 1/2 ||teacher(x)||^2.
    A diverged student keeps its last finite weights and harms no other.
    snapshots: numbers of steps after which the population is kept in `History.snapshots`, or handed to
    `on_snapshot(step, population, diverged_step)` instead. 0 is the start.
    checkpoint: a file to save to every `checkpoint_every` steps (None: about every 30 s), on Ctrl-C and at the end.
    If it exists, training goes on from it, bit for bit; `on_snapshot` sees the steps after it, again if need be.
    progress: True for a bar, None for one on a terminal if it takes long, False for none, or a function of
    (step, steps).
    group: of `torch.distributed` processes, which are all given the same arguments (each on a device of its own, where
    that is a GPU) and train a share of the students each; every one returns all of them, to the bit what one process
    returns. Needs as many students as processes; no `on_snapshot`; only the first process shows progress, and process
    r's checkpoint is `checkpoint` with .process<r> at its end.
    A student's result does not depend, bitwise, on which others train beside it.
    Raises ValueError or TypeError, naming the argument, for whatever does not fit; a checkpoint of another
    configuration is a ValueError.
    """
    if group is not None:
        given = {name: value for name, value in locals().items() if name not in ("teacher", "students", "x", "group")}
        return _in_shares(teacher, students, x, group, **given)
    data = source(teacher, students, x)
    device = students.w1.device
    check_integer("steps", steps, 0)
    if batch_size is not None:
        check_integer("batch_size", batch_size, 1)
    if data.x is None and (batch_size is None or indices is not None):
        refuse("x", "FreshGaussian with indices or without a batch_size", "FreshGaussian with a batch_size alone")
    if data.x is not None and indices is not None:
        check_indices(indices, len(students), steps, len(data.x), device)
    if checkpoint_every is not None:
        check_integer("checkpoint_every", checkpoint_every, 1)
    if fixed not in (None, "first", "top"):
        refuse("fixed", repr(fixed), '"first", "top" or None')
    if not bias and (bool(students.b1.any()) or bool(students.b2.any())):
        refuse("bias", "False for students with biases other than 0", "True, or students without biases")
    if loss_limit is None:
        loss_limit = LIMIT * data.scale or math.inf
    teacher_slope = float(getattr(teacher, "negative_slope", 0.0))
    if negative_slope is None:
        negative_slope = teacher_slope
    elif data.fresh is not None and negative_slope != teacher_slope:
        refuse("negative_slope", negative_slope, f"the teacher's, {teacher_slope}, where x is FreshGaussian")
    check_rule(momentum, weight_decay, negative_slope, loss_limit)
    rates = per_student("lr", lr, len(students), torch.float64).to(device)
    streams = per_student("seeds", default_seeds(students) if seeds is None else seeds, len(students), torch.int64)
    multipliers = multipliers_of(schedule, steps)
    stops = snapshot_steps(snapshots, steps)
    options: dict[str, Any] = {
        "momentum": float(momentum),
        "weight_decay": float(weight_decay),
        "negative_slope": negative_slope,
        "loss_limit": float(loss_limit),
        "bias": bool(bias),
        "normalize": bool(normalize),
        "fixed_first": fixed == "first",
        "fixed_top": fixed == "top",
        "batch_size": batch_size or 0,
    }
    state = State(0, students.packed, None, torch.full((len(students),), -1, device=device))
    fingerprint: dict[str, object] = {}
    if checkpoint is not None:
        tables = {"x": data.x, "y": data.y, "lr": rates, "seeds": streams, "indices": indices, "schedule": multipliers}
        tables |= {f"students.{name}": t for name, t in students.packed._asdict().items()}
        if data.fresh is not None:
            tables |= {f"teacher.{name}": t for name, t in data.fresh.teacher._asdict().items()}
        fingerprint = options | {name: digest(t) for name, t in tables.items()}
        fingerprint |= {"widths": students.widths, "fresh_std": None if data.fresh is None else data.fresh.std}
        state = load_state(checkpoint, fingerprint, device) or state
        if state.step > steps:
            refuse(
                "steps", steps, f"at least {state.step}, the steps already made in checkpoint {os.fspath(checkpoint)!r}"
            )
        lost = {step for step in stops if 0 < step <= state.step} - state.snapshots.keys()
        if lost and on_snapshot is None:
            takes = f"later steps than {state.step}, or those that checkpoint {os.fspath(checkpoint)!r} kept"
            refuse("snapshots", sorted(lost), takes)

    offsets, streams = students.offsets.to(device), streams.to(device)

    def advance(state: State, until: int) -> State:
        window = slice(state.step, until)
        out = two_layer_sgd(
            data.x,
            data.y,
            state.weights,
            offsets,
            lr=rates,
            seeds=streams,
            steps=until - state.step,
            first_step=state.step,
            indices=None if indices is None else indices[..., window, :],
            multipliers=None if multipliers is None else multipliers[window].to(device),
            fresh=data.fresh,
            buffers=state.buffers,
            diverged_step=state.diverged_step,
            **options,
        )
        return State(until, out.weights, out.buffers, out.diverged_step, state.snapshots)

    def population(weights: Packed) -> Population:
        return Population(weights, students.offsets, students.labels)

    def snapshot(state: State) -> None:
        if on_snapshot is None:
            state.snapshots[state.step] = state.weights
        else:
            on_snapshot(state.step, population(state.weights), state.diverged_step)

    def save() -> None:
        if checkpoint is not None:
            save_state(checkpoint, fingerprint, state)

    if state.step == 0 and 0 in stops:
        snapshot(state)
    pace, saved = Pace(), time.monotonic()
    try:
        with Progress("training", steps, "steps", False if callable(progress) else progress) as bar:
            bar.advance(state.step)
            while state.step < steps:
                until = min([state.step + pace.steps, steps, *(s for s in stops if s > state.step)])
                if checkpoint_every is not None:
                    until = min(until, (state.step // checkpoint_every + 1) * checkpoint_every)
                with pace(until - state.step):
                    ahead = advance(state, until)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)  # so that the pace is that of the GPU, and Ctrl-C is heard
                if ahead.step in stops:
                    snapshot(ahead)
                state = ahead  # only now, so that an interrupted callback is called again
                due = time.monotonic() - saved > CHECKPOINT_SECONDS
                if due if checkpoint_every is None else state.step % checkpoint_every == 0:
                    save()
                    saved = time.monotonic()
                bar.advance(state.step - bar.done)
                if callable(progress):
                    progress(state.step, steps)
    except KeyboardInterrupt:
        save()
        again = f"; the same call goes on from {os.fspath(checkpoint)!r}" if checkpoint is not None else ""
        raise KeyboardInterrupt(f"training stopped after step {state.step} of {steps}{again}") from None
    save()
    kept = {step: population(weights) for step, weights in state.snapshots.items()}
    return History(population(state.weights), state.diverged_step, steps, kept)


def _in_shares(
    teacher: torch.nn.Module, students: Population, x: Tensor | FreshGaussian, group: dist.ProcessGroup, **options: Any
) -> History:
    """`train_two_layer` on this process's share; then all of them exchange what they have."""
    if options["on_snapshot"] is not None:
        refuse("on_snapshot", "a function together with a group", "None: snapshots come back in History.snapshots")
    share, rank, p = Share(students, group), dist.get_rank(group), len(students)
    seeds = default_seeds(students) if options["seeds"] is None else options["seeds"]
    options["seeds"] = share.of_table(per_student("seeds", seeds, p, torch.int64))
    options["lr"] = share.of_table(per_student("lr", options["lr"], p, torch.float64))
    if options["indices"] is not None and options["indices"].dim() == 3:
        options["indices"] = share.of_table(options["indices"])
    if options["checkpoint"] is not None:
        options["checkpoint"] = f"{os.fspath(options['checkpoint'])}.process{rank}"
    if rank > 0:
        options["progress"] = False
    mine = train_two_layer(teacher, share.students, x, **options)

    def whole(population: Population) -> Population:
        return Population(share.whole(population.packed), students.offsets, students.labels)

    snapshots = {step: whole(population) for step, population in mine.snapshots.items()}
    return History(whole(mine.population), share.whole_table(mine.diverged_step), mine.steps, snapshots)


class Pace:
    """How many steps to make in one call of the op, which takes about `CALL_SECONDS`; no result depends on it.

    `with pace(steps):` goes around a call that makes so many, fewer where a snapshot or an epoch ends.
    """

    def __init__(self) -> None:
        self.steps, self._start = 1, 0.0

    def __call__(self, steps: int) -> Pace:
        self.steps = steps
        return self

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        seconds = max(time.monotonic() - self._start, 1e-6)
        self.steps = max(1, int(self.steps * min(4.0, max(0.25, CALL_SECONDS / seconds))))
