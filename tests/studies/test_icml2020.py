"""The page of the reproduced study: its numbers are those of the runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from fastspec.experiments.results import RunFolder
from fastspec.experiments.two_layer import ICML2020
from studies.icml2020.__main__ import main
from studies.icml2020.comparison import find
from studies.icml2020.published import READINGS, Loss, Success
from studies.icml2020.summary import summary

OUTPUTS = 7
SMALL = replace(
    ICML2020, teacher_nodes=(20,), teacher_strength_decay=(1.0,), multi=(1, 2), seeds=3, inputs=8, outputs=OUTPUTS,
    samples=60, evaluation_samples=80, steps=40, measure_every=10, lr=0.02,
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    SMALL.run(folder / "all")
    replace(SMALL, own_teachers=True, multi=(1,), seeds=2).run(folder / "own")
    return folder / "all", folder / "own"


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    main([*map(str, runs), "--out", str(out)])
    return out


def test_tables_alone(runs, page, tmp_path):
    main([str(runs[0]), "--out", str(tmp_path), "--tables"])
    text, whole = (tmp_path / "README.md").read_text(), (page / "README.md").read_text()
    assert "![" in whole and "![" not in text and "20 teacher nodes, after" in text
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {"README.md", "summary.nc"}


def rows(text):
    """The cells of every table row, by the first."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: cells for first, *cells in lines}


def test_the_table_holds_the_numbers_of_the_runs(runs, page):
    table = rows((page / "README.md").read_text())
    results = [RunFolder.load(run).results() for run in runs]
    for reading in READINGS:
        cells = table[str(reading)]
        assert cells[0] == reading.published
        for result, found in zip(results, (cells[1:5], cells[5:9]), strict=True):
            if reading.decay != 1.0 or reading.multi not in result.multi:
                assert found == ["–"] * 4
                continue
            picked = result.sel(teacher_nodes=20, strength_decay=1.0, multi=reading.multi).isel(step=-1)
            if isinstance(reading, Loss):
                value = np.log10(picked.loss.values * 2 / OUTPUTS).mean()
                assert float(found[1]) == pytest.approx(value - reading.log10, abs=0.0051)
            else:
                nodes = slice(reading.nodes[0], reading.nodes[1] + 1)
                value = (picked.best_correlation.values > 0.95)[:, nodes].mean(0).min()
            assert float(found[0]) == pytest.approx(value, abs=0.0051)


def results_with(correlation, loss):
    """Results of 20 teacher nodes and one multiple: correlations [seed, teacher] and losses [seed] at the end."""
    dims = ("strength_decay", "teacher_nodes", "multi", "seed", "step")
    arrays = {
        "best_correlation": ((*dims, "teacher"), np.asarray(correlation)[None, None, None, :, None]),
        "loss": (dims, np.asarray(loss)[None, None, None, :, None]),
    }
    return xr.Dataset(arrays, {"strength_decay": [1.0], "teacher_nodes": [20], "multi": [1], "step": [100]})


def test_deviations_are_in_standard_errors():
    correlation = np.ones((32, 20))
    correlation[:16, 5] = 0.5
    loss = 50 / 2 * 10.0 ** np.array([-3.0, -5.0] * 16)
    results = results_with(correlation, loss)
    share = find(results, Success(1.0, 1, (0, 19), 1.0), 50)
    assert (share.value, share.difference, share.seeds) == (0.5, -0.5, "16 of 32")
    assert share.deviation == pytest.approx(-0.5 / np.sqrt(0.75 * 0.25 * 2 / 32))
    found = find(results, Loss(1.0, 1, -4.5), 50)
    sd = np.std([-3.0, -5.0] * 16, ddof=1)
    assert found.value == pytest.approx(-4.0)
    assert found.deviation == pytest.approx(0.5 / (sd * np.sqrt(2 / 32)))
    assert found.seeds == f"-5.00 … -3.00, sd {sd:.2f}"


@pytest.mark.parametrize(("missed", "difference"), [(0, 0.0), (1, 0.0), (2, -0.03)])
def test_a_lower_bound_holds_or_is_missed(missed, difference):
    correlation = np.ones((32, 20))
    correlation[:missed, 3] = 0.9
    found = find(results_with(correlation, np.ones(32)), Success(1.0, 1, (0, 10), 0.97, at_least=True), 50)
    assert found.difference == pytest.approx(difference)


def test_a_summary_keeps_four_digits(runs, page):
    results = RunFolder.load(runs[0]).results()
    kept = xr.load_dataset(page / "summary.nc", engine="h5netcdf")
    np.testing.assert_allclose(kept.success, (results.best_correlation > 0.95).mean("seed"), rtol=2e-4)
    assert kept.moment.values.tolist() == [2, 40]
    np.testing.assert_allclose(kept.loss, results.loss.sel(step=[2, 40]), rtol=2e-4)
    np.testing.assert_allclose(kept.log10_loss, np.log10(results.loss).mean("seed"), rtol=2e-4)
    record = json.loads(kept.attrs["record"])
    assert record["config"] == RunFolder.load(runs[0]).config
    assert set(record["wall seconds"]) == {"training", "evaluation"}


def test_undefined_numbers_stay_undefined(runs):
    results = RunFolder.load(runs[0]).results()
    record = {"config": {"threshold": 0.95}}
    kept = summary(results.assign(loss=results.loss.where(results.seed > 0)), record)
    assert kept.loss.isnull().all(["multi", "moment"]).values.ravel().tolist() == [True, False, False]


def test_the_page_says_how_it_was_made_and_can_be_made_again(runs, page, tmp_path):
    text = (page / "README.md").read_text()
    options = "--teacher-nodes 20 --multi 1 2 --teacher-strength-decay 1.0 --seeds 3"
    assert f"fastspec two-layer --preset icml2020 {options}" in text and "--own-teachers" in text
    assert str(runs[0].parent) not in text
    assert set(re.findall(r"\(figures/(.*?)\)", text)) == {path.name for path in (page / "figures").iterdir()}
    main([*map(str, runs), "--out", str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == text


def test_one_run_is_enough(runs, tmp_path):
    main([str(runs[0]), "--out", str(tmp_path)])
    assert "own teachers" not in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "summary-own-teachers.nc").exists()


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: folder: got .*without config.json"):
        main([str(tmp_path)])
