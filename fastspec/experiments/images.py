"""Teachers that have learned images from labels, dense or convolutional, pruned or not; students of their logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from torch import Tensor

from fastspec.data import Samples, Splits, cifar10, crops_and_flips, mnist
from fastspec.experiments.console import Console
from fastspec.experiments.digits import Digits, accuracy
from fastspec.experiments.results import RunFolder
from fastspec.networks import MLP, ConvNet
from fastspec.ops.backends import default_device
from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.pruning import prune
from fastspec.training.lessons import Inputs

if TYPE_CHECKING:
    import xarray as xr

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}  # channels, height, width
CLASSES = 10


@dataclass(frozen=True)
class Images(Digits):
    """A deep teacher learns images from their labels; wider students learn from its logits.

    The images are scikit-learn's digits, or MNIST or CIFAR-10 from local files. The teacher is dense or convolutional
    (3 x 3, no padding), and may be pruned before students learn from it; they have its kind of layers and are sized
    from the nodes that are left. Training and measuring are as in the digits experiment.
    """

    name: ClassVar[str] = "images"

    data: Literal["digits", "mnist", "cifar10"] = "digits"
    """The images. Options about the split are for digits; MNIST and CIFAR-10 hold out their test images."""
    folder: str = ""
    """Folder of MNIST's four idx files (.gz or not), or of the six files of CIFAR-10's binary version."""
    samples: int = 0
    """Use so many training images, the first ones; 0 for all."""
    evaluation_samples: int = 2000
    """Measure on at most so many held-out images, the first ones; 0 for all."""
    network: Literal["dense", "convolutional"] = "dense"
    """Layers of teacher and students; the nodes of convolutional ones are channels."""
    prune: float = 0.0
    """Share of every hidden layer's nodes that is removed from the trained teacher, those of lowest mean fan-out."""
    augment: bool = False
    """Train on crops of CIFAR-10's images that are shifted by up to 4 pixels, every other one mirrored, new ones each
    epoch."""
    teacher_noise: float = 0.5
    """Input noise of the teacher's training, in units of the scaled pixels."""
    student_lr: float = 0.0
    """Learning rate of the students; 0 for 0.005 of dense and 0.001 of convolutional ones, of which wide ones lose all
    nodes at once with 0.005."""

    @property
    def single_threaded(self) -> bool:  # type: ignore[override]
        return self.data == "digits"

    def check(self) -> None:
        super().check()
        for name, known in (("data", tuple(SHAPES)), ("network", ("dense", "convolutional"))):
            if getattr(self, name) not in known:
                refuse(name, repr(getattr(self, name)), " or ".join(map(repr, known)))
        if self.data == "digits" and self.folder:
            refuse("folder", repr(self.folder), "no folder for digits, which ship with scikit-learn")
        if self.data != "digits" and not (self.folder and Path(self.folder).is_dir()):
            refuse("folder", repr(self.folder), f"the folder with the files of {self.data}")
        check_integer("samples", self.samples, 0)
        check_integer("evaluation_samples", self.evaluation_samples, 0)
        if self.augment and self.data != "cifar10":
            refuse("augment", f"True with {self.data}, where places and sides matter", "False, or cifar10")
        check_real("prune", self.prune, "a number of at least 0 and below 1", 0.0, 1 - 2**-53)
        side = SHAPES[self.data][-1]
        if self.network == "convolutional" and len(self.hidden) > (side - 1) // 2:
            takes = f"at most {(side - 1) // 2} on {side} x {side} pixels"
            refuse("hidden", f"{len(self.hidden)} convolutions", takes)

    @property
    def student_rate(self) -> float:
        return self.student_lr or (0.001 if self.network == "convolutional" else Digits.student_lr)

    def splits(self) -> Splits:
        if self.data == "digits":
            found = super().splits()
        else:
            found = (mnist if self.data == "mnist" else cifar10)(self.folder, flat=False)
        shape = SHAPES[self.data] if self.network == "convolutional" else (int(np.prod(SHAPES[self.data])),)
        if self.samples > len(found.train):
            refuse("samples", self.samples, f"at most {len(found.train)}, the training images, or 0 for all")
        train = _first(found.train, self.samples, shape)
        return Splits(train, _first(found.held_out, self.evaluation_samples, shape))

    def inputs(self, x: Tensor, seed: int) -> Inputs:
        if not self.augment:
            return x
        images = x.view(-1, *SHAPES[self.data])
        return lambda epoch: crops_and_flips(images, seed=seed, epoch=epoch).view_as(x)

    def untrained(self) -> MLP | ConvNet:
        shape = SHAPES[self.data]
        if self.network == "convolutional":
            return ConvNet(shape, self.hidden, CLASSES, seed=self.teacher_seed)
        return MLP([int(np.prod(shape)), *self.hidden, CLASSES], seed=self.teacher_seed)

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        splits = self.splits().to(default_device())
        whole = self.trained_teacher(folder, splits.train, console)
        teacher = prune(whole, self.prune).network  # type: ignore[type-var]
        results, weights = self.learn(folder, console, splits, teacher)
        results["whole_teacher_accuracy_held_out"] = ((), accuracy(whole, splits.held_out))
        results["teacher_nodes"] = (("layer",), np.array(teacher.hidden_widths))
        results["train_images"] = ((), len(splits.train))
        results["held_out_images"] = ((), len(splits.held_out))
        return results, weights


def _first(samples: Samples, count: int, shape: tuple[int, ...]) -> Samples:
    """The first `count` samples, 0 for all, with inputs of another shape."""
    chosen = slice(count or None)
    return Samples(samples.x[chosen].reshape(-1, *shape), samples.y[chosen])


CIFAR10 = Images(
    data="cifar10",
    network="convolutional",
    hidden=(64, 64, 64, 64),
    multi=(1, 2),
    evaluation_samples=0,
    augment=True,
    teacher_steps=78_100,
    teacher_lr=0.001,
    teacher_noise=0.0,
    student_steps=78_100,
    student_noise=0.0,
)  # 100 epochs each of 781 batches
