"""The page of the over-parameterisation study, from a tiny run, and the committed one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fastspec.experiments.matrix_dynamics import MatrixDynamics
from fastspec.experiments.two_layer import TwoLayer
from studies import over_parameterization
from studies.over_parameterization.__main__ import LUCKY, OTHERS, comparison, main

FOLDER = Path(over_parameterization.__file__).parent


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tiny run's folder, and what is written from it."""
    run, out = (tmp_path_factory.mktemp("study") / name for name in ("run", "out"))
    MatrixDynamics(widths=(4, 3, 5), seeds=2, steps=20, measurements=3, evaluation_samples=50).run(run)
    main([str(run), "--out", str(out)])
    return run, out


def test_page_and_arrays(written):
    run, out = written
    page = (out / "README.md").read_text()
    assert "| published, one seed | 1.07 | 1.46 | 1.1e-04 | 1.5e-03 | – |" in page
    assert "| mean_field, 2 seeds |" in page and "| exact, 2 seeds |" in page and "20 steps" in page
    assert "| mean_field, seed 1, node " in page and "Other nodes that keep a fan-out" in page
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["fan-out.png", "l-shape.png"]
    found, results = xr.load_dataset(out / "summary.nc"), xr.load_dataset(run / "results.nc")
    np.testing.assert_allclose(found.fan_out, results.fan_out, rtol=1e-6)
    assert json.loads(found.attrs["record"])["config"]["steps"] == 20


def test_the_table_takes_lucky_nodes_and_others_apart():
    fan_out = np.array([[1.1, 1.4, 1e-4, 5e-4], [1.2, 1.3, 1e-3, 0.5]])
    results = xr.Dataset(
        {"fan_out": (("dynamics", "seed", "step", "layer", "student"), fan_out[None, :, None, None])},
        {"dynamics": ["exact"], "seed": [0, 1], "step": [9], "layer": [1]},
    )
    assert comparison(results, 2, "9 steps").rows[1] == [
        "exact, 2 seeds",
        "1.10",
        "1.40",
        "7.5e-04",
        "5.0e-01",
        "1 of 2",
    ]


def test_another_run_is_refused(tmp_path):
    TwoLayer(teacher_nodes=(2,), multi=(1,), seeds=1, inputs=4, outputs=3, samples=50, evaluation_samples=50,
             steps=5, measurements=2).run(tmp_path / "run")  # fmt: skip
    with pytest.raises(SystemExit, match=r"got .*a run of 'two-layer'; takes a run of 'matrix-dynamics'"):
        main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"without config\.json"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_committed_study_has_the_published_split():
    """All seeds of the run: lucky nodes near the published norms, all others three orders of magnitude below."""
    committed = xr.load_dataset(FOLDER / "summary.nc")
    assert json.loads(committed.attrs["record"])["config"]["steps"] == 20_000
    final = committed.isel(step=-1, layer=0).fan_out
    lucky, others = final.isel(student=slice(20)), final.isel(student=slice(20, None))
    assert LUCKY[0] - 0.15 < float(lucky.min()) and float(lucky.max()) < LUCKY[1]
    assert float(others.median()) < 2 * OTHERS[1]
    assert (others.max("student") < OTHERS[2] + 1e-3).sum("seed").sel(dynamics="mean_field") >= 5
