"""`train_two_layer` on inputs that are new at every step, and Ctrl-C while the op is at work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch

from fastspec.data import FreshGaussian, gaussian
from fastspec.networks import MLP
from fastspec.populations import Population
from fastspec.training import train_two_layer

D, M, C = 6, 3, 4


@pytest.fixture
def pair():
    torch.manual_seed(3)
    teacher = MLP([D, M, C])
    return teacher, Population.two_layer(teacher, multi=[1, 4], seeds=[11, 12], std=0.1)


def test_students_learn_online(pair):
    teacher, students = pair
    history = train_two_layer(teacher, students, FreshGaussian(1.5), steps=4000, lr=0.05)
    x = gaussian(500, D, std=1.5, seed=5)
    with torch.no_grad():
        for k in range(4):
            before, after = (
                (teacher(x) - MLP.from_weights(p.weights(k))(x)).square().mean() for p in (students, history.population)
            )
            assert after < 0.05 * before


def test_online_runs_go_on_bit_for_bit_and_students_stand_alone(pair, tmp_path):
    teacher, students = pair
    options = {"batch_size": 8, "lr": 0.05, "momentum": 0.5}
    whole = train_two_layer(teacher, students, FreshGaussian(), steps=60, **options).population
    file = tmp_path / "checkpoint"
    train_two_layer(teacher, students, FreshGaussian(), steps=25, checkpoint=file, **options)
    again = train_two_layer(teacher, students, FreshGaussian(), steps=60, checkpoint=file, **options).population
    alone = train_two_layer(teacher, students.select([2]), FreshGaussian(), steps=60, **options).population
    assert all(torch.equal(a, b) for a, b in zip(again.packed, whole.packed, strict=True))
    assert torch.equal(alone.w1, whole.w1[whole.nodes(2)])
    for other in (FreshGaussian(2.0), gaussian(50, D)):
        with pytest.raises(ValueError, match="checkpoint: got"):
            train_two_layer(teacher, students, other, steps=80, checkpoint=file, **options)
    with torch.no_grad():
        teacher.linears[0].weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match=r"run with other .*teacher\.w1"):
        train_two_layer(teacher, students, FreshGaussian(), steps=80, checkpoint=file, loss_limit=1e9, **options)


BAD = {
    "std": (lambda t, s: FreshGaussian(0.0), ValueError, "std: got 0.0"),
    "deep teacher": (
        lambda t, s: train_two_layer(MLP([D, M, M, C]), s, FreshGaussian(), steps=1),
        TypeError,
        "teacher: got 2 hidden layers",
    ),
    "module": (
        lambda t, s: train_two_layer(torch.nn.Linear(D, C), s, FreshGaussian(), steps=1),
        TypeError,
        "teacher: got Linear",
    ),
    "width": (
        lambda t, s: train_two_layer(MLP([D + 1, M, C]), s, FreshGaussian(), steps=1),
        ValueError,
        "teacher: got",
    ),
    "full batch": (
        lambda t, s: train_two_layer(t, s, FreshGaussian(), steps=1, batch_size=None),
        ValueError,
        "x: got FreshGaussian",
    ),
    "indices": (
        lambda t, s: train_two_layer(t, s, FreshGaussian(), steps=1, indices=torch.zeros(1, 2).long()),
        ValueError,
        "x: got FreshGaussian",
    ),
    "slope": (
        lambda t, s: train_two_layer(t, s, FreshGaussian(), steps=1, negative_slope=0.5),
        ValueError,
        "negative_slope: got 0.5",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(pair, case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call(*pair)


ENDLESS = """
import torch, fastspec as fs
teacher = fs.teachers.two_layer(100, 20, 50, seed=0)
students = fs.Population.two_layer(teacher, multi=[10], seeds=range(16))
print("ready", flush=True)
fs.train_two_layer(teacher, students, fs.data.gaussian(1000, 100), steps=10**9, progress=False, checkpoint=CHECKPOINT)
"""


def test_ctrl_c_is_heard(tmp_path):
    """The op is left between two calls, and the checkpoint holds what was done; a hung run would time out."""
    file = tmp_path / "checkpoint"
    program = ENDLESS.replace("CHECKPOINT", repr(str(file)))
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "training stopped after step" in errors
    assert file.exists()
