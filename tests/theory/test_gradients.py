"""gradient_terms: g = D [A f* - B f], at every depth, and what follows from it."""

from __future__ import annotations

import pytest
import torch
from theory_problems import DEPTHS, F64, INPUTS, OUTPUTS, by_hand, convolutional, module, normal, pair, randomize
from torch import nn

import fastspec as fs
from fastspec.theory import gradient_terms, gradients

KINDS = [(0.0, True, None), (0.0, False, None), (0.25, True, None), (0.1, True, "before"), (0.0, True, "after")]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("slope, bias, batch_norm", KINDS)
def test_the_gradient_of_every_sample(depth, slope, bias, batch_norm):
    teacher, student = pair(depth, slope=slope, bias=bias, batch_norm=batch_norm)
    terms = gradient_terms(teacher, student, 2 * normal(40, INPUTS))
    assert list(terms) == [f"hidden{i + 1}" for i in range(depth - 1)]
    for found in terms.values():
        assert found.error() <= 1e-10
        assert found.gradient.abs().max() > 1e-3  # of something


def test_gradients_are_autograds():
    """By torch.autograd on the loss itself, for the weights: dW = mean g f^T."""
    teacher, student = pair(4, slope=0.1)
    x = normal(30, INPUTS)
    terms = gradient_terms(teacher, student, x)
    ((teacher(x).detach() - student(x)).square().sum(1) / 2).sum().backward()
    below = [x, *student.activations(x)]
    for found, f, layer in zip(terms.values(), below, student.layers, strict=False):
        torch.testing.assert_close(found.gradient.T @ f, -layer.weight.grad)
        torch.testing.assert_close(found.gradient.sum(0), -layer.bias.grad)


