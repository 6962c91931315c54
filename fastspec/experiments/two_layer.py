"""Populations of two-layer students learn separated two-layer teachers (Student Specialization, Tian, ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fastspec.experiments.arrays import labelled, logarithmic_steps, named
from fastspec.experiments.clock import Clock
from fastspec.experiments.console import Console
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.options import check_grid, check_not_negative
from fastspec.experiments.results import TIMINGS, RunFolder
from fastspec.experiments.two_layer_job import Job
from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.populations import Population

if TYPE_CHECKING:
    import xarray as xr

GRID = ("strength_decay", "teacher_nodes", "multi", "seed")
LEVELS = (0.0, 0.5, 0.8)  # of correlation, beside the threshold, at which a teacher's students are counted
GRADIENTS = (0.01, 0.05, 0.2, 0.5, 1.0)  # of all steps: where per-sample gradients are measured


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
    own_teachers: bool = False
    """Give seed k a teacher of its own, of seed teacher_seed + k, samples of its own, and so a job of its own."""
    measurements: int = 24
    """How many times to measure: at the start, and at steps evenly spaced on a logarithmic axis."""
    measure_every: int = 0
    """Measure every so many steps instead, an epoch of the results; in the first one also after 1/32, 1/16, ... 1/2."""
    followed_seeds: int = 1
    """Students of every multiple whose single nodes are recorded at every measurement, with seeds from 0."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of data, weights and training."""
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
        check_integer("measure_every", self.measure_every, 0, self.steps)
        check_integer("followed_seeds", self.followed_seeds, 0, self.seeds)
        for name in ("lr", "weight_decay", "momentum"):
            check_not_negative(name, getattr(self, name))
        for name in ("data_std", "init_std"):
            check_real(name, getattr(self, name), "a number above 0", np.nextafter(0, 1))
        check_real("threshold", self.threshold, "a number from 0 to 1", 0.0, 1.0)
        if self.dtype not in ("float32", "float64"):
            refuse("dtype", repr(self.dtype), "'float32' or 'float64'")

    @property
    def snapshots(self) -> list[int]:
        """The steps at which students are measured."""
        if self.measure_every:
            epoch = self.measure_every
            return sorted({*range(0, self.steps, epoch), *(epoch >> k for k in range(1, 6)), self.steps})
        return logarithmic_steps(self.steps, self.measurements)

    @property
    def gradient_steps(self) -> set[int]:
        """The snapshots at which per-sample gradients are measured."""
        return {min(self.snapshots, key=lambda step: abs(step - share * self.steps)) for share in GRADIENTS}

    @property
    def levels(self) -> list[float]:
        """Correlations at which the students of a teacher node are counted."""
        return sorted({*LEVELS, self.threshold})

    def followed(self, students: Population) -> list[int]:
        """The students whose single nodes are recorded."""
        return [k for k, seed in enumerate(students.labels["seed"]) if seed < self.followed_seeds]

    def jobs(self) -> list[Job]:
        """Every teacher with the students that learn it."""
        seeds = [(k,) for k in range(self.seeds)] if self.own_teachers else [tuple(range(self.seeds))]
        return [Job(self, p, m, s) for m in self.teacher_nodes for p in self.teacher_strength_decay for s in seeds]

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        jobs = self.jobs()
        with console.study({job.name: job.cost for job in jobs}) as study:
            clock = Clock(folder.path / TIMINGS, folder.timings())
            for job in jobs:
                if job.finished(folder):
                    study.found(job.name)
                    job.clean(folder)
                    continue
                with study.job(job.name) as advance:
                    job.work(folder, advance, clock)
                took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in clock.seconds[job.name].items())
                console.say(f"{job.name}: {took}")
        results = self._empty()
        weights: dict[str, Tensor] = {}
        for job in jobs:
            students, found = job.found(folder)
            self._insert(results, job, students, found)
            weights |= _weights(job, students)
        return results, weights

    def _empty(self) -> xr.Dataset:
        """The results, with NaN or -1 wherever nothing is known or there is no such node."""
        nan, none = np.float32(np.nan), np.int32(-1)
        step, student = (*GRID, "step"), (*GRID, "student")
        teacher, level = (*step, "teacher"), (*step, "level", "teacher")
        node = (*GRID[:-1], "followed", "step", "student")
        results = labelled(
            {
                "strength_decay": self.teacher_strength_decay,
                "teacher_nodes": self.teacher_nodes,
                "multi": self.multi,
                "seed": range(self.seeds),
                "step": self.snapshots,
                "teacher": range(max(self.teacher_nodes)),
                "student": range(max(self.teacher_nodes) * max(self.multi)),
                "level": self.levels,
                "followed": range(self.followed_seeds),
            },
            {
                "loss": (step, np.nan, "mean over held-out samples of 1/2 |teacher - student|^2"),
                "loss_train": (step, np.nan, "the same over training samples"),
                "constant_students": (step, -1, "student nodes that are constant over the held-out samples"),
                "gradient_max": (step, np.nan, "largest |g_1| of a training sample and node, NaN where not measured"),
                "gradient_rms": (step, np.nan, "root mean square over training samples of the norm of g_1"),
                "best_correlation": (teacher, nan, "largest correlation of a teacher node with a student node"),
                "best_correlation_train": (teacher, nan, "the same over training samples"),
                "best_student": (teacher, none, "the student node of best_correlation, -1 for none"),
                "sine": (teacher, nan, "sine of the angle between the fan-ins of a teacher node and its best_student"),
                "rank": (teacher, nan, "share of student nodes that correlate better than the final best_student"),
                "students": (level, none, "student nodes whose best teacher it is, with a correlation above level"),
                "max_correlation": (student, nan, "largest correlation of a student node with a teacher node"),
                "best_teacher": (student, none, "the teacher node of max_correlation, -1 for none"),
                "fan_out": (student, nan, "norm of a student node's fan-out"),
                "node_correlation": (node, nan, "max_correlation at every measurement, of followed seeds"),
                "node_teacher": (node, none, "best_teacher at every measurement, of followed seeds"),
                "node_correlation_first": (node, nan, "correlation with teacher node 0, of followed seeds"),
                "node_fan_out": (node, nan, "fan_out at every measurement, of followed seeds"),
                "diverged_step": (GRID, -1, "step at which a student diverged and stopped, -1 for none"),
            },
        )
        if self.measure_every:
            results = results.assign_coords(epoch=("step", np.array(self.snapshots) / self.measure_every))
        return results

    def _insert(self, results: xr.Dataset, job: Job, students: Population, found: dict[str, Tensor]) -> None:
        """Put the findings of a job in their place."""
        at: dict[str, Any] = {"teacher_nodes": job.nodes, "strength_decay": job.decay}
        every, grid = {**at, "seed": list(job.seeds)}, (len(self.multi), len(job.seeds))  # the order of the students
        for name in ("loss", "loss_train", "constant_students", "gradient_max", "gradient_rms"):
            results[name].loc[every] = found[name].T.unflatten(0, grid).numpy()
        for name in ("best_correlation", "best_correlation_train", "best_student", "sine", "rank", "students"):
            place = {**every, "teacher": slice(0, job.nodes - 1)}
            results[name].loc[place] = found[name].movedim(0, 1).unflatten(0, grid).numpy()
        results["diverged_step"].loc[every] = found["diverged_step"][-1].view(grid).numpy()
        start = 0  # of a followed student among the followed nodes
        for k, (multi, seed) in enumerate(zip(students.labels["multi"], students.labels["seed"], strict=True)):
            nodes = {**at, "multi": multi, "student": slice(0, students.widths[k] - 1)}
            for name in ("max_correlation", "best_teacher", "fan_out"):
                results[name].loc[{**nodes, "seed": seed}] = found[f"final_{name}"][students.nodes(k)].numpy()
            if k in self.followed(students):
                rows = slice(start, start + students.widths[k])
                for name in ("node_correlation", "node_teacher", "node_correlation_first", "node_fan_out"):
                    results[name].loc[{**nodes, "followed": seed}] = found[name][:, rows].numpy()
                start = rows.stop


def _weights(job: Job, students: Population) -> dict[str, Tensor]:
    """All weights of a job under names of their own."""
    weights = {f"{job.name}.students.{part}": t for part, t in students.packed._asdict().items()}
    weights |= {f"{job.name}.students.{label}": torch.tensor(values) for label, values in students.labels.items()}
    weights[f"{job.name}.students.offsets"] = students.offsets
    return weights | named(f"{job.name}.teacher", job.teacher())


ICML2020 = TwoLayer(
    teacher_nodes=(5, 10, 20),
    multi=(1, 2, 5, 10),
    teacher_strength_decay=(0.0, 0.5, 1.0, 1.5, 2.0, 2.5),
    seeds=32,
    inputs=100,
    outputs=50,
    samples=10_000,
    evaluation_samples=10_000,
    data_std=1.5,
    steps=100_000,
    batch_size=16,
    lr=0.01,
    init_std=0.005,
    measure_every=1000,
)  # the two-layer study of Student Specialization (Tian, ICML 2020): 2,304 students, 100 epochs of 1000 steps
