"""Data sets: noise, points about a teacher's boundaries, and labelled images from packages and local files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastspec.image_files import read_cifar10, read_idx
from fastspec.networks import MLP
from fastspec.ops.checks import check_finite, check_floating, check_integer, check_real, check_tensor, refuse, shape
from fastspec.randomness import generator, on_cpu
from fastspec.relu_network import check_layer, check_widths

IMAGES = 1024  # that are cropped at a time
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # per channel, over the training images


@dataclass(frozen=True)
class Samples:
    """Inputs x [N, ...] and labels y int64 [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Splits:
    """Samples to train on, and samples held out from training."""

    train: Samples
    held_out: Samples

    def to(self, device: torch.device | str) -> Splits:
        """The same samples on another device."""
        return Splits(*(Samples(part.x.to(device), part.y.to(device)) for part in (self.train, self.held_out)))


@dataclass(frozen=True)
class FreshGaussian:
    """Inputs N(0, std^2) drawn anew for every step of online learning, as `train_two_layer` takes them for x."""

    std: float = 1.0

    def __post_init__(self) -> None:
        check_real("std", self.std, "a finite positive number", math.ulp(0.0))


@on_cpu
def gaussian(
    n: int, d: int | Sequence[int], *, std: float = 1.0, seed: int = 0, dtype: torch.dtype | None = None
) -> Tensor:
    """n samples of N(0, std^2) in each of d inputs: [n, d], or [n, *d] for a shape.

    Drawn in float32, so that runs of any dtype see the same samples.
    """
    size = _sample_shape(n, d)
    check_real("std", std, "a finite positive number", math.ulp(0.0))
    return torch.randn(size, dtype=torch.float32, generator=generator(seed, "gaussian")).mul_(std).to(_dtype(dtype))


@on_cpu
def uniform(
    n: int,
    d: int | Sequence[int],
    *,
    low: float = -1.0,
    high: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """n samples of U(low, high) in each of d inputs: [n, d], or [n, *d] for a shape; drawn as in `gaussian`."""
    size = _sample_shape(n, d)
    check_real("low", low, "a finite number")
    check_real("high", high, f"a finite number above low, {low!r}", math.nextafter(low, math.inf))
    unit = torch.rand(size, dtype=torch.float32, generator=generator(seed, "uniform"))
    return unit.mul_(high - low).add_(low).to(_dtype(dtype))


@on_cpu
def teacher_boundary(
    teacher: MLP, n: int, *, std: float = 1.5, mean: float = 2.0, sigma: float = 2.0, seed: int = 0
) -> Tensor:
    """Points on and on either side of the boundary of every node of the teacher's first layer: [3 m ceil(n / 3m), d].

    For each node (w, b) of the m: u ~ N(0, std^2) in d + 1 dimensions with its last coordinate set to 1 is projected
    off (w, b) and divided by its last coordinate, which gives x0 with w x0 + b = 0; with a ~ U(mean, mean + sigma) the
    points are all x0, then all x0 + a w, then all x0 - a w. At last every point is scaled to norm std * sqrt(d), so
    that boundaries are met exactly only by nodes without bias (Student Specialization, Tian, ICML 2020, the authors'
    code). Batch norm before the ReLU is folded in.

    Raises ValueError or TypeError naming the argument, also for a teacher node whose weights are all 0.
    """
    if not isinstance(teacher, MLP):
        refuse("teacher", type(teacher).__name__, "an MLP", TypeError)
    check_integer("n", n)
    check_real("std", std, "a finite positive number", math.ulp(0.0))
    check_real("mean", mean, "a finite number")
    check_real("sigma", sigma, "a finite number of at least 0", 0.0)
    weight, bias = check_layer("teacher's first layer", teacher.folded()[0])
    dead = (weight == 0).all(dim=1).nonzero().flatten().tolist()
    if dead:
        refuse("teacher", f"first-layer nodes {dead} with all weights 0", "nodes that have a boundary")
    m, d = weight.shape
    nodes = weight.cpu().double()  # [m, d]
    offsets = torch.zeros(m, 1, dtype=torch.float64) if bias is None else bias.cpu().double()[:, None]
    normals = torch.cat([nodes, offsets], dim=1)  # [m, d + 1]
    each = math.ceil(n / (3 * m))
    source = generator(seed, "teacher_boundary")
    u = std * torch.randn((m, each, d + 1), dtype=torch.float64, generator=source)
    u[..., -1] = 1
    along = (u @ normals[:, :, None]) / normals.square().sum(dim=1)[:, None, None]  # [m, each, 1]
    u = u - along * normals[:, None]
    x0 = u[..., :-1] / u[..., -1:]  # [m, each, d]
    a = mean + sigma * torch.rand((m, each, 1), dtype=torch.float64, generator=source)
    points = torch.stack([x0, x0 + a * nodes[:, None], x0 - a * nodes[:, None]], dim=1).reshape(-1, d)
    points = points * (std * math.sqrt(d) / points.norm(dim=1, keepdim=True))
    return points.to(weight)


def augmented(x: Tensor, step: float, directions: Tensor | None = None) -> Tensor:
    """x and its points moved by +-step along every direction: x [N, d], directions [k, d] -> [N (1 + 2k), d].

    directions: the unit vectors by default (knows no teacher); a teacher's first-layer weights for a teacher-aware set.
    The order is all of x, then for each direction all of x + step v, then all of x - step v.
    """
    check_tensor("x", x, (2,), "[samples, d]")
    check_real("step", step, "a finite number")
    if directions is None:
        directions = torch.eye(x.shape[1])
    check_tensor("directions", directions, (2,), "[k, d]")
    if directions.shape[1] != x.shape[1]:
        refuse("directions", shape(directions), f"[k, {x.shape[1]}], the inputs of x")
    check_finite("directions", directions)
    moves = step * torch.stack([directions, -directions], dim=1).flatten(0, 1).to(x)  # [2k, d]
    return torch.cat([x[None], x + moves[:, None]]).flatten(0, 1)


@on_cpu
def crops_and_flips(x: Tensor, *, padding: int = 4, seed: int = 0, epoch: int = 0) -> Tensor:
    """Every image, x [N, C, H, W], shifted by up to `padding` pixels each way, and mirrored or not: [N, C, H, W].

    A crop of the image with a margin of zeros, at a place of its own, left and right swapped for every other one on
    average: the customary augmentation of CIFAR-10. seed, epoch: the draw.
    """
    check_tensor("x", x, (4,), "images [samples, channels, height, width]")
    check_integer("padding", padding, 0)
    check_integer("epoch", epoch, 0)
    n, channels, height, width = x.shape
    source = generator(seed, f"crops and flips of epoch {epoch}")
    top, left = (torch.randint(2 * padding + 1, (n, 1), generator=source) for _ in range(2))
    mirrored = torch.rand(n, 1, generator=source) < 0.5
    rows, columns = top + torch.arange(height), left + torch.arange(width)  # [N, H], [N, W]
    columns = torch.where(mirrored, columns.flip(1), columns)
    every = torch.arange(channels)[None, :, None, None]
    out = torch.empty_like(x)
    for some in torch.arange(n).split(IMAGES):
        margin = pad(x[some.to(x.device)], (padding,) * 4)
        at = torch.arange(len(some))[:, None, None, None], every, rows[some, None, :, None], columns[some, None, None]
        out[some.to(x.device)] = margin[tuple(index.to(x.device) for index in at)]
    return out


@on_cpu
def digits(*, held_out: float = 0.25, seed: int = 0, dtype: torch.dtype | None = None) -> Splits:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, x [N, 64], split with equal shares of every digit.

    Pixels are shifted and scaled by the mean and standard deviation of all pixels of the training samples.
    held_out: the share held out from training, in [.01, .99].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_real("held_out", held_out, "a number from 0.01 to 0.99", 0.01, 0.99)  # every digit on both sides
    check_integer("seed", seed, 0, 2**32 - 1)
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=held_out, random_state=seed, stratify=labels)
    x_train, x_held_out, y_train, y_held_out = map(torch.as_tensor, parts)
    mean, std = x_train.mean(), x_train.std(correction=0)
    train, test = (((x - mean) / std).to(_dtype(dtype)) for x in (x_train, x_held_out))
    return Splits(Samples(train, y_train.long()), Samples(test, y_held_out.long()))


@on_cpu
def mnist(folder: str | os.PathLike, *, flat: bool = True, dtype: torch.dtype | None = None) -> Splits:
    """MNIST from its four published idx files, compressed (.gz) or not, in `folder`; the test images are held out.

    x: pixels scaled to [-1, 1], [N, 784], or [N, 1, 28, 28] with flat=False.
    Raises FileNotFoundError, or ValueError naming the file for truncated, foreign or mismatched files.
    """
    parts = []
    for part in ("train", "t10k"):
        images_file = _idx_file(folder, f"{part}-images-idx3-ubyte")
        labels_file = _idx_file(folder, f"{part}-labels-idx1-ubyte")
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1).long()
        if images.shape[1:] != (28, 28):
            refuse(f"file {str(images_file)!r}", f"images of {list(images.shape[1:])} pixels", "28 x 28 pixels")
        if len(images) != len(labels):
            takes = f"{len(images)}, the images of {images_file.name}"
            refuse(f"file {str(labels_file)!r}", f"{len(labels)} labels", takes)
        if (labels > 9).any():
            refuse(f"file {str(labels_file)!r}", f"a label {int(labels.max())}", "labels 0 to 9")
        x = (images[:, None].to(_dtype(dtype)) / 255 - 0.5) / 0.5
        parts.append(Samples(x.flatten(1) if flat else x, labels))
    return Splits(*parts)


