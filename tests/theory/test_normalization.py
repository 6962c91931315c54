"""Batch norm in training mode: the Jacobian of the normalisation, and what it projects away."""

from __future__ import annotations

import pytest
import torch
from theory_problems import F64, INPUTS, OUTPUTS, convolutional, module, normal, pair, randomize
from torch import nn

import fastspec as fs
from fastspec.theory import batch_norm_projections, gradient_terms
from fastspec.theory.normalization import normalization_pull_back


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_the_pull_back_is_autograds(training, affine):
    norm = nn.BatchNorm1d(4, dtype=F64, affine=affine).train(training)
    norm = randomize(norm) if affine else norm
    x, rows = normal(20, 4).requires_grad_(), normal(20, 4, seed=1)
    (want,) = torch.autograd.grad(norm(x), x, rows)
    with torch.no_grad():
        got = normalization_pull_back(norm, x, rows)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
    if training:  # no part along 1, nor (but for eps) along the normalised input
        assert got.sum(0).abs().max() < 1e-13
        assert (got * (x - x.mean(0))).sum(0).abs().max() < 1e-4


@pytest.mark.parametrize("batch_norm", ["before", "after"])
def test_gradients_are_projected(batch_norm):
    teacher, student = pair(4, batch_norm=batch_norm)
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    found = batch_norm_projections(teacher, student.train(), normal(40, INPUTS))
    assert list(found) == ["norms.0", "norms.1", "norms.2"]
    for layer, projection in zip(student.norms, found.values(), strict=True):
        assert projection.mean.shape == projection.normal.shape == (layer.num_features,)
        assert projection.mean.max() < 1e-12 and projection.normal.max() < 1e-2  # of eps / variance
    assert all(torch.equal(before[name], b) for name, b in student.named_buffers())


def test_running_statistics_do_not_project():
    teacher, student = pair(3, batch_norm="before")
    x = normal(40, INPUTS)
    student.train().norms[0].eval()
    found = batch_norm_projections(teacher, student, x)
    assert list(found) == ["norms.1"]
    gradient = gradient_terms(teacher, student, x)["hidden1"].gradient
    assert (gradient.sum(0).abs() / gradient.abs().sum(0)).max() > 0.1


def test_channels_have_one_mean_over_positions():
    teacher, student = convolutional(1, [3, 2], "before"), convolutional(2, [4, 5], "before").train()
    for projection in batch_norm_projections(teacher, student, normal(8, 2, 6, 6)).values():
        assert projection.mean.max() < 1e-12 and projection.normal.max() < 1e-3


def test_weights_before_a_normalisation_only_turn():
    """The output does not depend on their length, so that the gradient is orthogonal to them, and 0 for the bias."""
    teacher, student = pair(3, batch_norm="before")
    for norm in student.train().norms:
        norm.eps = 1e-15
    x = normal(40, INPUTS)
    ((teacher(x).detach() - student(x)).square().sum() / 2).backward()
    for layer in student.layers[:-1]:
        along = (layer.weight * layer.weight.grad).sum(1)
        assert along.abs().max() < 1e-12 * (layer.weight.norm() * layer.weight.grad.norm())
        assert layer.bias.grad.abs().max() < 1e-12


T, S = pair(3, batch_norm="before")
X = normal(8, INPUTS)


def trained():
    return pair(3, batch_norm="before")[1].train()


BAD = {
    "evaluation": (lambda: batch_norm_projections(T, S, X), ValueError, "student: got no batch norm in training mode"),
    "no norm": (lambda: batch_norm_projections(T, pair(3)[1], X), ValueError, "student: got no batch norm"),
    "teacher": (lambda: batch_norm_projections(trained(), trained(), X), ValueError, "teacher, layer 'norms.0': got"),
    "outputs": (
        lambda: batch_norm_projections(T, fs.MLP([INPUTS, 4, 3], dtype=F64, batch_norm="after"), X),
        ValueError,
        "student: got outputs of shape",
    ),
    "one sample": (lambda: batch_norm_projections(T, trained(), X[:1]), ValueError, r"x: got shape \[1, 5\]"),
    "NaN": (lambda: batch_norm_projections(T, trained(), X * float("nan")), ValueError, "x: got 40 of 40"),
    "dtype": (lambda: batch_norm_projections(T, trained(), X.float()), TypeError, "x: got dtype torch.float32"),
    "no module": (lambda: batch_norm_projections(T, "student", X), TypeError, "student: got str"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_a_module_of_torchs_own_layers():
    student = module(3, 1)
    student[1].train()
    (projection,) = batch_norm_projections(module(2, 0), student, normal(9, 1, 8, 8)).values()
    assert projection.mean.max() < 1e-12 and student(normal(1, 1, 8, 8)).shape[1] == OUTPUTS


def test_a_student_without_gradients_and_hooks_that_come_off():
    teacher, student = pair(3, batch_norm="before")
    student.train()
    with torch.no_grad():
        student.layers[-1].weight.zero_()
    for projection in batch_norm_projections(teacher, student, normal(9, INPUTS)).values():
        assert not projection.mean.any() and not projection.normal.any()
    assert not any(norm._forward_pre_hooks for norm in student.norms)
