"""Ablations of Luck Matters: how a deep student's specialization depends on width, batch norm, teacher and training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from fastspec import teachers
from fastspec.ablation_plots import FACTORS
from fastspec.experiments.arrays import labelled, named
from fastspec.experiments.console import Console
from fastspec.experiments.deep import Deep
from fastspec.experiments.deep_job import Job, work_through
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.options import check_grid
from fastspec.experiments.results import RunFolder
from fastspec.networks import MLP
from fastspec.ops.checks import check_integer, refuse

if TYPE_CHECKING:
    import xarray as xr

BatchNorm = Literal["none", "before", "after"]
Teacher = Literal["tuned", "separated", "random"]


@dataclass(frozen=True)
class Cell(Job):
    """One cell of the grid: a job of a deep run, whose teacher may be one with random weights."""

    kind: str = "tuned"

    @property
    def values(self) -> dict[str, Any]:
        """Factor by factor."""
        o = self.options
        return {
            "multi": self.multi,
            "batch_norm": o.batch_norm,
            "teacher": self.kind,
            "batch_size": o.batch_size,
            "lr": o.lr,
            "outputs": o.outputs,
            "data_std": o.data_std,
        }

    @property
    def name(self) -> str:
        form = "x{multi}-{batch_norm}-{teacher}-batch{batch_size}-lr{lr}-c{outputs}-std{data_std}"
        return form.format(**self.values)

    def teacher(self) -> MLP:
        o = self.options
        if self.kind != "random":
            return super().teacher()
        return teachers.random([o.inputs, *o.hidden, o.outputs], seed=o.teacher_seed, dtype=self.dtype)


@dataclass(frozen=True)
class Ablation(Experiment):
    """Deep students learn a deep teacher from Gaussian inputs; one thing at a time is changed.

    The first values of --multi, --batch-norm, --teacher, --batch-size, --lr, --outputs and --data-std make the base.
    Every other value is tried with the rest as in the base, or, with --every-combination, with all values of the rest.
    Students are measured after every epoch on inputs held out from training.
    """

    name: ClassVar[str] = "ablation"
    single_threaded: ClassVar[bool] = True

    multi: tuple[int, ...] = (5, 1, 2, 10)
    """Hidden nodes of a student, in multiples of the teacher's."""
    batch_norm: tuple[BatchNorm, ...] = ("none", "before", "after")
    """Batch norm of the students: none, before or after the ReLU."""
    teacher: tuple[Teacher, ...] = ("tuned", "separated", "random")
    """Weights of the teacher: separated are drawn from a finite set, no two nodes alike; random are uniform. Each
    node's are divided by their norm. A tuned teacher is a separated one whose hidden biases are shifted so that each
    node is active on half of the held-out inputs, and its outputs to mean 0 and variance 1."""
    batch_size: tuple[int, ...] = (64, 16, 256)
    """Samples of an SGD step."""
    lr: tuple[float, ...] = (0.1, 0.02, 0.3)
    """Learning rate on the squared difference averaged over samples and outputs."""
    outputs: tuple[int, ...] = (100, 10, 30)
    """Outputs C of teacher and students."""
    data_std: tuple[float, ...] = (10.0, 3.0, 1.0)
    """Standard deviation of the inputs."""
    every_combination: bool = False
    """Try all combinations of all values, not one change at a time."""
    hidden: tuple[int, ...] = (10, 15, 20, 25)
    """Nodes of the teacher's hidden layers."""
    inputs: int = 20
    """Inputs d."""
    samples: int = 40_000
    """Distinct training samples; an epoch goes through them once."""
    evaluation_samples: int = 2000
    """Held-out samples of every measurement."""
    epochs: int = 40
    """Epochs."""
    seeds: int = 1
    """Students of every cell, with seeds from 0."""
    teacher_seed: int = 0
    """Seed of the teacher's weights."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of data, weights and training."""

    def check(self) -> None:
        for name in ("multi", "batch_size", "outputs"):
            check_grid(name, getattr(self, name), check_integer)
        for name in ("batch_norm", "teacher", "lr", "data_std"):
            check_grid(name, getattr(self, name), lambda name, value: None)
        for kind in self.teacher:
            if kind not in ("tuned", "separated", "random"):
                refuse("teacher", repr(kind), "'tuned', 'separated' or 'random'")
        check_integer("epochs", self.epochs)
        check_integer("samples", self.samples, max(self.batch_size))
        for cell in self.cells():
            cell.options.check()

    def cells(self) -> list[Cell]:
        """The base, then what is changed, factor by factor."""
        grid = [getattr(self, name) for name in FACTORS]
        if self.every_combination:
            return [self._cell(*values) for values in product(*grid)]
        base = [values[0] for values in grid]
        changed = [[*base[:i], value, *base[i + 1 :]] for i, values in enumerate(grid) for value in values[1:]]
        return [self._cell(*values) for values in (base, *changed)]

    def _cell(
        self, multi: int, batch_norm: BatchNorm, teacher: str, batch_size: int, lr: float, outputs: int, data_std: float
    ) -> Cell:
        epoch = self.samples // batch_size
        options = Deep(
            hidden=self.hidden, inputs=self.inputs, outputs=outputs, teacher_seed=self.teacher_seed,
            tuned=teacher == "tuned", multi=(multi,), seeds=self.seeds, batch_norm=batch_norm, samples=(self.samples,),
            evaluation_samples=self.evaluation_samples, data_std=data_std, steps=self.epochs * epoch,
            batch_size=batch_size, lr=lr, measure_every=epoch, dtype=self.dtype,
        )  # fmt: skip
        return Cell(options, self.samples, multi, teacher)

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        cells = self.cells()
        weights: dict[str, Tensor] = {}
        work_through(cells, folder, console)
        results = self._empty(cells)
        for i, cell in enumerate(cells):
            weights |= named(f"{cell.name}.teacher", cell.teacher())
            students, found = cell.found(folder)
            for name in results:
                results[name][i] = found[str(name)].numpy()
            for seed, student in enumerate(students):
                weights |= named(f"{cell.name}.student seed {seed}", student)
        return results, weights

    def _empty(self, cells: list[Cell]) -> xr.Dataset:
        """The results, with NaN or -1 wherever nothing is known or there is no such node; a coordinate of cells for
        every factor."""
        epoch = ("cell", "seed", "epoch")
        layer = (*epoch, "layer")
        results = labelled(
            {
                "cell": range(len(cells)),
                "seed": range(self.seeds),
                "epoch": range(self.epochs + 1),
                "layer": range(1, len(self.hidden) + 1),
                "teacher_node": range(max(self.hidden)),
            },
            {
                "loss": (epoch, np.nan, "mean over held-out samples of 1/2 |teacher - student|^2"),
                "layer_score": (layer, np.nan, "mean of best_correlation over the teacher nodes that vary"),
                "constant_teachers": (layer, -1, "teacher nodes that are constant over the held-out samples"),
                "best_correlation": (
                    (*layer, "teacher_node"),
                    np.float32(np.nan),
                    "largest correlation of a teacher node with a student node",
                ),
                "diverged_step": (("cell", "seed"), -1, "step at which a student diverged and stopped, -1 for none"),
            },
        )
        return results.assign_coords({name: ("cell", [cell.values[name] for cell in cells]) for name in FACTORS})