@on_cpu
def cifar10(folder: str | os.PathLike, *, flat: bool = False, dtype: torch.dtype | None = None) -> Splits:
    """CIFAR-10 from the six files of its binary version in `folder`; test_batch.bin is held out.

    x: pixels scaled to [0, 1], then standardised by channel with the customary means and standard deviations;
    [N, 3, 32, 32], or [N, 3072] with flat=True.
    Raises FileNotFoundError, also for the Python version, whose pickles are not read, or ValueError naming the file.
    """
    root = Path(folder)
    if (root / "data_batch_1").is_file() and not (root / "data_batch_1.bin").is_file():
        takes = "the binary version (cifar-10-binary.tar.gz: data_batch_1.bin to 5, test_batch.bin)"
        refuse(f"folder {str(root)!r}", "CIFAR-10's Python version, pickles", takes, FileNotFoundError)
    dtype = _dtype(dtype)
    mean, std = (torch.tensor(v, dtype=dtype)[:, None, None] for v in (CIFAR10_MEAN, CIFAR10_STD))
    parts = []
    for names in ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]):
        images, labels = zip(*(read_cifar10(root / name) for name in names), strict=True)
        x = torch.cat(images).to(dtype).div_(255).sub_(mean).div_(std)
        parts.append(Samples(x.flatten(1) if flat else x, torch.cat(labels)))
    return Splits(*parts)


def _sample_shape(n: int, d: int | Sequence[int]) -> list[int]:
    check_integer("n", n)
    if isinstance(d, Sequence):
        return [n, *check_widths("d", d, at_least=1)]
    check_integer("d", d)
    return [n, d]


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = dtype or torch.get_default_dtype()
    check_floating("dtype", dtype)
    return dtype


def _idx_file(folder: str | os.PathLike, name: str) -> Path:
    for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    refuse(f"folder {os.fspath(folder)!r}", f"no {name} or {name}.gz", "the four files of MNIST", FileNotFoundError)
