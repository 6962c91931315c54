"""Matrix dynamics: exact updates are the gradient, mean-field ones what the paper writes."""

from __future__ import annotations

import pytest
import torch
from theory_problems import DEPTHS, F64, INPUTS, normal, pair

import fastspec as fs
from fastspec.theory import backward_gram, second_moments, step, updates

METHODS = ("exact", "mean_field", "coactivation")


def autograd(teacher, student, x):
    """Minus the gradient of the mean loss, by autograd."""
    student.zero_grad()
    ((teacher(x).detach() - student(x)).square().sum(1) / 2).mean().backward()
    return [(-layer.weight.grad, None if layer.bias is None else -layer.bias.grad) for layer in student.layers]


def close(a, b, tolerance=1e-12):
    for (w, c), (v, d) in zip(a, b, strict=True):
        torch.testing.assert_close(w, v, rtol=0, atol=tolerance)
        assert (c is None) == (d is None)
        if c is not None:
            torch.testing.assert_close(c, d, rtol=0, atol=tolerance)


def distance(a, b):
    return max(float((w - v).abs().max() / v.abs().max()) for (w, _), (v, _) in zip(a, b, strict=True))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("slope, bias", [(0.0, True), (0.2, False)])
def test_exact_updates_are_the_gradient(depth, slope, bias):
    teacher, student = pair(depth, slope=slope, bias=bias)
    x = normal(60, INPUTS)
    close(updates(teacher, student, x), autograd(teacher, student, x))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_are_exact_for_one_sample(depth, method):
    teacher, student = pair(depth, slope=0.2)
    for x in normal(3, INPUTS).split(1):
        close(updates(teacher, student, x, method=method), autograd(teacher, student, x))


def test_the_formula_of_the_paper():
    """dW_l = H*_l W*_l L*_{l-1}^T - H_l W_l L_{l-1} with means over the samples, biases left out."""
    teacher, student = pair(4, bias=False)
    x = normal(80, INPUTS)
    grams, moments = backward_gram(teacher, student, x), second_moments(teacher, student, x)
    for layer, ((name, moment), (weight, _)) in enumerate(
        zip(moments.items(), updates(teacher, student, x, method="mean_field"), strict=True)
    ):
        w_t, w_s = (network.layers[layer].weight.detach() for network in (teacher, student))
        l_star, l_own = moment.student_teacher[:-1, :-1].T, moment.student_student[:-1, :-1]
        pull, push = w_t @ l_star.T, w_s @ l_own
        if layer < 3:
            gram = grams[f"hidden{layer + 1}"]
            pull, push = gram.h_student_teacher.T @ pull, gram.h_student_student @ push
        torch.testing.assert_close(weight, pull - push, rtol=0, atol=1e-12)
        assert name == ("input", "hidden1", "hidden2", "hidden3")[layer]


def test_means_are_an_approximation_of_many_samples():
    """E[f f^T ⊗ H] is not E[f f^T] ⊗ E[H]; but with one hidden layer H is beta ⊙ E[d d^T]."""
    teacher, student = pair(3)
    x = normal(200, INPUTS)
    exact, mean, co = (updates(teacher, student, x, method=method) for method in METHODS)
    assert distance(mean, exact) > 1e-3 and distance(co, mean) > 1e-3
    close(mean[-1:], exact[-1:])  # the top layer has H = I
    teacher, student = pair(2)
    exact, mean, co = (updates(teacher, student, x, method=method) for method in METHODS)
    close(co, mean)
    assert distance(mean, exact) > 1e-3


def test_means_point_along_the_gradient():
    teacher, student = pair(3)
    x = normal(2000, INPUTS)
    exact, mean, co = (
        torch.cat([w.flatten() for w, _ in updates(teacher, student, x, method=method)]) for method in METHODS
    )
    for approximation in (mean, co):
        assert torch.nn.functional.cosine_similarity(approximation, exact, dim=0) > 0.7


def test_linear_networks_have_no_correlation_of_gates():
    """Slope 1: D = I, so that all methods are the gradient for any samples."""
    teacher, student = pair(4, slope=1.0)
    x = normal(50, INPUTS)
    for method in METHODS:
        close(updates(teacher, student, x, method=method), autograd(teacher, student, x))


