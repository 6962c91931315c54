"""Students that learn online with fixed output weights of 1, as the equation of online learning describes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastspec.data import FreshGaussian
from fastspec.networks import MLP
from fastspec.populations import Population
from fastspec.randomness import generator
from fastspec.training import train_two_layer

REPORT_EVERY = 500  # steps


def simulate(
    teacher: Tensor,
    students: Tensor,
    *,
    activation: str,
    lr: float,
    batch_size: int,
    steps: Sequence[int],
    keep: Callable[[Tensor], object],
    progress: Callable[[int, int], object],
) -> Tensor:
    """Train hidden weights [P, n, d] on those of a teacher, [m, d]; the trained weights.

    steps: ascending, from 0; `keep` is called with the weights [P, n, d] after each.
    ReLU students are one population of `train_two_layer`; those of erf(z / sqrt 2) a loop in plain torch.
    """
    train = _relu if activation == "relu" else _erf
    return train(teacher, students, lr, batch_size, steps, keep, progress)


def _relu(
    teacher: Tensor,
    students: Tensor,
    lr: float,
    batch_size: int,
    steps: Sequence[int],
    keep: Callable,
    progress: Callable,
) -> Tensor:
    p, n, d = students.shape
    top = MLP.from_weights([(teacher, None), (teacher.new_ones(1, len(teacher)), None)])
    population = Population.from_weights(
        [[(w, None), (w.new_ones(1, n), None)] for w in students], labels={"seed": list(range(p))}
    )
    history = train_two_layer(
        top,
        population,
        FreshGaussian(),
        steps=steps[-1],
        batch_size=batch_size,
        lr=lr,
        bias=False,
        fixed="top",
        snapshots=steps,
        on_snapshot=lambda step, found, diverged: keep(found.w1.view(p, n, d)),
        progress=progress,
    )
    return history.population.w1.view(p, n, d)


def _erf(
    teacher: Tensor,
    students: Tensor,
    lr: float,
    batch_size: int,
    steps: Sequence[int],
    keep: Callable,
    progress: Callable,
) -> Tensor:
    w, draw, stops = students.clone(), generator(0, "online erf students"), set(steps)
    p, _, d = w.shape
    for step in range(steps[-1] + 1):
        if step in stops:
            keep(w.clone())
        if step % REPORT_EVERY == 0 or step == steps[-1]:
            progress(step, steps[-1])
        if step == steps[-1]:
            break
        x = torch.randn(p, batch_size, d, dtype=w.dtype, generator=draw)
        z = x @ w.mT  # [P, batch, n]
        error = _g(x @ teacher.T).sum(-1, keepdim=True) - _g(z).sum(-1, keepdim=True)
        delta = error * math.sqrt(2 / math.pi) * torch.exp(-z * z / 2)
        w = w + lr / batch_size * delta.mT @ x
    return w


def _g(z: Tensor) -> Tensor:
    return torch.erf(z / math.sqrt(2))
