"""The equation of online learning: against one step of SGD, against simulated students, against what must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastspec as fs
from fastspec.experiments.online_students import simulate
from fastspec.theory import gaussian
from fastspec.theory.online import Dynamics, OrderParameters, weights_with

M, N, C = 2, 3, 2
RNG = np.random.default_rng(0)
TOPS = RNG.normal(size=(C, M)), RNG.normal(size=(C, N))
ROWS = RNG.normal(size=(N + M, N + M)) / 2


def start(rows: np.ndarray = ROWS) -> OrderParameters:
    s, t = rows[:N], rows[N:]
    return OrderParameters(t @ t.T, t @ s.T, s @ s.T)


def test_weights_have_the_order_parameters_that_were_asked_for():
    for std in (1.0, 1.5):
        teacher, students = weights_with(start(), 20, std=std, seeds=(0, 5))
        assert teacher.shape == (M, 20) and students.shape == (2, N, 20)
        for student in students:
            for part, wanted in zip(OrderParameters.of(teacher, student, std=std), start(), strict=True):
                np.testing.assert_allclose(part, wanted, atol=1e-12)
    assert not torch.equal(students[0], students[1])
    again, alone = weights_with(start(), 20, std=1.5, seeds=(5,))
    assert torch.equal(again, teacher) and torch.equal(alone[0], students[1])
    low = OrderParameters(np.ones((2, 2)), np.ones((2, 3)), np.ones((3, 3)))  # all nodes are one
    teacher, students = weights_with(low, 8)
    np.testing.assert_allclose(OrderParameters.of(teacher, students[0]).covariance(), np.ones((5, 5)), atol=1e-7)


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_derivative_is_the_mean_step(activation, batch_size):
    """Of many first steps from the same weights: w changes by lr delta x, and ||x||^2 is std^2 d."""
    rate, std, samples = 0.7, 1.3, 200_000
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(samples, N + M, generator=draw, dtype=torch.float64)  # pre-activations: all that matters but ||x||
    root = torch.linalg.cholesky(torch.from_numpy(start().covariance()))
    z = z @ root.T
    g, slope = (torch.relu, lambda z: (z > 0).double()) if activation == "relu" else (_g, _slope)
    v_t, v_s = (torch.from_numpy(v) for v in TOPS)
    error = g(z[:, N:]) @ v_t.T - g(z[:, :N]) @ v_s.T
    delta = slope(z[:, :N]) * (error @ v_s)  # [samples, n]
    dynamics = Dynamics(*TOPS, rate=rate, batch_size=batch_size, std=std, activation=activation)
    dr, dq = dynamics.derivative(start())
    step = rate * std**2
    drift = step * delta[:, :, None] * z[:, None, :]  # [samples, n, n + m]
    noise = step**2 / batch_size * delta[:, :, None] * delta[:, None, :]
    for found, values in ((dr.T, drift[..., N:]), (dq, drift[..., :N] + drift[..., :N].mT + noise)):
        standard_error = values.std(0) / math.sqrt(samples)
        assert (np.abs(values.mean(0).numpy() - found) < 5 * standard_error.numpy()).all()


def _g(z):
    return torch.erf(z / math.sqrt(2))


def _slope(z):
    return math.sqrt(2 / math.pi) * torch.exp(-z * z / 2)


def test_without_noise_it_is_the_gradient_of_the_loss():
    """dW = -rate std^2 dloss/dW, in the weights of a network with N + M inputs; batches are endless."""
    std, rate = 1.2, 0.4
    teacher, students = weights_with(start(), N + M, std=std)
    w = students[0].clone().requires_grad_()
    v_t, v_s = (torch.from_numpy(v) for v in TOPS)
    loss = gaussian.generalization_error([(teacher, None), (v_t, None)], [(w, None), (v_s, None)], std=std)
    dynamics = Dynamics(*TOPS, rate=rate, batch_size=10**12, std=std)
    assert dynamics.loss(start()) == pytest.approx(float(loss.detach()), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, w)
    change = -rate * gradient
    w, dr, dq = w.detach(), *dynamics.derivative(start())
    np.testing.assert_allclose(dr, std**2 * (teacher @ change.T).numpy(), atol=1e-12)
    np.testing.assert_allclose(dq, std**2 * (change @ w.T + w @ change.T).numpy(), atol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_a_student_that_is_its_teacher_stays(activation):
    dynamics = Dynamics(np.ones((1, 2)), np.ones((1, 2)), rate=0.5, activation=activation)
    same = OrderParameters(np.eye(2), np.eye(2), np.eye(2))
    dr, dq = dynamics.derivative(same)
    assert np.abs(dr).max() < 1e-9 and np.abs(dq).max() < 1e-9
    assert abs(dynamics.loss(same)) < 1e-15


def test_one_erf_node_that_learns_another():
    """The loss, dR/dt and dQ/dt written out, without noise."""
    dynamics = Dynamics([[1.0]], [[1.0]], rate=0.8, batch_size=10**12, activation="erf")
    r, q = 0.3, 0.6
    parameters = OrderParameters(np.ones((1, 1)), np.full((1, 1), r), np.full((1, 1), q))
    loss = (math.asin(1 / 2) + math.asin(q / (1 + q)) - 2 * math.asin(r / math.sqrt(2 * (1 + q)))) / math.pi
    assert dynamics.loss(parameters) == pytest.approx(loss)
    dr, dq = dynamics.derivative(parameters)
    wanted = (
        2 * 0.8 / (math.pi * (1 + q)) * ((1 + q - r * r) / math.sqrt(2 * (1 + q) - r * r) - r / math.sqrt(1 + 2 * q))
    )
    assert float(dr[0, 0]) == pytest.approx(wanted)
    wanted = 4 * 0.8 / (math.pi * (1 + q)) * (r / math.sqrt(2 * (1 + q) - r * r) - q / math.sqrt(1 + 2 * q))
    assert float(dq[0, 0]) == pytest.approx(wanted)


def near_symmetric(m: int = 2, lean: float = 0.2) -> OrderParameters:
    return OrderParameters(np.eye(m), 0.5 * lean * np.eye(m), 0.25 * np.eye(m))


def test_plateau_and_specialisation():
    dynamics = Dynamics(np.ones((1, 2)), np.ones((1, 2)), rate=0.5, activation="erf")
    times = np.linspace(0, 400, 81)
    solution = dynamics.solve(near_symmetric(lean=1e-3), times)
    cosine = solution.cosine()
    assert np.allclose(solution.cross[0], near_symmetric(lean=1e-3).cross)
    early = np.searchsorted(times, 40)
    assert abs(cosine[early, 0, 0] - cosine[early, 0, 1]) < 0.05 < solution.loss[early] * 10  # nodes are alike
    assert cosine[-1, 0, 0] > 0.999 and abs(cosine[-1, 0, 1]) < 0.05  # and part
    assert solution.loss[-1] < 1e-4 * solution.loss[0]
    clones = dynamics.solve(near_symmetric(lean=0.0), times)  # without a lean they never do
    np.testing.assert_allclose(clones.cross[:, 0, 0], clones.cross[:, 0, 1], atol=1e-9)
    assert clones.loss[-1] > 1e-3


def _deviations(activation: str, d: int, seeds: int, dynamics: Dynamics, begin: OrderParameters, time: float):
    """Root mean square deviation of R and Q: of single students, and of their mean."""
    times = np.linspace(0, time, 11)
    steps = [round(t * d) for t in times]
    teacher, students = weights_with(begin, d, seeds=range(seeds))
    rows = []
    simulate(
        teacher, students, activation=activation, lr=dynamics.rate / d, batch_size=dynamics.batch_size, steps=steps,
        keep=lambda w: rows.append((teacher @ w.mT, w @ w.mT)), progress=lambda done, total: None,
    )  # fmt: skip
    solution = dynamics.solve(begin, times)
    r, q = (torch.stack(part).numpy() for part in zip(*rows, strict=True))  # [time, seed, ..]
    differences = [r - solution.cross[:, None], q - solution.student[:, None]]
    single = math.sqrt(sum((part**2).sum((-2, -1)).mean() for part in differences))
    mean = math.sqrt(sum((part.mean(1) ** 2).sum((-2, -1)).mean() for part in differences))
    return single, mean


@pytest.mark.parametrize(("activation", "batch_size"), [("relu", 1), ("relu", 4), ("erf", 1)])
def test_simulated_students_come_closer_with_more_inputs(activation, batch_size):
    dynamics = Dynamics(np.ones((1, 2)), np.ones((1, 2)), rate=0.5, batch_size=batch_size, activation=activation)
    single, mean = zip(
        *(_deviations(activation, d, 16, dynamics, near_symmetric(), 8.0) for d in (100, 400)), strict=True
    )
    assert single[1] < 0.65 * single[0]  # as 1 / sqrt d
    assert mean[1] < 0.05 and single[1] < 0.15 and mean[1] < single[1]


T, R, Q = near_symmetric()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Dynamics([[1.0]], [[1.0], [1.0]], rate=0.1), "student_top: got 2 outputs"),
        (lambda: Dynamics([1.0], [[1.0]], rate=0.1), r"teacher_top: got shape \[1\]"),
        (lambda: Dynamics([[math.nan]], [[1.0]], rate=0.1), "teacher_top: got NaN"),
        (lambda: Dynamics([[1.0]], [[1.0]], rate=-1.0), "rate: got -1.0"),
        (lambda: Dynamics([[1.0]], [[1.0]], rate=0.1, batch_size=0), "batch_size: got 0"),
        (lambda: Dynamics([[1.0]], [[1.0]], rate=0.1, std=0.0), "std: got 0.0"),
        (lambda: Dynamics([[1.0]], [[1.0]], rate=0.1, activation="tanh"), "activation: got 'tanh'"),
        (lambda: _solve(OrderParameters(T, R[:1], Q)), r"start.cross: got shape \[1, 2\]"),
        (lambda: _solve(OrderParameters(T, 9 * R, Q)), "start: got a covariance with the eigenvalue"),
        (lambda: _solve(OrderParameters(T, R, Q + np.triu(np.ones((2, 2)), 1))), "start.student: got an asymmetric"),
        (lambda: _solve(OrderParameters(T, R * math.nan, Q)), "start.cross: got NaN"),
        (lambda: _solve(OrderParameters(T, R, Q), times=[2.0, 1.0]), "times: got"),
        (lambda: _solve(OrderParameters(T, R, Q), times=[]), "times: got"),
        (
            lambda: _solve(OrderParameters(T, R, Q), rate=50.0, times=[0.0, 100.0]),
            "rate: got 50, at which the solution diverges; takes a smaller rate",
        ),
        (lambda: weights_with(near_symmetric(), 3), "inputs: got 3"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _solve(begin: OrderParameters, rate: float = 0.5, times=(0.0, 1.0)):
    return Dynamics(np.ones((1, 2)), np.ones((1, 2)), rate=rate).solve(begin, times)


def test_at_the_start_nothing_has_happened():
    solution = Dynamics(torch.ones(1, 2, requires_grad=True), np.ones((1, 2)), rate=0.5).solve(near_symmetric(), [0.0])
    np.testing.assert_array_equal(solution.cross[0], R)
    assert solution.cosine()[0, 0].tolist() == pytest.approx([0.2, 0.0])


def test_public_names():
    assert fs.theory.online.Dynamics is Dynamics
