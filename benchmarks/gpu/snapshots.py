"""A snapshot of a job of the two-layer study: 128 students of four widths measured on training and held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastspec as fs
from benchmarks.compare import Case, Families, Peer
from benchmarks.gate import WrongResultError
from benchmarks.harness import Entry
from benchmarks.precision import dtype_of
from benchmarks.training import INPUTS, OUTPUTS, SAMPLES, STD
from fastspec.experiments.snapshots import snapshot
from fastspec.ops.gpu.devices import rates_of
from fastspec.ops.layer_moments import plans

MULTI, SEEDS, LEVELS = (1, 2, 5, 10), 32, (0.5, 0.9, 0.95)
SCALE = 0.1  # of students' weights: not all alike, nor all dead
# Of errors of correlations, which a snapshot keeps in float32, and of losses relative to them.
LIMITS = {"fp32": {"rho": 1e-5, "loss": 1e-5}, "fp64": {"rho": 1e-7, "loss": 1e-11}}


@dataclass(frozen=True)
class Job:
    """Students of one teacher, and the samples."""

    teacher: fs.MLP
    students: fs.Population
    train: Tensor  # [N, d]
    held_out: Tensor

    def to(self, *args: Any) -> Job:
        teacher = fs.MLP.from_weights(self.teacher.weights()).to(*args)
        return Job(teacher, self.students.to(*args), self.train.to(*args), self.held_out.to(*args))


class Found(NamedTuple):
    """What is compared: for held-out and training samples."""

    loss: Tensor  # [2, P]
    best: Tensor  # [2, P, m], best correlations


Call = Callable[[Job], Found]


@dataclass(frozen=True)
class SnapshotProblem:
    """Students of a teacher with so many hidden nodes."""

    name: str
    teacher: int
    samples: int = SAMPLES
    seeds: int = SEEDS
    narrow: bool = True

    @property
    def operations(self) -> float:
        nodes, m = sum(MULTI) * self.teacher * self.seeds, self.teacher
        return 4.0 * self.samples * (nodes * (INPUTS + m + OUTPUTS) + m * (INPUTS + OUTPUTS))

    def small(self) -> SnapshotProblem:
        """To see whether everything runs."""
        return replace(self, samples=700, seeds=2)

    def case(self, precision: str, device: str) -> Case:
        """All activations at once in float64 are the truth."""
        dtype = dtype_of(precision)
        teacher = fs.teachers.two_layer(INPUTS, self.teacher, OUTPUTS, strength_decay=1.0, dtype=dtype)
        students = fs.Population.two_layer(teacher, multi=MULTI, seeds=range(self.seeds), std=SCALE)
        x = (fs.data.gaussian(self.samples, INPUTS, std=STD, seed=seed, dtype=dtype) for seed in (0, 1))
        job = Job(teacher, students, *x).to(device)
        values = 2 * self.samples * INPUTS + sum(weight.numel() for weight in students.packed)
        return Case(
            label=f"{len(students)} students, 2 x {self.samples:,} x {INPUTS}, {self.teacher} x {MULTI}",
            shape={"samples": self.samples, "teacher": self.teacher, "students": len(students)},
            copies=[job],
            truth=by_width(job.to(torch.float64)),
            samples=2 * self.samples,
            operations=self.operations,
            moved=float(dtype.itemsize * values + 8 * len(students.w1) * self.teacher),
            check=_checked(precision),
        )

    def ours(self, precision: str) -> Call:
        return fastspec

    def contenders(self, case: Case, precision: str, device: str) -> Families:
        """The other plan, and plain torch: students of a width in batched products, or all of them in one."""
        families = {"eager": [Peer("eager", by_width)], "packed": [Peer("packed", packed)]}
        if device == "cuda":
            families["other plan"] = [Peer("fastspec, recompute", _recomputed)]
        return families

    def facts(self, case: Case, precision: str) -> Entry:
        """The plan of the widest students, and the time that is foretold of the moments of all of them."""
        rates = rates_of(case.copies[0].train)
        found = [
            plans.choose(self.samples, INPUTS, self.teacher, n, precision, blocks=True, activations=True, device=rates)
            for n in (self.teacher * multi for multi in MULTI)
        ]
        blocks = [math.ceil(self.seeds / plan.students) for plan in found]
        seconds = 2 * sum(plan.seconds * b for plan, b in zip(found, blocks, strict=True))
        return {"plan": {"name": found[-1].name, "predicted_ms": seconds * 1e3}}


def fastspec(job: Job) -> Found:
    """What a run of the study records at a step."""
    found = snapshot(job.teacher, job.students, job.train, job.held_out, LEVELS)
    names = ("loss", "loss_train"), ("best_correlation", "best_correlation_train")
    return Found(*(torch.stack([found[name].double() for name in pair]) for pair in names))


def _recomputed(job: Job) -> Found:
    with plans.force("recompute"):
        return fastspec(job)


@torch.no_grad()
def by_width(job: Job) -> Found:
    """Batched products of the students of each width, all activations at once."""
    found = []
    for x in (job.held_out, job.train):
        (t,), y = job.teacher.activations_and_output(x)
        loss, best = x.new_empty(len(job.students)), x.new_empty(len(job.students), t.shape[1])
        for indices, w1, b1, w2, b2 in job.students.groups():
            s = torch.baddbmm(b1.unsqueeze(1), x.expand(len(w1), -1, -1), w1.mT).relu_()
            f = torch.baddbmm(b2.unsqueeze(1), s, w2.mT)
            here = indices.to(x.device)
            loss[here] = (y - f).square().sum(-1).mean(-1) / 2
            best[here] = _correlation(t, s).amax(-1)
        found.append((loss, best))
    return _together(found)


@torch.no_grad()
def packed(job: Job) -> Found:
    """All students' activations as one product, as their weights lie; outputs student by student of a width."""
    students, offsets = job.students, job.students.offsets.tolist()
    found = []
    for x in (job.held_out, job.train):
        (t,), y = job.teacher.activations_and_output(x)
        s = torch.addmm(students.b1, x, students.w1.mT).relu_()
        rho = _correlation(t, s)
        best = torch.stack([r.amax(-1) for r in rho.split(students.offsets.diff().tolist(), dim=-1)])
        outputs = torch.stack([s[:, i:k] @ students.w2[i:k] for i, k in pairwise(offsets)])
        loss = (y - outputs - students.b2.unsqueeze(1)).square().sum(-1).mean(-1) / 2
        found.append((loss, best))
    return _together(found)


def _correlation(t: Tensor, s: Tensor) -> Tensor:
    """Of activations t [N, m] and s [*P, N, n]: [*P, m, n]."""
    t, s = t - t.mean(0), s - s.mean(-2, keepdim=True)
    return (F.normalize(t, dim=0).mT @ F.normalize(s, dim=-2)).nan_to_num()


def _together(found: list[tuple[Tensor, Tensor]]) -> Found:
    return Found(*(torch.stack(part).double().cpu() for part in zip(*found, strict=True)))


def _checked(precision: str) -> Callable[..., Entry]:
    """The gate: errors of correlations, and of losses relative to them."""

    def check(name: str, result: Found, truth: Found, *_: Any) -> Entry:
        errors = {
            "rho": float((result.best - truth.best).abs().max()),
            "loss": float((result.loss / truth.loss - 1).abs().max()),
        }
        if not all(errors[what] <= limit for what, limit in LIMITS[precision].items()):
            raise WrongResultError(f"{name}: got errors {errors}, limits {LIMITS[precision]}")
        return errors

    return check


SNAPSHOTS = tuple(SnapshotProblem(f"snapshot-m{m}", m) for m in (5, 10, 20))
