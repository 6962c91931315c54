"""Ablations: what makes the grid, that a cell is the deep run it says, and the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastspec import data, teachers
from fastspec.ablation_plots import FACTORS, changes, slices
from fastspec.experiments.ablation import Ablation
from fastspec.experiments.cli import main
from fastspec.experiments.deep import Deep
from fastspec.experiments.deep_job import HELD_OUT_SEED
from fastspec.measure import measure
from fastspec.networks import MLP
from fastspec.tensor_files import load_tensors


@pytest.fixture(scope="module")
def run(tiny_ablation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation") / "run"
    return tiny_ablation.run(folder), folder


def values(results):
    return [tuple(results[name][i].item() for name in FACTORS) for i in range(len(results.cell))]


def test_one_change_at_a_time(run):
    results, _ = run
    base = (2, "none", "separated", 10, 0.3, 6, 1.0)
    assert values(results) == [
        base,
        (1, *base[1:]),
        (2, "before", *base[2:]),
        (2, "none", "random", *base[3:]),
        (*base[:3], 20, *base[4:]),
        (*base[:4], 0.1, *base[5:]),
        (*base[:5], 4, 1.0),
        (*base[:6], 2.0),
    ]
    for i, factor in enumerate(FACTORS):
        labels, cells = zip(*slices(results, factor), strict=True)
        at = [int(cell.cell) for cell in cells]
        assert sorted(at) == [0, 1 + i] and labels[at.index(0)].endswith(" (base)")
        numbers = [cell[factor].item() for cell in cells]
        assert factor in ("batch_norm", "teacher") or numbers == sorted(numbers)


def test_changes_are_from_the_base_of_the_same_seed(run):
    results, _ = run
    found = changes(results)
    score = results.layer_score.isel(epoch=-1)
    assert [(what, value) for what, value, _ in found][:3] == [
        ("student width", "1×"),
        ("batch norm", "before"),
        ("teacher", "random"),
    ]
    assert len(found) == len(FACTORS)
    for i, (_, _, change) in enumerate(found, start=1):
        np.testing.assert_array_equal(change.values, (score.sel(cell=i) - score.sel(cell=0)).values)


def test_every_combination():
    cells = Ablation(multi=(1, 2), lr=(0.1, 0.2), outputs=(3, 4), every_combination=True).cells()
    assert len(cells) == 2 * 3 * 3 * 3 * 2 * 2 * 3 and len({cell.name for cell in cells}) == len(cells)
    near = Ablation(lr=(0.1, 0.1 + 1e-12)).cells()
    assert len({cell.name for cell in near}) == len(near)
    assert len({tuple(cell.values.items()) for cell in cells}) == len(cells)


def test_a_cell_is_a_deep_run(run, tiny_ablation, tmp_path):
    results, _ = run
    deep = Deep(
        hidden=(3, 4), inputs=5, outputs=6, multi=(2,), seeds=2, samples=(60,), evaluation_samples=80, data_std=1.0,
        steps=2 * 3, batch_size=20, lr=0.3, measure_every=3,
    ).run(tmp_path)  # fmt: skip
    for name in ("loss", "layer_score", "best_correlation"):
        np.testing.assert_array_equal(results[name].sel(cell=4), deep[name].values[0, 0])


def test_the_random_teacher_and_batch_norm_are_used(run):
    results, folder = run
    weights = load_tensors(folder / "weights.safetensors", "weights of a run")[0]
    prefix = "x2-none-random-batch10-lr0.3-c6-std1.0"
    teacher = MLP.from_weights(
        [(weights[f"{prefix}.teacher.w{i}"], weights[f"{prefix}.teacher.b{i}"]) for i in (1, 2, 3)]
    )
    expected = teachers.random([5, 3, 4, 6], seed=0)
    assert torch.equal(teacher.layers[1].weight, expected.layers[1].weight)
    student = MLP.from_weights(
        [(weights[f"{prefix}.student seed 1.w{i}"], weights[f"{prefix}.student seed 1.b{i}"]) for i in (1, 2, 3)]
    )
    measured = measure(teacher, student, data.gaussian(80, 5, std=1.0, seed=HELD_OUT_SEED))
    np.testing.assert_allclose(results.loss.sel(cell=3, seed=1).isel(epoch=-1), measured.loss, rtol=1e-5)
    start = results.loss.isel(epoch=0)
    assert (start.sel(cell=2) != start.sel(cell=0)).all()  # batch norm has had no sample yet
    assert (results.loss.isel(epoch=-1) < start).all()


def test_tuned_teachers_and_inputs_of_every_std():
    o = Ablation(data_std=(2.0, 3.0), evaluation_samples=200)
    cells = {tuple(cell.values[name] for name in ("teacher", "data_std")): cell for cell in o.cells()}
    x = cells["tuned", 2.0].inputs(200, HELD_OUT_SEED)
    active = [(h > 0).sum(0) for h in cells["tuned", 2.0].teacher().activations(x)]
    assert all(((count - 100).abs() <= 1).all() for count in active)  # the median sample itself, to rounding
    rare = cells["separated", 2.0].teacher().activations(x)
    assert any((((h > 0).sum(0) - 100).abs() > 20).any() for h in rare)
    assert torch.equal(cells["tuned", 3.0].inputs(200, HELD_OUT_SEED), 1.5 * x)


def test_random_teachers():
    teacher = teachers.random([20, 30, 10], seed=3, dtype=torch.float64)
    drawn = MLP([20, 30, 10], seed=3, dtype=torch.float64)
    for layer, first in zip(teacher.layers, drawn.layers, strict=True):
        norm = first.weight.norm(dim=1)
        torch.testing.assert_close(layer.weight, first.weight / norm[:, None])
        torch.testing.assert_close(layer.bias, first.bias / norm)
    assert not torch.equal(teacher.layers[0].weight, teachers.random([20, 30, 10], seed=4).layers[0].weight.double())
    with pytest.raises(ValueError, match=r"^widths\[0\]: got"):
        teachers.random([0, 3, 2])


def test_report(run, capsys):
    _, folder = run
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Batch norm" in shown and "diverged" not in shown
    assert "Student width: the end, mean ± standard deviation over 2 seeds" in shown and "2× (base)" in shown
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"changes", *(name.replace("_", "-") for name in FACTORS)}
    assert "All cells" not in (folder / "report.md").read_text()


def test_all_cells_are_shown_where_several_factors_change(tmp_path, tiny_ablation):
    one = {"batch_norm": ("none",), "teacher": ("separated",), "batch_size": (10,), "outputs": (6,), "data_std": (1.0,)}
    replace(tiny_ablation, **one, every_combination=True, epochs=1).run(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    rows = text.split("**All cells at the end**")[1].split("\n\n")[1].splitlines()[2:]
    assert len(rows) == 4 and rows[3].startswith("| 1× | none | separated | 10 | 0.1 | 6 | 1 |")


def test_a_student_that_diverges_is_reported(tiny_ablation, tmp_path, capsys):
    one = {
        "multi": (2,),
        "batch_norm": ("none",),
        "teacher": ("separated",),
        "batch_size": (10,),
        "outputs": (6,),
        "data_std": (1.0,),
    }
    results = replace(tiny_ablation, lr=(0.3, 1e6, 0.1), **one).run(tmp_path)
    assert (results.diverged_step.sel(cell=1) >= 0).all() and (results.diverged_step.sel(cell=0) == -1).all()
    assert results.layer_score.sel(cell=1).isel(epoch=-1).isnull().all()
    assert main(["report", str(tmp_path)]) == 0
    assert "diver" in capsys.readouterr().out
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"changes", "lr"}
