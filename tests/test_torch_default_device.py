"""Data, networks and training do not follow torch's default device; "meta", on which nothing can be drawn, stands for
one that is not the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastspec as fs

TEACHER = fs.teachers.separated([4, 5, 3], seed=0)
TWO_LAYER = fs.teachers.two_layer(d=4, m=3, c=2, seed=0)
X = fs.data.gaussian(20, 4, seed=1)
IMAGES = fs.data.gaussian(3, (1, 8, 8), seed=1)


def weights(network: fs.MLP) -> list[Tensor]:
    return [tensor for layer in network.weights() for tensor in layer if tensor is not None]


def trained() -> list[Tensor]:
    student = fs.networks.student_like(TEACHER, multi=2, seed=1)
    fs.train(TEACHER, student, X, epochs=2, batch_size=5, lr=0.1, input_noise=0.1, progress=False)
    return weights(student)


def population() -> fs.Population:
    return fs.Population.two_layer(TWO_LAYER, multi=[1, 2], seeds=range(2))


def trained_population() -> list[Tensor]:
    history = fs.train_two_layer(TWO_LAYER, population(), X, steps=5, batch_size=4, lr=0.01, progress=False)
    return [history.population.w1, history.population.w2]


CALLS: dict[str, Callable[[], list[Tensor]]] = {
    "gaussian": lambda: [fs.data.gaussian(10, 4, seed=0)],
    "uniform": lambda: [fs.data.uniform(10, 4, seed=0)],
    "boundary": lambda: [fs.data.teacher_boundary(TWO_LAYER, 30, seed=0)],
    "crops": lambda: [fs.data.crops_and_flips(IMAGES)],
    "digits": lambda: [fs.data.digits().train.x],
    "separated": lambda: weights(fs.teachers.separated([4, 5, 3], seed=0)),
    "tuned": lambda: weights(fs.teachers.separated([4, 5, 3], seed=0, x=X)),
    "random": lambda: weights(fs.teachers.random([4, 5, 3], seed=0)),
    "two_layer": lambda: weights(fs.teachers.two_layer(d=4, m=3, c=2, seed=0)),
    "population": lambda: [population().w1, population().w2],
    "train": trained,
    "train_two_layer": trained_population,
}


def test_norm_report_does_not_follow_the_default_device():
    expected = str(fs.norm_report(TEACHER, X))
    with torch.device("meta"):
        assert str(fs.norm_report(TEACHER, X)) == expected


@pytest.mark.parametrize("name", CALLS)
def test_nothing_follows_the_default_device(name: str):
    call = CALLS[name]
    expected = call()
    with torch.device("meta"):
        found = call()
    assert len(expected) == len(found) > 0
    for a, b in zip(expected, found, strict=True):
        assert b.device.type == "cpu" and torch.equal(a, b)
