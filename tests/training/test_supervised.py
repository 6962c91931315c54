"""The plain training loop: it learns, it is seeded, and it refuses what it cannot train on."""

from __future__ import annotations

import copy

import pytest
import torch

from fastspec import data
from fastspec.networks import MLP, student_like
from fastspec.training.supervised import train_supervised


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(seed=0, noise=0.0, **options):
    network = MLP([3, 8, 2], seed=1, dtype=torch.float64)
    x = data.gaussian(100, 3, seed=0, dtype=torch.float64)
    train_supervised(network, x, (x[:, 0] > 0).long(), steps=200, lr=0.02, seed=seed, input_noise=noise, **options)
    return network, x


def test_learns_labels():
    network, x = trained()
    assert (network(x).argmax(1) == (x[:, 0] > 0)).double().mean() > 0.95


def test_learns_a_teacher():
    teacher = MLP([3, 4, 2], seed=0, dtype=torch.float64)
    student = student_like(teacher, multi=3, seed=1)
    x = data.gaussian(200, 3, dtype=torch.float64)
    before = (teacher(x) - student(x)).square().mean()
    train_supervised(student, x, teacher, steps=300, lr=0.01)
    assert (teacher(x) - student(x)).square().mean() < 0.01 * before
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(("seed", "noise", "same"), [(0, 0.0, True), (1, 0.0, False), (0, 0.1, False)])
def test_same_seed_same_bits(seed, noise, same):
    first, second = trained()[0], trained(seed, noise)[0]
    assert all(map(torch.equal, first.parameters(), second.parameters())) is same


def test_global_randomness_and_snapshots_change_nothing():
    first, _ = trained()
    torch.manual_seed(99)
    seen = []
    second, _ = trained(snapshots=(0, 50, 200), on_snapshot=seen.append)
    assert seen == [0, 50, 200]
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize("labels", [True, False])
def test_it_is_adam_on_the_stated_loss(labels):
    x = data.gaussian(1, 3, dtype=torch.float64)  # of a single sample every batch is known
    teacher, network = (MLP([3, 4, 2], seed=seed, dtype=torch.float64) for seed in (0, 1))
    expected = copy.deepcopy(network)
    optimizer = torch.optim.Adam(expected.parameters(), weight_decay=0.3)  # makes the scale of the loss matter
    for rate in (0.1, 0.075, 0.025):  # half a cosine
        output = expected(x)
        loss = -output.log_softmax(1)[0, 1] if labels else (output - teacher(x).detach()).square().sum() / 2
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    target = torch.tensor([1]) if labels else teacher
    train_supervised(network, x, target, steps=3, batch_size=5, lr=0.1, weight_decay=0.3)
    for mine, theirs in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_teacher_answers_in_evaluation_mode():
    x = data.gaussian(100, 3)
    teacher = MLP([3, 4, 2], batch_norm="before").train()
    before = copy.deepcopy(teacher.state_dict())
    train_supervised(MLP([3, 8, 2], seed=1), x, teacher, steps=3)
    assert teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_snapshot_may_change_the_mode():
    x = data.gaussian(100, 3)
    plain, watched = (MLP([3, 8, 2], batch_norm="before", seed=1) for _ in range(2))
    target = MLP([3, 4, 2])
    train_supervised(plain, x, target, steps=20)
    train_supervised(watched, x, target, steps=20, snapshots=(5,), on_snapshot=lambda step: watched.eval())
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in watched.state_dict().items())


def test_input_noise_has_the_stated_deviation():
    seen = []
    network = MLP([3, 8, 2])
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    train_supervised(network, torch.ones(9, 3), MLP([3, 4, 2]), steps=1, batch_size=20_000, input_noise=0.25)
    batch = seen[-1]
    assert batch.shape == (20_000, 3)
    torch.testing.assert_close(batch.mean(0), torch.ones(3), rtol=0, atol=0.01)
    torch.testing.assert_close(batch.std(0), torch.full((3,), 0.25), rtol=0, atol=0.01)


def test_ends_in_evaluation_mode_and_reports_its_last_step():
    reports = []
    network, _ = trained(progress=lambda step, steps: reports.append((step, steps)))
    assert not network.training
    assert reports[0] == (0, 200) and reports[-1] == (200, 200)


REFUSED = [
    ("x", {"x": torch.zeros(0, 3)}),
    ("x", {"x": torch.full((4, 3), torch.nan)}),
    ("x", {"x": torch.zeros(4)}),
    ("target", {"target": torch.zeros(4)}),
    ("target", {"target": torch.zeros(3, dtype=torch.int64)}),
    ("target", {"target": [0, 1, 0, 1]}),
    ("target", {"target": torch.full((4,), 2)}),
    ("target", {"target": torch.full((4,), -1)}),
    ("target", {"target": MLP([3, 4, 1])}),
    ("x", {"target": MLP([3, 4, 2], dtype=torch.float64)}),
    ("x", {"x": torch.zeros(4, 3, dtype=torch.float64)}),
    ("x", {"x": torch.zeros(4, 5)}),
    ("steps", {"steps": -1}),
    ("batch_size", {"batch_size": 0}),
    ("lr", {"lr": -1.0}),
    ("input_noise", {"input_noise": float("inf")}),
    ("weight_decay", {"weight_decay": -1.0}),
    ("snapshots", {"snapshots": [11]}),
]


@pytest.mark.parametrize(("argument", "changed"), REFUSED)
def test_refusals(argument, changed):
    given = {"x": torch.zeros(4, 3), "target": torch.zeros(4, dtype=torch.int64), "steps": 10} | changed
    with pytest.raises((ValueError, TypeError), match=f"^{argument}.*: got .*; takes "):
        train_supervised(MLP([3, 4, 2]), given.pop("x"), given.pop("target"), **given)
