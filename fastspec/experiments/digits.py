"""A teacher learns handwritten digits from their labels; over-realised students learn from the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fastspec import data
from fastspec.data import Samples, Splits
from fastspec.experiments.arrays import labelled, logarithmic_steps, named
from fastspec.experiments.clock import Clock
from fastspec.experiments.console import Console
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.options import check_each, check_grid, check_not_negative
from fastspec.experiments.results import TIMINGS, RunFolder
from fastspec.measure import MODULE_BATCH, measure
from fastspec.networks import MLP, ConvNet, student_like
from fastspec.ops.backends import default_device
from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.training import train
from fastspec.training.lessons import Inputs

if TYPE_CHECKING:
    import xarray as xr

PIXELS, DIGITS = 64, 10
PART, FOUND = "measurement of a digits run", "findings of a digits student"


@dataclass(frozen=True)
class Digits(Experiment):
    """A deep teacher learns scikit-learn's handwritten digits; wider students learn from its logits.

    The teacher learns the labels by cross-entropy. Students never see a label: they learn the teacher's logits (mean of
    1/2 |teacher - student|^2) at training images with fresh Gaussian noise, which the teacher answers as well, so that
    they see both sides of its boundaries. Both use Adam with a cosine learning rate. Everything is measured on images
    held out from all training, without noise.
    """

    name: ClassVar[str] = "digits"
    single_threaded: ClassVar[bool] = True

    hidden: tuple[int, ...] = (50, 50, 50)
    """Nodes of the teacher's hidden layers."""
    multi: tuple[int, ...] = (1, 2, 5)
    """Hidden nodes of a student, in multiples of the teacher's."""
    seeds: int = 1
    """Students of every multiple, with seeds from 0."""
    held_out: float = 0.25
    """Share of the 1,797 images held out from training."""
    data_seed: int = 0
    """Seed of that split."""
    teacher_seed: int = 0
    """Seed of the teacher's first weights and batches."""
    teacher_steps: int = 2000
    """Training steps of the teacher."""
    teacher_lr: float = 0.002
    """Learning rate of the teacher."""
    teacher_noise: float = 0.5
    """Input noise of the teacher's training; a standard deviation of 1 is that of all pixels."""
    teacher_weight_decay: float = 1e-4
    """Weight decay of the teacher."""
    student_steps: int = 2500
    """Training steps of each student."""
    student_lr: float = 0.005
    """Learning rate of the students."""
    student_noise: float = 2.0
    """Input noise of the students' training, in the same unit."""
    batch_size: int = 64
    """Samples of a step, drawn with replacement."""
    measurements: int = 16
    """How many times to measure a student: at the start, and at steps evenly spaced on a logarithmic axis."""

    def check(self) -> None:
        check_each("hidden", self.hidden, check_integer)
        check_grid("multi", self.multi, check_integer)
        for name in ("seeds", "teacher_steps", "student_steps", "batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("data_seed", "teacher_seed"):
            check_integer(name, getattr(self, name), 0, 2**32 - 1)
        check_integer("measurements", self.measurements, 2)
        check_real("held_out", self.held_out, "a number from 0.05 to 0.95", 0.05, 0.95)
        for name in ("teacher_lr", "teacher_noise", "teacher_weight_decay", "student_lr", "student_noise"):
            check_not_negative(name, getattr(self, name))

    @property
    def student_rate(self) -> float:
        """The learning rate of the students."""
        return self.student_lr

    @property
    def snapshots(self) -> list[int]:
        """The steps at which students are measured."""
        return logarithmic_steps(self.student_steps, self.measurements)

    def splits(self) -> Splits:
        """The images to train on and those held out."""
        return data.digits(held_out=self.held_out, seed=self.data_seed)

    def inputs(self, x: Tensor, seed: int) -> Inputs:
        """What is learned from, of the images to train on."""
        return x

    def untrained(self) -> MLP | ConvNet:
        """The teacher before it learns."""
        return MLP([PIXELS, *self.hidden, DIGITS], seed=self.teacher_seed)

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        splits = self.splits().to(default_device())
        return self.learn(folder, console, splits, self.trained_teacher(folder, splits.train, console))

    def learn(
        self, folder: RunFolder, console: Console, splits: Splits, teacher: MLP | ConvNet
    ) -> tuple[xr.Dataset, dict[str, Tensor]]:
        """Results and weights of students of a trained teacher."""
        results, weights = self._empty(), named("teacher", teacher)
        for name, samples in (("train", splits.train), ("held_out", splits.held_out)):
            results[f"teacher_accuracy_{name}"] = ((), accuracy(teacher, samples))
        for multi in self.multi:
            for seed in range(self.seeds):
                student, found = self._student(folder, teacher, splits, multi, seed, console)
                for name, table in found.items():
                    steps = {"step": self.snapshots[: len(table)]} if "step" in results[name].dims else {}
                    results[name].loc[{"multi": multi, "seed": seed, **steps}] = table.numpy()
                weights |= named(f"student x{multi} seed {seed}", student)
        return results, weights

    def trained_teacher(self, folder: RunFolder, samples: Samples, console: Console) -> MLP | ConvNet:
        """The teacher that has learned the labels."""
        done, teacher = folder.part("teacher.safetensors"), self.untrained()
        if done.exists():
            return type(teacher).load(done).to(default_device())
        teacher = teacher.to(default_device())
        clock = Clock(folder.path / TIMINGS, folder.timings())
        with (
            console.stage(f"{self.name}: the teacher learns labels") as advance,
            clock.until_left("teacher", "training"),
        ):
            history = train(
                samples.y,
                teacher,
                self.inputs(samples.x, self.teacher_seed),
                steps=self.teacher_steps,
                batch_size=self.batch_size,
                replacement=True,
                lr=self.teacher_lr,
                schedule=half_cosine(self.teacher_steps),
                optimizer=partial(torch.optim.Adam, weight_decay=self.teacher_weight_decay, fused=True),
                input_noise=self.teacher_noise,
                seed=self.teacher_seed,
                snapshots=(),
                checkpoint=folder.part("teacher.checkpoint"),
                progress=advance,
            )
        if history.diverged_step >= 0:
            got = f"{self.teacher_lr}, with which the teacher diverges at step {int(history.diverged_step)}"
            refuse("teacher_lr", got, "a smaller one")
        flush_(teacher)
        teacher.save(done)
        return teacher

    def _student(
        self, folder: RunFolder, teacher: MLP | ConvNet, splits: Splits, multi: int, seed: int, console: Console
    ) -> tuple[MLP | ConvNet, dict[str, Tensor]]:
        """One trained student, and its measurements [step, ...] as far as it came, and where it diverged."""
        stem = f"x{multi}-seed{seed}"
        network, done = folder.part(f"{stem}.safetensors"), folder.part(f"{stem}.found.safetensors")
        if done.exists():
            return type(teacher).load(network), load_tensors(done, FOUND)[0]
        student = student_like(teacher, multi=multi, seed=seed)  # type: ignore[type-var]
        student = student.to(default_device())
        clock = Clock(folder.path / TIMINGS, folder.timings())
        number, students = self.multi.index(multi) * self.seeds + seed + 1, len(self.multi) * self.seeds

        def row(step: int) -> Path:
            return folder.part(f"{stem}.step{step}.safetensors")

        def on_snapshot(step: int, _: object) -> None:
            clock.lap(stem, "training")
            save_tensors(row(step), PART, measurement(teacher, student, splits.held_out, max(self.hidden)))
            clock.lap(stem, "evaluation")
            clock.save()

        with (
            console.stage(f"{self.name}: student {number} of {students}, {multi}×, learns logits") as advance,
            clock.until_left(stem, "training"),
        ):
            history = train(
                teacher,
                student,
                self.inputs(splits.train.x, seed),
                steps=self.student_steps,
                batch_size=self.batch_size,
                replacement=True,
                lr=self.student_rate,
                schedule=half_cosine(self.student_steps),
                optimizer=partial(torch.optim.Adam, fused=True),
                input_noise=self.student_noise,
                seed=seed,
                snapshots=self.snapshots,
                on_snapshot=on_snapshot,
                checkpoint=folder.part(f"{stem}.checkpoint"),
                progress=advance,
            )
        rows = [load_tensors(row(step), PART)[0] for step in self.snapshots if step <= history.steps]
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        found["diverged_step"] = history.diverged_step
        student.save(network)
        save_tensors(done, FOUND, found)
        return student, found

    def _empty(self) -> xr.Dataset:
        """The results, with NaN or -1 wherever nothing is known or there is no such node."""
        per_step = ("multi", "seed", "step")
        layer, teacher = (*per_step, "layer"), (*per_step, "layer", "teacher")
        return labelled(
            {
                "multi": self.multi,
                "seed": range(self.seeds),
                "step": self.snapshots,
                "layer": range(1, len(self.hidden) + 1),
                "teacher": range(max(self.hidden)),
            },
            {
                "loss": (per_step, np.nan, "mean over held-out images of 1/2 |teacher - student|^2"),
                "accuracy": (per_step, np.nan, "share of held-out images with the right digit"),
                "agreement": (per_step, np.nan, "share of held-out images with the teacher's digit"),
                "constant_teachers": (layer, -1, "teacher nodes that are constant over the held-out images"),
                "constant_students": (layer, -1, "student nodes that are constant over the held-out images"),
                "layer_score": (layer, np.nan, "mean of best_correlation over the teacher nodes that vary"),
                "best_correlation": (teacher, np.nan, "largest correlation of a teacher node with a student node"),
                "best_student": (teacher, -1, "the student node of best_correlation, -1 for none"),
                "diverged_step": (("multi", "seed"), -1, "step at which a student diverged and stopped, -1 for none"),
            },
        )


def measurement(
    teacher: MLP | ConvNet, student: MLP | ConvNet, held_out: Samples, nodes: int | None = None
) -> dict[str, Tensor]:
    """One row of the results' student arrays; layers of fewer than `nodes` nodes, those of the widest by default, are
    padded."""
    widest = nodes or max(teacher.hidden_widths)
    answer, output = classes(teacher, held_out.x), classes(student, held_out.x)
    measured = measure(teacher, student, held_out.x, progress=False)
    assert measured.loss is not None
    layers = list(measured.layers.values())
    best = [moments.best_student() for moments in layers]
    constant = [moments.undefined_nodes() for moments in layers]
    found = {
        "loss": measured.loss,
        "accuracy": (output == held_out.y).double().mean(),
        "agreement": (output == answer).double().mean(),
        "constant_teachers": torch.stack([count.teacher for count in constant]),
        "constant_students": torch.stack([count.student for count in constant]),
        "layer_score": torch.stack([moments.layer_score() for moments in layers]),
        "best_correlation": torch.stack([pad(b.values, (0, widest - len(b.values)), value=torch.nan) for b in best]),
        "best_student": torch.stack([pad(b.indices, (0, widest - len(b.indices)), value=-1) for b in best]),
    }
    return {name: tensor.cpu() for name, tensor in found.items()}


def half_cosine(steps: int) -> Callable[[int], float]:
    """Factors on a learning rate that fall from 1 to 0 along half a cosine."""
    return lambda step: (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def flush_(network: MLP | ConvNet) -> None:
    """Set weights below the smallest normal number to 0: Adam's weight decay leaves many, and processors take several
    times as long over them."""
    for weight in network.parameters():
        weight.masked_fill_(weight.abs() < torch.finfo(weight.dtype).tiny, 0)


@torch.no_grad()
def classes(network: MLP | ConvNet, x: Tensor) -> Tensor:
    """The largest output of every sample, [N]; in batches, as the activations of convolutions take much memory."""
    return torch.cat([network(part).argmax(1) for part in x.split(MODULE_BATCH)])


def accuracy(network: MLP | ConvNet, samples: Samples) -> float:
    """The share of samples whose largest output is their label's."""
    return (classes(network, samples.x) == samples.y).double().mean().item()
