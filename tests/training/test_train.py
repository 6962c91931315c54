"""`train`: what it computes, with every kind of student, data and optimizer."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from fastspec import data
from fastspec.measure import measure
from fastspec.networks import MLP, ConvNet, student_like
from fastspec.training import train, updates

pytestmark = pytest.mark.usefixtures("one_thread")
D, C, N = 3, 2, 100


def inputs(n=N, seed=0, dtype=torch.float64):
    return data.gaussian(n, D, seed=seed, dtype=dtype)


def mlp(hidden=8, seed=1, **options):
    return MLP([D, hidden, hidden, C], seed=seed, dtype=torch.float64, **options)


def by_hand(teacher, network, x, steps, *, batch, seed=0, loss="squared", optimizer=None, normalize=False, lr=0.02):
    """The stated training, written out, with the batches of epochs in a random order."""
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr)
    taken = batches(len(x), batch, steps, seed)
    network.train()
    for t in range(steps):
        rows = taken[t]
        inputs_ = x(t // (N // batch)) if callable(x) else x
        answer = teacher(inputs_[rows]).detach()
        output = network(inputs_[rows])
        value = (output - answer).square().sum(1).mean() / 2
        if loss == "cross_entropy":
            value = nn.functional.cross_entropy(output, answer.argmax(1))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if normalize:
            for layer in network.layers[:-1]:
                layer.weight.data /= layer.weight.data.flatten(1).norm(dim=1).view(-1, *[1] * (layer.weight.dim() - 1))
    return network.eval()


def batches(samples, batch, steps, seed):
    from fastspec.randomness import generator

    rows = []
    for epoch in range(-(-steps // (samples // batch))):
        order = torch.randperm(samples, generator=generator(seed, f"batches of epoch {epoch}"))
        rows += list(order[: samples // batch * batch].view(-1, batch))
    return rows


def assert_equal(mine, theirs, **tolerance):
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], tensor, **(tolerance or {"rtol": 0, "atol": 1e-11}))


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("batch_norm", [None, "before", "after"])
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_it_is_the_stated_training(loss, batch_norm, slope):
    x, teacher = inputs(), mlp(4, seed=0)
    student = mlp(batch_norm=batch_norm, negative_slope=slope)
    expected = by_hand(teacher, copy.deepcopy(student), x, 30, batch=16, loss=loss)
    history = train(teacher, student, x, epochs=5, batch_size=16, loss=loss, lr=0.02)
    assert (history.steps, history.epoch_steps) == (30, 6)
    assert_equal(student, expected)
    assert not student.training


@pytest.mark.parametrize("kind", ["plain", "by autograd"])
@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.5, "weight_decay": 0.1}])
def test_momentum_and_weight_decay(kind, options):
    x, teacher, student = inputs(), mlp(4, seed=0), mlp(batch_norm=None if kind == "plain" else "before")
    expected = copy.deepcopy(student)
    optimizer = torch.optim.SGD(expected.parameters(), 0.02, **options)
    by_hand(teacher, expected, x, 30, batch=16, optimizer=optimizer)
    train(teacher, student, x, steps=30, batch_size=16, lr=0.02, **options)
    assert_equal(student, expected)


@pytest.mark.parametrize("batch_norm", [None, "before"])
def test_normalize(batch_norm):
    x, teacher, student = inputs(), mlp(4, seed=0), mlp(batch_norm=batch_norm)
    expected = by_hand(teacher, copy.deepcopy(student), x, 20, batch=16, normalize=True)
    train(teacher, student, x, steps=20, batch_size=16, lr=0.02, normalize=True)
    assert_equal(student, expected)
    assert torch.allclose(student.layers[1].weight.norm(dim=1), torch.ones(8).double())
    assert not torch.allclose(student.layers[2].weight.norm(dim=1), torch.ones(2).double())


def test_any_optimizer_and_a_schedule_by_step():
    x, teacher, student = inputs(), mlp(4, seed=0), mlp()
    expected = copy.deepcopy(student)
    optimizer = torch.optim.Adam(expected.parameters(), 0.1, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    taken = batches(N, 16, 10, 0)
    for rows in taken[:10]:
        optimizer.zero_grad()
        ((expected(x[rows]) - teacher(x[rows]).detach()).square().sum(1).mean() / 2).backward()
        optimizer.step()
        schedule.step()
    make = partial(torch.optim.Adam, weight_decay=0.3)
    train(teacher, student, x, steps=10, batch_size=16, lr=0.1, optimizer=make, schedule=lambda step: 1 / (1 + step))
    assert_equal(student, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch_norm", [None, "before"])
def test_a_schedule_by_epoch(batch_norm):
    x, teacher, student = inputs(), mlp(4, seed=0), mlp(batch_norm=batch_norm)
    other, table = copy.deepcopy(student), [1.0] * 12 + [0.5] * 6 + [0.25] * 7
    train(teacher, student, x, steps=25, batch_size=16, schedule={3: 0.25, 2: 0.5}, lr=0.02)
    train(teacher, other, x, steps=25, batch_size=16, schedule=table, lr=0.02)
    assert_equal(student, other, rtol=0, atol=0)
    still = copy.deepcopy(student)
    train(teacher, still, x, steps=0, batch_size=16)
    assert_equal(still, student, rtol=0, atol=0)


@pytest.fixture
def op_calls(monkeypatch):
    """Steps of every call of the op, as they come."""
    calls, whole = [], updates.mlp_sgd_step

    def counted(*args, **options):
        calls.append(options["indices"].shape[-2])
        return whole(*args, **options)

    monkeypatch.setattr(updates, "mlp_sgd_step", counted)
    return calls


def test_short_epochs_of_fixed_data_are_trained_together(op_calls):
    """The same steps as epoch by epoch, in fewer calls of the op."""
    calls = op_calls
    x, teacher = inputs(10), mlp(4, seed=9)
    found = {}
    for name, given in (("fixed", x), ("fresh", lambda epoch: x)):
        students = [mlp(seed=k) for k in range(2)]
        calls.clear()
        history = train(teacher, students, given, steps=401, batch_size=5, snapshots=[7, 401], seed=[3, 4])
        found[name] = history.loss, students[1].layers[1].weight, len(calls)
        assert sum(calls) == 401
    assert torch.equal(found["fixed"][0], found["fresh"][0]) and torch.equal(found["fixed"][1], found["fresh"][1])
    assert found["fresh"][2] >= 201 and found["fixed"][2] < 100


def test_a_call_is_at_most_four_times_as_long_as_the_last(op_calls):
    """Also after snapshots that have kept calls short."""
    train(mlp(4, seed=9), mlp(), inputs(), steps=700, batch_size=5, snapshots=range(40))
    assert sum(op_calls) == 700 and max(b / a for a, b in pairwise(op_calls)) <= 4


def test_fresh_data_each_epoch():
    asked = []

    def fresh(epoch):
        asked.append(epoch)
        return inputs(seed=epoch)

    teacher, student = mlp(4, seed=0), mlp()
    other = copy.deepcopy(student)
    train(teacher, student, fresh, epochs=3, batch_size=16, lr=0.02)
    assert set(asked) == {0, 1, 2}
    optimizer = torch.optim.SGD(other.parameters(), 0.02)
    rows = batches(N, 16, 18, 0)
    for t in range(18):
        part = inputs(seed=t // 6)[rows[t]]
        optimizer.zero_grad()
        ((other(part) - teacher(part).detach()).square().sum(1).mean() / 2).backward()
        optimizer.step()
    assert_equal(student, other)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "normalize": True}, {"loss": "cross_entropy"}])
def test_students_side_by_side_are_what_they_are_alone(options):
    x, teacher = inputs(), mlp(4, seed=0)
    many = [student_like(teacher, multi=2, seed=k) for k in range(3)]
    alone = copy.deepcopy(many)
    history = train(teacher, many, x, epochs=3, batch_size=16, lr=0.02, seed=[5, 6, 7], evaluation=x, **options)
    for k, student in enumerate(alone):
        one = train(teacher, student, x, epochs=3, batch_size=16, lr=0.02, seed=5 + k, evaluation=x, **options)
        assert_equal(many[k], student)
        torch.testing.assert_close(history.loss[k], one.loss, rtol=1e-9, atol=1e-12)
        for step, measured in history.measurements.items():
            torch.testing.assert_close(measured.loss[k], one.measurements[step].loss, rtol=1e-9, atol=1e-12)
            scores = (m.layer_scores()["hidden1"] for m in (measured.student(k), one.measurements[step]))
            torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-12)


def test_learns_labels():
    network, x = mlp(), inputs()
    labels = (x[:, 0] > 0).long()
    train(labels, network, x, steps=200, lr=0.02, optimizer=torch.optim.Adam, replacement=True)
    assert (network(x).argmax(1) == labels).double().mean() > 0.95


def test_answers_given_are_a_teacher_asked():
    x, teacher, student = inputs(), mlp(4, seed=0), mlp()
    other = copy.deepcopy(student)
    train(teacher, student, x, epochs=2, batch_size=16)
    train(teacher(x).detach(), other, x, epochs=2, batch_size=16)
    assert_equal(student, other, rtol=0, atol=0)


def test_a_convolutional_student():
    teacher = ConvNet((1, 6, 6), [3], 4, seed=0)
    student = student_like(teacher, multi=2, seed=1)
    x = data.gaussian(64, (1, 6, 6))
    expected = copy.deepcopy(student)
    optimizer = torch.optim.SGD(expected.parameters(), 0.05)
    for rows in batches(64, 16, 8, 0)[:8]:
        optimizer.zero_grad()
        ((expected(x[rows]) - teacher(x[rows]).detach()).square().sum(1).mean() / 2).backward()
        optimizer.step()
        for layer in expected.layers[:-1]:
            layer.weight.data /= layer.weight.data.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    history = train(teacher, student, x, epochs=2, batch_size=16, lr=0.05, evaluation=x, normalize=True)
    assert_equal(student, expected, rtol=1e-5, atol=1e-6)
    assert list(history.measurements) == [0, 4, 8]


def test_a_module_of_no_family_and_another_dtype():
    teacher = nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, C))
    student = nn.Sequential(nn.Linear(D, 9), nn.ReLU(), nn.Linear(9, C))
    x = inputs(dtype=torch.float32)
    before = (teacher(x) - student(x)).square().mean()
    history = train(teacher, student, x, steps=400, lr=0.02, evaluation=x, optimizer=torch.optim.Adam)
    assert (teacher(x) - student(x)).square().mean() < 0.05 * before
    assert history.measurements[400].layers
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("batch_norm", [None, "before"])
def test_evaluation_is_measure(batch_norm):
    x, held_out, teacher, student = inputs(), inputs(70, seed=9), mlp(4, seed=0), mlp(batch_norm=batch_norm)
    start = copy.deepcopy(student)
    history = train(teacher, student, x, epochs=2, batch_size=16, lr=0.02, evaluation=held_out)
    assert list(history.measurements) == [0, 6, 12]
    for step, network in ((0, start.eval()), (12, student)):
        torch.testing.assert_close(history.measurements[step].loss, measure(teacher, network, held_out).loss)


def test_snapshots_are_called_with_networks_up_to_date():
    x, teacher, student = inputs(), mlp(4, seed=0), mlp()
    seen = {}
    options = {"batch_size": 16, "lr": 0.02}
    history = train(
        teacher, student, x, steps=20, snapshots=(0, 7, 20), evaluation=x,
        on_snapshot=lambda step, found: seen.update({step: (copy.deepcopy(student), found)}), **options,
    )  # fmt: skip
    assert list(seen) == [0, 7, 20] and history.measurements == {}
    for step, (network, found) in seen.items():
        expected = mlp()
        train(teacher, expected, x, steps=step, **options)
        assert_equal(network, expected, rtol=0, atol=0)
        torch.testing.assert_close(found.loss, measure(teacher, expected, x).loss)


@pytest.mark.parametrize("batch_norm", [None, "before"])
def test_a_snapshot_may_change_the_mode(batch_norm):
    x, teacher = inputs(), mlp(4, seed=0)
    plain, watched = (mlp(batch_norm=batch_norm) for _ in range(2))
    train(teacher, plain, x, steps=20)
    train(teacher, watched, x, steps=20, snapshots=(5,), on_snapshot=lambda step, found: watched.eval())
    assert_equal(watched, plain, rtol=0, atol=0)


def test_a_teacher_answers_in_evaluation_mode():
    x, teacher = inputs(), mlp(4, seed=0, batch_norm="before").train()
    before = copy.deepcopy(teacher.state_dict())
    train(teacher, mlp(), x, steps=3)
    assert teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("batch_norm", [None, "before"])
def test_seeds_and_nothing_else_decide(batch_norm):
    x, teacher = inputs(), mlp(4, seed=0)

    def trained(**options):
        torch.manual_seed(len(options))
        network = mlp(batch_norm=batch_norm)
        train(teacher, network, x, steps=12, batch_size=16, **options)
        return network

    first = trained()
    assert_equal(trained(seed=0), first, rtol=0, atol=0)
    assert_equal(trained(snapshots=(3, 4), on_snapshot=lambda *_: torch.rand(3)), first, rtol=0, atol=0)
    for other in ({"seed": 1}, {"input_noise": 0.1}, {"replacement": True}):
        assert not torch.equal(trained(**other).layers[0].weight, first.layers[0].weight)


def test_the_loss_is_that_of_each_batch():
    x, teacher, student = inputs(), mlp(4, seed=0), mlp()
    rows = batches(N, 16, 1, 0)[0]
    expected = ((teacher(x[rows]) - student(x[rows])).square().sum(1).mean() / 2).item()
    history = train(teacher, student, x, steps=8, batch_size=16)
    assert float(history.loss[0]) == pytest.approx(expected) and history.loss.shape == (8,)


def test_progress_is_reported_to_the_end():
    reports = []
    train(mlp(4, seed=0), mlp(), inputs(), steps=13, progress=lambda step, steps: reports.append((step, steps)))
    assert reports[0] == (0, 13) and reports[-1] == (13, 13)


LABELS = torch.zeros(N, dtype=torch.int64)
REFUSED = {
    "data empty": ({"data": torch.zeros(0, D).double()}, "data: got shape"),
    "data NaN": ({"data": torch.full((N, D), math.nan).double()}, "data: got 300 of 300"),
    "data rank": ({"data": torch.zeros(N).double()}, "data: got shape"),
    "data dtype": ({"data": torch.zeros(N, D)}, "data: got dtype"),
    "data integers": ({"data": torch.zeros(N, D).long()}, "data: got dtype"),
    "data kind": ({"data": [1.0]}, "data: got list"),
    "data width": ({"data": torch.zeros(N, 5).double()}, "student: got inputs|x: got shape"),
    "data gives": ({"data": lambda epoch: None}, "data of epoch 0: got NoneType"),
    "data shrinks": ({"data": lambda epoch: inputs(100 - epoch), "steps": 30}, "data of epoch 1: got shape"),
    "teacher kind": ({"teacher": [0] * N}, "teacher: got list"),
    "teacher outputs": ({"teacher": MLP([D, 4, 1], dtype=torch.float64)}, "teacher: got 1 outputs"),
    "teacher dtype": ({"teacher": MLP([D, 4, C])}, "data: got dtype|teacher: got"),
    "teacher and function": (
        {"teacher": torch.zeros(N, C).double(), "data": lambda epoch: inputs()},
        "teacher: got outputs",
    ),
    "labels count": ({"teacher": LABELS[:3]}, "teacher: got shape"),
    "labels high": ({"teacher": LABELS + 2}, "teacher: got labels from 2 to 2"),
    "labels low": ({"teacher": LABELS - 1}, "teacher: got labels from -1"),
    "labels squared": ({"teacher": LABELS, "loss": "squared"}, "loss: got 'squared' with labels"),
    "answers dtype": ({"teacher": torch.zeros(N, C)}, "teacher: got dtype"),
    "answers shape": ({"teacher": torch.zeros(N, 3).double()}, "teacher: got shape"),
    "answers NaN": ({"teacher": torch.full((N, C), math.nan).double()}, "teacher: got 200 of 200"),
    "loss": ({"loss": "hinge"}, "loss: got 'hinge'"),
    "student": ({"student": "network"}, "student: got str"),
    "no students": ({"student": []}, "student: got an empty list"),
    "students differ": ({"student": [mlp(), mlp(9)]}, r"student\[1\]: got widths"),
    "students normed": ({"student": [mlp(batch_norm="before")]}, r"student\[0\]: got a MLP with batch norm"),
    "students optimizer": ({"student": [mlp()], "optimizer": torch.optim.Adam}, "optimizer: got one, with"),
    "frozen": ({"student": mlp(batch_norm="before").requires_grad_(False)}, "student: got a network without"),
    "no length": ({"steps": None}, "epochs: got None"),
    "two lengths": ({"epochs": 3}, "epochs: got 3 with steps"),
    "steps": ({"steps": -1}, "steps: got -1"),
    "epochs": ({"epochs": 1.5, "steps": None}, "epochs: got 1.5"),
    "batch_size": ({"batch_size": 0}, "batch_size: got 0"),
    "batch_size high": ({"batch_size": N + 1}, "batch_size: got 101"),
    "batch of one": ({"student": mlp(batch_norm="before"), "batch_size": 1}, "batch_size: got 1"),
    "lr": ({"lr": -1.0}, "lr: got -1.0"),
    "schedule epoch": ({"schedule": {-1: 0.5}}, "schedule: got -1"),
    "schedule factor": ({"schedule": {1: -0.5}}, r"schedule\[1\]: got -0.5"),
    "schedule table": ({"schedule": [1.0]}, "schedule: got shape"),
    "momentum": ({"momentum": 2.0}, "momentum: got 2.0"),
    "weight_decay": ({"weight_decay": -1.0}, "weight_decay: got -1.0"),
    "optimizer": ({"optimizer": torch.optim.Adam, "momentum": 0.5}, "optimizer: got one together"),
    "optimizer and decay": ({"optimizer": torch.optim.Adam, "weight_decay": 0.5}, "optimizer: got one together"),
    "input_noise": ({"input_noise": math.inf}, "input_noise: got inf"),
    "loss_limit": ({"loss_limit": 0.0}, "loss_limit: got 0.0"),
    "precision": ({"precision": "tf32"}, "precision: got 'tf32'"),
    "precision of autograd": ({"student": mlp(batch_norm="before"), "precision": "fp64"}, "precision: got 'fp64' with"),
    "snapshots": ({"snapshots": [11]}, "snapshots: got 11"),
    "seed": ({"seed": [1, 2]}, "seed: got 2 seeds"),
    "seed low": ({"seed": -1}, "seed: got -1"),
    "evaluation": ({"evaluation": [1.0]}, "evaluation: got list"),
    "evaluation NaN": ({"evaluation": torch.full((N, D), math.nan).double()}, "evaluation: got 300 of 300"),
    "evaluation labels": ({"teacher": LABELS, "evaluation": inputs()}, "evaluation: got inputs, without"),
    "checkpoint_every": ({"checkpoint_every": 0}, "checkpoint_every: got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    changed, message = REFUSED[case]
    given = {"teacher": mlp(4, seed=0), "student": mlp(), "data": inputs(), "steps": 10, **copy.deepcopy(changed)}
    with pytest.raises((ValueError, TypeError), match=f"^({message}).*takes "):
        train(given.pop("teacher"), given.pop("student"), given.pop("data"), **given)
