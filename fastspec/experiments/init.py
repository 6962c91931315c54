"""Random networks at initialisation: do they keep the norms of activations and gradients?"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastspec import data
from fastspec.experiments.arrays import labelled
from fastspec.experiments.console import Console
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.options import check_grid, check_not_negative
from fastspec.experiments.results import RunFolder
from fastspec.initialization import scheme
from fastspec.norms import Grid, norm_report
from fastspec.norms.ratios import Spread
from fastspec.ops.backends import default_device
from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.workers import one_thread

if TYPE_CHECKING:
    import xarray as xr

PART = "norms of an init run"
DATA = ("gaussian", "digits")
SMALL = 10**8  # multiplications of a layer: with fewer, threads wait for each other
JOB_OPERATIONS = 5 * 10**11  # of the matrix products of a job, about: Ctrl-C is heard between two
NETWORK = ("data", "scheme", "width", "depth", "seed")
LONG_NAMES = {
    "mean": "mean over samples",
    "std": "standard deviation over samples",
    "error": "mean over samples of |1 - ratio|",
    "worst": "largest |1 - ratio| of a sample",
    "worst_sample": "the sample of worst, -1 for none",
    "square": "mean over samples of the squared ratio",
    "square_std": "standard deviation over samples of the squared ratio",
    "undefined": "samples without a ratio",
}


class Job(NamedTuple):
    """Networks of one kind."""

    data: str
    scheme: str
    width: int
    depth: int
    seeds: range

    @property
    def file(self) -> str:
        return f"{self.data}-{self.scheme}-{self.width}x{self.depth}-{self.seeds[0]}.safetensors"


@dataclass(frozen=True)
class Init(Experiment):
    """Random bias-free ReLU networks, one for every combination of scheme, width, depth and seed.

    Measured are, for every layer and sample, how much larger or smaller than the input the activations and the
    gradients of the weights are (Arpit & Bengio, arXiv 1901.03611), beside the exact variance and the bounds; and how
    large activations are at every width, at initialisation and after a few steps (the coordinate check).
    """

    name: ClassVar[str] = "init"

    scheme: tuple[str, ...] = (
        "he_fan_out",
        "he_fan_in",
        "inverse_fan_out",
        "weight_norm_scaled",
        "orthogonal",
        "default",
    )
    """Schemes of initial weights: he_fan_out, he_fan_in, inverse_fan_out, weight_norm, weight_norm_scaled, orthogonal,
    default."""
    width: tuple[int, ...] = (100, 200, 500, 1000)
    """Nodes of every hidden layer."""
    depth: tuple[int, ...] = (10,)
    """Hidden layers."""
    seeds: int = 5
    """Networks of every kind, with seeds from 0."""
    data: tuple[str, ...] = ("gaussian",)
    """Inputs: gaussian noise, or the digits of scikit-learn."""
    inputs: int = 500
    """Inputs of the noise."""
    samples: int = 2000
    """Samples of the noise."""
    outputs: int = 20
    """Outputs of the softmax where gradients start."""
    steps: int = 3
    """Steps of the coordinate check."""
    lr: float = 0.01
    """Learning rate of the coordinate check."""
    confidence: float = 0.95
    """Probability with which the bounds hold."""
    data_seed: int = 0
    """Seed of the noise."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of networks and data."""

    def check(self) -> None:
        check_grid("scheme", self.scheme, lambda _, value: scheme(value))
        for name in ("width", "depth"):
            check_grid(name, getattr(self, name), check_integer)
        check_grid("data", self.data, _check_data)
        for name in ("seeds", "inputs", "samples"):
            check_integer(name, getattr(self, name))
        check_integer("outputs", self.outputs, 2)
        check_integer("steps", self.steps, 0)
        check_integer("data_seed", self.data_seed, 0, 2**32 - 1)
        check_not_negative("lr", self.lr)
        check_real("confidence", self.confidence, "a number from 0.01 to 0.9999", 0.01, 0.9999)
        if self.dtype not in ("float32", "float64"):
            refuse("dtype", repr(self.dtype), "'float32' or 'float64'")

    def jobs(self) -> list[Job]:
        """Parts of the work, each a few seconds of it."""
        kinds = [(d, s, w, k) for d in self.data for s in self.scheme for w in self.width for k in self.depth]
        parts = []
        for name, chosen, width, depth in kinds:
            operations = 4 * self.samples * width * (self.inputs + depth * width)
            each = max(1, JOB_OPERATIONS // operations)
            for start in range(0, self.seeds, each):
                seeds = range(start, min(start + each, self.seeds))
                parts.append(Job(name, chosen, width, depth, seeds))
        return parts

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        results, done = self._empty(), 0
        for name in self.data:
            results["samples"].loc[{"data": name}] = len(self._x(name))
        jobs = self.jobs()
        networks = sum(len(job.seeds) for job in jobs)
        with console.stage("init: random networks", "networks") as advance:
            for job in jobs:
                advance(done, networks)
                part = folder.part(job.file)
                if not part.exists():
                    save_tensors(part, PART, self._found(job))
                place = {"data": job.data, "scheme": job.scheme, "width": job.width, "depth": job.depth}
                for array, tensor in load_tensors(part, PART)[0].items():
                    axis = "row" if array == "coordinate" else "layer"
                    rows = {"seed": list(job.seeds), axis: slice(1, tensor.shape[1])}
                    results[array].loc[place | rows] = tensor.numpy()
                done += len(job.seeds)
        return results, {}

    def _found(self, job: Job) -> dict[str, Tensor]:
        """The arrays of networks of one kind, [seed, layer] each."""
        grid = Grid((job.scheme,), (job.width,), (job.depth,), job.seeds, self.outputs, self.steps, self.lr)
        x = self._x(job.data)
        small = len(x) * job.width * max(job.width, x.shape[1]) * len(job.seeds) < SMALL
        with one_thread() if small else nullcontext():
            report = norm_report(grid, x, progress=False)
        tensors = {
            f"{way}_{part}": tensor
            for way in ("forward", "backward")
            for part, tensor in getattr(report, way)._asdict().items()
        }
        return {array: tensor[0, 0, 0, 0] for array, tensor in {**tensors, "coordinate": report.coordinate}.items()}

    def _x(self, name: str) -> Tensor:
        if name == "digits":
            x = data.digits(held_out=0.5).train.x
        else:
            x = data.gaussian(self.samples, self.inputs, seed=self.data_seed)
        return x.to(default_device(), getattr(torch, self.dtype))

    def _empty(self) -> xr.Dataset:
        layers = max(self.depth)
        arrays: dict[str, Any] = {}
        for way in ("forward", "backward"):
            for part in Spread._fields:
                fill = -1 if part in ("worst_sample", "undefined") else np.nan
                arrays[f"{way}_{part}"] = ((*NETWORK, "layer"), fill, f"{way} ratio, {LONG_NAMES[part]}")
        arrays["samples"] = (("data",), -1, "samples of the data")
        text = "root mean square activation before each step; the logits after the uppermost layer"
        arrays["coordinate"] = ((*NETWORK, "row", "step"), np.nan, text)
        coordinates: dict[str, Any] = {
            "data": self.data,
            "scheme": self.scheme,
            "width": self.width,
            "depth": self.depth,
            "seed": range(self.seeds),
            "layer": range(1, layers + 1),
            "row": range(1, layers + 2),
            "step": range(self.steps + 1),
        }
        return labelled(coordinates, arrays)


def _check_data(name: str, value: object) -> None:
    if value not in DATA:
        refuse(name, repr(value), " or ".join(DATA))


ARPIT2019 = Init(
    scheme=("he_fan_out",), width=(100, 500, 1000, 2000, 4000), depth=(10,), seeds=20, inputs=500, samples=2000, steps=0
)  # the networks whose norms Arpit & Bengio (arXiv 1901.03611) publish, 20 draws of each
