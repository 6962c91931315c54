"""The result of `measure`: the moments of every hidden layer, and the loss."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastspec.moments import CrossMoments
from fastspec.ops.checks import refuse
from fastspec.statistics import THRESHOLDS
from fastspec.tables import layer_row, table
from fastspec.tensor_files import load_tensors, save_tensors


@dataclass(frozen=True, eq=False)
class Measurement:
    """One `CrossMoments` for each hidden layer, lowest first, and the loss.

    loss: mean over the samples of 1/2 ||teacher - student||^2 of the outputs, float64, [] or [P] for a population;
    None where the networks do not return tensors of one shape. samples: how many inputs were measured.
    """

    layers: dict[str, CrossMoments]
    loss: Tensor | None
    samples: int

    def layer_scores(self) -> dict[str, Tensor]:
        """`mean_j max_k rho[j, k]` of every layer, [] or [P]; see `CrossMoments.layer_score`."""
        return {name: moments.layer_score() for name, moments in self.layers.items()}

    def coverage(self, thresholds: float | Sequence[float] = THRESHOLDS) -> dict[str, Tensor]:
        """The fraction of teacher nodes with a student above each threshold, [threshold] or [P, threshold]."""
        return {name: moments.coverage(thresholds) for name, moments in self.layers.items()}

    @property
    def population(self) -> int | None:
        """The number of students, or None where there is no population axis."""
        return next(iter(self.layers.values())).population

    def student(self, k: int) -> Measurement:
        """The measurement of one student of a population."""
        layers = {name: moments.student(k) for name, moments in self.layers.items()}
        return Measurement(layers, None if self.loss is None else self.loss[k], self.samples)

    def to(self, device: torch.device | str) -> Measurement:
        """The same measurement on another device."""
        layers = {name: moments.to(device) for name, moments in self.layers.items()}
        return Measurement(layers, None if self.loss is None else self.loss.to(device), self.samples)

    def merge(self, other: Measurement) -> Measurement:
        """The measurement of both sets of samples, as if they had been measured together; also `a + b`."""
        if not isinstance(other, Measurement):
            refuse("other", type(other).__name__, "a Measurement", TypeError)
        if self.layers.keys() != other.layers.keys() or (self.loss is None) != (other.loss is None):
            refuse("other", _parts(other), f"a measurement with {_parts(self)}")
        samples = self.samples + other.samples
        loss = None
        if self.loss is not None and other.loss is not None:
            loss = self.loss + (other.loss - self.loss) * (other.samples / samples)
        return Measurement({name: m + other.layers[name] for name, m in self.layers.items()}, loss, samples)

    __add__ = merge

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Measurement:
        """The merged measurement of every process of a torch.distributed group, on each of them.

        Each process passes the measurement of its own share of the samples, and all of them call together.
        """
        layers = {name: moments.all_reduce(group) for name, moments in self.layers.items()}
        device = next(iter(layers.values())).count.device
        samples = torch.tensor(self.samples, device=device)
        dist.all_reduce(samples, group=group)
        if self.loss is None:
            return Measurement(layers, None, int(samples))
        total = self.loss * self.samples
        dist.all_reduce(total, group=group)
        return Measurement(layers, total / samples, int(samples))

    def save(self, path: str | os.PathLike) -> None:
        """Write to a safetensors file."""
        tensors, description = pack([self])
        save_tensors(path, "Measurement", tensors, description=json.dumps(description))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Measurement:
        """Read what `save` wrote; one ValueError, naming the path, for a truncated or foreign file."""
        return unpack(path, "Measurement")[0][0]

    def __str__(self) -> str:
        heading = f"{self.samples:,} samples"
        if self.population is not None:
            heading = f"{self.population} students, {heading}, medians over the students"
        if self.loss is not None:
            heading += f", loss {self.loss.median():.4g}"
        return table(heading, "layer", [[name, *layer_row(m)] for name, m in self.layers.items()])


def _parts(measurement: Measurement) -> str:
    return f"layers {list(measurement.layers)} and {'no' if measurement.loss is None else 'a'} loss"


def pack(measurements: list[Measurement]) -> tuple[dict[str, Tensor], list[dict]]:
    """Tensors named `measurement.layer.field` by their numbers, and what else a file must say."""
    tensors: dict[str, Tensor] = {}
    for i, measurement in enumerate(measurements):
        for j, moments in enumerate(measurement.layers.values()):
            tensors |= {f"{i}.{j}.{name}": tensor for name, tensor in moments.tensors().items()}
        if measurement.loss is not None:
            tensors[f"{i}.loss"] = measurement.loss
    return tensors, [{"layers": list(m.layers), "samples": m.samples} for m in measurements]


def rebuilt(tensors: Mapping[str, Tensor], descriptions: Sequence[Mapping[str, Any]]) -> list[Measurement]:
    """The measurements that `pack` took apart."""
    measurements = []
    for i, description in enumerate(descriptions):
        layers = {}
        for j, name in enumerate(description["layers"]):
            prefix = f"{i}.{j}."
            fields = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            layers[name] = CrossMoments.from_tensors(fields)
        measurements.append(Measurement(layers, tensors.get(f"{i}.loss"), int(description["samples"])))
    return measurements


def unpack(path: str | os.PathLike, kind: str) -> tuple[list[Measurement], list[Tensor]]:
    """The measurements of a file, and the indices of their students where it holds a population."""
    tensors, metadata = load_tensors(path, kind)
    try:
        measurements = rebuilt(tensors, json.loads(metadata["description"]))
        indices = [tensors[f"{i}.indices"] for i in range(len(measurements))] if kind != "Measurement" else []
    except (LookupError, TypeError, ValueError) as error:
        refuse(f"path {os.fspath(path)!r}", f"a damaged file ({error})", f"a fastspec {kind} file")
    return measurements, indices
