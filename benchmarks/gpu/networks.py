"""Every hidden layer of a deep teacher against a deep student, and the loss: by `fs.measure`, and in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastspec as fs
from benchmarks import gate, peers
from benchmarks.compare import OURS, Case, Families, Peer, best, lack_of_memory
from benchmarks.gpu.layers import CHUNKS, copies
from benchmarks.harness import Entry
from benchmarks.precision import ROUNDOFF, at, bounds, dtype_of
from fastspec.ops.cross_moments import Moments

Layers = list[tuple[Tensor, Tensor]]  # weight [nodes, inputs], bias [nodes], the lowest first


@dataclass(frozen=True)
class Networks:
    """x [N, d] and both networks' layers; `modules` are the networks themselves."""

    x: Tensor
    teacher: Layers
    student: Layers
    modules: tuple[fs.MLP, fs.MLP]

    @staticmethod
    def of(x: Tensor, teacher: fs.MLP, student: fs.MLP) -> Networks:
        t, s = ([(w, b) for w, b in net.weights() if b is not None] for net in (teacher, student))
        return Networks(x, t, s, (teacher, student))

    def to(self, dtype: torch.dtype) -> Networks:
        def cast(layers: Layers) -> Layers:
            return [(w.to(dtype), b.to(dtype)) for w, b in layers]

        return replace(self, x=self.x.to(dtype), teacher=cast(self.teacher), student=cast(self.student))


@dataclass(frozen=True)
class NetworkProblem:
    """A deep pair through `fs.measure`: widths of the teacher from its inputs to its outputs."""

    name: str
    samples: int
    widths: tuple[int, ...]
    multi: int
    narrow: bool = True

    @property
    def operations(self) -> float:
        teacher, student = self.widths, self._student
        layers = [pairwise(w) for w in (teacher, student)]
        forward = sum(a * b for layer in layers for a, b in layer)
        return 2.0 * self.samples * (forward + sum(m * n for m, n in zip(teacher[1:-1], student[1:-1], strict=True)))

    @property
    def _student(self) -> tuple[int, ...]:
        first, *hidden, last = self.widths
        return (first, *(self.multi * n for n in hidden), last)

    def small(self) -> NetworkProblem:
        """To see whether everything runs."""
        return replace(self, samples=3000, widths=(6, *(max(n // 10, 3) for n in self.widths[1:-1]), 4), multi=3)

    def case(self, precision: str, device: str) -> Case:
        """A separated teacher, a student with torch's initial weights, and all layers in float64."""
        dtype = dtype_of(precision)
        teacher = fs.teachers.separated(self.widths, seed=0)
        student = fs.networks.student_like(teacher, multi=self.multi, seed=1)
        x = 10 * torch.randn(self.samples, self.widths[0], generator=torch.Generator().manual_seed(2))
        nets = Networks.of(x.to(device, dtype), *(net.to(device, dtype) for net in (teacher, student)))
        pairs = list(zip(self.widths[1:-1], self._student[1:-1], strict=True))
        shape = "-".join(map(str, self.widths[1:-1]))
        return Case(
            label=f"{self.samples:,} x {self.widths[0]}, {shape} x {self.multi}",
            shape={"samples": self.samples, "inputs": self.widths[0], "layers": len(pairs), "multi": self.multi},
            copies=copies(nets),
            truth=exact(nets),
            samples=self.samples,
            operations=self.operations,
            moved=dtype.itemsize * x.numel() + sum(8.0 * m * n for m, n in pairs),
            check=partial(check, precision),
        )

    def ours(self, precision: str) -> Callable[[Networks], list[Any]]:
        return partial(measured, precision=precision)

    def contenders(self, case: Case, precision: str, device: str) -> Families:
        """Whole activations, and chunks of samples through all layers."""
        nets = case.copies[0]
        size = nets.x.element_size() * sum((*self.widths[1:-1], *self._student[1:-1]))
        lack = lack_of_memory(3.0 * size * self.samples, device)
        pilot = replace(nets, x=nets.x[: CHUNKS[-1]])
        variants = [Peer(f"chunked {c}", at(precision, partial(chunked, chunk=c)), {"chunk": c}) for c in CHUNKS]
        return {
            "eager": [Peer("eager", at(precision, materialised), rounds=3, skip=lack)],
            "chunked": best(variants, pilot, keep=1, device=device, rounds=1),
        }

    def facts(self, case: Case, precision: str) -> Entry:
        return {}


def measured(nets: Networks, precision: str) -> list[Any]:
    """The `CrossMoments` of every hidden layer."""
    return list(fs.measure(*nets.modules, nets.x, precision=precision, progress=False).layers.values())


@torch.no_grad()
def exact(nets: Networks) -> list[Moments]:
    """In float64, in chunks."""
    return chunked(nets.to(torch.float64), 32_768)


@torch.no_grad()
def materialised(nets: Networks) -> list[Moments]:
    """All activations of a layer at once, and centred copies of them."""
    t = s = nets.x
    found = []
    for teacher, student in _hidden(nets):
        t, s = F.relu(F.linear(t, *teacher)), F.relu(F.linear(s, *student))
        found.append(peers.materialised_moments(t, s))
    _loss(nets, t, s)
    return found


@torch.no_grad()
def chunked(nets: Networks, chunk: int) -> list[Moments]:
    """Chunks of samples through all layers, activations shifted by a provisional mean, float64 sums over chunks."""
    t = s = nets.x[: peers.PROVISIONAL]
    shifts = []
    for teacher, student in _hidden(nets):
        t, s = F.relu(F.linear(t, *teacher)), F.relu(F.linear(s, *student))
        shifts.append((t.mean(0), s.mean(0)))
    sums: list[list[Tensor]] = []
    for x in nets.x.split(chunk):
        t = s = x
        found = []
        for (teacher, student), shift in zip(_hidden(nets), shifts, strict=True):
            t, s = F.relu(F.linear(t, *teacher)), F.relu(F.linear(s, *student))
            found.append(peers.shifted_sums(t, s, *shift))
        _loss(nets, t, s)
        sums = (
            [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(sums, found, strict=True)] if sums else found
        )
    return [peers.centred(len(nets.x), *shift, *total) for shift, total in zip(shifts, sums, strict=True)]


def _hidden(nets: Networks) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    return list(zip(nets.teacher[:-1], nets.student[:-1], strict=True))


def _loss(nets: Networks, t: Tensor, s: Tensor) -> Tensor:
    """Sum over the samples, which `measure` gives too."""
    return (F.linear(t, *nets.teacher[-1]) - F.linear(s, *nets.student[-1])).square().sum()


def check(precision: str, name: str, result: list[Any], truth: list[Moments], samples: int, _: Any) -> Entry:
    """The gate of `compare`, layer by layer.

    Errors grow from each layer to the next, and most in the scatter of a node that is hardly ever active: wide bounds.
    """
    allowed = gate.PLAIN
    if precision == "fp64":
        allowed = bounds(precision, name == OURS)
    if precision in ROUNDOFF:
        unit = ROUNDOFF[precision]
        allowed = gate.Bounds(rho=16 * unit, scatter=256 * unit, mean=16 * unit, flipped=16 * unit)
    found = [gate.check(name, layer, want, samples, allowed) for layer, want in zip(result, truth, strict=True)]
    return {key: max(errors[key] for errors in found) for key in found[0]}
