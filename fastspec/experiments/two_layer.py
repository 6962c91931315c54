"""Populations of two-layer students learn separated two-layer teachers (Student Specialization, Tian, ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastspec import data, teachers
from fastspec.experiments.arrays import labelled, logarithmic_steps, named
from fastspec.experiments.console import Console
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.options import check_grid, check_not_negative
from fastspec.experiments.results import RunFolder
from fastspec.measure import measure
from fastspec.networks import MLP
from fastspec.ops.checks import check_integer, check_real
from fastspec.populations import Population
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.training import train_two_layer

if TYPE_CHECKING:
    import xarray as xr

GRID = ("teacher_nodes", "strength_decay", "multi", "seed")
PART = "measurement of a two-layer run"
TRAIN_SEED, EVALUATION_SEED = 0, 1  # of the two Gaussian data sets


class Job(NamedTuple):
    """One teacher, and the population of students that learns it."""

    nodes: int
    decay: float

    @property
    def name(self) -> str:
        return f"m{self.nodes}-decay{self.decay:g}"


@dataclass(frozen=True)
class TwoLayer(Experiment):
    """Populations of two-layer students learn separated two-layer teachers.

    Every combination of --teacher-nodes and --teacher-strength-decay is one teacher; every combination of --multi and
    a seed is one of the students that learn it together. All of them learn by plain SGD from Gaussian inputs and are
    measured on inputs held out from training.
    """

    name: ClassVar[str] = "two-layer"

    teacher_nodes: tuple[int, ...] = (10,)
    """Hidden nodes m of the teachers."""
    multi: tuple[int, ...] = (1, 2, 5, 10)
    """Hidden nodes of a student, in multiples of the teacher's."""
    teacher_strength_decay: tuple[float, ...] = (0.0, 1.0)
    """Exponents p: the fan-out of teacher node i (from 0) is divided by (i + 1)^p."""
    seeds: int = 8
    """Students of every multiple, with seeds from 0."""
    inputs: int = 100
    """Inputs d."""
    outputs: int = 50
    """Outputs C."""
    samples: int = 10_000
    """Training samples."""
    evaluation_samples: int = 10_000
    """Held-out samples of every measurement."""
    data_std: float = 1.5
    """Standard deviation of the inputs."""
    steps: int = 100_000
    """SGD steps."""
    batch_size: int = 16
    """Samples of a step, drawn with replacement."""
    lr: float = 0.01
    """Learning rate."""
    weight_decay: float = 0.0
    """Weight decay."""
    momentum: float = 0.0
    """Momentum."""
    normalize: bool = False
    """Divide each node's fan-in by its norm after every step."""
    init_std: float = 0.005
    """Standard deviation of the students' first weights."""
    teacher_seed: int = 0
    """Seed of the teachers' weights."""
    measurements: int = 24
    """How many times to measure: at the start, and at steps evenly spaced on a logarithmic axis."""
    threshold: float = 0.95
    """Correlation above which a student node covers a teacher node."""

    def check(self) -> None:
        check_grid("teacher_nodes", self.teacher_nodes, check_integer)
        check_grid("multi", self.multi, check_integer)
        check_grid("teacher_strength_decay", self.teacher_strength_decay, check_not_negative)
        for name in ("seeds", "inputs", "outputs", "samples", "steps", "batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("measurements", "evaluation_samples"):
            check_integer(name, getattr(self, name), 2)
        for name in ("lr", "weight_decay", "momentum"):
            check_not_negative(name, getattr(self, name))
        for name in ("data_std", "init_std"):
            check_real(name, getattr(self, name), "a number above 0", np.nextafter(0, 1))
        check_real("threshold", self.threshold, "a number from 0 to 1", 0.0, 1.0)

    @property
    def snapshots(self) -> list[int]:
        """The steps at which students are measured."""
        return logarithmic_steps(self.steps, self.measurements)

    def jobs(self) -> list[Job]:
        return [Job(m, p) for m in self.teacher_nodes for p in self.teacher_strength_decay]

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        results = self._empty()
        weights: dict[str, Tensor] = {}
        x = data.gaussian(self.samples, self.inputs, std=self.data_std, seed=TRAIN_SEED)
        held_out = data.gaussian(self.evaluation_samples, self.inputs, std=self.data_std, seed=EVALUATION_SEED)
        for job in self.jobs():
            teacher = teachers.two_layer(
                self.inputs, job.nodes, self.outputs, strength_decay=job.decay, seed=self.teacher_seed
            )
            students = self._train(folder, job, teacher, x, held_out, console)
            for step in self.snapshots:
                found, _ = load_tensors(_path(folder, job, step), PART)
                self._insert(results, job, step, found, students)
            weights |= _weights(job, teacher, students)
        return results, weights

    def _train(
        self, folder: RunFolder, job: Job, teacher: MLP, x: Tensor, held_out: Tensor, console: Console
    ) -> Population:
        """The trained students of one job; every measurement is a part in the folder."""
        done, checkpoint = folder.part(f"{job.name}.students.safetensors"), folder.part(f"{job.name}.checkpoint")
        if done.exists():
            return Population.load(done)

        def on_snapshot(step: int, students: Population, diverged_step: Tensor) -> None:
            found = _measured(teacher, students, held_out, diverged_step)
            save_tensors(_path(folder, job, step), PART, found)

        def train() -> Population:
            start = Population.two_layer(teacher, multi=self.multi, seeds=range(self.seeds), std=self.init_std)
            title = f"{len(start)} students, {job.nodes} teacher nodes, decay {job.decay:g}"
            with console.stage(title) as advance:
                return train_two_layer(
                    teacher,
                    start,
                    x,
                    steps=self.steps,
                    batch_size=self.batch_size,
                    lr=self.lr,
                    weight_decay=self.weight_decay,
                    momentum=self.momentum,
                    normalize=self.normalize,
                    snapshots=self.snapshots,
                    on_snapshot=on_snapshot,
                    checkpoint=checkpoint,
                    progress=advance,
                ).population

        students = train()
        if not all(_path(folder, job, step).exists() for step in self.snapshots):
            checkpoint.unlink()  # an interruption at the wrong moment has cost a measurement
            students = train()
        students.save(done)
        checkpoint.unlink()
        return students

    def _empty(self) -> xr.Dataset:
        """The results, with NaN or -1 wherever nothing is known or there is no such node."""

        step, teacher, student = (*GRID, "step"), (*GRID, "step", "teacher"), (*GRID, "student")
        return labelled(
            {
                "teacher_nodes": self.teacher_nodes,
                "strength_decay": self.teacher_strength_decay,
                "multi": self.multi,
                "seed": range(self.seeds),
                "step": self.snapshots,
                "teacher": range(max(self.teacher_nodes)),
                "student": range(max(self.teacher_nodes) * max(self.multi)),
            },
            {
                "loss": (step, np.nan, "mean over held-out samples of 1/2 |teacher - student|^2"),
                "constant_students": (step, -1, "student nodes that are constant over the held-out samples"),
                "best_correlation": (teacher, np.nan, "largest correlation of a teacher node with a student node"),
                "best_student": (teacher, -1, "the student node of best_correlation, -1 for none"),
                "max_correlation": (student, np.nan, "largest correlation of a student node with a teacher node"),
                "best_teacher": (student, -1, "the teacher node of max_correlation, -1 for none"),
                "fan_out": (student, np.nan, "norm of a student node's fan-out"),
                "diverged_step": (GRID, -1, "step at which a student diverged and stopped, -1 for none"),
            },
        )

    def _insert(self, results: xr.Dataset, job: Job, step: int, found: dict[str, Tensor], students: Population) -> None:
        """Put the measurement of one step in its place, and with the last one what is known of single nodes."""
        grid = len(self.multi), self.seeds  # the order of the students
        at: dict[str, Any] = {"teacher_nodes": job.nodes, "strength_decay": job.decay}
        for name in ("loss", "constant_students"):
            results[name].loc[{**at, "step": step}] = found[name].view(grid).numpy()
        for name in ("best_correlation", "best_student"):
            place = {**at, "step": step, "teacher": slice(0, job.nodes - 1)}
            results[name].loc[place] = found[name].view(*grid, job.nodes).numpy()
        if step < self.steps:
            return
        results["diverged_step"].loc[at] = found["diverged_step"].view(grid).numpy()
        fan_out = students.fan_out()
        for k, (multi, seed) in enumerate(zip(students.labels["multi"], students.labels["seed"], strict=True)):
            nodes = {**at, "multi": multi, "seed": seed, "student": slice(0, students.widths[k] - 1)}
            for name in ("max_correlation", "best_teacher"):
                results[name].loc[nodes] = found[name][students.nodes(k)].numpy()
            results["fan_out"].loc[nodes] = fan_out[k].numpy()


def _measured(teacher: MLP, students: Population, x: Tensor, diverged_step: Tensor) -> dict[str, Tensor]:
    """What one measurement keeps: [P], [P, m], and for single student nodes [nodes of all students]."""
    measured = measure(teacher, students, x, progress=False)
    nodes, m = len(students.w1), teacher.hidden_widths[0]
    found = {
        "loss": measured.loss,
        "constant_students": torch.empty(len(students), dtype=torch.int64),
        "best_correlation": measured.best_correlation,
        "best_student": torch.empty(len(students), m, dtype=torch.int64),
        "max_correlation": torch.empty(nodes, dtype=torch.float64),
        "best_teacher": torch.empty(nodes, dtype=torch.int64),
        "diverged_step": diverged_step,
    }
    for k, one in enumerate(measured):
        (moments,) = one.layers.values()
        found["constant_students"][k] = moments.undefined_nodes().student
        found["best_student"][k] = moments.best_student().indices
        found["max_correlation"][students.nodes(k)], found["best_teacher"][students.nodes(k)] = moments.best_teacher()
    return found


def _path(folder: RunFolder, job: Job, step: int) -> Path:
    return folder.part(f"{job.name}.step{step}.safetensors")


def _weights(job: Job, teacher: MLP, students: Population) -> dict[str, Tensor]:
    """All weights of a job under names of their own."""
    weights = {f"{job.name}.students.{part}": t for part, t in students.packed._asdict().items()}
    weights |= {f"{job.name}.students.{label}": torch.tensor(values) for label, values in students.labels.items()}
    weights[f"{job.name}.students.offsets"] = students.offsets
    return weights | named(f"{job.name}.teacher", teacher)
