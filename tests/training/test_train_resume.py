"""`train` interrupted: checkpoints, bitwise resume, Ctrl-C, and checkpoints that do not belong."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import pytest
import torch

from fastspec import data
from fastspec.networks import MLP
from fastspec.training import deep_run, train
from fastspec.training.checkpoints import digest

pytestmark = pytest.mark.usefixtures("one_thread")
D, C, N = 4, 3, 96


class Slowing(torch.optim.SGD):
    """Keeps a number of its own."""

    def step(self, closure=None):
        for group in self.param_groups:
            state = self.state[group["params"][0]]
            state["steps"] = state.get("steps", 0) + 1
            group["lr"] /= state["steps"]
        return super().step(closure)


KINDS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "noise": {"input_noise": 0.1},
    "many": {"students": 2, "seed": [3, 4], "momentum": 0.5},
    "batch norm": {"batch_norm": "before", "momentum": 0.9},
    "adam": {"optimizer": partial(torch.optim.Adam, weight_decay=0.1)},
    "numbers": {"optimizer": Slowing},
    "amsgrad": {"optimizer": partial(torch.optim.AdamW, amsgrad=True), "batch_norm": "after"},
    "fresh": {"fresh": True},
}


def run(*, students=None, batch_norm=None, fresh=False, **options):
    """The networks that a training reaches, and its history."""
    teacher = MLP([D, 3, 3, C], seed=0)
    networks = [MLP([D, 6, 6, C], seed=k + 1, batch_norm=batch_norm) for k in range(students or 1)]
    x = (lambda epoch: data.gaussian(N, D, seed=epoch)) if fresh else data.gaussian(N, D)
    student = networks if students else networks[0]
    given = {"epochs": 6, "batch_size": 8, "lr": 0.02, "schedule": {3: 0.5}, "evaluation": data.gaussian(50, D, seed=9)}
    return networks, train(teacher, student, x, **{**given, **options})


def assert_same(one, two):
    for a, b in zip(one[0], two[0], strict=True):
        for name, tensor in a.state_dict().items():
            assert torch.equal(tensor, b.state_dict()[name]), name
    assert torch.equal(one[1].loss.nan_to_num(-1), two[1].loss.nan_to_num(-1))
    assert list(one[1].measurements) == list(two[1].measurements)
    for step, measured in one[1].measurements.items():
        assert torch.equal(measured.loss, two[1].measurements[step].loss)
        for name, moments in measured.layers.items():
            assert torch.equal(moments.cross_scatter, two[1].measurements[step].layers[name].cross_scatter)


class Interrupt:
    """A progress function that presses Ctrl-C at the first call at or after `step`."""

    def __init__(self, step, error=KeyboardInterrupt):
        self.step, self.error = step, error

    def __call__(self, step, steps):
        if step >= self.step:
            raise self.error


@pytest.mark.parametrize("every", [7, None])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on_bit_for_bit(kind, every, tmp_path):
    whole = run(**KINDS[kind])
    kept = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": every}
    for step in (20, 45):  # within an epoch, and in a later one
        with pytest.raises(KeyboardInterrupt, match=r"the same call goes on from .*run\.safetensors"):
            run(progress=Interrupt(step), **kept, **KINDS[kind])
    seen = []
    resumed = run(progress=lambda step, _: seen.append(step), **kept, **KINDS[kind])
    assert 45 <= seen[0] < 72
    assert_same(resumed, whole)
    assert_same(run(**kept, **KINDS[kind]), whole)  # one that is over


class KilledError(Exception):
    """The end of a process, as nothing is saved on its way out."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_from_its_last_checkpoint(kind, tmp_path):
    kept = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 25}
    with pytest.raises(KilledError):
        run(progress=Interrupt(48, KilledError), **kept, **KINDS[kind])
    seen = []
    resumed = run(progress=lambda step, _: seen.append(step), **kept, **KINDS[kind])
    assert seen[0] == 25
    assert_same(resumed, run(**KINDS[kind]))
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_callback_that_was_interrupted_is_called_again(tmp_path):
    finished, interrupted = [], []

    def callback(step, measured):
        if step == 20 and not interrupted:
            interrupted.append(step)
            raise KeyboardInterrupt
        finished.append(step)

    given = {"snapshots": [0, 20, 30], "checkpoint": tmp_path / "run", "on_snapshot": callback}
    with pytest.raises(KeyboardInterrupt):
        run(**given)
    run(**given)
    assert finished == [0, 20, 30]


