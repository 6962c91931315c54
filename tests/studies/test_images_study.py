"""The page of the images study, from tiny runs, and the committed one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from image_folders import write_cifar10

from fastspec.experiments.digits import Digits
from fastspec.experiments.images import Images
from fastspec.experiments.results import RunFolder
from fastspec.tensor_files import load_tensors
from studies import images
from studies.images.__main__ import main
from studies.images.page import accuracies, fan_outs, readings, scores

FOLDER = Path(images.__file__).parent
TINY = Images(hidden=(4, 3), multi=(1, 2), teacher_steps=30, student_steps=20, measurements=3, evaluation_samples=100)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a dense run of digits and two of CIFAR-10, the second pruned; and the folder of CIFAR-10's files."""
    root = tmp_path_factory.mktemp("study")
    (root / "files").mkdir()
    write_cifar10(root / "files")
    of_files = replace(
        TINY, data="cifar10", folder=str(root / "files"), network="convolutional", batch_size=4, evaluation_samples=0
    )
    replace(TINY, seeds=2).run(root / "dense")
    of_files.run(root / "cifar10")
    replace(of_files, prune=0.3, augment=True, multi=(1,)).run(root / "pruned")
    replace(of_files, prune=0.3, augment=True, multi=(2,)).run(root / "pruned wide")
    return root


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    main([*(str(runs / name) for name in ("dense", "cifar10", "pruned", "pruned wide")), "--out", str(out)])
    return out


def test_page_and_arrays(runs, written):
    page = (written / "README.md").read_text()
    names = ("digits-dense", "cifar10-convolutional", "cifar10-convolutional-pruned")
    assert {path.stem for path in (written / "figures").iterdir()} == {
        f"{name}-{kind}" for name in names for kind in ("layer-scores", "matches")
    }
    assert "--data cifar10 --folder DIR" in page and "--prune 0.3 --augment" in page and str(runs) not in page
    for name, run in zip(names, ("dense", "cifar10", "pruned"), strict=True):
        found, results = xr.load_dataset(written / f"summary-{name}.nc"), RunFolder.load(runs / run).results()
        best = found.best_correlation.sel(multi=results.multi)
        np.testing.assert_allclose(best, results.best_correlation, rtol=1e-6)
        assert found.multi.values.tolist() == [1, 2] and found.teacher_accuracy_held_out.dims == ()
        assert {record["config"]["folder"] for record in json.loads(found.attrs["record"])} <= {"", "DIR"}


def test_the_tables_hold_the_numbers_of_the_runs(runs):
    folders = {name: [RunFolder.load(runs / name)] for name in ("dense", "cifar10", "pruned")}
    results = {name: folder.results() for name, (folder,) in folders.items()}
    rows = accuracies(folders, results).rows
    final = results["dense"].isel(step=-1).sel(multi=2)
    assert rows[1][4:] == ["2×", f"{100 * final.accuracy.mean():.1f} %", f"{100 * final.agreement.mean():.1f} %"]
    assert rows[0][2] == "4-3" and rows[4][2] == "3-3" and "pruned" in rows[4][3] and "pruned" not in rows[2][3]
    of_layers = scores(results).rows
    start, end = (results["dense"].layer_score.sel(multi=2, layer=1).isel(step=at).mean() for at in (0, -1))
    best = results["dense"].best_correlation.sel(multi=2, layer=1).isel(step=-1, teacher=slice(4))
    varying = 4 - int(results["dense"].constant_teachers.sel(layer=1).isel(step=-1).max())
    share = float((best > 0.95).sum("teacher").mean()) / varying
    assert of_layers[1][:3] == ["dense", "2×", f"{start:.2f} → {end:.2f} ({100 * share:.0f} %)"]


def test_strong_nodes_that_are_matched_best_have_rank_correlation_1(runs):
    folder = RunFolder.load(runs / "pruned wide")
    results = folder.results()
    teacher = load_tensors(runs / "pruned wide" / "weights.safetensors", "weights of a run")[0]
    strength = teacher["teacher.w3"].view(10, 3, -1).abs().mean((0, 2)).numpy()
    results.best_correlation.loc[{"layer": 2, "teacher": slice(0, 2)}] = strength / strength.max()
    results.best_correlation.loc[{"layer": 1}] = np.nan
    assert fan_outs({"run": [folder]}, {"run": results}).rows == [["run", "2×", "–", "1.00"]]


def test_published_accuracies_beside_those_found(runs):
    names = {"cifar10-convolutional": "cifar10", "cifar10-convolutional-pruned": "pruned"}
    found = {name: RunFolder.load(runs / run).results() for name, run in names.items()}
    whole, pruned = found.values()
    whole["whole_teacher_accuracy_held_out"] = ((), 0.5)
    whole.accuracy.loc[{"multi": 2, "step": 20}] = 0.4
    pruned["teacher_accuracy_held_out"] = ((), 0.3)
    rows = {row[0]: row[1:] for row in readings(found).rows}
    assert rows["teacher"] == ["86.1 %", "+0.0", "50.0 %", "+0.0"]
    assert rows["pruned teacher"] == ["84.2 %", "-1.9", "30.0 %", "-20.0"]
    assert rows["student 2×"] == ["86.3 %", "+0.2", "40.0 %", "-10.0"]
    assert [row[3:] for row in readings({}).rows] == [["–", "–"]] * 4


def test_other_runs_are_refused(runs, tmp_path):
    with pytest.raises(SystemExit, match="folders: got runs that differ in nothing"):
        main([str(runs / "dense"), str(runs / "dense"), "--out", str(tmp_path)])
    Digits(hidden=(4,), multi=(1,), teacher_steps=2, student_steps=2, measurements=2).run(tmp_path / "digits")
    with pytest.raises(SystemExit, match="a run of 'digits'; takes a run of 'images'"):
        main([str(tmp_path / "digits")])


def test_the_committed_page_is_of_real_images():
    held_out = {"digits": 450, "mnist": 10_000, "cifar10": 10_000}
    found = {path.stem: xr.load_dataset(path) for path in FOLDER.glob("summary-*.nc")}
    assert {"digits", "mnist", "cifar10"} == {name.split("-")[1] for name in found}
    for name, results in found.items():
        _, data, *_ = name.split("-")
        assert 0 < int(results.held_out_images) <= held_out[data]
        assert float(results.teacher_accuracy_held_out) > (0.4 if data == "cifar10" else 0.85)
        assert (results.diverged_step == -1).all()
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_500_000
