"""The page of the sample-complexity study, from tiny runs, and the committed one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fastspec.experiments.results import RunFolder
from fastspec.experiments.sample_complexity import SampleComplexity
from fastspec.sample_complexity_report import samples_needed
from studies import sample_complexity
from studies.sample_complexity.__main__ import main
from studies.sample_complexity.needed import difference, ratio
from studies.sample_complexity.page import PARTS
from studies.sample_complexity.text import answer, paper

FOLDER = Path(sample_complexity.__file__).parent
DEEP = SampleComplexity(
    hidden=(3, 4), inputs=5, outputs=6, multi=(1, 2, 5), seeds=2, samples=(20, 60, 200), evaluation_samples=80,
    steps=200, batch_size=10, lr=0.3, threshold=0.8,
)  # fmt: skip
OPTIONS = {
    "deep": DEEP,
    "other": replace(DEEP, teacher_seed=1),
    "two-layer": replace(DEEP, hidden=(3,)),
    "near": replace(DEEP, kind=("boundary",), boundary_mean=0.1, boundary_sigma=0.2, teacher_seed=1, seeds=1),
    "long": replace(DEEP, samples=(20, 60), multi=(1, 5), steps=400),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders of a run for each part, two of the first, and what is written from them."""
    folder = tmp_path_factory.mktemp("study")
    for name, options in OPTIONS.items():
        options.run(folder / name)
    given = {name: [folder / name] for name in PARTS}
    given["deep"].append(folder / "other")
    main(
        [
            *(part for name, paths in given.items() for part in (f"--{name}", *map(str, paths))),
            f"--out={folder / 'out'}",
        ]
    )
    return folder


def rows(text: str, title: str) -> list[list[list[str]]]:
    """The cells of every table whose title begins so."""
    tables = [part.split("\n\n")[1] for part in text.split(f"**{title}")[1:]]
    return [[[c.strip() for c in line.strip("|").split("|")] for line in t.splitlines()[2:]] for t in tables]


def test_page_and_arrays(written):
    text = (written / "out" / "README.md").read_text()
    needed = [samples_needed(RunFolder.load(written / name).results(), 0.8) for name in ("deep", "other", "near")]
    title = "Distinct samples from which on the layer score is 0.8 or more"
    deep, _ = rows(text, f"{title}, every student")
    cells = {row[0]: row[1:] for row in deep}
    expected = [one.sel(layer=1, multi=5, kind="boundary").values for one in needed[:2]]
    shown = [f"{value:.0f}" if np.isfinite(value) else "–" for value in np.concatenate(expected)]
    assert cells["layer 1, 5×, about boundaries"] == shown and len(cells) == 2 * 3 * 2
    near, long = rows(text, f"{title}, median and range")
    row = next(row for row in near if row[0] == "layer 1, 5×, about boundaries")
    values = [needed[at].sel(layer=1, multi=5, kind="boundary", seed=0).item() for at in (1, 2)]
    assert row[1:] == [f"{value:.0f} ({value:.0f})" if np.isfinite(value) else "never" for value in values]
    assert [row[0] for row in long if "layer 1" in row[0]] == [
        f"layer 1, {multi}×, {kind}" for multi in (1, 5) for kind in ("Gaussian", "about boundaries")
    ]
    assert "0.1 to 0.3 away" in text and "2 to 4 away" in text and str(written) not in text
    kept = xr.load_dataset(written / "out" / "summary-deep.nc")
    assert kept.seed.size == 4 and [r["config"]["teacher_seed"] for r in json.loads(kept.attrs["record"])] == [0, 1]
    figures = {path.stem for path in (written / "out" / "figures").iterdir()}
    assert figures == {"scores", "coverage", "losses", "two-layer-scores"}


def test_ratios_and_differences_are_of_the_same_student():
    one, other = (
        xr.DataArray(values, dims="seed") for values in ([100.0, 200.0, np.nan, 90.0], [200.0, 100.0, 50.0, 90.0])
    )
    found = ratio(one, other)
    assert str(found) == "1.00 (0.50 … 2.00)" and (found.fewer, found.students) == (1, 4)
    assert str(ratio(one * np.nan, other)) == "–"
    scores = np.array([[0.5, 0.6, 0.7], [0.6, 0.5, 0.9]])[:, None, None, :, None]
    dims = ("kind", "samples", "multi", "seed", "layer")
    coords = {"kind": ["gaussian", "boundary"], "samples": [64], "multi": [2], "layer": [1]}
    results = xr.Dataset({"layer_score": (dims, scores)}, coords)
    assert (
        str(difference(results, samples=64, multi=2, layer=1))
        == f"+0.067 ± {np.std([0.1, -0.1, 0.2], ddof=1):.3f} (2 of 3)"
    )


def test_the_committed_page_says_what_its_arrays_say():
    page = (FOLDER / "README.md").read_text()
    parts = {name: xr.load_dataset(FOLDER / f"summary-{name}.nc") for name in PARTS}
    deep, two = parts["deep"], parts["two-layer"]
    assert deep.seed.size == two.seed.size == 8 and all((part.diverged_step == -1).all() for part in parts.values())
    assert answer(deep, two, 0.95) in page and paper(deep, two, 0.95) in page
    needed, needed_two = (samples_needed(part, 0.95) for part in (deep, two))
    gaussian, boundary = (needed.sel(kind=kind, multi=[2, 5]) for kind in ("gaussian", "boundary"))
    assert (abs((boundary / gaussian).median("seed") - 1) < 0.1).all()
    for multi in (2, 5):
        few = difference(deep, samples=64, multi=multi, layer=1)
        assert few.better == few.students == 8 and few.mean > 0.04
        found = ratio(*(needed_two.sel(kind=kind, multi=multi, layer=1) for kind in ("boundary", "gaussian")))
        assert abs(found.middle - 1) < 0.1
    lowest, upper = (gaussian.sel(layer=layer).median("seed") for layer in (1, 2))
    assert lowest.sel(multi=5) > 1.3 * lowest.sel(multi=2) and upper.sel(multi=5) < 1.2 * lowest.sel(multi=5)
    assert needed.sel(multi=1, layer=2).isnull().sum() >= 3
    near = samples_needed(parts["near"], 0.95).sel(kind="boundary", layer=1, multi=[2, 5])
    assert (near.median("seed") > 2 * boundary.sel(layer=1, seed=near.seed).median("seed")).all()
    long = samples_needed(parts["long"], 0.95)
    same = samples_needed(deep.sel(multi=[1, 5], samples=parts["long"].samples, seed=long.seed), 0.95)
    assert (abs(long.sel(multi=5) / same.sel(multi=5) - 1) < 0.05).all()
    assert (abs(long.sel(multi=1) / same.sel(multi=1) - 1) < 0.25).all()
    assert all(path.stat().st_size < 300_000 for path in FOLDER.rglob("*") if path.is_file())
