"""Where experiments measure, and what `doctor` says of GPUs, seen without one."""

from __future__ import annotations

import re

import pytest
import torch
from clear_errors import one_line_error

import fastspec as fs
from fastspec.experiments import snapshots, two_layer_job
from fastspec.experiments.cli import main
from fastspec.experiments.clock import Clock
from fastspec.experiments.doctor import show_plans
from fastspec.experiments.provenance import provenance
from fastspec.experiments.results import RunFolder
from fastspec.experiments.two_layer import TwoLayer

GPU = torch.device("meta")  # in the place of one


def test_two_layer_jobs_train_and_measure_on_the_default_device(monkeypatch, tmp_path):
    job = TwoLayer(inputs=6, outputs=2, teacher_nodes=(3,), samples=50, evaluation_samples=50, steps=4).jobs()[0]
    seen = []

    def train(teacher, students, x, **options):
        seen.extend([next(teacher.parameters()).device, students.w1.device, x.device])
        raise KeyboardInterrupt

    students = fs.Population.two_layer(job.teacher(), multi=[1], seeds=[0])
    monkeypatch.setattr(two_layer_job, "default_device", lambda: "meta")
    monkeypatch.setattr(two_layer_job, "train_two_layer", train)
    monkeypatch.setattr(fs.Population, "two_layer", lambda teacher, **_: students.to(next(teacher.parameters()).device))
    with pytest.raises(KeyboardInterrupt):
        job.work(RunFolder(tmp_path, "two-layer", {}, {}), lambda *_: None, Clock(tmp_path / "timings.json", {}))
    assert seen == [GPU, GPU, GPU]


def test_networks_are_measured_where_the_data_is():
    teacher = fs.teachers.two_layer(d=6, m=3, c=2, seed=0)
    students = fs.Population.two_layer(teacher, multi=[1, 2], seeds=range(2))
    x = fs.data.gaussian(200, 6, seed=1)
    there, them = snapshots._beside(x.to(GPU), teacher, students)
    assert next(there.parameters()).device == them.w1.device == GPU
    assert next(teacher.parameters()).device == students.w1.device == torch.device("cpu")
    assert snapshots._beside(x, teacher, students) == (teacher, students)
    assert {t.device for t in snapshots.snapshot(teacher, students, x, x, (0.5,)).values()} == {torch.device("cpu")}


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


def test_doctor_shows_plans_from_the_command_line(capsys):
    plan = ["doctor", "--plan", "1000000", "100", "20", "200", "--population", "3"]
    assert main([*plan, "--device", "H200"]) == 0
    assert "for a full block of students" in capsys.readouterr().out
    assert "device: got 'TPU'; takes" in one_line_error(capsys, *plan, "--device", "TPU")
    assert "precision: got 'fp8'; takes" in one_line_error(capsys, *plan, "--device", "H200", "--precision", "fp8")
    assert "samples: got 0; takes" in one_line_error(capsys, "doctor", "--plan", "0", *plan[3:], "--device", "A100")


def test_doctor_says_where_experiments_compute(capsys):
    with fs.backend("reference"):
        assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"experiments use +{fs.default_device()}\n", text) and re.search(r"backend +reference\n", text)
