"""Deep students learn deep separated teachers from Gaussian inputs (Luck Matters; Student Specialization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from fastspec.experiments.arrays import labelled, logarithmic_steps, named
from fastspec.experiments.console import Console
from fastspec.experiments.deep_job import GRAM_SAMPLES, HELD_OUT_SEED, Job, work_through
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.options import check_each, check_grid, check_not_negative
from fastspec.experiments.results import RunFolder
from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.theory import backward_gram

if TYPE_CHECKING:
    import xarray as xr

GRID = ("samples", "multi", "seed")
BLOCKS = ("winners", "winners and others", "others")  # student nodes that win a teacher node at the end, or do not


@dataclass(frozen=True)
class Deep(Experiment):
    """Deep students learn a deep teacher from Gaussian inputs.

    One teacher with separated weights; every combination of --samples, --multi and a seed is a student that learns its
    outputs by SGD. Students are measured on inputs held out from training: which student node has become which teacher
    node, layer by layer, and how much of its way to the outputs it has.
    """

    name: ClassVar[str] = "deep"

    hidden: tuple[int, ...] = (10, 15, 20, 25)
    """Nodes of the teacher's hidden layers."""
    inputs: int = 20
    """Inputs d."""
    outputs: int = 100
    """Outputs C."""
    weight_set: tuple[float, ...] = (-0.5, -0.25, 0.0, 0.25, 0.5)
    """What the teacher's weights are drawn from, before each node's are divided by their norm."""
    tuned: bool = False
    """Shift the teacher's hidden biases so that each node is active on half of the held-out inputs, and its outputs to
    mean 0 and variance 1."""
    teacher_seed: int = 0
    """Seed of the teacher's weights."""
    multi: tuple[int, ...] = (10,)
    """Hidden nodes of a student, in multiples of the teacher's."""
    seeds: int = 1
    """Students of every multiple, with seeds from 0."""
    batch_norm: Literal["none", "before", "after"] = "none"
    """Batch norm of the students, before or after the ReLU."""
    samples: tuple[int, ...] = (100_000,)
    """Distinct training samples; an epoch goes through them once."""
    fresh: bool = False
    """Draw new training samples for every epoch."""
    evaluation_samples: int = 10_000
    """Held-out samples of every measurement."""
    data_std: float = 10.0
    """Standard deviation of the inputs."""
    steps: int = 62_480
    """SGD steps, however many distinct samples there are."""
    batch_size: int = 64
    """Samples of a step."""
    lr: float = 0.05
    """Learning rate on the squared difference averaged over samples and outputs, as torch.nn.MSELoss has it."""
    lr_drop_epoch: int = 0
    """Epoch from which the learning rate is lr_drop times as large; 0 for never."""
    lr_drop: float = 0.5
    """Factor on the learning rate from that epoch on."""
    momentum: float = 0.0
    """Momentum."""
    weight_decay: float = 0.0
    """Weight decay."""
    normalize: bool = False
    """Divide each hidden node's weights by their norm after every step."""
    measurements: int = 24
    """How many times to measure: at the start, and at steps evenly spaced on a logarithmic axis."""
    measure_every: int = 0
    """Measure every so many steps instead, an epoch of the results."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of data, weights and training."""

    def check(self) -> None:
        check_each("hidden", self.hidden, check_integer)
        check_grid("multi", self.multi, check_integer)
        check_grid("weight_set", self.weight_set, _check_number)
        for name in ("inputs", "outputs", "seeds", "steps", "batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("measurements", "evaluation_samples"):
            check_integer(name, getattr(self, name), 2)
        check_grid("samples", self.samples, lambda name, value: check_integer(name, value, self.batch_size))
        check_integer("measure_every", self.measure_every, 0, self.steps)
        check_integer("lr_drop_epoch", self.lr_drop_epoch, 0)
        check_integer("teacher_seed", self.teacher_seed, 0, 2**32 - 1)
        for name in ("lr", "lr_drop", "weight_decay"):
            check_not_negative(name, getattr(self, name))
        check_real("momentum", self.momentum, "a number in [0, 1]", 0.0, 1.0)
        check_real("data_std", self.data_std, "a number above 0", np.nextafter(0, 1))
        for name, takes in (("batch_norm", ("none", "before", "after")), ("dtype", ("float32", "float64"))):
            if getattr(self, name) not in takes:
                refuse(name, repr(getattr(self, name)), " or ".join(map(repr, takes)))

    @property
    def snapshots(self) -> list[int]:
        """The steps at which students are measured."""
        if self.measure_every:
            return sorted({*range(0, self.steps, self.measure_every), self.steps})
        return logarithmic_steps(self.steps, self.measurements)

    def jobs(self) -> list[Job]:
        """The students that are trained together, all with one width and one number of samples."""
        return [Job(self, samples, multi) for samples in self.samples for multi in self.multi]

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        jobs = self.jobs()
        work_through(jobs, folder, console)
        teacher, held_out = jobs[0].teacher(), jobs[0].inputs(self.evaluation_samples, HELD_OUT_SEED)
        results, weights = self._empty(), named("teacher", teacher)
        grams = backward_gram(teacher, teacher, held_out[:GRAM_SAMPLES], progress=False)
        activity = [(h > 0).float().mean(0) for h in teacher.activations(held_out)]
        for name, tables in (
            ("teacher_strength", [gram.teacher_strength().float() for gram in grams.values()]),
            ("teacher_activity", activity),
        ):
            for layer, table in enumerate(tables, start=1):
                results[name].loc[{"layer": layer, "teacher": slice(0, len(table) - 1)}] = table.numpy()
        for job in jobs:
            students, found = job.found(folder)
            self._insert(results, job, found)
            for seed, student in enumerate(students):
                weights |= named(f"{job.name}.student seed {seed}", student)
        return results, weights

    def _empty(self) -> xr.Dataset:
        """The results, with NaN or -1 wherever nothing is known or there is no such node."""
        nan, none = np.float32(np.nan), np.int32(-1)
        step = (*GRID, "step")
        layer = (*step, "layer")
        teacher, student = (*layer, "teacher"), (*layer, "student")
        results = labelled(
            {
                "samples": self.samples,
                "multi": self.multi,
                "seed": range(self.seeds),
                "step": self.snapshots,
                "layer": range(1, len(self.hidden) + 1),
                "teacher": range(max(self.hidden)),
                "student": range(max(self.hidden) * max(self.multi)),
                "block": BLOCKS,
            },
            {
                "loss": (step, np.nan, "mean over held-out samples of 1/2 |teacher - student|^2"),
                "loss_train": (step, np.nan, "mean of the batch losses since the last measurement"),
                "layer_score": (layer, np.nan, "mean of best_correlation over the teacher nodes that vary"),
                "constant_teachers": (layer, -1, "teacher nodes that are constant over the held-out samples"),
                "constant_students": (layer, -1, "student nodes that are constant over the held-out samples"),
                "best_correlation": (teacher, nan, "largest correlation of a teacher node with a student node"),
                "best_student": (teacher, none, "the student node of best_correlation, -1 for none"),
                "rank": (teacher, nan, "share of student nodes that correlate better than the final best_student"),
                "strength": (
                    student,
                    nan,
                    "rms of what a unit of a student node's activation adds to the outputs",
                ),
                "teacher_strength": (("layer", "teacher"), nan, "the same of a teacher node"),
                "teacher_activity": (("layer", "teacher"), nan, "share of held-out samples on which it is active"),
                "beta_blocks": ((*layer, "block"), nan, "norms of blocks of E[beta], of the first student of a width"),
                "h_blocks": ((*layer, "block"), nan, "the same of E[H]"),
                "max_correlation": (student, nan, "largest correlation of a student node with a teacher node"),
                "diverged_step": (GRID, -1, "step at which a student diverged and stopped, -1 for none"),
            },
        )
        if self.measure_every:
            results = results.assign_coords(epoch=("step", np.array(self.snapshots) / self.measure_every))
        return results

    def _insert(self, results: xr.Dataset, job: Job, found: dict[str, Tensor]) -> None:
        """Put the findings of a job, [seed, step, ...], in their place."""
        at: dict[str, Any] = {"samples": job.samples, "multi": job.multi}
        for name, table in found.items():
            nodes = {"student": slice(0, table.shape[-1] - 1)} if "student" in results[name].dims else {}
            results[name].loc[{**at, **nodes}] = table.numpy()


def _check_number(name: str, value: float) -> None:
    check_real(name, value, "finite numbers")


LUCK_MATTERS = Deep(measure_every=1562)  # 40 epochs of 100,000 samples, 1562 batches each

STUDENT_SPECIALIZATION = Deep(
    hidden=(50, 75, 100, 125),
    weight_set=(-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0),
    tuned=True,
    multi=(2,),
    samples=(5_000, 10_000, 15_000, 20_000, 100_000),
    steps=312_500,
    lr=0.2,
    lr_drop_epoch=20,
)  # 2e7 samples processed
