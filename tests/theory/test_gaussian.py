"""Closed forms for Gaussian inputs: against the kernels, which share no code with them, and against themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fastspec as fs
from fastspec.theory import gaussian

SAMPLES, STD = 200_000, 1.5


def normal(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(bias: bool, students: int | None = None):
    """A teacher of 4 nodes and a student of 6, or several, on 7 inputs; the first nodes of both are equal."""
    p = [] if students is None else [students]
    w_t, w_s = normal(4, 7, seed=1), normal(*p, 6, 7, seed=2)
    b_t, b_s = normal(4, seed=3), normal(*p, 6, seed=4)
    w_s[..., 0, :], b_s[..., 0] = w_t[0], b_t[0]
    return (w_t, b_t if bias else None), (w_s, b_s if bias else None)


@pytest.fixture(scope="module")
def x():
    return fs.data.gaussian(SAMPLES, 7, std=STD, seed=5, dtype=torch.float64)


@pytest.mark.parametrize("students", [None, 3])
@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_measure_what_is_predicted(x, dtype, bias, slope, students):
    teacher, student = layers(bias, students)
    predicted = gaussian.layer_moments(teacher, student, std=STD, negative_slope=slope)
    sides = [(w.to(dtype), None if b is None else b.to(dtype)) for w, b in (teacher, student)]
    measured = fs.layer_moments(x.to(dtype), *sides, negative_slope=slope, coactivation=True)
    # six standard deviations; of a fraction at most 1/(2 sqrt N), of a sample correlation of these nodes below 2/sqrt N
    error = 1 / math.sqrt(SAMPLES)
    assert float((measured.correlation() - predicted.correlation()).abs().max()) < 12 * error
    assert float((measured.coactivation() - predicted.coactivation()).abs().max()) < 3 * error
    assert float((measured.observation() / SAMPLES - predicted.observation()).abs().max()) < 6 * error
    for side in ("teacher", "student"):
        active = getattr(measured.activity(), side) - getattr(predicted.activity(), side)
        assert float(active.abs().max()) < 3 * error
        variance = getattr(predicted, f"{side}_variance")
        mean = (getattr(measured, f"{side}_mean") - getattr(predicted, f"{side}_mean")) / variance.sqrt()
        assert float(mean.abs().max()) < 6 * error
        scatter = getattr(measured, f"{side}_scatter") / SAMPLES / variance - 1
        assert float(scatter.abs().max()) < 6 * 4 * error  # the fourth moment of these nodes is below 16 variances^2
    assert predicted.correlation()[..., 0, 0].sub(1).abs().max() < 1e-12


def test_arc_cosine_formulas():
    (u, _), (v, _) = layers(bias=False)
    lengths = u.norm(dim=1)[:, None] * v.norm(dim=1)
    theta = (u @ v.T / lengths).clamp(-1, 1).arccos()
    found = gaussian.layer_moments((u, None), (v, None), std=STD)
    product = STD**2 * lengths * (theta.sin() + (math.pi - theta) * theta.cos()) / (2 * math.pi)
    mean_u, mean_v = (STD * w.norm(dim=1) / math.sqrt(2 * math.pi) for w in (u, v))
    torch.testing.assert_close(found.coactivation(), (math.pi - theta) / (2 * math.pi))
    torch.testing.assert_close(found.teacher_mean, mean_u)
    torch.testing.assert_close(found.covariance, product - mean_u[:, None] * mean_v)
    variance = (STD * v.norm(dim=1)) ** 2 * (0.5 - 0.5 / math.pi)
    torch.testing.assert_close(found.student_variance, variance)


def test_a_population_is_its_students():
    teacher, (w, b) = layers(bias=True, students=3)
    together = gaussian.layer_moments(teacher, (w, b))
    for k in range(3):
        alone = gaussian.layer_moments(teacher, (w[k], b[k]))
        torch.testing.assert_close(together.correlation()[k], alone.correlation())
        torch.testing.assert_close(together.observation()[k], alone.observation())


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_nodes_without_weights(slope):
    (w, b), (w_s, b_s) = layers(bias=True)
    w[1:] = 0
    b[1:] = torch.tensor([0.0, 0.7, -0.7])
    found = gaussian.layer_moments((w, b), (w_s, b_s), negative_slope=slope)
    measured = fs.layer_moments(normal(50, 7, seed=0), (w, b), (w_s, b_s), negative_slope=slope)
    torch.testing.assert_close(found.teacher_mean[1:], measured.teacher_mean[1:])
    torch.testing.assert_close(found.teacher_active[1:], measured.activity().teacher[1:])
    assert found.teacher_variance[1:].tolist() == [0.0] * 3
    assert found.correlation()[1:].isnan().all() and found.correlation()[0].isfinite().all()
    torch.testing.assert_close(found.coactivation()[2], found.student_active)
    assert float(found.observation()[1:].max()) < 1e-15 and float(found.observation().min()) >= 0


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_the_correlation(bias):
    (w, b), (w_s, b_s) = layers(bias)
    w_s[0] += 0.1  # off the teacher's, where finite differences see the cusp's curvature
    w_s.requires_grad_()
    found = gaussian.layer_moments((w, b), (w_s, b_s))
    assert torch.autograd.gradcheck(lambda v: gaussian.layer_moments((w, b), (v, b_s)).correlation(), (w_s,))
    dead = w.clone()
    dead[1] = 0
    found = gaussian.layer_moments((dead, None), (w_s, b_s)).correlation()
    (gradient,) = torch.autograd.grad(found[0].sum() + found[2].sum(), w_s)
    assert gradient.isfinite().all() and found[1].isnan().all()


def two_layer(bias: bool, c: int = 3, students: int | None = None):
    p = [] if students is None else [students]
    (w_t, b_t), (w_s, b_s) = layers(bias, students)
    tops = (normal(c, 4, seed=6), normal(c, seed=7) if bias else None)
    return [(w_t, b_t), tops], [(w_s, b_s), (normal(*p, c, 6, seed=8), normal(*p, c, seed=9) if bias else None)]


@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_generalization_error_is_the_measured_loss(x, bias, slope):
    teacher, student = (
        fs.MLP.from_weights(layers, negative_slope=slope).requires_grad_(False) for layers in two_layer(bias)
    )
    predicted = gaussian.generalization_error(teacher, student, std=STD)
    loss = (teacher(x) - student(x)).square().sum(1) / 2
    assert abs(float(predicted - loss.mean())) < 6 * float(loss.std()) / math.sqrt(SAMPLES)
    assert abs(float(gaussian.generalization_error(teacher, teacher, std=STD)) / float(predicted)) < 1e-12


def test_generalization_error_of_populations():
    teacher, _ = two_layer(bias=True)
    few = [fs.MLP([7, n, 3], seed=n, dtype=torch.float64) for n in (5, 2, 5)]
    population = fs.Population.from_weights([network.weights() for network in few])
    each = torch.stack([gaussian.generalization_error(teacher, network) for network in few])
    torch.testing.assert_close(gaussian.generalization_error(teacher, population), each.detach())
    teacher, stack = two_layer(bias=True, students=3)
    for k, error in enumerate(gaussian.generalization_error(teacher, stack)):
        alone = gaussian.generalization_error(teacher, [(w[k], b[k]) for w, b in stack])
        torch.testing.assert_close(error, alone)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_the_generalization_error(bias):
    teacher, student = two_layer(bias)
    inputs = [t.requires_grad_() for layer in student for t in layer if t is not None]

    def error(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        layers = [(next(given), None if b is None else next(given)) for _, b in student]
        return gaussian.generalization_error(teacher, layers)

    assert torch.autograd.gradcheck(error, inputs)


def test_gradient_descent_on_the_closed_form_finds_the_teacher():
    teacher = fs.teachers.two_layer(6, 2, 3, seed=0, bias=0.0, dtype=torch.float64)
    student = fs.MLP([6, 8, 3], seed=1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(student.parameters(), max_iter=150, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        error = gaussian.generalization_error(teacher, student)
        error.backward()
        return error

    optimizer.step(closure)
    assert float(gaussian.generalization_error(teacher, student).detach()) < 1e-8
    x = fs.data.gaussian(500, 6, seed=3, dtype=torch.float64)
    assert float(fs.measure(teacher, student, x).loss) < 1e-7


U, V = torch.ones(2, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian.layer_moments((U, None), (V[:, :2], None)), "student weight: got shape"),
        (lambda: gaussian.layer_moments((U, None), (V.double(), None)), "student weight: got dtype"),
        (lambda: gaussian.layer_moments((U[0], None), (V, None)), "teacher weight: got shape"),
        (lambda: gaussian.layer_moments(U, (V, None)), "teacher: got Tensor"),
        (lambda: gaussian.layer_moments((U, torch.ones(3)), (V, None)), "teacher bias: got shape"),
        (lambda: gaussian.layer_moments((U * torch.nan, None), (V, None)), "teacher weight: got 6 of 6"),
        (lambda: gaussian.layer_moments((U, None), (V, None), std=0.0), "std: got 0.0"),
        (lambda: gaussian.layer_moments((U, None), (V, None), negative_slope=2), "negative_slope: got 2"),
        (lambda: gaussian.generalization_error(fs.MLP([3, 2, 2, 1]), fs.MLP([3, 2, 1])), "teacher: got 3 layers"),
        (lambda: gaussian.generalization_error(fs.MLP([3, 2, 1]), fs.MLP([3, 2, 2])), "student: got 2 outputs"),
        (lambda: gaussian.generalization_error(fs.MLP([3, 2, 1]), "student"), "student: got str"),
        (lambda: gaussian.generalization_error([(U, None), (V, None)], fs.MLP([3, 2, 4])), "teacher w2: got shape"),
        (
            lambda: gaussian.generalization_error(fs.MLP([3, 2, 1], batch_norm="before"), fs.MLP([3, 2, 1])),
            "teacher: got an MLP with batch norm",
        ),
        (
            lambda: gaussian.generalization_error(fs.MLP([3, 2, 1], negative_slope=0.1), fs.MLP([3, 2, 1])),
            "student: got another negative slope",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
