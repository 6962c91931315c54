"""`measure` and the experiments on the GPU: nothing waits within a pass, and what is found is what the CPU finds."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE, on_hardware
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastspec as fs
from fastspec.experiments import digits
from fastspec.experiments.provenance import provenance
from fastspec.experiments.two_layer import TwoLayer

pytestmark = pytest.mark.gpu
SAMPLES, INPUTS = 4096, 20  # of a batch


def mlps():
    teacher = fs.teachers.separated([INPUTS, 50, 75, 10], seed=0)
    return teacher, fs.networks.student_like(teacher, multi=4, seed=1)


def population():
    teacher = fs.teachers.two_layer(d=INPUTS, m=10, c=7, seed=0)
    return teacher, fs.Population.two_layer(teacher, multi=[1, 2, 5], seeds=range(4), std=0.5)


def modules():
    return tuple(nn.Sequential(nn.Linear(INPUTS, n), nn.ReLU(), nn.Linear(n, 5)) for n in (30, 70))


def watched(batches):
    """Let torch refuse every wait of the host from the second batch on; at the first, kernels are compiled."""
    try:
        for i, batch in enumerate(batches):
            if i == 1:
                torch.cuda.set_sync_debug_mode("error")
            yield batch
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WatchedLoader(DataLoader):
    def __iter__(self):
        return watched(super().__iter__())


DATA = {
    "on the GPU": lambda x: watched(x.to(DEVICE).split(SAMPLES)),
    "on the CPU": lambda x: watched(x.split(SAMPLES)),
    "pinned by a loader": lambda x: WatchedLoader(TensorDataset(x), SAMPLES, pin_memory=True),
}


@on_hardware
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("pair", [mlps, population, modules])
def test_the_host_waits_for_nothing_within_a_pass(pair, data):
    teacher, student = (network.to(DEVICE) for network in pair())
    x = fs.data.gaussian(4 * SAMPLES, INPUTS, seed=2)
    found = fs.measure(teacher, student, DATA[data](x), batch_size=SAMPLES, coactivation=True, progress=False)
    assert found.samples == len(x)


@pytest.mark.parametrize("pair", [mlps, population, modules])
def test_nan_is_refused_with_its_batch(pair):
    teacher, student = (network.to(DEVICE) for network in pair())
    x = torch.rand(3 * SAMPLES, INPUTS)
    x[SAMPLES + 7, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^data, batch 1: got .*NaN"):
        fs.measure(teacher, student, x.to(DEVICE), batch_size=SAMPLES)


def test_activations_that_overflow_are_refused_with_their_layer():
    one = torch.ones(1, 1, device=DEVICE)
    teacher, student = (fs.MLP.from_weights([(one, None), (one * size, None), (one, None)]) for size in (1, 1e30))
    with pytest.raises(ValueError, match=r"^data.*, hidden2: student: got NaN, infinite or too large"):
        fs.measure(teacher, student, torch.rand(1000, 1, device=DEVICE))


def test_counts_differ_by_gates_near_0_alone():
    teacher, students = population()
    x = fs.data.gaussian(20_000, INPUTS, std=1.5, seed=1)
    here = fs.measure(teacher, students, x)
    there = fs.measure(teacher.to(DEVICE), students.to(DEVICE), x).to("cpu")
    for k in range(len(students)):
        (weight, bias), _ = (tuple(p.double() for p in layer) for layer in students.weights(k))
        z, size = x.double() @ weight.T + bias, x.double().abs() @ weight.T.abs() + bias.abs()
        near = (z.abs() <= 2e-6 * size).sum(0)
        assert ((there.moments(k).student_active - here.moments(k).student_active).abs() <= near).all()
        torch.testing.assert_close(there.moments(k).correlation(), here.moments(k).correlation(), rtol=0, atol=1e-5)


@on_hardware
def test_the_gpu_is_taken_without_being_asked_for():
    assert fs.default_device() == "cuda" and torch.cuda.get_device_name() in provenance()["measured on"]
    with fs.backend("cpu"):
        assert fs.default_device() == "cpu"


def test_two_layer_runs_agree_with_the_cpu(tmp_path, monkeypatch):
    """In float64, where 500 steps leave no difference to speak of between two orders of summation."""
    sizes = {"inputs": 30, "outputs": 20, "samples": 2000, "evaluation_samples": 2000, "steps": 500}
    run = TwoLayer(multi=(1, 2), seeds=2, dtype="float64", **sizes)
    found = {}
    for device in (DEVICE, "cpu"):
        monkeypatch.setenv("FASTSPEC_DEVICE", device)
        found[device] = run.run(tmp_path / f"on {device}")
    there, here = found[DEVICE], found["cpu"]
    for name in ("loss", "loss_train", "best_correlation", "best_correlation_train", "max_correlation"):
        got, want = (torch.from_numpy(results[name].values) for results in (there, here))
        relative = 1e-8 if name.startswith("loss") else 0
        torch.testing.assert_close(got, want, rtol=relative, atol=0 if relative else 1e-6, equal_nan=True)


def test_digits_are_measured_as_on_the_cpu():
    teacher = fs.MLP([digits.PIXELS, 50, 50, 50, digits.DIGITS], seed=0)
    student = fs.networks.student_like(teacher, multi=5, seed=1)
    held_out = fs.data.digits(seed=0).held_out
    here = digits.measurement(teacher, student, held_out)
    there = digits.measurement(teacher.to(DEVICE), student.to(DEVICE), fs.data.digits(seed=0).to(DEVICE).held_out)
    assert {tensor.device.type for tensor in there.values()} == {"cpu"}
    torch.testing.assert_close(there["loss"], here["loss"], rtol=1e-5, atol=0)
    for name in ("best_correlation", "layer_score"):
        torch.testing.assert_close(there[name], here[name], rtol=0, atol=1e-5, equal_nan=True)
    assert (there["accuracy"] - here["accuracy"]).abs() <= 2 / len(held_out.x)
    assert torch.equal(there["constant_teachers"], here["constant_teachers"])


def test_digits_run_from_start_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTSPEC_DEVICE", DEVICE)
    run = digits.Digits(hidden=(20,), multi=(2,), teacher_steps=300, student_steps=300, measurements=3)
    found = run.run(tmp_path / "run")
    assert found.teacher_accuracy_held_out > 0.8 and bool(found.loss.notnull().all())
    assert (found.loss.isel(step=-1) < found.loss.isel(step=0) / 2).all()
