"""How many distinct samples a student needs, Gaussian ones or those about its teacher's boundaries (Student
Specialization, Tian, ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fastspec import data
from fastspec.experiments.arrays import labelled, named
from fastspec.experiments.console import Console
from fastspec.experiments.deep import Deep
from fastspec.experiments.deep_job import HELD_OUT_SEED, Job, work_through
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.options import check_grid, check_not_negative
from fastspec.experiments.results import RunFolder
from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.randomness import generator
from fastspec.teachers import STUDENT_SPECIALIZATION

if TYPE_CHECKING:
    import xarray as xr

Kind = Literal["gaussian", "boundary"]


@dataclass(frozen=True)
class Column(Job):
    """A job of a deep run whose training samples may lie about the boundaries of the teacher's lowest layer."""

    kind: str = "gaussian"
    mean: float = 2.0
    sigma: float = 2.0

    @property
    def name(self) -> str:
        return f"{self.kind}-{super().name}"

    def inputs(self, count: int, seed: int) -> Tensor:
        if self.kind == "gaussian" or seed == HELD_OUT_SEED:
            return super().inputs(count, seed)
        teacher, std = self.teacher(), self.options.data_std
        points = data.teacher_boundary(teacher, count, std=std, mean=self.mean, sigma=self.sigma, seed=seed)
        return points[torch.randperm(len(points), generator=generator(seed, "boundary samples"))[:count]]


@dataclass(frozen=True)
class SampleComplexity(Experiment):
    """Students learn a teacher from few or many distinct samples, all for the same number of steps.

    The samples are Gaussian, or lie on and on both sides of the boundaries of the teacher's lowest layer (the
    teacher-aware augmentation of Student Specialization). Students are measured at the end, on Gaussian inputs held out
    from training.
    """

    name: ClassVar[str] = "sample-complexity"
    single_threaded: ClassVar[bool] = True

    kind: tuple[Kind, ...] = ("gaussian", "boundary")
    """Kinds of training samples."""
    samples: tuple[int, ...] = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 4096)
    """Distinct training samples N; an epoch goes through them once."""
    hidden: tuple[int, ...] = (10, 15)
    """Nodes of the teacher's hidden layers."""
    inputs: int = 20
    """Inputs d."""
    outputs: int = 50
    """Outputs C."""
    teacher_seed: int = 0
    """Seed of the teacher's weights, drawn from a finite set, no two nodes alike."""
    teacher: Literal["tuned", "separated"] = "tuned"
    """Biases of the teacher: separated are as drawn; tuned hidden ones are shifted so that each node is active on half
    of the held-out inputs, and the outputs to mean 0 and variance 1. Where they are not, some nodes of upper layers are
    active on so few inputs that no number of samples shows them."""
    multi: tuple[int, ...] = (1, 2, 5)
    """Hidden nodes of a student, in multiples of the teacher's."""
    seeds: int = 4
    """Students of every multiple, with seeds from 0."""
    data_std: float = 1.5
    """Standard deviation of the Gaussian inputs; samples about boundaries have norm data_std sqrt(d)."""
    boundary_mean: float = 2.0
    """Least distance of a sample beside a boundary from it, in norms of the teacher node's weights, before scaling."""
    boundary_sigma: float = 2.0
    """Width of the uniform distribution of these distances."""
    evaluation_samples: int = 10_000
    """Held-out samples of the measurement."""
    steps: int = 40_000
    """SGD steps, however many distinct samples there are."""
    batch_size: int = 32
    """Samples of a step."""
    lr: float = 0.5
    """Learning rate on the squared difference averaged over samples and outputs."""
    threshold: float = 0.95
    """Correlation above which a teacher node counts as covered, and layer score that samples are to suffice for."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of data, weights and training."""

    def check(self) -> None:
        check_grid("kind", self.kind, lambda name, value: None)
        for value in self.kind:
            if value not in ("gaussian", "boundary"):
                refuse("kind", repr(value), "'gaussian' or 'boundary'")
        if self.teacher not in ("tuned", "separated"):
            refuse("teacher", repr(self.teacher), "'tuned' or 'separated'")
        check_not_negative("boundary_mean", self.boundary_mean)
        check_not_negative("boundary_sigma", self.boundary_sigma)
        check_integer("steps", self.steps)
        check_real("threshold", self.threshold, "a number in [0, 1]", 0.0, 1.0)
        self._deep().check()

    def jobs(self) -> list[Column]:
        """The students that are trained together, all of one width and on one set of samples."""
        options = self._deep()
        return [
            Column(options, samples, multi, kind, self.boundary_mean, self.boundary_sigma)
            for kind in self.kind
            for samples in self.samples
            for multi in self.multi
        ]

    def _deep(self) -> Deep:
        return Deep(
            hidden=self.hidden, inputs=self.inputs, outputs=self.outputs, teacher_seed=self.teacher_seed,
            weight_set=STUDENT_SPECIALIZATION, tuned=self.teacher == "tuned", multi=self.multi, seeds=self.seeds,
            samples=self.samples, evaluation_samples=self.evaluation_samples, data_std=self.data_std, steps=self.steps,
            batch_size=self.batch_size, lr=self.lr, measure_every=self.steps, dtype=self.dtype,
        )  # fmt: skip

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        jobs = self.jobs()
        work_through(jobs, folder, console)
        results, weights = self._empty(), named("teacher", jobs[0].teacher())
        for job in jobs:
            students, found = job.found(folder)
            at = {"kind": job.kind, "samples": job.samples, "multi": job.multi}
            for name in results:
                table = found[str(name)]
                results[name].loc[at] = (table if name == "diverged_step" else table[:, -1]).numpy()
            for seed, student in enumerate(students):
                weights |= named(f"{job.name}.student seed {seed}", student)
        return results, weights

    def _empty(self) -> xr.Dataset:
        """The results at the end of training, with NaN or -1 wherever nothing is known or there is no such node."""
        grid = ("kind", "samples", "multi", "seed")
        layer = (*grid, "layer")
        return labelled(
            {
                "kind": self.kind,
                "samples": self.samples,
                "multi": self.multi,
                "seed": range(self.seeds),
                "layer": range(1, len(self.hidden) + 1),
                "teacher": range(max(self.hidden)),
            },
            {
                "loss": (grid, np.nan, "mean over held-out samples of 1/2 |teacher - student|^2"),
                "layer_score": (layer, np.nan, "mean of best_correlation over the teacher nodes that vary"),
                "constant_teachers": (layer, -1, "teacher nodes that are constant over the held-out samples"),
                "best_correlation": (
                    (*layer, "teacher"),
                    np.float32(np.nan),
                    "largest correlation of a teacher node with a student node",
                ),
                "diverged_step": (grid, -1, "step at which a student diverged and stopped, -1 for none"),
            },
        )
