"""Training problems for the benchmarks: students of the two-layer study, the op that trains them, and the gate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gate import WrongResultError
from benchmarks.harness import Entry
from fastspec import data, teachers
from fastspec.networks import MLP
from fastspec.ops.philox import batch_indices
from fastspec.ops.two_layer_sgd import Packed, two_layer_sgd
from fastspec.populations import Population

INPUTS, OUTPUTS, BATCH, SAMPLES, STD, LR = 100, 50, 16, 10_000, 1.5, 0.01  # Student Specialization, ICML 2020
# largest error of three quarters of the students, and of any student
LIMITS = {torch.float32: (3e-5, 0.3), torch.float64: (1e-12, 1e-11)}


class Weights(NamedTuple):
    """P students of one width."""

    w1: Tensor  # [P, n, d]
    b1: Tensor  # [P, n]
    w2: Tensor  # [P, n, C]
    b2: Tensor  # [P, C]


@dataclass(frozen=True)
class Training:
    """P students of one width, the teacher whose answers they learn, and the batches that each of them takes."""

    teacher: Weights  # P = 1
    x: Tensor  # [N, d]
    y: Tensor  # [N, C], the teacher's answers
    weights: Weights
    seeds: Tensor  # [P]
    indices: Tensor  # [P, steps, B], what the op draws from the seeds

    @staticmethod
    def of_study(
        nodes: int, multi: int, steps: int, students: int, dtype: torch.dtype, device: str = "cpu"
    ) -> Training:
        """Students of `multi` times the teacher's `nodes` as they start the two-layer study, strength decay 1."""
        teacher = teachers.two_layer(INPUTS, nodes, OUTPUTS, strength_decay=1.0, dtype=dtype)
        x = data.gaussian(SAMPLES, INPUTS, std=STD, dtype=dtype)
        population = Population.two_layer(teacher, multi=[multi], seeds=range(students))
        return Training.of(teacher, population, x, steps).to(device)

    @staticmethod
    def of(teacher: MLP, population: Population, x: Tensor, steps: int) -> Training:
        """A population of one width; its labels `seed` stand for the batches."""
        seeds = torch.tensor(population.labels["seed"])
        indices = batch_indices(seeds, torch.arange(steps), BATCH, len(x))
        with torch.no_grad():
            y = teacher(x)
        known = Population.from_weights([teacher.weights()])
        return Training(_stacked(known), x, y, _stacked(population), seeds, indices)

    def to(self, *args: Any) -> Training:
        """As `torch.Tensor.to`; seeds and indices keep their dtype."""
        teacher, weights = (Weights(*(w.to(*args) for w in part)) for part in (self.teacher, self.weights))
        x, y = self.x.to(*args), self.y.to(*args)
        return Training(teacher, x, y, weights, self.seeds.to(x.device), self.indices.to(x.device))

    def head(self, steps: int) -> Training:
        """The first steps only."""
        return replace(self, indices=self.indices[:, :steps].contiguous())


def _stacked(population: Population) -> Weights:
    w1, b1, w2, b2 = population.packed
    students = len(population)
    return Weights(w1.unflatten(0, (students, -1)), b1.view(students, -1), w2.unflatten(0, (students, -1)), b2)


def fastspec(t: Training) -> Weights:
    """The op under test."""
    w1, b1, w2, b2 = t.weights
    students, width = b1.shape
    out = two_layer_sgd(
        t.x,
        t.y,
        Packed(w1.flatten(0, 1), b1.flatten(), w2.flatten(0, 1), b2),
        torch.arange(students + 1, device=t.x.device) * width,
        lr=torch.full((students,), LR, dtype=torch.float64, device=t.x.device),
        seeds=t.seeds,
        steps=t.indices.shape[1],
        batch_size=t.indices.shape[2],
    ).weights
    return Weights(*(new.view_as(old) for new, old in zip(out, t.weights, strict=True)))


def student_errors(result: Weights, truth: Weights) -> Tensor:
    """For every student the largest error of a weight, relative to the largest weight of the same tensor: [P]."""
    pairs = [(a.double().flatten(1), b.double().flatten(1)) for a, b in zip(result, truth, strict=True)]
    return torch.stack([(a - b).abs().amax(1) / b.abs().amax(1) for a, b in pairs]).amax(0)


def judge(name: str, errors: Tensor, dtype: torch.dtype) -> Entry:
    """The errors of a right result, errors [P]; raises WrongResultError for any other.

    Rounding that opens or closes a gate sends a student another way, in float32 one in thirty or so: a quarter of them
    may be that far off.
    """
    ordered = errors.nan_to_num(math.inf).sort().values
    found = {"weights": float(ordered[math.ceil(0.75 * len(ordered)) - 1]), "worst": float(ordered[-1])}
    typical, worst = LIMITS[dtype]
    if found["weights"] > typical or found["worst"] > worst:
        got = (
            f"errors against float64 of {found['weights']:.3g} (three of four students) and {found['worst']:.3g} (all)"
        )
        raise WrongResultError(f"{name}: got {got}, limits {typical:g} and {worst:g}")
    return found


def check(name: str, result: Weights, truth: Weights, *_: Any) -> Entry:
    """The gate of `compare` for trained weights."""
    return judge(name, student_errors(result, truth), result[0].dtype)
