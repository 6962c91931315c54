"""`train_two_layer`: learning, snapshots, checkpoints and bitwise resume, divergence, and bad input."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch

from fastspec.networks import MLP
from fastspec.ops.two_layer_sgd import two_layer_sgd
from fastspec.populations import Population
from fastspec.training import History, train_two_layer
from fastspec.training import two_layer as module

D, M, C, N = 6, 3, 4, 200


@pytest.fixture
def problem():
    torch.manual_seed(3)
    teacher = MLP([D, M, C])
    return teacher, Population.two_layer(teacher, multi=[1, 4], seeds=[11, 12], std=0.1), torch.randn(N, D)


def assert_equal(a: Population, b: Population) -> None:
    assert a.widths == b.widths and a.labels == b.labels
    assert all(torch.equal(s, t) for s, t in zip(a.packed, b.packed, strict=True))


def loss(teacher: MLP, students: Population, k: int, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((teacher(x) - MLP.from_weights(students.weights(k))(x)).square().sum(1).mean() / 2)


def test_students_learn(problem):
    teacher, students, x = problem
    history = train_two_layer(teacher, students, x, steps=3000, lr=0.1)
    assert history.diverged_step.tolist() == [-1] * 4 and history.steps == 3000 and history.snapshots == {}
    assert history.population.labels == students.labels
    for k in range(4):
        assert loss(teacher, history.population, k, x) < 0.1 * loss(teacher, students, k, x)


def test_it_is_the_op(problem):
    teacher, students, x = problem
    lr, schedule = [0.1, 0.2, 0.05, 0.1], lambda step: 1 / (1 + step)
    history = train_two_layer(
        teacher, students, x, steps=30, batch_size=None, lr=lr, schedule=schedule, fixed="top", momentum=0.5
    )
    expected = two_layer_sgd(
        x,
        teacher(x).detach(),
        students.packed,
        students.offsets,
        lr=torch.tensor(lr, dtype=torch.float64),
        seeds=torch.tensor(students.labels["seed"]),
        steps=30,
        multipliers=torch.tensor([schedule(t) for t in range(30)], dtype=torch.float64),
        fixed_top=True,
        momentum=0.5,
    )
    assert all(torch.equal(a, b) for a, b in zip(history.population.packed, expected.weights, strict=True))
    assert torch.equal(history.population.w2, students.w2)


def test_the_slope_is_the_teachers(problem):
    _, students, x = problem
    teacher = MLP([D, M, C], negative_slope=0.3)
    mine = train_two_layer(teacher, students, x, steps=20)
    assert_equal(mine.population, train_two_layer(teacher, students, x, steps=20, negative_slope=0.3).population)
    other = train_two_layer(teacher, students, x, steps=20, negative_slope=0.0)
    assert not torch.equal(mine.population.w1, other.population.w1)


def test_the_teacher_answers_in_evaluation_mode(problem):
    _, students, x = problem
    teacher = MLP([D, M, C], batch_norm="before").train()
    before = copy.deepcopy(teacher.state_dict())
    trained = train_two_layer(teacher, students, x, steps=5).population
    assert teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert_equal(trained, train_two_layer(teacher.eval(), students, x, steps=5).population)


def test_one_student_alone_is_the_same(problem):
    teacher, students, x = problem
    lr = torch.tensor([0.1, 0.05, 0.1, 0.02])
    many = train_two_layer(teacher, students, x, steps=200, lr=lr).population
    for k in range(4):
        one = train_two_layer(teacher, students.select([k]), x, steps=200, lr=[float(lr[k])]).population
        assert_equal(one, many.select([k]))


def test_seeds_choose_the_batches(problem):
    teacher, students, x = problem
    default = train_two_layer(teacher, students, x, steps=20).population
    assert_equal(default, train_two_layer(teacher, students, x, steps=20, seeds=[11, 12, 11, 12]).population)
    other = train_two_layer(teacher, students, x, steps=20, seeds=[11, 12, 11, 13]).population
    assert_equal(default.select([0, 1, 2]), other.select([0, 1, 2]))
    assert not torch.equal(default.select([3]).w1, other.select([3]).w1)


def test_snapshots(problem):
    teacher, students, x = problem
    history = train_two_layer(teacher, students, x, steps=100, snapshots=[0, 40, 100])
    assert list(history.snapshots) == [0, 40, 100]
    assert_equal(history.snapshots[0], students)
    assert_equal(history.snapshots[40], train_two_layer(teacher, students, x, steps=40).population)
    assert_equal(history.snapshots[100], history.population)
    seen = {}

    def callback(step, population, diverged_step):
        seen[step] = population
        assert diverged_step.tolist() == [-1] * 4

    handed = train_two_layer(teacher, students, x, steps=100, snapshots=[0, 40, 100], on_snapshot=callback)
    assert handed.snapshots == {}
    for step, population in history.snapshots.items():
        assert_equal(population, seen[step])


class Interrupt:
    """A progress function that presses Ctrl-C at the first call at or after `step`."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, step: int, steps: int) -> None:
        if step >= self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("every", [7, None])
