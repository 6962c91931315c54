"""What a run found beside what was published."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from studies.icml2020.published import SEEDS, TEACHER_NODES, Loss, Success

THRESHOLD = 0.95


@dataclass(frozen=True)
class Found:
    """The value of a run, the standard error of its difference from the reading, and what its seeds say."""

    value: float
    difference: float
    error: float
    seeds: str

    @property
    def deviation(self) -> float:
        """The difference in standard errors; 0 where both agree exactly."""
        return self.difference / self.error if self.difference else 0.0


def published_loss(results: xr.Dataset, outputs: int) -> xr.DataArray:
    """log10 of the loss at the end as the authors average it, over samples and outputs without the factor 1/2."""
    return np.log10(results.loss.isel(step=-1) * 2 / outputs)


def find(results: xr.Dataset, reading: Success | Loss, outputs: int) -> Found:
    """The reading's value in the results of a two-layer run.

    The published mean is taken to have the spread of ours: shares are compared by the error of two pooled binomial
    samples, losses by sqrt(1/S + 1/32) times the standard deviation over our S seeds.
    """
    picked = results.sel(teacher_nodes=TEACHER_NODES, strength_decay=reading.decay, multi=reading.multi)
    seeds = picked.sizes["seed"]
    both = math.sqrt(1 / seeds + 1 / SEEDS)
    if isinstance(reading, Loss):
        loss = published_loss(picked, outputs)
        mean, std = float(loss.mean()), float(loss.std(ddof=1))
        spread = f"{float(loss.min()):.2f} … {float(loss.max()):.2f}, sd {std:.2f}"
        return Found(mean, mean - reading.log10, std * both, spread)
    first, last = reading.nodes
    covered = (picked.best_correlation.isel(step=-1) > THRESHOLD).sel(teacher=slice(first, last)).sum("seed")
    count = int(covered.min())
    share = round(count / seeds, 2)  # as the readings are
    difference = share - reading.share if share < reading.share or not reading.at_least else 0.0
    pooled = (count + reading.share * SEEDS) / (seeds + SEEDS)
    return Found(share, difference, math.sqrt(pooled * (1 - pooled)) * both, f"{count} of {seeds}")