def test_terms_are_those_of_the_matrices():
    teacher, student = pair(3, bias=False)
    x = normal(7, INPUTS)
    (v_t, _), (v_s, _) = by_hand(teacher, x), by_hand(student, x)
    f_t, f_s = teacher.activations(x), student.activations(x)
    for layer, found in enumerate(gradient_terms(teacher, student, x).values()):
        a, b = v_s[layer].mT @ v_t[layer], v_s[layer].mT @ v_s[layer]  # [N, n, m], [N, n, n]
        torch.testing.assert_close(found.teacher_term, (a @ f_t[layer].unsqueeze(-1)).squeeze(-1))
        torch.testing.assert_close(found.student_term, (b @ f_s[layer].unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("batch_norm", [None, "before", "after"])
def test_the_terms_are_not_taken_from_autograd(batch_norm, monkeypatch):
    """A wrong weight in the maps is seen."""
    original = gradients.chain

    def spoiled(side, network):
        found = original(side, network)
        if side == "student":
            found.weights[1] += 1e-6
        return found

    monkeypatch.setattr(gradients, "chain", spoiled)
    assert gradient_terms(*pair(3, batch_norm=batch_norm), normal(40, INPUTS))["hidden1"].error() > 1e-8


def test_errors_and_gaps_are_relative_to_the_larger_term():
    gradient, gate, small, large = (torch.tensor([[a, b]], dtype=F64) for a, b in ((0, 1), (1, 0.5), (1, 2), (2, 8)))
    for teacher, student in ((small, large), (large, small)):
        terms = gradients.GradientTerms(gradient, gate, teacher, student)
        difference = gate * (teacher - student) - gradient
        assert terms.error() == float(difference.abs().max()) / 8 and terms.gap() == 1 / 8
    assert gradients.GradientTerms(*[torch.zeros(1, 2)] * 4).error() == 0
    assert gradients.GradientTerms(*[torch.zeros(3, 0)] * 4).gap() == 0  # of a layer without nodes


def test_chunks(monkeypatch):
    teacher, student = pair(4)
    x = normal(50, INPUTS)
    whole = gradient_terms(teacher, student, x)
    monkeypatch.setattr(gradients, "FACTOR_BYTES", 10_000)
    for name, found in gradient_terms(teacher, student, x).items():
        torch.testing.assert_close(found.teacher_term, whole[name].teacher_term)
        assert found.error() <= 1e-12


@pytest.mark.parametrize("batch_norm", ["before", "after"])
@pytest.mark.parametrize("depth", [2, 4])
def test_the_jacobian_of_batch_statistics(batch_norm, depth):
    teacher, student = pair(depth, slope=0.1, batch_norm=batch_norm)
    student.train()
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    for found in gradient_terms(teacher, student, normal(30, INPUTS)).values():
        assert found.error() <= 1e-10
    assert student.training and all(torch.equal(before[name], b) for name, b in student.named_buffers())


def test_without_the_jacobian_the_identity_fails(monkeypatch):
    """What leaves the normalisation out, as published code does, is not the gradient."""
    teacher, student = pair(3, batch_norm="before")
    monkeypatch.setattr(gradients, "normalization_pull_back", lambda norm, x, rows: rows)
    assert gradient_terms(teacher, student.train(), normal(30, INPUTS))["hidden1"].error() > 1e-2


def test_one_norm_in_evaluation_mode():
    teacher, student = pair(4, batch_norm="after")
    student.train().norms[1].eval()
    for found in gradient_terms(teacher, student, normal(30, INPUTS)).values():
        assert found.error() <= 1e-10


@pytest.mark.parametrize("batch_norm", [None, "before", "after"])
def test_convolutional_networks(batch_norm):
    teacher, student = convolutional(1, [3, 2], batch_norm), convolutional(2, [4, 5], batch_norm)
    x = normal(6, 2, 6, 6)
    for mode in (False, True):
        terms = gradient_terms(teacher, student.train(mode), x)
        for found, shape in zip(terms.values(), [(6, 4, 4, 4), (6, 5, 2, 2)], strict=True):
            assert found.gradient.shape == found.gate.shape == found.student_term.shape == shape
            assert found.error() <= 1e-10
    v_s, _ = by_hand(student.eval(), x)
    found = gradient_terms(teacher, student, x)["hidden1"]
    residual = (teacher(x) - student(x)).detach()
    torch.testing.assert_close(found.predicted(), found.gate * torch.einsum("xckhw,xc->xkhw", v_s[0], residual))


def test_any_piecewise_linear_module():
    teacher, student = randomize(module(2, 0)), randomize(module(3, 1, inplace=True))
    for found in gradient_terms(teacher, student, normal(9, 1, 8, 8)).values():
        assert found.error() <= 1e-10


class InPlace(nn.Module):
    """What follows the rectifier changes its output."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.linear, self.relu, self.top = nn.Linear(INPUTS, 3), nn.ReLU(), nn.Linear(3, OUTPUTS)
        self.in_place = in_place

    def forward(self, x):
        h = self.relu(self.linear(x))
        return self.top(h.mul_(2) if self.in_place else h * 2)


def test_activations_that_are_changed_in_place():
    student, same = InPlace(True).to(F64), InPlace(False).to(F64)
    same.load_state_dict(student.state_dict())
    found, want = (gradient_terms(same, network, normal(8, INPUTS))["relu"] for network in (student, same))
    assert torch.equal(found.gradient, want.gradient) and found.error() <= 1e-10


def test_where_the_gradient_is_zero_the_terms_agree():
    """A student that splits every teacher node in two: alpha f* = beta f for every node that is active."""
    teacher, _ = pair(4)
    layers = teacher.weights()
    split = [(torch.cat([layers[0][0]] * 2), torch.cat([layers[0][1]] * 2))]
    for i, (w, b) in enumerate(layers[1:], start=1):
        halves = torch.cat([0.25 * w, 0.75 * w], 1)
        split.append((halves, b) if i == len(layers) - 1 else (torch.cat([halves] * 2), torch.cat([b] * 2)))
    student = fs.MLP.from_weights(split)
    x = normal(50, INPUTS)
    torch.testing.assert_close(student(x), teacher(x))
    for found in gradient_terms(teacher, student, x).values():
        assert found.gap() <= 1e-12 and found.gradient.abs().max() <= 1e-12
        assert found.teacher_term.abs().max() > 1e-3


def test_a_zero_gradient_without_a_zero_loss():
    """The residual is orthogonal to what the student's hidden nodes can reach."""
    w1, b1 = normal(3, INPUTS), normal(3, seed=1)
    top = torch.eye(OUTPUTS, 3, dtype=F64)
    teacher = fs.MLP.from_weights([(w1, b1), (top, None)])
    reach = top.clone()
    reach[2] = 0  # of output 2
    student = fs.MLP.from_weights([(w1, b1), (reach, None)])
    x = normal(50, INPUTS)
    assert (teacher(x) - student(x)).abs().max() > 0.1
    found = gradient_terms(teacher, student, x)["hidden1"]
    assert found.gradient.abs().max() == 0 and found.gap() == 0
    alpha, beta = top.T @ reach, reach.T @ reach  # [teacher, student], [student, student]
    f_t, f_s = teacher.activations(x)[0], student.activations(x)[0]
    torch.testing.assert_close(f_t @ alpha, f_s @ beta)
    student.layers[0].bias.data += 0.1
    assert gradient_terms(teacher, student, x)["hidden1"].gap() > 1e-3


def huge():
    """A student whose outputs are beyond float64."""
    student = pair(3)[1]
    for layer in student.layers:
        layer.weight.data *= 1e150
    return student


T, S = pair(3)
X = normal(8, INPUTS)
BAD = {
    "depth": (T, pair(4)[1], X, ValueError, "student: got 3 hidden layers; takes the depth of the teacher, 2"),
    "outputs": (T, fs.MLP([INPUTS, 4, 4, 3], dtype=F64), X, ValueError, "student: got 3 outputs"),
    "outputs in training": (
        T,
        fs.MLP([INPUTS, 4, 4, 3], dtype=F64, batch_norm="after"),
        X,
        ValueError,
        "student: got 3 outputs",
    ),
    "inputs": (T, fs.MLP([6, 4, 4, OUTPUTS], dtype=F64), X, ValueError, "student: got 6 inputs"),
    "teacher": (
        pair(3, batch_norm="after")[0].train(),
        S,
        X,
        ValueError,
        "teacher, layer 'norms.0': got BatchNorm1d with",
    ),
    "dropout": (
        module(2, 0),
        module(2, 0).train(),
        normal(4, 1, 8, 8),
        ValueError,
        "student, layer '8': got Dropout in",
    ),
    "no module": (T, None, X, TypeError, "student: got NoneType"),
    "x": (T, S, [[1.0]], TypeError, "x: got list"),
    "width": (T, S, X[:, :3], ValueError, r"x: got shape \[8, 3\]"),
    "rank": (T, S, X[0], ValueError, r"x: got shape \[5\]"),
    "integers": (T, S, X.long(), TypeError, "x: got dtype torch.int64"),
    "dtype": (T, S, X.float(), TypeError, "x: got dtype torch.float32"),
    "NaN": (T, S, X.masked_fill(X > 1, float("nan")), ValueError, "x: got .* NaN"),
    "empty": (T, S, X[:0], ValueError, "x: got shape"),
    "overflow": (T, huge(), X, ValueError, "x, layer 'hidden1', gradient: got"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    teacher, student, x, error, message = BAD[case]
    with pytest.raises(error, match=message):
        gradient_terms(teacher, student, x)
