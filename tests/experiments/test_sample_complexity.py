"""Sample complexity: which samples students learn from, what is recorded, and the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from fastspec import data
from fastspec.experiments.cli import main
from fastspec.experiments.deep_job import HELD_OUT_SEED
from fastspec.experiments.sample_complexity import SampleComplexity
from fastspec.measure import measure
from fastspec.networks import MLP
from fastspec.sample_complexity_report import needed_table, samples_needed
from fastspec.tensor_files import load_tensors


@pytest.fixture(scope="module")
def run(tiny_sample_complexity, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "run"
    return tiny_sample_complexity.run(folder), folder


def network(weights, prefix):
    return MLP.from_weights([(weights[f"{prefix}.w{i}"], weights[f"{prefix}.b{i}"]) for i in (1, 2, 3)])


def test_samples_are_of_the_kind_asked_for(tiny_sample_complexity):
    for job in tiny_sample_complexity.jobs():
        x, teacher = job.inputs(job.samples, 0), job.teacher()
        assert x.shape == (job.samples, 5)
        assert torch.equal(job.inputs(80, HELD_OUT_SEED), data.gaussian(80, 5, std=1.5, seed=HELD_OUT_SEED))
        if job.kind == "gaussian":
            assert torch.equal(x, data.gaussian(job.samples, 5, std=1.5, seed=0))
            continue
        points = data.teacher_boundary(teacher, job.samples, std=1.5, mean=1.0, sigma=0.5, seed=0)
        found = (x[:, None] == points).all(-1)
        assert (found.sum(1) == 1).all() and (found.sum(0) <= 1).all()  # some of them, each once
        order = found.double().argmax(1)
        assert (order.diff() < 0).any()  # of every node, and in no order


def test_the_end_is_what_the_saved_weights_give(run):
    results, folder = run
    weights = load_tensors(folder / "weights.safetensors", "weights of a run")[0]
    teacher, held_out = network(weights, "teacher"), data.gaussian(80, 5, std=1.5, seed=HELD_OUT_SEED)
    for kind in ("gaussian", "boundary"):
        for samples in (20, 100):
            for multi in (1, 2):
                student = network(weights, f"{kind}-n{samples}-x{multi}.student seed 1")
                measured = measure(teacher, student, held_out)
                found = results.sel(kind=kind, samples=samples, multi=multi, seed=1)
                np.testing.assert_allclose(found.loss, measured.loss, rtol=1e-5)
                for layer, moments in enumerate(measured.layers.values(), start=1):
                    score = found.layer_score.sel(layer=layer)
                    np.testing.assert_allclose(score, moments.layer_score(), atol=1e-5)


def test_more_samples_generalise_better(tmp_path):
    results = SampleComplexity(
        hidden=(4,), inputs=6, outputs=8, multi=(3,), seeds=1, samples=(16, 2000), evaluation_samples=500, steps=2000,
        batch_size=16, lr=0.3,
    ).run(tmp_path)  # fmt: skip
    few, many = (results.sel(samples=samples) for samples in (16, 2000))
    assert (few.loss > 10 * many.loss).all() and (few.layer_score < many.layer_score).all()
    assert (many.layer_score > 0.99).all()


def test_teachers_are_tuned_unless_asked_otherwise():
    for kind in ("tuned", "separated"):
        job = SampleComplexity(evaluation_samples=200, teacher=kind).jobs()[0]
        active = [(h > 0).sum(0) for h in job.teacher().activations(job.inputs(200, HELD_OUT_SEED))]
        assert all(((count - 100).abs() <= 1).all() for count in active) is (kind == "tuned")


def scores(values):
    """Results of one kind, multiple and layer from layer scores [seed, samples] for 300, 100 and 200 samples."""
    table = np.asarray(values)[None, None, :, None, :]
    coords = {"kind": ["gaussian"], "multi": [2], "seed": range(len(values)), "layer": [1], "samples": [300, 100, 200]}
    return xr.Dataset({"layer_score": (tuple(coords), table)}, coords)


def test_samples_needed():
    nan = np.nan
    found = samples_needed(
        scores(
            [[1.0, 0.9, 0.95], [0.97, 0.93, 0.94], [0.97, 0.97, 0.9], [1.0, 1.0, 1.0], [0.9, 1.0, 1.0], [1, 1, nan]]
        ),
        0.95,
    )
    third = np.exp(np.log(200) + (np.log(300) - np.log(200)) / 3)
    half = np.exp(np.log(200) + (np.log(300) - np.log(200)) * 5 / 7)
    np.testing.assert_allclose(found.values.ravel(), [200, third, half, 100, nan, 300])
    table = needed_table(scores([[1.0, 0.9, 0.95], [1.0, 1.0, 1.0], [0.9, 1.0, 1.0]]), 0.95)
    assert table.rows == [["Gaussian", "2×", "200 (100 … 200, never 1 of 3)"]]
    assert needed_table(scores([[0.5, 0.5, nan]]), 0.95).rows[0][2] == "never"


def test_report(run, capsys):
    _, folder = run
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Distinct samples from which on" in shown
    assert "Gaussian" in shown and "About boundaries" in shown
    assert {path.stem for path in (folder / "figures").iterdir()} == {"scores", "coverage", "losses"}


def test_students_that_diverge_are_reported(tiny_sample_complexity, tmp_path, capsys):
    results = replace(tiny_sample_complexity, lr=1e6, samples=(20,), multi=(1,)).run(tmp_path)
    assert (results.diverged_step >= 0).all() and results.layer_score.isnull().all()
    assert main(["report", str(tmp_path)]) == 0
    assert "–" in capsys.readouterr().out
