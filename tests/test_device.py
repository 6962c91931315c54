"""What changes on a GPU, seen without one: late checks, inputs that are moved, and where experiments measure."""

from __future__ import annotations

import pytest
import torch

import fastspec as fs
from fastspec import batches, layerwise
from fastspec.batches import read
from fastspec.experiments import snapshots
from fastspec.experiments.doctor import show_plans
from fastspec.experiments.provenance import provenance


@pytest.fixture
def late(monkeypatch):
    """The host waits for no value before the end of a pass, as on a GPU."""
    for module in (batches, layerwise):
        monkeypatch.setattr(module, "waits", lambda device: True)


@pytest.fixture
def networks():
    teacher = fs.teachers.separated([6, 5, 4, 3], seed=0)
    return teacher, fs.networks.student_like(teacher, multi=2, seed=1), fs.data.gaussian(700, 6, std=2.0, seed=2)


def test_late_checks_change_no_result(networks, request):
    now = fs.measure(*networks, batch_size=100)
    request.getfixturevalue("late")
    later = fs.measure(*networks, batch_size=100)
    assert torch.allclose(later.loss, now.loss, rtol=1e-6, atol=0)
    for name, moments in now.layers.items():
        assert torch.equal(moments.cross_scatter, later.layers[name].cross_scatter), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_one_batch_is_reported_at_the_end(networks, late, value):
    teacher, student, x = networks
    x[350, 2] = value
    with pytest.raises(ValueError, match="data, hidden1: teacher: got NaN, infinite or too large activations in"):
        fs.measure(teacher, student, x, batch_size=100)


def test_a_loss_that_is_not_finite_is_reported(late):
    one = torch.ones(1, 1)
    huge = fs.MLP.from_weights([(one, None), (one * 3e38, None)])
    with pytest.raises(ValueError, match="data, loss: got 1 of 1 values NaN or infinite"):
        fs.measure(huge, fs.MLP.from_weights([(one, None), (one, None)]), 4 * torch.rand(50, 1) + 1)


def test_a_population_is_the_same_in_large_slabs(request):
    teacher = fs.teachers.two_layer(d=6, m=3, c=2, seed=0)
    students = fs.Population.two_layer(teacher, multi=[1, 3], seeds=range(4))
    x = fs.data.gaussian(900, 6, seed=1)
    now = fs.measure(teacher, students, x)
    request.getfixturevalue("late")
    later = fs.measure(teacher, students, x)
    torch.testing.assert_close(later.best_correlation, now.best_correlation, rtol=0, atol=1e-6)
    torch.testing.assert_close(later.loss, now.loss, rtol=1e-6, atol=0)


def test_inputs_on_the_cpu_are_moved_to_the_networks(late):
    places = [torch.zeros(5, 2), (torch.zeros(3, 2), torch.zeros(3)), torch.zeros(4, 2, device="meta")]
    found = list(read(iter(places), 4, lambda place, x: None, False, torch.device("meta")))
    assert [batch.x.device.type for batch in found] == ["meta"] * 4


def test_inputs_on_another_gpu_are_refused_not_moved():
    teacher = fs.teachers.separated([6, 5, 3], seed=0)
    with pytest.raises(ValueError, match="device meta"):
        fs.measure(teacher, teacher, torch.zeros(5, 6, device="meta"))


def test_snapshots_are_measured_on_the_default_device(monkeypatch):
    teacher = fs.teachers.two_layer(d=6, m=3, c=2, seed=0)
    students = fs.Population.two_layer(teacher, multi=[1, 2], seeds=range(2))
    x = fs.data.gaussian(200, 6, seed=1)
    here = snapshots.snapshot(teacher, students, x, x, (0.5,))
    seen = []

    def measured(teacher, students, x, **options):
        seen.append((next(teacher.parameters()).device, students.w1.device))
        return fs.measure(teacher, students, x, **options)

    monkeypatch.setattr(snapshots, "default_device", lambda: "cpu:0")  # a device that is not called "cpu"
    monkeypatch.setattr(snapshots, "measure", measured)
    there = snapshots.snapshot(teacher, students, x, x, (0.5,))
    assert len(seen) == 2
    assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in ("loss", "best_student"))
    assert {tensor.device for tensor in there.values()} == {torch.device("cpu")}


def test_provenance_says_where_measuring_happens():
    assert provenance()["measured on"] == fs.default_device()


def test_doctor_explains_the_plans(capsys):
    show_plans(2**20, 100, 20, 200, precision="tf32", population=3, device="H200")
    text = " ".join(capsys.readouterr().out.split())
    assert "1,048,576 samples, 100 inputs, 20 x 200 nodes, 3 students, tf32, on H200" in text
    assert "recompute (taken)" in text and "stream" in text and " ms " in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to name")
@pytest.mark.parametrize("device, got", [(None, "no GPU here"), ("H900", "'H900'")])
def test_doctor_needs_a_known_gpu(device, got):
    with pytest.raises(ValueError, match=f"device: got {got}; takes B200 or H200 or H100 or A100"):
        show_plans(100, 10, 2, 3, device=device)
