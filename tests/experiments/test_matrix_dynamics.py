"""The matrix-dynamics experiment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastspec.experiments.matrix_dynamics import MatrixDynamics
from fastspec.experiments.reports import redraw
from fastspec.matrix_dynamics_report import split
from fastspec.report import Picture, Table
from fastspec.tensor_files import load_tensors


def weights_of(folder):
    return load_tensors(folder / "weights.safetensors", "weights of a run")[0]


def test_lucky_nodes_keep_their_fan_out_and_the_others_lose_it(tmp_path):
    """Theorem 5 of Luck Matters in small: 2,000 steps of 10-20-30."""
    experiment = MatrixDynamics(seeds=1, steps=2000, measurements=3, evaluation_samples=2000)
    results = experiment.run(tmp_path).isel(seed=0, layer=0)
    start, final = results.isel(step=0), results.isel(step=-1)
    for method in experiment.methods:
        lucky, others = split(final.fan_out.sel(dynamics=method).values, 20)
        assert lucky.min() > 0.9 and np.median(others) < 0.08 and others.max() < 0.5
        assert np.median(others) < 0.2 * np.median(split(start.fan_out.sel(dynamics=method).values, 20)[1])
        assert float(final.layer_score.sel(dynamics=method)) > 0.999
        assert (final.best_student.sel(dynamics=method) == np.arange(20)).all()


def test_every_node_has_norm_one_and_starts_near_the_teacher(tiny_matrix_dynamics, tmp_path):
    start = replace(tiny_matrix_dynamics, lr=0.0, init_std=1e-6, methods=("exact",), seeds=1)
    results = start.run(tmp_path)
    weights = weights_of(tmp_path)
    for layer in (1, 2, 3):
        w, b = (weights[f"student exact seed 0.{kind}{layer}"] for kind in "wb")
        torch.testing.assert_close(w.square().sum(1) + b.square(), torch.ones(len(w)))
    assert (results.best_correlation.isel(layer=0, teacher=slice(3)) > 0.999).all()
    fan_out = results.fan_out.isel(step=0, dynamics=0, seed=0)
    np.testing.assert_allclose(fan_out.sel(layer=1)[:6], weights["student exact seed 0.w2"].norm(dim=0), rtol=1e-6)
    assert fan_out.sel(layer=1)[6:].isnull().all() and fan_out.sel(layer=2).notnull().all()


def test_methods_start_alike_and_part(tiny_matrix_dynamics, tmp_path):
    all_three = replace(tiny_matrix_dynamics, methods=("exact", "mean_field", "coactivation"), seeds=1)
    loss = all_three.run(tmp_path).loss.isel(seed=0)
    assert len(set(loss.isel(step=0).values)) == 1 and len(set(loss.isel(step=-1).values)) == 3


def test_seeds_have_teachers_of_their_own(tiny_matrix_dynamics, tmp_path):
    tiny_matrix_dynamics.run(tmp_path)
    weights = weights_of(tmp_path)
    assert not torch.equal(weights["teacher seed 0.w1"], weights["teacher seed 1.w1"])


def test_report(tiny_matrix_dynamics, tmp_path):
    tiny_matrix_dynamics.run(tmp_path)
    blocks = redraw(tmp_path)
    (table,) = [block for block in blocks if isinstance(block, Table) and block.summary]
    assert len(table.rows) == 2 * 2 * 2 and table.rows[0][0] == "mean_field, layer 1, seed 0"
    pictures = [block.name for block in blocks if isinstance(block, Picture)]
    assert all((tmp_path / "figures" / f"{name}.png").stat().st_size > 5000 for name in pictures) and len(pictures) == 2


BAD = {
    "widths": ({"widths": (10, 30)}, ValueError, "widths: got"),
    "a width": ({"widths": (10, 0, 30)}, ValueError, "widths: got 0"),
    "methods": ({"methods": ("exactly",)}, ValueError, "methods: got 'exactly'"),
    "no methods": ({"methods": ()}, ValueError, "methods: got no values"),
    "a method twice": ({"methods": ("exact", "exact")}, ValueError, "methods: got"),
    "no others": ({"multi": 1}, ValueError, "multi: got 1; takes an integer of at least 2"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size: got 0"),
    "lr": ({"lr": float("nan")}, ValueError, "lr: got nan"),
    "noise": ({"init_std": -1.0}, ValueError, "init_std: got -1.0"),
    "samples": ({"x_std": 0.0}, ValueError, "x_std: got 0.0"),
    "measurements": ({"measurements": 1}, ValueError, "measurements: got 1"),
    "dtype": ({"dtype": "float16"}, ValueError, "dtype: got 'float16'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named(case, tmp_path):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        MatrixDynamics(**options).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
