"""The page of the reproduced study of norms: its numbers are those of the runs, and those committed are right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import studies.arpit2019
from fastspec.experiments.init import ARPIT2019, Init
from fastspec.experiments.results import RunFolder
from fastspec.theory import norms
from studies.arpit2019.__main__ import main
from studies.arpit2019.page import deviations
from studies.arpit2019.published import READINGS

HERE = Path(studies.arpit2019.__file__).parent
SMALL = replace(ARPIT2019, width=(20, 100), depth=(3,), seeds=4, inputs=30, samples=60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    SMALL.run(folder / "readings")
    Init(width=(20, 40), depth=(2,), seeds=2, inputs=10, samples=30, steps=1).run(folder / "schemes")
    return folder / "readings", folder / "schemes"


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    main([*map(str, runs), "--out", str(out)])
    return out


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table of a title."""
    table = text.split(f"**{title}")[1].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_tables_hold_the_numbers_of_the_run(runs, page):
    text, results = (page / "README.md").read_text(), RunFolder.load(runs[0]).results().isel(data=0)
    readings = rows(text, "Mean |1 − ratio|")
    assert [row[:3] for row in readings] == [["100", "forward", "0.176"], ["100", "backward", "0.232"]]
    for row, way in zip(readings, ("forward", "backward"), strict=True):
        draws = results[f"{way}_error"].sel(width=100).mean("layer").values.ravel()
        assert float(row[3].split(" ")[0]) == pytest.approx(draws.mean(), abs=6e-5)
        assert float(row[4]) == pytest.approx(draws.std(ddof=1), abs=6e-5)
        deviation = (float(row[2]) - draws.mean()) / (draws.std(ddof=1) * math.sqrt(1.25))
        assert float(row[5]) == pytest.approx(deviation, abs=0.06)
    for row, width in zip(rows(text, "‖h‖² / ‖x‖² after 3 layers"), (20, 100), strict=True):
        assert row[0] == str(width) and float(row[2]) == pytest.approx(norms.energy_variance(width, 3), abs=1e-5)
    assert [row[0] for row in rows(text, "Schemes")] == list(Init().scheme)
    assert "fastspec init --preset arpit2019" in text and str(runs[0].parent) not in text


def test_tables_alone_of_one_run(runs, page, tmp_path):
    main([str(runs[0]), "--out", str(tmp_path), "--tables"])
    text = (tmp_path / "README.md").read_text()
    assert "![" in (page / "README.md").read_text() and "![" not in text and "Other schemes" not in text


def test_a_folder_of_another_run_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: folder: got .*without config.json"):
        main([str(tmp_path)])


def test_the_committed_readings_are_reproduced():
    results = xr.load_dataset(HERE / "summary.nc", engine="h5netcdf").isel(data=0)
    config = json.loads(results.attrs["record"])["config"]
    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(ARPIT2019).items()}
    assert config == asked
    found = deviations(results)
    assert len(found) == 2 * len(READINGS) == 10
    assert all(row["draws"] == 20 and abs(row["deviation"]) < 3 for row in found)
    last = results.isel(depth=-1).sel(scheme="he_fan_out", layer=10)
    variance = last.forward_square_std**2 + (last.forward_square - 1) ** 2  # [width, seed]
    for width in results.width.values:
        one = variance.sel(width=width).values
        error = one.std(ddof=1) / math.sqrt(len(one))
        assert abs(one.mean() - norms.energy_variance(int(width), 10)) < 3 * error
    table = rows((HERE / "README.md").read_text(), "Mean |1 − ratio|")
    for row, one in zip(table, found, strict=True):
        assert [int(row[0]), row[1]] == [one["width"], one["way"]]
        assert float(row[3].split(" ")[0]) == pytest.approx(one["mean"], abs=6e-5)
        assert np.isclose(float(row[5]), one["deviation"], atol=0.06)
