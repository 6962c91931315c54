"""Op mlp_sgd_step: students that diverge, the limit on their loss, and losses near the limits of numbers."""

from __future__ import annotations

import pytest
import torch
from test_mlp_sgd_step import BACKENDS, DEEP, batches, by_autograd, problem

from fastspec.ops.mlp_sgd_step import mlp_sgd_step

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_diverging_student_stops_and_harms_no_other(backend, momentum, monkeypatch):
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", BACKENDS[backend])
    x, y, parameters = problem(students=3)
    parameters[1] *= 60
    options = {"lr": 0.01, "momentum": momentum, "gradient_norms": True, "loss_limit": 1e30}
    rows = batches(40)
    out = mlp_sgd_step(x, y, parameters, DEEP, indices=rows, first_step=5, **options)
    stopped = int(out.diverged_step[1]) - 5
    assert out.diverged_step[[0, 2]].tolist() == [-1, -1]
    assert 0 < stopped < 20
    before = mlp_sgd_step(x, y, parameters, DEEP, indices=rows[:stopped], **options)
    torch.testing.assert_close(out.parameters[1], before.parameters[1], rtol=1e-9, atol=0, equal_nan=True)
    assert not out.loss[1, : stopped + 1].isnan().any() or stopped == 0
    assert out.loss[1, stopped + 1 :].isnan().all() and out.gradient_norm[1, stopped:].isnan().all()
    assert not out.loss[[0, 2]].isnan().any() and not out.gradient_norm[[0, 2]].isnan().any()
    if momentum:
        assert (out.buffers[1] == 0).all() and (out.buffers[0] != 0).any()
    for k in (0, 2):
        flat, *_ = by_autograd(x, y, parameters[k], DEEP, rows, 0.01, momentum=momentum)
        torch.testing.assert_close(out.parameters[k], flat, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_limit_and_students_already_stopped(backend, monkeypatch):
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", BACKENDS[backend])
    x, y, parameters = problem(students=2)
    rows = batches(4)
    out = mlp_sgd_step(x, y, parameters, DEEP, indices=rows, lr=0.01, loss_limit=1e-3)
    assert out.diverged_step.tolist() == [0, 0]
    assert torch.equal(out.parameters, parameters)
    out = mlp_sgd_step(x, y, parameters, DEEP, indices=rows, lr=0.01, first_step=9, diverged_step=torch.tensor([3, -1]))
    assert out.diverged_step.tolist() == [3, -1]
    assert torch.equal(out.parameters[0], parameters[0]) and out.loss[0].isnan().all()
    assert not torch.equal(out.parameters[1], parameters[1])
    y_2, loss = torch.full_like(y, 2.0), 2.0 * DEEP[-1]  # exactly, of students that answer 0
    for limit, stopped in ((loss, -1), (0.999 * loss, 0)):
        silent = mlp_sgd_step(x, y_2, 0 * parameters, DEEP, indices=rows[..., :1, :], lr=0.01, loss_limit=limit)
        assert (silent.diverged_step == stopped).all()
        assert bool(silent.parameters.any()) == (stopped < 0)
    alone = mlp_sgd_step(x, y, parameters[0], DEEP, indices=rows, lr=0.01, loss_limit=1e-3)
    assert alone.diverged_step == 0 and torch.equal(alone.parameters, parameters[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("larger", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cross_entropy_of_large_logits(backend, larger, dtype, monkeypatch):
    """exp of them is infinite."""
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", BACKENDS[backend])
    logits = torch.zeros(3, dtype=dtype)
    logits[larger] = 2000
    x, labels, rows = torch.ones(3, 1, dtype=dtype), torch.arange(3), torch.arange(3).view(3, 1)
    loss = mlp_sgd_step(x, labels, logits, (1, 3), indices=rows, lr=0.0, bias=[False]).loss
    assert loss.tolist() == [0.0 if k == larger else 2000.0 for k in range(3)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_loss_is_beyond_every_limit(backend, monkeypatch):
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", BACKENDS[backend])
    x, y, parameters = problem()
    out = mlp_sgd_step(x, torch.full_like(y, 1e200), parameters, DEEP, indices=batches(2), lr=1e-300)
    assert out.diverged_step == 0 and out.loss[0].isinf() and torch.equal(out.parameters, parameters)