def test_an_interrupted_run_goes_on_bit_for_bit(problem, tmp_path, momentum, every):
    teacher, students, x = problem
    options = {"steps": 300, "snapshots": [0, 20, 250], "momentum": momentum, "lr": 0.02}
    options["schedule"] = torch.linspace(1, 0, 300)
    whole = train_two_layer(teacher, students, x, **options)
    options |= {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": every}
    with pytest.raises(KeyboardInterrupt, match=r"the same call goes on from .*run\.safetensors"):
        train_two_layer(teacher, students, x, progress=Interrupt(60), **options)
    started: list[int] = []
    resumed = train_two_layer(teacher, students, x, progress=lambda step, _: started.append(step), **options)
    assert 60 < started[0] <= 300
    again = train_two_layer(teacher, students, x, progress=started.clear, **options)
    for history in (resumed, again):
        assert_equal(history.population, whole.population)
        assert list(history.snapshots) == [0, 20, 250]
        for step, population in history.snapshots.items():
            assert_equal(population, whole.snapshots[step])


def test_a_killed_run_goes_on_from_its_last_checkpoint(problem, tmp_path):
    teacher, students, x = problem
    path = tmp_path / "run.safetensors"

    class KilledError(Exception):
        pass

    def kill(step: int, steps: int) -> None:
        if step == 50:
            raise KilledError  # nothing is saved on this way out

    options = {"steps": 90, "checkpoint": path, "checkpoint_every": 25}
    with pytest.raises(KilledError):
        train_two_layer(teacher, students, x, progress=kill, **options)
    seen = []
    resumed = train_two_layer(teacher, students, x, progress=lambda step, _: seen.append(step), **options)
    assert 50 < seen[0] <= 75
    assert_equal(resumed.population, train_two_layer(teacher, students, x, steps=90).population)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_callback_that_was_interrupted_is_called_again(problem, tmp_path):
    teacher, students, x = problem
    finished = []

    def callback(step, population, diverged_step):
        if step == 20 and not interrupted:
            interrupted.append(step)
            raise KeyboardInterrupt
        finished.append(step)

    interrupted: list[int] = []
    options = {"steps": 40, "snapshots": [10, 20, 30], "checkpoint": tmp_path / "run", "on_snapshot": callback}
    with pytest.raises(KeyboardInterrupt):
        train_two_layer(teacher, students, x, **options)
    train_two_layer(teacher, students, x, **options)
    assert finished == [10, 20, 30]


def test_more_steps_from_a_finished_checkpoint(problem, tmp_path):
    teacher, students, x = problem
    path = tmp_path / "run.safetensors"
    train_two_layer(teacher, students, x, steps=30, checkpoint=path)
    longer = train_two_layer(teacher, students, x, steps=50, checkpoint=path)
    assert_equal(longer.population, train_two_layer(teacher, students, x, steps=50).population)
    with pytest.raises(ValueError, match="steps: got 30; takes at least 50"):
        train_two_layer(teacher, students, x, steps=30, checkpoint=path)


def test_snapshots_that_a_checkpoint_does_not_have_are_refused(problem, tmp_path):
    path = tmp_path / "run.safetensors"
    train_two_layer(*problem, steps=30, checkpoint=path, snapshots=[20])
    with pytest.raises(ValueError, match=r"snapshots: got \[10, 30\]; takes later steps than 30"):
        train_two_layer(*problem, steps=50, checkpoint=path, snapshots=[10, 20, 30, 40])
    assert list(train_two_layer(*problem, steps=50, checkpoint=path, snapshots=[20, 40]).snapshots) == [20, 40]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lr": 0.02}, "lr"),
        ({"momentum": 0.5}, "momentum"),
        ({"batch_size": 8}, "batch_size"),
        ({"seeds": [1, 2, 3, 4]}, "seeds"),
        ({"schedule": [0.5] * 20}, "schedule"),
        ({"x": torch.ones(N, D)}, "x, y"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(problem, tmp_path, change, name):
    teacher, students, x = problem
    path = tmp_path / "run.safetensors"
    train_two_layer(teacher, students, x, steps=20, checkpoint=path, loss_limit=1e9)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"checkpoint: got .*run with other {name}; takes"):
        train_two_layer(teacher, students, **{"x": x, "steps": 20, "checkpoint": path, "loss_limit": 1e9, **change})
    assert path.read_bytes() == before


def test_a_checkpoint_of_other_widths_is_refused(problem, tmp_path):
    teacher, students, x = problem
    path = tmp_path / "run.safetensors"
    train_two_layer(teacher, students, x, steps=20, checkpoint=path)
    nodes = len(students.w1)
    others = Population(students.packed, torch.tensor([0, 1, 2, 3, nodes]), students.labels)
    with pytest.raises(ValueError, match=r"checkpoint: got .*run with other widths; takes"):
        train_two_layer(teacher, others, x, steps=20, checkpoint=path)


def test_a_foreign_or_damaged_checkpoint_is_refused(problem, tmp_path):
    teacher, students, x = problem
    path = tmp_path / "run.safetensors"
    students.save(path)
    with pytest.raises(ValueError, match="takes a fastspec train_two_layer checkpoint"):
        train_two_layer(teacher, students, x, steps=20, checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="truncated"):
        train_two_layer(teacher, students, x, steps=20, checkpoint=path)


@pytest.mark.parametrize("batches", ["drawn", "given to all", "given to each"])
def test_the_length_of_calls_changes_nothing(problem, monkeypatch, batches):
    teacher, students, x = problem
    size = {"given to all": (100, 5), "given to each": (len(students), 100, 5)}.get(batches)
    options = {"steps": 100, "indices": None if size is None else torch.randint(N, size)}
    whole = train_two_layer(teacher, students, x, **options)
    monkeypatch.setattr(module, "CALL_SECONDS", 0.0)
    assert_equal(whole.population, train_two_layer(teacher, students, x, **options).population)


def test_a_call_is_at_most_four_times_as_long_as_the_last(problem):
    """Also after snapshots that have kept calls short."""
    done = []
    options = {"steps": 700, "snapshots": range(40), "on_snapshot": lambda *_: None}
    train_two_layer(*problem, **options, progress=lambda step, steps: done.append(step))
    calls = [b - a for a, b in pairwise([0, *done])]
    assert sum(calls) == 700 and max(b / a for a, b in pairwise(calls)) <= 4


def test_a_diverged_student_is_reported(problem):
    teacher, students, x = problem
    history = train_two_layer(teacher, students, x, steps=100, lr=[0.05, 1e4, 0.05, 0.05], snapshots=[50])
    assert history.diverged_step[[0, 2, 3]].tolist() == [-1] * 3
    assert 0 <= int(history.diverged_step[1]) < 50
    assert all(bool(torch.isfinite(t).all()) for t in history.population.packed)
    assert_equal(history.snapshots[50].select([1]), history.population.select([1]))


def test_a_loss_far_above_that_of_silence_is_divergence(problem):
    teacher, students, x = problem
    options = {"steps": 20, "lr": 3.0, "fixed": "first", "batch_size": None}  # grows by a factor, step by step
    history = train_two_layer(teacher, students, x, **options)
    assert (history.diverged_step > 0).all()
    assert train_two_layer(teacher, students, x, loss_limit=math.inf, **options).diverged_step.tolist() == [-1] * 4
    with torch.no_grad():
        silence = float(teacher(x).square().sum(1).mean() / 2)
    for k in range(4):
        assert 0.99e8 < loss(teacher, history.population, k, x) / silence < 1e10


def change_teacher(value: float) -> MLP:
    teacher = MLP([D, M, C])
    with torch.no_grad():
        teacher.linears[0].weight.fill_(value)
    return teacher


BAD = {
    "batch_size 0": ({"batch_size": 0}, ValueError, "batch_size: got 0"),
    "batch_size fraction": ({"batch_size": 1.5}, ValueError, "batch_size: got 1.5"),
    "lr negative": ({"lr": -0.1}, ValueError, "lr: got -0.1"),
    "lr NaN": ({"lr": math.nan}, ValueError, "lr: got 1 of 1"),
    "lr count": ({"lr": [0.1, 0.1]}, ValueError, "lr: got shape [2]"),
    "lr text": ({"lr": "fast"}, TypeError, "lr: got 'fast'"),
    "seeds fractions": ({"seeds": [1.0, 2.0, 3.0, 4.0]}, TypeError, "seeds: got [1.0"),
    "seeds count": ({"seeds": [1]}, ValueError, "seeds: got shape [1]"),
    "steps": ({"steps": -1}, ValueError, "steps: got -1"),
    "schedule": ({"schedule": [1.0, 1.0]}, ValueError, "schedule: got shape [2]"),
    "schedule negative": ({"schedule": [-1.0] * 5}, ValueError, "schedule: got -1.0"),
    "indices range": ({"indices": torch.full((5, 2), N)}, ValueError, "indices: got values"),
    "indices shape": ({"indices": torch.zeros(4, 2).long()}, ValueError, "indices: got shape"),
    "indices dtype": ({"indices": torch.zeros(5, 2)}, TypeError, "indices: got dtype"),
    "x NaN": ({"x": torch.full((N, D), math.nan)}, ValueError, f"x: got {N * D} of"),
    "x empty": ({"x": torch.zeros(0, D)}, ValueError, "x: got shape [0, 6]"),
    "x rank": ({"x": torch.zeros(D)}, ValueError, "x: got shape [6]"),
    "x dtype": ({"x": torch.zeros(N, D).double()}, TypeError, "x: got torch.float64"),
    "x width": ({"x": torch.zeros(N, D + 1)}, ValueError, "x: got shape"),
    "teacher width": ({"teacher": MLP([D + 1, M, C])}, ValueError, "teacher: got 7 inputs"),
    "teacher outputs": ({"teacher": MLP([D, M, C + 1])}, ValueError, "teacher: got outputs"),
    "teacher NaN": ({"teacher": change_teacher(math.nan)}, ValueError, "teacher outputs: got"),
    "students": ({"students": MLP([D, M, C])}, TypeError, "students: got MLP"),
    "momentum": ({"momentum": -0.1}, ValueError, "momentum: got -0.1"),
    "weight_decay": ({"weight_decay": math.nan}, ValueError, "weight_decay: got nan"),
    "fixed": ({"fixed": "both"}, ValueError, "fixed: got 'both'"),
    "snapshots": ({"snapshots": [6]}, ValueError, "snapshots: got 6"),
    "loss_limit": ({"loss_limit": -1.0}, ValueError, "loss_limit: got -1.0"),
    "checkpoint_every": ({"checkpoint_every": 0}, ValueError, "checkpoint_every: got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(problem, case):
    change, error, message = BAD[case]
    teacher, students, x = problem
    with pytest.raises(error) as caught:
        train_two_layer(**{"teacher": teacher, "students": students, "x": x, "steps": 5, **change})
    assert str(caught.value).startswith(message) and "takes" in str(caught.value)


def test_no_biases(problem):
    teacher, students, x = problem
    history = train_two_layer(teacher, students, x, steps=20, bias=False)
    assert history.population.b1.abs().max() == 0 and history.population.b2.abs().max() == 0
    trained = train_two_layer(teacher, students, x, steps=20)
    with pytest.raises(ValueError, match="bias: got False"):
        train_two_layer(teacher, trained.population, x, steps=20, bias=False)
    trained.population.b1.zero_()
    with pytest.raises(ValueError, match="bias: got False"):
        train_two_layer(teacher, trained.population, x, steps=20, bias=False)


def test_a_teacher_that_answers_0_sets_no_limit(problem):
    teacher, students, x = problem
    with torch.no_grad():
        for parameter in teacher.linears[1].parameters():
            parameter.zero_()
    history = train_two_layer(teacher, students, x, steps=20)
    assert history.diverged_step.tolist() == [-1] * 4


def test_no_steps(problem):
    teacher, students, x = problem
    history = train_two_layer(teacher, students, x, steps=0)
    assert isinstance(history, History)
    assert_equal(history.population, students)