@pytest.mark.parametrize("kind", ["plain", "batch norm"])
def test_the_length_of_calls_changes_nothing(kind, monkeypatch):
    whole = run(**KINDS[kind])
    monkeypatch.setattr("fastspec.training.two_layer.CALL_SECONDS", 0.0)
    assert_same(run(**KINDS[kind]), whole)


def test_more_steps_from_a_finished_checkpoint(tmp_path):
    path = tmp_path / "run"
    run(epochs=2, checkpoint=path)
    assert_same(run(epochs=6, checkpoint=path), run(epochs=6))
    with pytest.raises(ValueError, match="steps: got 24; takes at least 72"):
        run(epochs=2, checkpoint=path)


def test_measurements_that_a_checkpoint_does_not_have_are_refused(tmp_path):
    path = tmp_path / "run"
    run(checkpoint=path, snapshots=[20])
    with pytest.raises(ValueError, match=r"snapshots: got \[10\]; takes later steps than 20"):
        run(checkpoint=path, snapshots=[10, 20])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lr": 0.03}, "lr"),
        ({"momentum": 0.5}, "momentum"),
        ({"batch_size": 16}, "batch_size"),
        ({"seed": 1}, "seeds"),
        ({"schedule": {2: 0.5}}, "schedule"),
        ({"loss": "cross_entropy"}, "loss"),
        ({"normalize": True}, "normalize"),
        ({"replacement": True}, "replacement"),
        ({"input_noise": 0.1}, "input_noise"),
        ({"precision": "tf32"}, "precision"),
        ({"loss_limit": 1e8}, "loss_limit"),
        ({"fresh": False, "evaluation": None}, "evaluation"),
        ({"optimizer": torch.optim.Adam}, "optimizer"),
        ({"students": 2}, "student, parameters"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(change, name, tmp_path):
    path = tmp_path / "run"
    run(epochs=1, checkpoint=path, loss_limit=1e9)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"checkpoint: got .*run with other .*{name}.*; takes"):
        run(**{"epochs": 1, "checkpoint": path, "loss_limit": 1e9, **change})
    assert path.read_bytes() == before


def test_a_checkpoint_with_an_option_more_is_refused(tmp_path):
    run(epochs=1, checkpoint=tmp_path / "run", precision="tf32")
    with pytest.raises(ValueError, match=r"checkpoint: got .*run with other precision; takes"):
        run(epochs=1, checkpoint=tmp_path / "run")


def test_digests_tell_shapes_and_dtypes_apart():
    x = torch.zeros(2, 6)
    assert len({digest(t) for t in (x, x.view(3, 4), x.double()[:1], x.int())}) == 4 and digest(x) == digest(x.clone())


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run"
    MLP([2, 2]).save(path)
    with pytest.raises(ValueError, match="takes a fastspec train checkpoint"):
        run(checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="truncated"):
        run(checkpoint=path)


def test_a_diverged_run_resumes_as_diverged(tmp_path):
    given = {"lr": 1e4, "checkpoint": tmp_path / "run", "momentum": 0.9}
    first, second = run(**given), run(**given)
    assert first[1].diverged_step >= 0
    assert_same(first, second)
    assert first[1].diverged_step == second[1].diverged_step and first[1].steps == second[1].steps


def test_a_checkpoint_is_saved_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(deep_run, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "run"
    with pytest.raises(KilledError):
        run(checkpoint=path, progress=Interrupt(40, KilledError))
    assert path.exists()


SCRIPT = """
import torch
from fastspec import data
from fastspec.networks import MLP
from fastspec.training import train

torch.set_num_threads(1)
student = MLP([4, 6, 6, 3], seed=1, batch_norm={norm!r})
x = data.gaussian(96, 4)
say = lambda step, steps: print("training", flush=True)
train(MLP([4, 3, 3, 3], seed=0), student, x, steps=10**6, lr=1e-4, snapshots=(), checkpoint={path!r}, progress=say)
"""


@pytest.mark.parametrize("norm", [None, "before"])
def test_ctrl_c_saves_between_two_steps(norm, tmp_path):
    path = tmp_path / "run.safetensors"
    script = textwrap.dedent(SCRIPT.format(norm=norm, path=str(path)))
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(1.0)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert "KeyboardInterrupt: training stopped after step" in error and "goes on from" in error
    step = int(error.split("after step ")[-1].split()[0])
    assert step > 0
    student, expected = (MLP([4, 6, 6, 3], seed=1, batch_norm=norm) for _ in range(2))
    teacher, x = MLP([4, 3, 3, 3], seed=0), data.gaussian(96, 4)
    given = {"lr": 1e-4, "snapshots": ()}
    train(teacher, expected, x, steps=step, **given)
    train(teacher, student, x, steps=step, checkpoint=path, **given)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)
