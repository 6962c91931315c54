"""The arrays of a run, small enough for git."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

OF_RUN = ("loss", "loss_train", "layer_score", "constant_teachers", "constant_students", "diverged_step")


def summary(results: xr.Dataset, record: dict[str, Any]) -> xr.Dataset:
    """Losses and layer scores of every seed at every measurement, and single nodes of every seed at the end.

    record: configuration, provenance and timings, kept as JSON in the attribute `record`.
    """
    last = results.isel(step=-1, drop=True)
    arrays: dict[str, xr.DataArray] = {name: results[name] for name in OF_RUN}
    arrays["rank"] = results["rank"].mean("teacher")
    of_nodes = ("best_correlation", "best_student", "max_correlation", "strength")
    arrays |= {f"final_{name}": last[name] for name in of_nodes if name in results}
    small = xr.Dataset(arrays).map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a)
    return small.assign_attrs(fastspec="summary", record=json.dumps(record))
