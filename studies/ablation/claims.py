"""What the authors say their experiments depend on, and what a run found."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from fastspec.ablation_plots import FACTORS


def final(results: xr.Dataset, **values: Any) -> xr.DataArray:
    """Layer score at the end, mean over layers, [seed]: of the cell with some values, the rest as in the first cell.

    A layer without any correlation, of a student that diverged or has no node left that varies, counts as 0.
    """
    wanted = {name: values.get(name, results[name].values[0]) for name in FACTORS}
    same = np.logical_and.reduce([results[name].values == value for name, value in wanted.items()])
    (cell,) = np.flatnonzero(same)
    return results.layer_score.isel(cell=cell, epoch=-1).fillna(0.0).mean("layer")


class Claim(NamedTuple):
    """One setting is better than another, with all else as in the base of a part's runs."""

    text: str
    part: str
    better: dict[str, Any]
    worse: dict[str, Any]

    def found(self, results: xr.Dataset) -> np.ndarray:
        """Layer score of the better less that of the worse, [seed]."""
        return (final(results, **self.better) - final(results, **self.worse)).values

    def row(self, results: xr.Dataset) -> list[str]:
        difference = self.found(results)
        better, seeds = int((difference > 0).sum()), len(difference)
        verdict = {seeds: "found", 0: "the contrary"}.get(better, "undecided")
        scores = [f"{float(final(results, **side).mean()):.3f}" for side in (self.better, self.worse)]
        return [
            self.text,
            *scores,
            f"{difference.min():+.3f} … {difference.max():+.3f}",
            f"{better} of {seeds}",
            verdict,
        ]


UNTUNED = {"teacher": "separated"}
CLAIMS = (
    Claim("ten times the teacher's nodes do, once is too few", "single", {"multi": 10}, {"multi": 1}),
    Claim("more nodes than needed take more steps: 5× is ahead of 10×", "single", {"multi": 5}, {"multi": 10}),
    Claim("more outputs are better: 100, not 10", "single", {"outputs": 100}, {"outputs": 10}),
    Claim("high learning rates are unstable: 0.1, not 0.3", "inputs", {**UNTUNED, "lr": 0.1}, {**UNTUNED, "lr": 0.3}),
    Claim("the same, tuned teachers", "inputs", {"lr": 0.1}, {"lr": 0.3}),
    Claim("the same, tuned teachers, 0.3, not 1", "inputs", {"lr": 0.3}, {"lr": 1.0}),
    Claim("inputs need a standard deviation of 10, not 1", "inputs", UNTUNED, {**UNTUNED, "data_std": 1.0}),
    Claim("the same, tuned teachers", "inputs", {}, {"data_std": 1.0}),
    Claim("the same, tuned teachers, learning rate 0.3", "inputs", {"lr": 0.3}, {"lr": 0.3, "data_std": 1.0}),
)
