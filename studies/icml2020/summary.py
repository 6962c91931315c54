"""The arrays of a run, small enough for git."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from fastspec.figures import early_step

KEPT_BITS = 12  # of the 23 of a float32's fraction: four digits


def summary(results: xr.Dataset, record: dict[str, Any]) -> xr.Dataset:
    """Statistics over seeds at every measurement, and single seeds early (5 epochs of 100) and at the end.

    record: configuration, provenance and timings, kept as JSON in the attribute `record`.
    """
    threshold = record["config"]["threshold"]
    moments = [early_step(results, 0.05), int(results.step[-1])]
    of_seeds = ["best_correlation", "best_correlation_train", "sine", "loss", "loss_train", "gradient_max"]
    single = results[of_seeds].sel(step=moments).drop_vars("epoch", errors="ignore").rename(step="moment")
    covered = results.best_correlation > threshold
    arrays = {
        "success": covered.mean("seed"),
        "success_train": (results.best_correlation_train > threshold).mean("seed"),
        "rank": results["rank"].where(covered.isel(step=-1)).mean("seed"),
        "students": results.students.where(results.students >= 0).mean("seed"),
    }
    for name in ("loss", "loss_train"):
        logarithm = xr.apply_ufunc(np.log10, results[name])
        arrays |= {f"log10_{name}": logarithm.mean("seed"), f"log10_{name}_std": logarithm.std("seed")}
    dataset = xr.Dataset(arrays).merge(single).map(_rounded)
    return dataset.assign_attrs(fastspec="summary", record=json.dumps(record))


def _rounded(array: xr.DataArray) -> xr.DataArray:
    """The same numbers to `KEPT_BITS` binary digits, which compress well."""
    bits = np.asarray(array.values, dtype=np.float32).view(np.uint32)
    drop = 23 - KEPT_BITS
    rounded = (bits + np.uint32(1 << (drop - 1))) & ~np.uint32((1 << drop) - 1)
    finite = np.isfinite(array.values)
    return array.copy(data=np.where(finite, rounded, bits).astype(np.uint32).view(np.float32))
