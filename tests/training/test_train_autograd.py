"""`train`: plain networks that the op must not train, and optimizers with options of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from test_train import assert_equal, by_hand, inputs, mlp

from fastspec.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_is_frozen_stays():
    student = mlp()
    frozen = student.layers[1].weight.requires_grad_(False)
    before = copy.deepcopy(student)
    train(mlp(4, seed=0), student, inputs(), steps=5)
    assert torch.equal(frozen, before.layers[1].weight)
    assert not torch.equal(student.layers[0].weight, before.layers[0].weight)


def test_hooks_are_called():
    student, seen = mlp(), []
    student.layers[0].register_forward_hook(lambda layer, given, output: seen.append(len(output)))
    train(mlp(4, seed=0), student, inputs(), steps=5, batch_size=16)
    assert seen.count(16) == 5


def test_groups_of_parameters_keep_their_share_of_the_rate():
    def optimizer(parameters, lr):
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": 5 * lr}, {"params": rest}], lr=lr)

    x, teacher, student = inputs(), mlp(4, seed=0), mlp()
    other = copy.deepcopy(student)
    expected = by_hand(teacher, other, x, 12, batch=16, optimizer=optimizer(list(other.parameters()), 0.02))
    train(teacher, student, x, steps=12, batch_size=16, lr=0.02, optimizer=optimizer)
    assert_equal(student, expected)
