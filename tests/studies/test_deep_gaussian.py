"""The page of the deep Gaussian study, from tiny runs, and the committed one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fastspec.experiments.deep import Deep
from fastspec.experiments.digits import Digits
from fastspec.experiments.results import RunFolder
from studies import deep_gaussian
from studies.deep_gaussian.__main__ import main
from studies.deep_gaussian.page import PARTS, readings_table
from studies.deep_gaussian.published import LUCK_MATTERS, Reading
from studies.files import joined

FOLDER = Path(deep_gaussian.__file__).parent
TINY = Deep(
    hidden=(3, 4, 3, 4), inputs=5, outputs=6, multi=(2,), samples=(40,), evaluation_samples=50, data_std=1.0, steps=12,
    batch_size=10, lr=0.3, measure_every=4,
)  # fmt: skip


SAMPLES = {
    "student-specialization": [5_000, 10_000, 15_000, 20_000, 100_000],
    "twenty-thousand": [20_000],
    "twenty-thousand-late": [20_000],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of two runs for each preset."""
    folder = tmp_path_factory.mktemp("study")
    options = {"a": TINY, "b": replace(TINY, teacher_seed=1), "few": replace(TINY, seeds=2)}
    options["many"] = replace(TINY, seeds=2, samples=(50, 60, 80))
    for name, option in options.items():
        option.run(folder / name)
    return folder


def call(runs, out):
    names = {"luck-matters": ("a", "b"), "luck-matters-tuned": ("b",), "student-specialization": ("few", "many")}
    names |= {name: ("few",) for name in ("twenty-thousand", "twenty-thousand-late")}
    given = [part for name, pair in names.items() for part in (f"--{name}", *(str(runs / one) for one in pair))]
    main([*given, "--out", str(out)])


def test_page_and_arrays(runs, tmp_path):
    call(runs, tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "2 runs" in page and "≥ 0.9998" in page and "| 80 samples |" in page
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    kinds = ("scores", "losses", "ranks", "matches", "blocks", "l-shape")
    assert figures == {f"{name}-{kind}" for name in PARTS for kind in kinds}
    found = xr.load_dataset(tmp_path / "summary-luck-matters.nc")
    for seed, name in enumerate("ab"):
        alone = RunFolder.load(runs / name).results().sel(seed=0)
        np.testing.assert_allclose(found.layer_score.sel(seed=seed), alone.layer_score, rtol=1e-6)
        np.testing.assert_allclose(found.teacher_activity.sel(seed=seed), alone.teacher_activity)
        np.testing.assert_allclose(found.final_strength.sel(seed=seed), alone.strength.isel(step=-1))
    assert [record["config"]["teacher_seed"] for record in json.loads(found.attrs["record"])] == [0, 1]
    found = xr.load_dataset(tmp_path / "summary-student-specialization.nc")
    assert found.samples.values.tolist() == [40, 50, 60, 80] and found.seed.size == 2
    assert "seed" not in found.teacher_activity.dims


def test_a_reading_is_met_where_the_mean_is_in_its_range(runs):
    results = joined([RunFolder.load(runs / name) for name in "ab"])
    scores = results.layer_score.isel(samples=0, multi=0, step=-1).sel(layer=2).values
    within = Reading("inside", "x", 2, scores.mean() - 0.01, scores.mean() + 0.01)
    beyond = Reading("outside", "x", 2, scores.mean() + 0.01, 1.0)
    rows = readings_table(results, (within, beyond, *LUCK_MATTERS[:1]), 6).rows
    assert [row[-1] for row in rows[:2]] == ["met", "missed"] and rows[0][2] == f"{scores.mean():.4f}"
    assert rows[2][2] == f"{results.layer_score.isel(samples=0, multi=0).sel(step=12, layer=1).values.mean():.4f}"


def test_other_runs_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="folders: got runs that differ in nothing; takes"):
        joined([RunFolder.load(runs / "a")] * 2)
    with pytest.raises(ValueError, match="folders: got runs that differ in samples, seeds; takes"):
        joined([RunFolder.load(runs / name) for name in ("a", "many")], ("samples",))
    Digits(hidden=(4,), multi=(1,), teacher_steps=2, student_steps=2, measurements=2).run(tmp_path / "digits")
    with pytest.raises(SystemExit, match="a run of 'digits'; takes a run of 'deep'"):
        main([f"--{name}={tmp_path / 'digits' if name == 'luck-matters' else runs / 'few'}" for name in PARTS])


def test_the_committed_page_is_of_full_runs():
    page = (FOLDER / "README.md").read_text()
    assert "Beside the published readings, 5 seeds" in page and "Beside the published readings, 2 seeds" in page
    for name in PARTS:
        found = xr.load_dataset(FOLDER / f"summary-{name}.nc")
        samples = SAMPLES.get(name, [100_000])
        assert found.samples.values.tolist() == samples and (found.diverged_step == -1).all()
        assert found.step.values[-1] in (62_480, 312_500)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3_000_000
