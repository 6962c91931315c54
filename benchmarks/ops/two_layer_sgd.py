"""Benchmarks of the op `two_layer_sgd`: populations of students against the ways in which they are trained today."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.compare import Case, Families, Peer, compare, summary
from benchmarks.gate import WrongResultError
from benchmarks.harness import Entry, Options, register
from benchmarks.rates import RateCalls
from fastspec.ops.two_layer_sgd import Packed, two_layer_sgd

STUDENTS, INPUTS, OUTPUTS, BATCH, SAMPLES, LR = 32, 100, 50, 16, 2000, 0.01
WIDTHS, STEPS = (5, 20, 50, 100, 200), 40
LIMIT = 1e-4  # largest error of a weight against float64, relative to the largest weight
Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # w1 [P, n, d], b1 [P, n], w2 [P, n, C], b2 [P, C]


@dataclass(frozen=True)
class Training:
    """Students of one width, and the batches [steps, batch] that all of them take."""

    x: Tensor
    y: Tensor
    weights: Weights
    indices: Tensor

    @staticmethod
    def random(width: int, steps: int) -> Training:
        generator = torch.Generator().manual_seed(0)
        normal = partial(torch.randn, generator=generator)
        x, y = 1.5 * normal(SAMPLES, INPUTS), normal(SAMPLES, OUTPUTS)
        w1, w2 = normal(STUDENTS, width, INPUTS) / INPUTS**0.5, normal(STUDENTS, width, OUTPUTS) / width**0.5
        weights = (w1, 0.1 * normal(STUDENTS, width), w2, 0.1 * normal(STUDENTS, OUTPUTS))
        return Training(x, y, weights, torch.randint(SAMPLES, (steps, BATCH), generator=generator))

    def double(self) -> Training:
        w1, b1, w2, b2 = (w.double() for w in self.weights)
        return Training(self.x.double(), self.y.double(), (w1, b1, w2, b2), self.indices)


def fastspec(t: Training) -> Weights:
    """The op under test."""
    w1, b1, w2, b2 = t.weights
    students, width = b1.shape
    packed = Packed(w1.flatten(0, 1), b1.flatten(), w2.flatten(0, 1), b2)
    out = two_layer_sgd(
        t.x,
        t.y,
        packed,
        torch.arange(students + 1) * width,
        lr=torch.full((students,), LR, dtype=torch.float64),
        seeds=torch.zeros(students, dtype=torch.int64),
        steps=len(t.indices),
        indices=t.indices,
    ).weights
    return out.w1.view_as(w1), out.b1.view_as(b1), out.w2.view_as(w2), out.b2


def serial(t: Training) -> Weights:
    """As the research code writes it: one student after the other, forward and backward by hand."""
    done = []
    for w1, b1, w2, b2 in zip(*(w.clone() for w in t.weights), strict=True):
        for rows in t.indices:
            x, y = t.x[rows], t.y[rows]
            z = x @ w1.T + b1
            h = F.relu(z)
            r = (y - (h @ w2 + b2)) * (LR / BATCH)
            g = (r @ w2.T) * (z > 0)
            w2 += h.T @ r
            b2 += r.sum(0)
            w1 += g.T @ x
            b1 += g.sum(0)
        done.append((w1, b1, w2, b2))
    w1s, b1s, w2s, b2s = (torch.stack(parts) for parts in zip(*done, strict=True))
    return w1s, b1s, w2s, b2s


def bmm(t: Training) -> Weights:
    """Batched products written by hand, all students in every call: the honest baseline."""
    w1, b1, w2, b2 = (w.clone() for w in t.weights)
    for rows in t.indices:
        x, y = t.x[rows], t.y[rows]
        z = torch.baddbmm(b1.unsqueeze(1), x.expand(STUDENTS, -1, -1), w1.mT)  # [P, B, n]
        h = F.relu(z)
        r = (y - torch.baddbmm(b2.unsqueeze(1), h, w2)).mul_(LR / BATCH)
        g = torch.bmm(r, w2.mT).mul_(z > 0)
        w2.baddbmm_(h.mT, r)
        b2 += r.sum(1)
        w1.baddbmm_(g.mT, x.expand(STUDENTS, -1, -1))
        b1 += g.sum(1)
    return w1, b1, w2, b2


class _Student(torch.nn.Module):
    def forward(self, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, x: Tensor) -> Tensor:
        return F.relu(x @ w1.T + b1) @ w2 + b2


def vmapped(t: Training) -> Weights:
    """`torch.func.vmap(grad)` over the students."""
    model = _Student()

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (functional_call(model, {}, (*weights, x)) - y).square().sum(1).mean()

    gradient = vmap(grad(loss), in_dims=(0, None, None))
    weights = t.weights
    for rows in t.indices:
        steps = gradient(weights, t.x[rows], t.y[rows])
        w1, b1, w2, b2 = (w - LR * g for w, g in zip(weights, steps, strict=True))
        weights = (w1, b1, w2, b2)
    return weights


def check(name: str, result: Weights, truth: Weights, *_: Any) -> Entry:
    """The gate: every weight close to float64's; raises WrongResultError for any other."""
    pairs = list(zip(result, truth, strict=True))
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if not error <= LIMIT:
        raise WrongResultError(f"{name}: got an error of {error:.3g} against float64 (limit {LIMIT:g})")
    return {"weights": error}


@register("two_layer_sgd", f"training {STUDENTS} two-layer students against torch, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    families: Families = {
        "bmm": [Peer("bmm", bmm)],
        "vmap": [Peer("vmap", vmapped)],
        "serial": [Peer("serial", serial, rounds=min(3, options.rounds))],
    }
    entries = []
    for width in WIDTHS[1:2] if options.quick else WIDTHS:
        training = Training.random(width, 4 if options.quick else STEPS)
        steps = len(training.indices)
        values = STUDENTS * width * (INPUTS + OUTPUTS)
        case = Case(
            label=f"{width} nodes, {steps} steps",
            shape={"students": STUDENTS, "nodes": width, "inputs": INPUTS, "outputs": OUTPUTS, "batch": BATCH},
            copies=[training],
            truth=bmm(training.double()),
            samples=steps * BATCH,
            operations=2.0 * steps * STUDENTS * BATCH * width * (2 * INPUTS + 3 * OUTPUTS),
            moved=4.0 * (2 * values + steps * BATCH * (INPUTS + OUTPUTS)),
            check=check,
        )
        entries.append(compare(case, fastspec, families, rates, options))
    axes = f"{STUDENTS} students, {INPUTS} inputs, {OUTPUTS} outputs, batch {BATCH}"
    return {"axes": axes, "error_of": "weights", **summary(entries)}
