"""The page of the ablation study, from tiny runs, and the committed one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fastspec.ablation_plots import FACTORS
from fastspec.experiments.ablation import Ablation
from fastspec.experiments.results import RunFolder
from studies import ablation
from studies.ablation.__main__ import main
from studies.ablation.claims import CLAIMS, Claim, final
from studies.ablation.page import PARTS
from studies.ablation.text import answer, inputs, pace

FOLDER = Path(ablation.__file__).parent
SINGLE = Ablation(hidden=(3, 4), inputs=5, samples=256, evaluation_samples=40, epochs=1)
ONE = {"multi": (5,), "batch_norm": ("none",), "teacher": ("tuned",), "batch_size": (64,), "outputs": (100,)}
GRID = replace(SINGLE, **ONE, data_std=(10.0,), every_combination=True)
OPTIONS = {
    "single": SINGLE,
    "pace": replace(GRID, multi=(5, 1, 2, 10), batch_size=(64, 16, 256), lr=(0.1, 0.3)),
    "norm": replace(GRID, batch_norm=("none", "before"), lr=(0.3, 1.0)),
    "inputs": replace(GRID, teacher=("tuned", "separated"), data_std=(10.0, 1.0), lr=(0.1, 0.3, 1.0)),
    "rates": replace(GRID, teacher=("separated",), data_std=(1.0,), lr=(3.0, 10.0, 30.0)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders of a run for each part, two of the first, and what is written from them."""
    folder = tmp_path_factory.mktemp("study")
    given = []
    for name, options in OPTIONS.items():
        paths = [folder / name]
        options.run(paths[0])
        if name == "single":
            paths.append(folder / "other")
            replace(options, teacher_seed=1).run(paths[1])
        given += [f"--{name}", *map(str, paths)]
    main([*given, "--out", str(folder / "out")])
    return folder


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table whose title begins so."""
    table = text.split(f"**{title}")[1].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_page_and_arrays(written):
    text = (written / "out" / "README.md").read_text()
    results = [RunFolder.load(written / name).results() for name in ("single", "other")]
    narrow = [float((final(r, multi=1) - final(r, multi=5)).item()) for r in results]
    changes = {row[0]: row[1:] for row in rows(text, "What each change")}
    assert len(changes) == sum(len(getattr(SINGLE, name)) - 1 for name in FACTORS)
    assert changes["student width 1×"][0] == f"{np.mean(narrow):+.3f}"
    assert changes["student width 1×"][1] == f"{min(narrow):+.3f} … {max(narrow):+.3f}"
    pace = RunFolder.load(written / "pace").results()
    found = rows(text, "Layer score at the end, mean over layers and seeds")
    assert [row[0] for row in found] == ["1×", "2×", "5×", "10×"]
    assert found[2][1:] == [
        f"{float(final(pace, batch_size=size, lr=lr).item()):.3f}"
        for size, lr in ((256, 0.1), (256, 0.3), (64, 0.1), (64, 0.3), (16, 0.1), (16, 0.3))
    ]
    assert str(written) not in text and "2 runs" in text and "one run" in text
    kept = xr.load_dataset(written / "out" / "summary-single.nc")
    assert [record["config"]["teacher_seed"] for record in json.loads(kept.attrs["record"])] == [0, 1]
    np.testing.assert_allclose(kept.layer_score.sel(seed=1), results[1].layer_score.isel(seed=0), rtol=1e-6)
    figures = {path.stem for path in (written / "out" / "figures").iterdir()}
    assert figures == {"changes", *(name.replace("_", "-") for name in FACTORS)}


def results_with(scores):
    """Results of two cells, 1× and 5×, from their layer scores [cell, seed]."""
    table = np.asarray(scores)[:, :, None, None]
    base = {"batch_norm": "none", "teacher": "tuned", "batch_size": 64, "lr": 0.1, "outputs": 100, "data_std": 10.0}
    factors = {name: ("cell", [value] * 2) for name, value in base.items()} | {"multi": ("cell", [1, 5])}
    return xr.Dataset({"layer_score": (("cell", "seed", "epoch", "layer"), table)}, factors)


@pytest.mark.parametrize(
    ("wide", "verdict"), [((0.9, 0.8), "found"), ((0.9, 0.4), "undecided"), ((0.4, 0.5), "the contrary")]
)
def test_a_claim_is_found_where_all_seeds_agree(wide, verdict):
    row = Claim("wider is better", "single", {"multi": 5}, {"multi": 1}).row(results_with([(0.5, 0.6), wide]))
    low, high = sorted((wide[0] - 0.5, wide[1] - 0.6))
    assert row[1:4] == [f"{np.mean(wide):.3f}", "0.550", f"{low:+.3f} … {high:+.3f}"] and row[-1] == verdict


def test_the_committed_page_says_what_its_arrays_say():
    page = (FOLDER / "README.md").read_text()
    parts = {name: xr.load_dataset(FOLDER / f"summary-{name}.nc") for name in PARTS}
    single = parts["single"]
    assert single.seed.size == 3 and single.epoch.values[-1] == 40 and (single.diverged_step == -1).all()
    assert answer(single) in page and pace(parts["pace"]) in page
    assert inputs(parts["inputs"], parts["rates"]) in page

    def change(**values):
        return (final(single, **values) - final(single)).values

    factors = {"lr": (0.02,), "multi": (1, 2, 10), "outputs": (30, 10), "data_std": (3.0, 1.0), "batch_size": (256,)}
    for name, values in {**factors, "teacher": ("separated",)}.items():
        assert all((change(**{name: value}) < 0).all() for value in values)
    assert (change(batch_size=16) > 0).all() and (change(lr=0.3) > 0).all()
    for open_ in ({"batch_norm": "before"}, {"batch_norm": "after"}, {"teacher": "random"}):
        assert len(set(np.sign(change(**open_)))) == 2
    order = ((256, 0.1), (256, 0.3), (64, 0.1), (64, 0.3), (16, 0.1), (16, 0.3))
    scores = {
        m: [float(final(parts["pace"], multi=m, batch_size=b, lr=lr).mean()) for b, lr in order] for m in (1, 2, 5, 10)
    }
    assert all((np.diff(s[:-1]) > 0).all() and s[-1] < s[-2] for s in scores.values())
    assert min(scores, key=lambda m: scores[m][-1] - scores[m][-2]) == 1
    assert scores[1][-2] < 0.95 < 0.99 < scores[2][-2]
    norm = {
        (n, lr): final(parts["norm"], batch_norm=n, lr=lr) for n in ("none", "before", "after") for lr in (0.3, 1.0)
    }
    for name in ("before", "after"):
        assert (norm["none", 0.3] > norm[name, 0.3]).all() and (norm["none", 1.0] < 0.5).all()
        assert (abs(norm[name, 1.0] - norm[name, 0.3]) < 0.02).all()
    slow, large = (final(parts["inputs"], teacher="separated", data_std=std) for std in (1.0, 10.0))
    fast = final(parts["rates"], lr=10.0)
    assert (large - fast < 0.05).all() and (large - slow > 0.2).all()
    assert [claim.row(parts[claim.part])[-1] for claim in CLAIMS] == [
        "found", "found", "found", "found", "the contrary", "found", "found", "found", "the contrary"
    ]  # fmt: skip
    assert all(path.stat().st_size < 300_000 for path in FOLDER.rglob("*") if path.is_file())