def test_second_moments():
    teacher, student = pair(3)
    x = normal(30, INPUTS)
    found = second_moments(teacher, student, x)
    f_t, f_s = ([x, *network.activations(x)] for network in (teacher, student))
    for moment, t, s in zip(found.values(), f_t, f_s, strict=True):
        t, s = (torch.cat([f.detach(), torch.ones(30, 1, dtype=F64)], 1) for f in (t, s))
        torch.testing.assert_close(moment.student_teacher, t.T @ s / 30)
        torch.testing.assert_close(moment.student_student, s.T @ s / 30)
        torch.testing.assert_close(moment.teacher_teacher, t.T @ t / 30)


def test_a_step_is_one_of_gradient_descent():
    teacher, student = pair(3)
    x = normal(60, INPUTS)
    twin = fs.MLP.from_weights(student.weights())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        ((teacher(x) - twin(x)).square().sum(1) / 2).mean().backward()
        optimizer.step()
        step(student, updates(teacher, student, x), 0.1)
    close(student.weights(), twin.weights())


@pytest.mark.parametrize("bias", [True, False])
def test_normalised_nodes(bias):
    teacher, student = pair(3, bias=bias)
    before = student.weights()
    step(student, updates(teacher, student, normal(20, INPUTS)), 0.0, normalize=True)
    for (w, b), (v, c) in zip(student.weights(), before, strict=True):
        rows = w if b is None else torch.cat([w, b[:, None]], 1)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(w), dtype=F64))
        old = v if c is None else torch.cat([v, c[:, None]], 1)
        torch.testing.assert_close(rows, old / old.norm(dim=1, keepdim=True))


def test_biases_pull_the_layers_below():
    """The difference of the biases above is a part of the gradient, and of the mean-field updates."""
    teacher, student = pair(2)
    x = normal(40, INPUTS)
    student.layers[1].bias.data += 1.0
    with_it = updates(teacher, student, x, method="mean_field")[0][0]
    student.layers[1].bias.data -= 1.0
    assert (with_it - updates(teacher, student, x, method="mean_field")[0][0]).abs().max() > 1e-2


T, S = pair(3)
X = normal(8, INPUTS)
CHANGES = updates(T, S, X)
NORMED = pair(3, batch_norm="after")[1]
BAD = {
    "method": (lambda: updates(T, S, X, method="exactly"), ValueError, "method: got 'exactly'; takes one of 'exact'"),
    "depth": (lambda: updates(T, pair(4)[1], X), ValueError, "student: got 3 hidden layers"),
    "outputs": (lambda: updates(T, fs.MLP([INPUTS, 4, 4, 3], dtype=F64), X), ValueError, "student: got 3 outputs"),
    "network": (lambda: updates(T, torch.nn.Linear(5, 4), X), TypeError, "student: got Linear; takes an MLP"),
    "training": (lambda: updates(T, pair(3, batch_norm="after")[1].train(), X), ValueError, "student, layer 'norms.0'"),
    "width": (lambda: updates(T, S, X[:, :2]), ValueError, r"x: got shape \[8, 2\]"),
    "no samples": (lambda: second_moments(T, S, X[:0]), ValueError, r"x: got shape \[0, 5\]"),
    "dtype": (lambda: second_moments(T, S, X.float()), TypeError, "x: got dtype torch.float32"),
    "NaN": (lambda: updates(T, S, X * float("nan")), ValueError, "x: got 40 of 40 values NaN"),
    "lr": (lambda: step(S, CHANGES, float("nan")), ValueError, "lr: got nan"),
    "layers": (lambda: step(S, CHANGES[1:], 0.1), ValueError, "changes: got 2 layers; takes .* 3"),
    "shape": (lambda: step(S, CHANGES[::-1], 0.1), ValueError, r"changes\[0\]: got shape"),
    "bias": (lambda: step(S, [(w, None) for w, _ in CHANGES], 0.1), ValueError, r"changes\[0\]: got"),
    "batch norm": (lambda: step(NORMED, CHANGES, 0.1), ValueError, "student: got a network with batch norm"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
