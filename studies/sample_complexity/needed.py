"""How many samples the students of a run need, and which kind of samples is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from fastspec.experiments.results import RunFolder


class Ratio(NamedTuple):
    """Samples needed of one kind over those needed of another, student by student."""

    values: np.ndarray  # of the students that have both, sorted
    students: int

    @property
    def middle(self) -> float:
        return float(np.median(self.values)) if len(self.values) else np.nan

    @property
    def fewer(self) -> int:
        """Students that need fewer of the first kind."""
        return int((self.values < 1).sum())

    def __str__(self) -> str:
        if not len(self.values):
            return "–"
        return f"{self.middle:.2f} ({self.values[0]:.2f} … {self.values[-1]:.2f})"


def ratio(one: xr.DataArray, other: xr.DataArray) -> Ratio:
    """Of two tables of samples needed, both [seed]; students that never have enough of either are left out."""
    both = (one / other).values
    return Ratio(np.sort(both[np.isfinite(both)]), len(both))


class Difference(NamedTuple):
    """Layer scores with samples about boundaries less those with as many Gaussian ones, student by student."""

    mean: float
    std: float
    better: int
    students: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.std:.3f} ({self.better} of {self.students})"


def difference(results: xr.Dataset, **at: int) -> Difference:
    """At one number of samples, multiple and layer."""
    one = results.layer_score.sel(at)
    both = (one.sel(kind="boundary") - one.sel(kind="gaussian")).values
    both = both[np.isfinite(both)]
    return Difference(float(both.mean()), float(both.std(ddof=1)), int((both > 0).sum()), len(both))


def matched(folders: Sequence[RunFolder], others: Sequence[RunFolder]) -> xr.Dataset:
    """The results of runs for the teachers and seeds of other runs, in their order."""
    by_teacher = {folder.config["teacher_seed"]: folder for folder in folders}
    each = others[0].config["seeds"]
    results = [by_teacher[other.config["teacher_seed"]].results().isel(seed=slice(each)) for other in others]
    return xr.concat([r.assign_coords(seed=range(i * each, (i + 1) * each)) for i, r in enumerate(results)], "seed")
