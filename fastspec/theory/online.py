"""Online learning of two-layer students in the limit of many inputs: order parameters, and the equation they obey.

Saad & Solla, On-line learning in soft committee machines, Phys. Rev. E 52 (1995), for any number of outputs and for
batches. A student's hidden weights W [n, d] learn by SGD on fresh inputs N(0, std^2 I) the teacher's W* [m, d]; output
weights are fixed, there are no biases. The order parameters are the covariances of pre-activations, R = std^2 W* W^T
[m, n] and Q = std^2 W W^T [n, n]; T = std^2 W* W*^T [m, m] is constant. (`fastspec.statistics.overlaps` gives the same
over std^2 d.) With learning rate lr = rate / d and time = steps / d, they follow, as d grows, an ordinary differential
equation without noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastspec.ops.checks import check_integer, check_real, refuse
from fastspec.randomness import generator
from fastspec.theory.integrals import integrals
from fastspec.theory.orthants import Array

TERMS = 1000  # of the noise that are averaged at a time, which bounds memory
DIVERGED = 1e4  # order parameters this many times those at the start are a divergence
TOLERANCE = 1e-10  # on eigenvalues that are to be positive, relative to the largest


class OrderParameters(NamedTuple):
    """Covariances of pre-activations; float64."""

    teacher: Array  # T [m, m]
    cross: Array  # R [m, n]
    student: Array  # Q [n, n]

    @classmethod
    def of(cls, teacher_weight: Tensor, student_weight: Tensor, *, std: float = 1.0) -> OrderParameters:
        """Of hidden weights [m, d] and [n, d]."""
        t, s = (std * w.detach().cpu().double().numpy() for w in (teacher_weight, student_weight))
        return cls(t @ t.T, t @ s.T, s @ s.T)

    def covariance(self) -> Array:
        """Of all pre-activations, students before teachers: [n + m, n + m]."""
        return np.block([[self.student, self.cross.T], [self.cross, self.teacher]])


@dataclass(frozen=True)
class OnlineSolution:
    """Order parameters and loss at K times."""

    time: Array  # [K], steps / d
    teacher: Array  # T [m, m]
    cross: Array  # R [K, m, n]
    student: Array  # Q [K, n, n]
    loss: Array  # [K], E[1/2 ||teacher - student||^2]

    def cosine(self) -> Array:
        """Of the angles between teacher and student weights, [K, m, n]; NaN for a student node without weights."""
        own = np.diagonal(self.teacher)[:, None] * np.diagonal(self.student, axis1=-2, axis2=-1)[:, None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(own > 0, self.cross / np.sqrt(own), np.nan)


class Dynamics:
    """The equation of online learning.

    teacher_top [C, m], student_top [C, n]: the output weights. rate: learning rate times d. batch_size: of a step; the
    gradient is the mean over the batch. std: of the inputs. activation: "relu", or "erf" for erf(z / sqrt 2).
    Raises ValueError naming the argument.
    """

    def __init__(
        self,
        teacher_top: ArrayLike,
        student_top: ArrayLike,
        *,
        rate: float,
        batch_size: int = 1,
        std: float = 1.0,
        activation: str = "relu",
    ):
        tops = {"teacher_top": _matrix("teacher_top", teacher_top), "student_top": _matrix("student_top", student_top)}
        v_t, v_s = tops.values()
        if len(v_t) != len(v_s):
            refuse("student_top", f"{len(v_s)} outputs", f"the outputs of teacher_top, {len(v_t)}")
        check_real("rate", rate, "a finite number of at least 0", 0.0)
        check_integer("batch_size", batch_size)
        check_real("std", std, "a finite positive number", math.ulp(0.0))
        self.m, self.n = v_t.shape[1], v_s.shape[1]
        self.std, self.rate, self.batch_size = float(std), float(rate), batch_size
        self._averages = integrals(activation)
        self._signed = np.concatenate([-v_s, v_t], axis=1)  # [C, n + m]: the error is their sum of activations
        self._feedback = c = v_s.T @ self._signed  # [n, n + m]
        k, i, p, q = np.array([(*ki, *pq) for ki in _pairs(self.n) for pq in _pairs(self.n + self.m)]).T
        weight = np.where(p == q, c[k, p] * c[i, q], c[k, p] * c[i, q] + c[k, q] * c[i, p])
        pieces = -(-len(k) // TERMS)
        self._noise_terms = list(zip(*(np.array_split(part, pieces) for part in (k, i, p, q, weight)), strict=True))

    def loss(self, parameters: OrderParameters) -> float:
        """E[1/2 ||teacher - student||^2]."""
        i, j = np.triu_indices(self.n + self.m)
        both = self._averages.product(_blocks(parameters.covariance(), i, j))
        return float(((self._signed.T @ self._signed)[i, j] * both * np.where(i == j, 0.5, 1.0)).sum())

    def derivative(self, parameters: OrderParameters) -> tuple[Array, Array]:
        """dR / dt [m, n] and dQ / dt [n, n]."""
        n, nodes, covariance = self.n, self.n + self.m, parameters.covariance()
        step = self.rate * self.std**2
        k, y, p = (index.ravel() for index in np.indices((n, nodes, nodes)))
        each = self._averages.drift(_blocks(covariance, k, y, p)) * self._feedback[k, p]
        drift = each.reshape(n, nodes, nodes).sum(-1)  # [n, n + m], E[delta_k z_y]
        noise = np.zeros((n, n))
        for k, i, p, q, weight in self._noise_terms:
            np.add.at(noise, (k, i), weight * self._averages.noise(_blocks(covariance, k, i, p, q)))
        noise = np.triu(noise) + np.triu(noise, 1).T  # [n, n], E[delta_k delta_i]
        own = drift[:, :n]
        return step * drift[:, n:].T, step * (own + own.T) + step**2 / self.batch_size * noise

    def solve(self, start: OrderParameters, times: Sequence[float] | Array, *, rtol: float = 1e-6) -> OnlineSolution:
        """The solution at `times` (ascending, from 0), by scipy's solve_ivp.

        Raises ValueError, naming the argument, for parameters that no weights have, and where the solution diverges.
        """
        from scipy.integrate import solve_ivp

        start = self._checked(start)
        when = np.asarray(times, dtype=np.float64)
        if when.ndim != 1 or not len(when) or not np.isfinite(when).all() or when[0] < 0 or (np.diff(when) <= 0).any():
            refuse("times", repr(times), "ascending finite numbers of at least 0")
        m, n = self.m, self.n
        upper = np.triu_indices(n)

        def unpacked(state: Array) -> OrderParameters:
            q = np.zeros((n, n))
            q[upper] = state[m * n :]
            return OrderParameters(start.teacher, state[: m * n].reshape(m, n), q + np.triu(q, 1).T)

        def packed(r: Array, q: Array) -> Array:
            return np.concatenate([r.ravel(), q[upper]])

        most = DIVERGED * max(np.abs(start.covariance()).max(), 1.0)

        def room(_: float, state: Array) -> float:
            return most - float(np.abs(state).max())

        room.terminal = True  # type: ignore[attr-defined]  # as scipy asks for it
        rows = packed(start.cross, start.student)[None]
        if when[-1] > 0:
            found = solve_ivp(
                lambda _, state: packed(*self.derivative(unpacked(state))),
                (0.0, when[-1]),
                rows[0],
                t_eval=when,
                events=room,
                rtol=rtol,
                atol=rtol * 1e-3,
            )
            if found.status != 0:
                refuse("rate", f"{self.rate:g}, at which the solution diverges", "a smaller rate")
            rows = found.y.T
        states = [unpacked(state) for state in rows]
        return OnlineSolution(
            when,
            start.teacher,
            np.stack([state.cross for state in states]),
            np.stack([state.student for state in states]),
            np.array([self.loss(state) for state in states]),
        )

    def _checked(self, start: OrderParameters) -> OrderParameters:
        arrays = OrderParameters(*(np.asarray(part, dtype=np.float64) for part in start))
        wanted = ((self.m, self.m), (self.m, self.n), (self.n, self.n))
        for name, part, size in zip(OrderParameters._fields, arrays, wanted, strict=True):
            if part.shape != size:
                refuse(f"start.{name}", f"shape {list(part.shape)}", f"shape {list(size)}, by the output weights")
            if not np.isfinite(part).all():
                refuse(f"start.{name}", "NaN or infinite values", "finite values")
        for name, part in (("teacher", arrays.teacher), ("student", arrays.student)):
            if not np.allclose(part, part.T, atol=1e-12 * np.abs(part).max()):
                refuse(f"start.{name}", "an asymmetric matrix", "a covariance")
        eigenvalues = np.linalg.eigvalsh(arrays.covariance())
        if eigenvalues[0] < -TOLERANCE * eigenvalues[-1]:
            refuse(
                "start", f"a covariance with the eigenvalue {eigenvalues[0]:.3g}", "parameters that some weights have"
            )
        return arrays


def weights_with(
    start: OrderParameters, inputs: int, *, std: float = 1.0, seeds: Sequence[int] = (0,), teacher_seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random hidden weights that have exactly these order parameters: a teacher [m, d], and a student for every seed
    [seeds, n, d]; float64. They need inputs d >= m + n."""
    m, n = np.asarray(start.cross).shape
    check_integer("inputs", inputs, m + n)
    root = _root(np.asarray(start.teacher, dtype=np.float64))
    lean = np.asarray(start.cross).T @ np.linalg.pinv(root, hermitian=True, rcond=1e-8)  # [n, m]
    rest = _root(np.asarray(start.student) - lean @ lean.T)
    frame = _frame(torch.zeros(0, inputs, dtype=torch.float64), m, generator(teacher_seed, "online teacher"))
    students = [_frame(frame, n, generator(seed, "online student")) for seed in seeds]
    to = torch.from_numpy
    return to(root) @ frame / std, torch.stack([(to(lean) @ frame + to(rest) @ own) / std for own in students])


def _frame(taken: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Random orthonormal rows [count, d], orthogonal to those taken [k, d]."""
    rows = torch.randn(count, taken.shape[1], dtype=torch.float64, generator=draw)
    for _ in range(2):  # once more, against rounding
        rows = rows - rows @ taken.T @ taken
    return torch.linalg.qr(rows.T).Q.T


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _pairs(count: int) -> list[tuple[int, int]]:
    """Every pair once, the smaller number first."""
    return [(i, j) for i in range(count) for j in range(i, count)]


def _blocks(covariance: Array, *indices: np.ndarray) -> Array:
    """The covariances of chosen nodes: indices [K] each -> [K, k, k]."""
    chosen = np.stack(indices, axis=-1)
    return covariance[chosen[:, :, None], chosen[:, None, :]]


def _matrix(argument: str, value: ArrayLike) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    found = np.asarray(value, dtype=np.float64)
    if found.ndim != 2 or 0 in found.shape:
        refuse(argument, f"shape {list(found.shape)}", "[outputs, nodes]")
    if not np.isfinite(found).all():
        refuse(argument, "NaN or infinite values", "finite values")
    return found
