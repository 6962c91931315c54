"""Online learning of two-layer students: the equation of many inputs beside students of some inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fastspec.experiments.arrays import labelled
from fastspec.experiments.console import Console
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.online_students import simulate
from fastspec.experiments.options import check_grid
from fastspec.experiments.results import RunFolder
from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.theory.integrals import integrals
from fastspec.theory.online import Dynamics, OrderParameters, weights_with

if TYPE_CHECKING:
    import xarray as xr

PART = "students of an ode run"


@dataclass(frozen=True)
class Ode(Experiment):
    """Order parameters of two-layer students that learn online (Saad & Solla 1995).

    The teacher's nodes are orthogonal and of norm 1, all output weights are 1 and stay so. Students start nearly
    symmetric: all of their nodes have one norm, and lean a little towards one teacher node each. They wait on a plateau
    before they specialise. Students of every number of inputs d are trained on fresh Gaussian inputs, beside the
    equation that they obey for large d.
    """

    name: ClassVar[str] = "ode"

    activation: Literal["relu", "erf"] = "relu"
    """Of the hidden nodes: relu, or erf for erf(z / sqrt 2)."""
    teacher_nodes: int = 2
    """Hidden nodes of the teacher."""
    student_nodes: int = 2
    """Hidden nodes of the students."""
    inputs: tuple[int, ...] = (100, 400)
    """Inputs d of the simulated students."""
    seeds: int = 8
    """Students of every d, with seeds from 0."""
    rate: float = 0.5
    """Learning rate times d."""
    batch_size: int = 1
    """Fresh samples of a step."""
    time: float = 60.0
    """How long to learn, in steps over d."""
    start_norm: float = 0.5
    """Norm of the students' nodes at the start."""
    lean: float = 0.1
    """Cosine of the angle between a student node and the teacher node it leans to, at the start."""
    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the simulated students."""
    measurements: int = 61
    """Times at which order parameters are recorded, evenly spaced."""

    def check(self) -> None:
        integrals(self.activation)
        for name in ("teacher_nodes", "student_nodes", "seeds", "batch_size"):
            check_integer(name, getattr(self, name))
        nodes = self.teacher_nodes + self.student_nodes
        check_grid("inputs", self.inputs, lambda name, value: check_integer(name, value, nodes))
        check_integer("measurements", self.measurements, 2)
        for name in ("rate", "time", "start_norm"):
            check_real(name, getattr(self, name), "a finite number above 0", np.nextafter(0, 1))
        if self.dtype not in ("float32", "float64"):
            refuse("dtype", repr(self.dtype), "'float32' or 'float64'")
        check_real("lean", self.lean, "a number from 0 to 1", 0.0, 1.0)
        least = min(self.inputs)
        if round(self.time * least) < self.measurements - 1:
            refuse(
                "measurements", self.measurements, f"at most {round(self.time * least) + 1}, one a step at d = {least}"
            )

    @property
    def start(self) -> OrderParameters:
        """At time 0: T = 1, Q diagonal, student node k leans to teacher node k modulo their number."""
        m, n, size = self.teacher_nodes, self.student_nodes, self.start_norm
        cross = np.zeros((m, n))
        cross[np.arange(n) % m, np.arange(n)] = self.lean * size
        lean = self.lean**2 * np.equal.outer(np.arange(n) % m, np.arange(n) % m)  # what students of one node share
        student = size**2 * np.where(np.eye(n, dtype=bool), 1.0, lean)
        return OrderParameters(np.eye(m), cross, student)

    @property
    def dynamics(self) -> Dynamics:
        tops = np.ones((1, self.teacher_nodes)), np.ones((1, self.student_nodes))
        return Dynamics(*tops, rate=self.rate, batch_size=self.batch_size, activation=self.activation)

    def steps(self, inputs: int) -> list[int]:
        """The steps at which students of so many inputs are measured."""
        return [round(share * self.time * inputs) for share in np.linspace(0, 1, self.measurements)]

    def work(self, folder: RunFolder, console: Console) -> tuple[xr.Dataset, dict[str, Tensor]]:
        times = np.linspace(0, self.time, self.measurements)
        results, dynamics = self._empty(times), self.dynamics
        console.say(f"ode: the equation, up to time {self.time:g}")
        solution = dynamics.solve(self.start, times)
        results["loss"][:], results["cross"][:], results["student"][:] = solution.loss, solution.cross, solution.student
        weights: dict[str, Tensor] = {}
        for inputs in self.inputs:
            part = folder.part(f"{inputs}-inputs.safetensors")
            if not part.exists():
                self._train(part, inputs, console)
            found = load_tensors(part, PART)[0]
            weights |= {
                f"{inputs} inputs.teacher.w1": found["teacher"],
                f"{inputs} inputs.students.w1": found["weights"],
            }
            cross, student = found["cross"].numpy(), found["student"].numpy()  # [time, seed, ..]
            at = {"inputs": inputs}
            results["simulated_cross"].loc[at] = cross.swapaxes(0, 1)
            results["simulated_student"].loc[at] = student.swapaxes(0, 1)
            losses = [
                [
                    dynamics.loss(OrderParameters(solution.teacher, r, q))
                    for r, q in zip(cross[:, s], student[:, s], strict=True)
                ]
                for s in range(self.seeds)
            ]
            results["simulated_loss"].loc[at] = np.array(losses)
        return results, weights

    def _train(self, part: Path, inputs: int, console: Console) -> None:
        exact = weights_with(self.start, inputs, seeds=range(self.seeds))
        teacher, students = (weights.to(getattr(torch, self.dtype)) for weights in exact)
        rows: list[tuple[Tensor, Tensor]] = []

        def keep(w: Tensor) -> None:
            rows.append((teacher.double() @ w.double().mT, w.double() @ w.double().mT))

        with console.stage(f"ode: students of {inputs} inputs learn") as advance:
            trained = simulate(
                teacher,
                students,
                activation=self.activation,
                lr=self.rate / inputs,
                batch_size=self.batch_size,
                steps=self.steps(inputs),
                keep=keep,
                progress=advance,
            )
        cross, student = (torch.stack(values) for values in zip(*rows, strict=True))
        save_tensors(part, PART, {"teacher": teacher, "weights": trained, "cross": cross, "student": student})

    def _empty(self, times: np.ndarray) -> xr.Dataset:
        r, q = ("teacher_node", "student_node"), ("student_node", "other_student_node")
        simulated = ("inputs", "seed", "time")
        return labelled(
            {
                "time": times.tolist(),
                "inputs": self.inputs,
                "seed": range(self.seeds),
                "teacher_node": range(self.teacher_nodes),
                "student_node": range(self.student_nodes),
                "other_student_node": range(self.student_nodes),
            },
            {
                "loss": (("time",), np.nan, "E[1/2 (teacher - student)^2] by the equation"),
                "cross": (("time", *r), np.nan, "R = W* W^T by the equation"),
                "student": (("time", *q), np.nan, "Q = W W^T by the equation"),
                "simulated_loss": (
                    simulated,
                    np.nan,
                    "E[1/2 (teacher - student)^2] of the simulated students' weights",
                ),
                "simulated_cross": ((*simulated, *r), np.nan, "R = W* W^T of the simulated students"),
                "simulated_student": ((*simulated, *q), np.nan, "Q = W W^T of the simulated students"),
            },
        )
