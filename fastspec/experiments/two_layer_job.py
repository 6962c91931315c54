"""One job of a two-layer run: a teacher, and the population of students that learns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastspec import data, teachers
from fastspec.experiments.clock import Clock
from fastspec.experiments.console import Advance
from fastspec.experiments.results import RunFolder
from fastspec.experiments.snapshots import per_sample_gradient, ranks, snapshot
from fastspec.networks import MLP
from fastspec.ops.backends import default_device
from fastspec.populations import Population
from fastspec.statistics import best
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.training import train_two_layer

if TYPE_CHECKING:
    from pathlib import Path

    from fastspec.experiments.two_layer import TwoLayer

PART, FOUND = "measurement of a two-layer run", "findings of a two-layer job"
OF_NODES = ("correlation", "fan_out")  # of a snapshot: for every student node, summarised once training is over


@dataclass(frozen=True)
class Job:
    """The options of a run, a teacher, and the seeds of its students."""

    options: TwoLayer
    decay: float
    nodes: int
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        name = f"m{self.nodes}-decay{self.decay:g}"
        return f"{name}-seed{self.seeds[0]}" if self.options.own_teachers else name

    @property
    def cost(self) -> float:
        """Multiplications, about: what training and measuring take is proportional to it."""
        o = self.options
        nodes = sum(o.multi) * self.nodes * len(self.seeds)
        step = o.batch_size * (2 * o.inputs + 3 * o.outputs)
        measurement = (o.samples + o.evaluation_samples) * (o.inputs + o.outputs + self.nodes)
        return float(nodes * (o.steps * step + len(o.snapshots) * measurement))

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.options.dtype)

    def teacher(self) -> MLP:
        o = self.options
        seed = o.teacher_seed + self.seeds[0]
        return teachers.two_layer(
            o.inputs, self.nodes, o.outputs, strength_decay=self.decay, seed=seed, dtype=self.dtype
        )

    def samples(self) -> tuple[Tensor, Tensor]:
        """Inputs to train on, and those held out."""
        o, first = self.options, 2 * self.seeds[0]
        train, held_out = (
            data.gaussian(n, o.inputs, std=o.data_std, seed=first + k, dtype=self.dtype)
            for k, n in enumerate((o.samples, o.evaluation_samples))
        )
        return train, held_out

    def finished(self, folder: RunFolder) -> bool:
        return self._found(folder).exists()

    def found(self, folder: RunFolder) -> tuple[Population, dict[str, Tensor]]:
        """The trained students of a finished job, and its findings as `_findings` names them."""
        return Population.load(self._students(folder)), load_tensors(self._found(folder), FOUND)[0]

    def work(self, folder: RunFolder, advance: Advance, clock: Clock) -> None:
        """Train and measure, from the start or from where an earlier run was interrupted; what is found is kept in the
        folder's parts."""
        device, checkpoint, o = default_device(), folder.part(f"{self.name}.checkpoint"), self.options
        teacher = self.teacher().to(device)
        train, held_out = (x.to(device) for x in self.samples())

        def on_snapshot(step: int, students: Population, diverged_step: Tensor) -> None:
            clock.lap(self.name, "training")
            found = snapshot(teacher, students, train, held_out, o.levels)
            if step in o.gradient_steps:
                found |= per_sample_gradient(teacher, students, train)
            save_tensors(self._part(folder, step), PART, found | {"diverged_step": diverged_step})
            clock.lap(self.name, "evaluation")
            clock.save()

        def students() -> Population:
            return train_two_layer(
                teacher,
                Population.two_layer(teacher, multi=o.multi, seeds=self.seeds, std=o.init_std),
                train,
                steps=o.steps,
                batch_size=o.batch_size,
                lr=o.lr,
                weight_decay=o.weight_decay,
                momentum=o.momentum,
                normalize=o.normalize,
                snapshots=o.snapshots,
                on_snapshot=on_snapshot,
                checkpoint=checkpoint,
                progress=advance,
            ).population.to("cpu")

        trained = students()
        if not all(self._part(folder, step).exists() for step in o.snapshots):
            checkpoint.unlink()  # an interruption at the wrong moment has cost a measurement
            trained = students()
        clock.lap(self.name, "training")
        trained.save(self._students(folder))
        save_tensors(self._found(folder), FOUND, self._findings(folder, trained))
        clock.lap(self.name, "evaluation")
        clock.save()
        self.clean(folder)

    def clean(self, folder: RunFolder) -> None:
        """Remove what a finished job has no more use for."""
        for step in self.options.snapshots:
            self._part(folder, step).unlink(missing_ok=True)
        folder.part(f"{self.name}.checkpoint").unlink(missing_ok=True)

    def _findings(self, folder: RunFolder, students: Population) -> dict[str, Tensor]:
        """Every tensor of the snapshots stacked [step, ...], with ranks and followed nodes in place of single nodes;
        and single nodes at the end."""
        last = load_tensors(self._part(folder, self.options.steps), PART)[0]
        rows: list[dict[str, Tensor]] = []
        for step in self.options.snapshots:
            part = load_tensors(self._part(folder, step), PART)[0]
            row = {name: tensor for name, tensor in part.items() if name not in OF_NODES}
            for name in ("gradient_max", "gradient_rms"):
                row.setdefault(name, torch.full((len(students),), torch.nan, dtype=torch.float64))
            row["rank"] = ranks(students, part["correlation"], last["best_student"])
            rows.append(row | self._followed(part, students))
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        values, places = best(last["correlation"])
        return found | {"final_max_correlation": values, "final_best_teacher": places, "final_fan_out": last["fan_out"]}

    def _followed(self, part: Mapping[str, Tensor], students: Population) -> dict[str, Tensor]:
        """Trajectories: single nodes of the followed students, one after the other."""
        every = torch.arange(len(students.w1))
        chosen = torch.cat([every[:0], *(every[students.nodes(k)] for k in self.options.followed(students))])
        correlation = part["correlation"][chosen]
        values, places = best(correlation)
        return {
            "node_correlation": values,
            "node_teacher": places,
            "node_correlation_first": correlation[:, 0],
            "node_fan_out": part["fan_out"][chosen],
        }

    def _part(self, folder: RunFolder, step: int) -> Path:
        return folder.part(f"{self.name}.step{step}.safetensors")

    def _students(self, folder: RunFolder) -> Path:
        return folder.part(f"{self.name}.students.safetensors")

    def _found(self, folder: RunFolder) -> Path:
        return folder.part(f"{self.name}.found.safetensors")
