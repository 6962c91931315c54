"""The results of several runs as one, and its arrays small enough for git."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from fastspec.experiments.results import RunFolder
from fastspec.ops.checks import refuse

OF_RUN = ("loss", "loss_train", "layer_score", "constant_teachers", "constant_students", "diverged_step")
OF_NODES = ("best_correlation", "best_student", "max_correlation", "strength")
OF_TEACHERS = ("teacher_strength", "teacher_activity")
JOINED = {"teacher_seed": "seed", "samples": "samples"}  # option in which runs differ, axis along which they are joined


def joined(folders: Sequence[RunFolder]) -> xr.Dataset:
    """Runs of one configuration but for the teacher's seed, whose students are told apart by it, or for the samples."""
    results = [folder.results() for folder in folders]
    if len(folders) == 1:
        return results[0]
    first = folders[0].config
    different = {key for folder in folders for key in first if folder.config[key] != first[key]}
    if len(different) != 1 or not different <= JOINED.keys():
        refuse(
            "folders", f"runs that differ in {', '.join(sorted(different)) or 'nothing'}", "in teacher_seed or samples"
        )
    (option,) = different
    if option == "teacher_seed":
        every = range(len(folders) * first["seeds"])
        starts = range(0, len(every), first["seeds"])
        results = [
            r.assign_coords(seed=list(every[at : at + first["seeds"]])) for r, at in zip(results, starts, strict=True)
        ]
    return xr.concat(results, JOINED[option], data_vars="different", coords="minimal", compat="equals", join="exact")


def summary(results: xr.Dataset, folders: Sequence[RunFolder]) -> xr.Dataset:
    """Losses and layer scores of every seed at every measurement, and single nodes of every seed at the end.

    Configuration, provenance and timings of the runs are kept as JSON in the attribute `record`.
    """
    last = results.isel(step=-1, drop=True)
    arrays: dict[str, xr.DataArray] = {name: results[name] for name in (*OF_RUN, *OF_TEACHERS)}
    arrays["rank"] = results["rank"].mean("teacher")
    arrays |= {f"final_{name}": last[name] for name in OF_NODES}
    small = xr.Dataset(arrays).map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a)
    record = [{"config": f.config, "provenance": f.provenance, "wall seconds": f.timings()} for f in folders]
    return small.assign_attrs(fastspec="summary", record=json.dumps(record))
