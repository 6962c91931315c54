"""`train`: students that diverge, and the limit on their loss."""

from __future__ import annotations

import pytest
import torch
from test_train import assert_equal, inputs, mlp

from fastspec.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("batch_norm", [None, "before"])
def test_divergence_stops_early(batch_norm):
    x, teacher, student = inputs(), mlp(4, seed=0), mlp(batch_norm=batch_norm)
    reports = []
    history = train(teacher, student, x, steps=500, lr=1e4, momentum=0.9, progress=lambda *r: reports.append(r))
    stopped = int(history.diverged_step)
    assert 0 < stopped < 100 and history.steps == stopped
    assert history.loss[:stopped].isfinite().all() and history.loss[stopped + 1 :].isnan().all()
    assert all(p.isfinite().all() for p in student.parameters())
    again = mlp(batch_norm=batch_norm)
    train(teacher, again, x, steps=stopped, lr=1e4, momentum=0.9)
    for mine, theirs in zip(student.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_one_of_many_diverges():
    x, teacher = inputs(), mlp(4, seed=0)
    many = [mlp(seed=k) for k in range(3)]
    with torch.no_grad():
        for p in many[1].parameters():
            p.mul_(30)
    alone = mlp(seed=2)
    history = train(teacher, many, x, steps=60, lr=0.05, evaluation=x)
    assert history.diverged_step[[0, 2]].tolist() == [-1, -1] and history.diverged_step[1] >= 0
    assert history.steps == 60 and history.measurements[60].loss.isfinite().all()
    train(teacher, alone, x, steps=60, lr=0.05)
    assert_equal(many[2], alone)


@pytest.mark.parametrize("batch_norm", [None, "before"])
def test_a_teacher_that_answers_0_sets_no_limit(batch_norm):
    teacher = mlp(4, seed=0)
    with torch.no_grad():
        for parameter in teacher.layers[-1].parameters():
            parameter.zero_()
    history = train(teacher, mlp(batch_norm=batch_norm), inputs(), steps=5)
    assert int(history.diverged_step) == -1 and history.loss.isfinite().all()


@pytest.mark.parametrize("batch_norm", [None, "before"])
def test_an_infinite_loss_is_beyond_every_limit(batch_norm):
    answers = torch.full((len(inputs()), 2), 1e200, dtype=torch.float64)
    history = train(answers, mlp(batch_norm=batch_norm), inputs(), steps=3, lr=0.0, loss_limit=float("inf"))
    assert int(history.diverged_step) == 0 and history.steps == 0
