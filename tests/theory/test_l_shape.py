"""Correlation against strength, node by node."""

from __future__ import annotations

import pytest
import torch
from theory_problems import F64, INPUTS, convolutional, module, normal, pair
from torch.utils.data import DataLoader

import fastspec as fs
from fastspec.theory import backward_gram, l_shape


@pytest.mark.parametrize("kind", ["fully connected", "convolutional", "modules"])
def test_both_axes(kind):
    if kind == "fully connected":
        (teacher, student), x = pair(4, batch_norm="before"), normal(60, INPUTS)
    elif kind == "convolutional":
        teacher, student, x = convolutional(1, [3, 2]), convolutional(2, [4, 5]), normal(20, 2, 6, 6)
    else:
        teacher, student, x = module(2, 0), module(3, 1), normal(20, 1, 8, 8)
    found, measured, grams = (
        l_shape(teacher, student, x),
        fs.measure(teacher, student, x),
        backward_gram(teacher, student, x),
    )
    assert list(found) == list(measured.layers) == list(grams)
    for name, shape in found.items():
        best = measured.layers[name].best_teacher().values
        torch.testing.assert_close(shape.correlation, best, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(shape.strength, grams[name].beta_student_student.diagonal().sqrt())


def test_copies_of_teacher_nodes_and_nodes_without_fan_out():
    """A deep student that holds the teacher, and nodes that nothing above listens to, is an L."""
    teacher, _ = pair(4)
    layers = teacher.weights()
    wide, inputs = [], INPUTS
    for i, (w, b) in enumerate(layers):
        extra = 0 if i == len(layers) - 1 else 3
        padded = torch.zeros(len(w) + extra, inputs, dtype=F64)
        padded[: len(w), : w.shape[1]] = w
        padded[len(w) :] = normal(extra, inputs, seed=i)
        wide.append((padded, torch.cat([b, torch.ones(extra, dtype=F64)])))
        inputs = len(padded)
    student = fs.MLP.from_weights(wide)
    x = normal(500, INPUTS)
    torch.testing.assert_close(student(x), teacher(x))
    for shape, nodes in zip(l_shape(teacher, student, x).values(), teacher.hidden_widths, strict=True):
        active = ~shape.correlation[:nodes].isnan()
        assert active.any() and (shape.correlation[:nodes][active] > 1 - 1e-9).all()
        assert (shape.strength[:nodes] > 0).all() and not shape.strength[nodes:].any()
        assert not (shape.correlation[nodes:] > 0.99).any()


def test_data_that_can_be_read_twice():
    teacher, student = pair(3)
    x = normal(30, INPUTS)
    whole = l_shape(teacher, student, x)["hidden1"].strength
    for data in ([x[:20], x[20:]], DataLoader(x, batch_size=7)):
        torch.testing.assert_close(l_shape(teacher, student, data)["hidden1"].strength, whole)
    with pytest.raises(TypeError, match=r"data: got a .*iterator, which can be read once; takes a tensor"):
        l_shape(teacher, student, iter([x]))


def test_samples_at_a_time_are_bounded():
    teacher, student = module(2, 0), module(3, 1)
    sizes = []
    with student[0].register_forward_hook(lambda layer, given, output: sizes.append(len(output))):
        l_shape(teacher, student, normal(20, 1, 8, 8), batch_size=8)
    assert sizes == 2 * [8, 8, 4]
