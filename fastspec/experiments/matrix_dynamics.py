"""Matrix dynamics of over-realised students: the teacher's copies keep their fan-out, all other nodes lose it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fastspec.experiments.arrays import labelled, logarithmic_steps, named
from fastspec.experiments.console import Console
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.options import check_each, check_grid, check_not_negative
from fastspec.experiments.results import RunFolder
from fastspec.measure import measure
from fastspec.networks import MLP, student_like
from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.randomness import generator
from fastspec.teachers import LUCK_MATTERS, separated
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.theory.chains import chain
from fastspec.theory.dynamics import Method, chain_step, chain_updates, live, normalize_nodes

if TYPE_CHECKING:
    import xarray as xr

PART = "measurement of a matrix-dynamics run"


@dataclass(frozen=True)
class MatrixDynamics(Experiment):
    """Students that start as the teacher plus noise, with further nodes of noise alone, follow the matrix dynamics.

    The over-parameterisation experiment of Luck Matters (Tian et al. 2019, theorem 5): the first nodes of every hidden
    layer start near a teacher node (lucky), the others anywhere. Weight vector and bias of every node, outputs too,
    have a joint norm of 1 at all times, so that a node without influence has no fan-out. Every seed has a teacher, a
    student and fresh Gaussian samples of its own, which all methods share.
    """

    name: ClassVar[str] = "matrix-dynamics"
    single_threaded: ClassVar[bool] = True

    widths: tuple[int, ...] = (10, 20, 30)
    """Inputs, hidden nodes of the teacher, outputs."""
    multi: int = 2
    """Hidden nodes of the student, in multiples of the teacher's."""
    init_std: float = 0.1
    """Standard deviation of the noise."""
    methods: tuple[Method, ...] = ("mean_field", "exact")
    """mean_field: means of H and L over a batch, as the paper; exact: the gradient; coactivation: H from the means of
    products of gates."""
    seeds: int = 8
    """Seeds from 0."""
    lr: float = 0.05
    """Learning rate."""
    batch_size: int = 64
    """Fresh samples of a step."""
    steps: int = 20_000
    """Steps."""
    x_std: float = 1.0
    """Standard deviation of the samples."""
    evaluation_samples: int = 10_000
    """Samples of every measurement."""
    measurements: int = 40
    """How many times to measure: at the start, and at steps evenly spaced on a logarithmic axis."""
    dtype: Literal["float64", "float32"] = "float64"
    """Of weights and samples."""

    def check(self) -> None:
        check_each("widths", self.widths, check_integer)
        if len(self.widths) < 3:
            refuse("widths", repr(self.widths), "inputs, one hidden layer or more, outputs")
        check_grid("methods", self.methods, _check_method)
        for name in ("seeds", "batch_size", "steps"):
            check_integer(name, getattr(self, name))
        for name in ("multi", "evaluation_samples", "measurements"):
            check_integer(name, getattr(self, name), 2)
        for name in ("init_std", "lr"):
            check_not_negative(name, getattr(self, name))
        check_real("x_std", self.x_std, "a finite positive number", 1e-300)
        if self.dtype not in ("float64", "float32"):
            refuse("dtype", repr(self.dtype), "'float64' or 'float32'")

    @property
    def measured_steps(self) -> list[int]:
        """The steps at which students are measured."""
        return logarithmic_steps(self.steps, self.measurements)

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        results = self._empty()
        weights: dict[str, Tensor] = {}
        for seed in range(self.seeds):
            teacher = self.teacher(seed)
            weights |= named(f"teacher seed {seed}", teacher)
            for method in self.methods:
                student, found = self._student(folder, teacher, method, seed, console)
                for name, table in found.items():
                    results[name].loc[{"dynamics": method, "seed": seed}] = table.numpy()
                weights |= named(f"student {method} seed {seed}", student)
        return results, weights

    def teacher(self, seed: int) -> MLP:
        """A separated teacher without biases, in a network that has room for them."""
        return separated(self.widths, seed=seed, weight_set=LUCK_MATTERS, bias=0.0, dtype=getattr(torch, self.dtype))

    def samples(self, seed: int, purpose: str, count: int, draw: torch.Generator | None = None) -> Tensor:
        """Gaussian samples [count, inputs] for a purpose, or the next ones of `draw`."""
        draw = draw or generator(seed, f"matrix dynamics, {purpose}")
        x = torch.randn(count, self.widths[0], generator=draw, dtype=torch.float64)
        return (self.x_std * x).to(getattr(torch, self.dtype))

    @torch.no_grad()
    def _student(
        self, folder: RunFolder, teacher: MLP, method: Method, seed: int, console: Console
    ) -> tuple[MLP, dict[str, Tensor]]:
        """One student at the end of its way, and its measurements [step, ...]."""
        network, measured = (folder.part(f"{method}-seed{seed}.{end}safetensors") for end in ("", "measured."))
        if network.exists() and measured.exists():
            return MLP.load(network), load_tensors(measured, PART)[0]
        student = student_like(teacher, multi=self.multi, seed=seed, init="perturb", std=self.init_std)
        fixed, own = chain("teacher", teacher), live(student)
        held_out = self.samples(seed, "evaluation", self.evaluation_samples)
        normalize_nodes(own)
        draw = generator(seed, "matrix dynamics, training")
        stops, rows = set(self.measured_steps), []
        with console.stage(f"matrix-dynamics: {method}, seed {seed}") as advance:
            for done in range(self.steps + 1):
                if done in stops:
                    rows.append(self._measurement(teacher, student, held_out))
                    advance(done, self.steps)
                if done < self.steps:
                    x = self.samples(seed, "training", self.batch_size, draw)
                    chain_step(own, chain_updates(fixed, own, x, method), self.lr)
                    normalize_nodes(own)
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        student.save(network)
        save_tensors(measured, PART, found)
        return student, found

    def _measurement(self, teacher: MLP, student: MLP, held_out: Tensor) -> dict[str, Tensor]:
        """One row of the results; layers of fewer nodes than the widest are padded."""
        measured = measure(teacher, student, held_out, progress=False)
        assert measured.loss is not None
        layers = list(measured.layers.values())
        fan_out = [layer.weight.double().norm(dim=0) for layer in student.layers[1:]]
        own, its = [m.best_teacher() for m in layers], [m.best_student() for m in layers]
        return {
            "loss": measured.loss,
            "layer_score": torch.stack([m.layer_score() for m in layers]),
            "fan_out": _padded(fan_out, self.multi * max(self.widths[1:-1])),
            "max_correlation": _padded([b.values for b in own], self.multi * max(self.widths[1:-1])),
            "best_correlation": _padded([b.values for b in its], max(self.widths[1:-1])),
            "best_student": _padded([b.indices for b in its], max(self.widths[1:-1]), -1),
        }

    def _empty(self) -> xr.Dataset:
        """The results, with NaN or -1 wherever there is no such node or it is constant."""
        per_step = ("dynamics", "seed", "step")
        layer = (*per_step, "layer")
        student, teacher = (*layer, "student"), (*layer, "teacher")
        hidden = self.widths[1:-1]
        return labelled(
            {
                "dynamics": list(self.methods),
                "seed": range(self.seeds),
                "step": self.measured_steps,
                "layer": range(1, len(hidden) + 1),
                "student": range(self.multi * max(hidden)),
                "teacher": range(max(hidden)),
            },
            {
                "loss": (per_step, np.nan, "mean over evaluation samples of 1/2 |teacher - student|^2"),
                "layer_score": (layer, np.nan, "mean over teacher nodes of best_correlation"),
                "fan_out": (student, np.nan, "norm of the outgoing weights of a student node"),
                "max_correlation": (student, np.nan, "largest correlation of a student node with a teacher node"),
                "best_correlation": (teacher, np.nan, "largest correlation of a teacher node with a student node"),
                "best_student": (teacher, -1, "the student node of best_correlation, -1 for none"),
            },
        )


def _padded(layers: list[Tensor], nodes: int, value: float = torch.nan) -> Tensor:
    """[layer, nodes]."""
    return torch.stack([pad(layer, (0, nodes - len(layer)), value=value) for layer in layers])


def _check_method(name: str, method: str) -> None:
    if method not in ("mean_field", "exact", "coactivation"):
        refuse(name, repr(method), "'mean_field', 'exact' or 'coactivation'")
