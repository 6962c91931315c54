"""The arrays of several runs, small enough for git."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from fastspec.experiments.results import RunFolder
from studies.files import records, summary

OF_RUN = ("loss", "loss_train", "layer_score", "constant_teachers", "constant_students", "diverged_step")
OF_NODES = ("best_correlation", "best_student", "max_correlation", "strength")
OF_TEACHERS = ("teacher_strength", "teacher_activity")


def kept(results: xr.Dataset, folders: Sequence[RunFolder]) -> xr.Dataset:
    """Losses and layer scores of every seed at every measurement, and single nodes of every seed at the end.

    Configuration, provenance and timings of the runs are kept as JSON in the attribute `record`.
    """
    last = results.isel(step=-1, drop=True)
    arrays: dict[str, xr.DataArray] = {name: results[name] for name in (*OF_RUN, *OF_TEACHERS)}
    arrays["rank"] = results["rank"].mean("teacher")
    arrays |= {f"final_{name}": last[name] for name in OF_NODES}
    return summary(xr.Dataset(arrays), records(folders))
