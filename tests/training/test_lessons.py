"""What a network is to learn: batches, their noise, epochs, and the scale of the loss."""

from __future__ import annotations

import pytest
import torch
from test_train import C, D, N, batches, inputs, mlp

from fastspec.networks import MLP
from fastspec.training import lessons, train
from fastspec.training.lessons import Lessons

pytestmark = pytest.mark.usefixtures("one_thread")


def test_noise_is_new_at_every_step_whatever_the_pieces(monkeypatch):
    x, teacher = inputs(), mlp(4, seed=0)
    options = {"batch_size": 16, "replacement": False, "input_noise": 0.5, "seeds": [3, 4]}
    made = lambda: Lessons(teacher, [mlp(), mlp()], x, None, **options)  # noqa: E731
    (whole,) = made().batches(1, 3)
    assert whole.x.shape == (2 * 3 * 16, D) and whole.indices.shape == (2, 3, 16)
    clean = x[torch.stack([torch.stack(batches(N, 16, 6, seed)[1:4]) for seed in (3, 4)])]
    noise = (whole.x.view(6, 16, D) - clean.view(6, 16, D)).flatten(1)
    assert len(noise.unique(dim=0)) == 6 and 0.4 < float(noise.std()) < 0.6
    torch.testing.assert_close(whole.y, teacher(whole.x).detach())
    monkeypatch.setattr(lessons, "NOISY", 1)
    pieces = list(made().batches(1, 3))
    assert len(pieces) == 3
    for t, piece in enumerate(pieces):
        assert torch.equal(piece.x[piece.indices], whole.x[whole.indices[:, t : t + 1]])


def test_the_scale_of_a_loss_is_that_of_a_student_that_answers_0():
    x, options = inputs(), {"batch_size": 16, "replacement": False, "input_noise": 0.0, "seeds": [0]}
    assert Lessons(torch.zeros(N, dtype=torch.int64), [mlp()], x, None, **options).scale() == 1.0
    teacher = mlp(4, seed=0)
    expected = float(teacher(x).detach().square().sum(1).mean()) / 2
    assert Lessons(teacher, [mlp()], x, None, **options).scale() == pytest.approx(expected)


def test_batches_of_more_samples_than_there_are():
    history = train(mlp(4, seed=0), mlp(), inputs(), steps=3, batch_size=N + 50, replacement=True)
    assert history.epoch_steps == 1 and history.loss.shape == (3,) and history.loss.isfinite().all()


def test_measurements_are_at_the_ends_of_epochs_and_of_training():
    history = train(mlp(4, seed=0), mlp(), inputs(), steps=10, batch_size=16, evaluation=inputs(9))
    assert history.epoch_steps == 6 and list(history.measurements) == [0, 6, 10]


@pytest.mark.parametrize("students", [1, 2])
def test_input_noise_has_the_stated_deviation_and_is_answered(students):
    asked = []
    teacher = MLP([D, 4, C], dtype=torch.float32)
    teacher.register_forward_pre_hook(lambda module, given: asked.append(given[0]))
    networks = [MLP([D, 8, C], seed=k) for k in range(students)]
    x = torch.ones(20_000, D)
    train(teacher, networks, x, steps=1, batch_size=10_000, input_noise=0.25, seed=list(range(students)), snapshots=())
    batch = torch.cat([part for part in asked if not torch.equal(part, torch.ones_like(part))])
    assert batch.shape == (10_000 * students, D)
    torch.testing.assert_close(batch.mean(0), torch.ones(D), rtol=0, atol=0.01)
    torch.testing.assert_close(batch.std(0), torch.full((D,), 0.25), rtol=0, atol=0.01)
    assert len(batch.unique(dim=0)) == len(batch)


def test_labels_belong_to_the_samples_of_every_epoch():
    labels = torch.randint(C, (N,), generator=torch.Generator().manual_seed(0))
    epochs = [inputs(seed=epoch) for epoch in range(3)]
    found, expected = mlp(), mlp()
    options = {"batch_size": N, "lr": 0.1, "snapshots": ()}
    history = train(labels, found, lambda epoch: epochs[epoch], epochs=3, **options)
    for epoch, x in enumerate(epochs):
        loss = train(labels, expected, x, epochs=1, **options).loss
        torch.testing.assert_close(history.loss[epoch], loss[0])
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
