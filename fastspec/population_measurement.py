"""The result of `measure` for a population of students."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastspec.measurement import Measurement, pack, unpack
from fastspec.moments import CrossMoments, of_students
from fastspec.ops.checks import refuse
from fastspec.statistics import THRESHOLDS
from fastspec.tables import layer_row, table
from fastspec.tensor_files import save_tensors


class MeasuredGroup(NamedTuple):
    """The students of one width."""

    indices: Tensor  # [P_g] int64, their places in the population, on the CPU
    measurement: Measurement  # with a population axis of P_g


@dataclass(frozen=True, eq=False)
class PopulationMeasurement:
    """The measurement of a population of two-layer students, whose widths may differ: one group for each width."""

    groups: list[MeasuredGroup]

    def __len__(self) -> int:
        return sum(len(group.indices) for group in self.groups)

    def __iter__(self) -> Iterator[Measurement]:
        return (self.student(k) for k in range(len(self)))

    @property
    def samples(self) -> int:
        """How many inputs were measured."""
        return self.groups[0].measurement.samples

    @property
    def loss(self) -> Tensor:
        """Mean over the samples of 1/2 ||teacher - student||^2, [P] float64."""
        return self._in_order([_loss(group) for group in self.groups])

    @property
    def best_correlation(self) -> Tensor:
        """The correlation of every teacher node with its best node in each student, [P, teacher]; NaN if undefined."""
        return self._in_order([_hidden(group).best_student().values for group in self.groups])

    @property
    def layer_score(self) -> Tensor:
        """`mean_j max_k rho[j, k]` of each student, [P]."""
        return self._in_order([_hidden(group).layer_score() for group in self.groups])

    def success(self, threshold: float = 0.95) -> Tensor:
        """Whether each student covers each teacher node above `threshold`, [P, teacher] bool."""
        return self._in_order([_hidden(group).covered(threshold) for group in self.groups])

    def coverage(self, thresholds: float | Sequence[float] = THRESHOLDS) -> Tensor:
        """The fraction of teacher nodes that each student covers, [P, threshold], or [P] for one number."""
        return self._in_order([_hidden(group).coverage(thresholds) for group in self.groups])

    def max_teacher_correlation(self, k: int) -> Tensor:
        """For every node of student `k` its largest correlation with a teacher node, [n_k]; NaN for constant nodes."""
        return self.moments(k).best_teacher().values

    def moments(self, k: int) -> CrossMoments:
        """The moments of student `k`'s hidden layer."""
        return next(iter(self.student(k).layers.values()))

    def side_by_side(self) -> CrossMoments:
        """The moments of all students' hidden nodes, as if they were one student's: in the population's order."""
        first = _hidden(self.groups[0])
        parts: dict[str, list[Tensor]] = {}
        for group in self.groups:
            for name, tensor in _hidden(group).tensors().items():
                if of_students(name) and name != "student_gram":
                    parts.setdefault(name, []).append(tensor.movedim(0, -2).flatten(-2))
        joined = {name: torch.cat(tensors, dim=-1) for name, tensors in parts.items()}
        nodes = self._nodes()
        if not nodes.equal(torch.arange(len(nodes))):
            order = nodes.argsort().to(first.count.device)
            joined = {name: tensor[..., order] for name, tensor in joined.items()}
        shared = {n: t for n, t in first.tensors().items() if not of_students(n) and n != "teacher_gram"}
        return CrossMoments(**shared, **joined)

    def _nodes(self) -> Tensor:
        """Where the groups' nodes are in the population, group by group, student by student; on the CPU."""
        widths = torch.empty(len(self), dtype=torch.int64)
        for group in self.groups:
            widths[group.indices] = _hidden(group).student_mean.shape[-1]
        offsets = widths.cumsum(0) - widths
        return torch.cat([(offsets[i, None] + torch.arange(int(widths[i[0]]))).flatten() for i, _ in self.groups])

    def student(self, k: int) -> Measurement:
        """The measurement of student `k`."""
        k = range(len(self))[k]
        for indices, measurement in self.groups:
            place = (indices == k).nonzero().flatten()
            if len(place):
                return measurement.student(int(place))
        raise AssertionError(f"student {k} is in no group")

    def to(self, device: torch.device | str) -> PopulationMeasurement:
        """The same measurement on another device."""
        return PopulationMeasurement([MeasuredGroup(i, m.to(device)) for i, m in self.groups])

    def merge(self, other: PopulationMeasurement) -> PopulationMeasurement:
        """The measurement of the same population on both sets of samples; also `a + b`."""
        if not isinstance(other, PopulationMeasurement):
            refuse("other", type(other).__name__, "a PopulationMeasurement", TypeError)
        mine, theirs = ([group.indices.tolist() for group in side.groups] for side in (self, other))
        if mine != theirs:
            refuse("other", f"students {theirs}, by width", f"students {mine}, by width")
        pairs = zip(self.groups, other.groups, strict=True)
        return PopulationMeasurement([MeasuredGroup(a.indices, a.measurement + b.measurement) for a, b in pairs])

    __add__ = merge

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> PopulationMeasurement:
        """The merged measurement of every process of a torch.distributed group, as `Measurement.all_reduce`."""
        return PopulationMeasurement([MeasuredGroup(i, m.all_reduce(group)) for i, m in self.groups])

    def save(self, path: str | os.PathLike) -> None:
        """Write to a safetensors file."""
        tensors, description = pack([measurement for _, measurement in self.groups])
        tensors |= {f"{i}.indices": group.indices for i, group in enumerate(self.groups)}
        save_tensors(path, "PopulationMeasurement", tensors, description=json.dumps(description))

    @classmethod
    def load(cls, path: str | os.PathLike) -> PopulationMeasurement:
        """Read what `save` wrote; one ValueError, naming the path, for a truncated or foreign file."""
        measurements, indices = unpack(path, "PopulationMeasurement")
        return cls([MeasuredGroup(i, m) for i, m in zip(indices, measurements, strict=True)])

    def __str__(self) -> str:
        heading = f"{len(self)} students, {self.samples:,} samples, medians over the students of each width"
        rows = [
            [str(len(group.indices)), *layer_row(_hidden(group)), f"{_loss(group).median():.4g}"]
            for group in self.groups
        ]
        return table(heading, "students", rows, "loss")

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        """Per-group tensors [P_g, ...] as one tensor [P, ...] in the population's order."""
        joined = torch.cat(parts)
        order = torch.cat([group.indices for group in self.groups]).argsort()
        return joined[order.to(joined.device)]


def _hidden(group: MeasuredGroup) -> CrossMoments:
    return next(iter(group.measurement.layers.values()))


def _loss(group: MeasuredGroup) -> Tensor:
    loss = group.measurement.loss
    assert loss is not None
    return loss
