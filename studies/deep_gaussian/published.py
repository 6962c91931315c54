"""Published readings of deep students of separated teachers on Gaussian inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import xarray as xr


@dataclass(frozen=True)
class Reading:
    """A layer score (layer 0: the squared difference, averaged over samples and outputs) at the end, or at an epoch.

    samples: the place of the number of distinct samples among those of the runs.
    """

    text: str
    published: str
    layer: int
    low: float
    high: float
    samples: int = 0
    epoch: float | None = None

    def found(self, results: xr.Dataset, outputs: int) -> xr.DataArray:
        """Its value for every seed."""
        multi = results.multi.values[0]
        picked = results.sel(multi=multi).isel(samples=self.samples)
        picked = picked.isel(step=-1) if self.epoch is None else picked.sel(step=_at(results, self.epoch))
        return picked.layer_score.sel(layer=self.layer) if self.layer else picked.loss * 2 / outputs


def _at(results: xr.Dataset, epoch: float) -> int:
    return int(results.step.values[abs(results.epoch.values - epoch).argmin()])


LUCK_MATTERS = (
    Reading("layer score of layer 1 after 5 epochs", "≥ 0.999", 1, 0.999, 1.0, epoch=5),
    Reading("layer score of layer 1 at the end", "near 1.0", 1, 0.995, 1.0),
    Reading("layer score of layer 2 at the end", "near 1.0", 2, 0.995, 1.0),
    Reading("layer score of layer 3 at the end", "near 0.995", 3, 0.985, 1.0),
    Reading("layer score of layer 4 at the end", "near 0.97", 4, 0.95, 1.0),
)

STUDENT_SPECIALIZATION = (
    *(
        Reading(f"layer score of layer {layer}, 100,000 samples", "≥ 0.9998", layer, 0.9998, 1.0, samples=-1)
        for layer in (1, 2, 3, 4)
    ),
    Reading("squared difference, 100,000 samples", "≤ 2e-4", 0, 0.0, 2e-4, samples=-1),
    *(
        Reading(f"layer score of layer {layer}, 20,000 samples", "≥ 0.9998", layer, 0.9998, 1.0, samples=-2)
        for layer in (1, 2, 3, 4)
    ),
    Reading("squared difference, 20,000 samples", "≤ 2e-4", 0, 0.0, 2e-4, samples=-2),
    Reading("layer score of layer 1, 15,000 samples", "specialises", 1, 0.9, 1.0, samples=-3),
    *(
        Reading(f"layer score of layer {layer}, 15,000 samples", "does not", layer, 0.0, 0.9, samples=-3)
        for layer in (2, 3, 4)
    ),
)

TWENTY_THOUSAND = tuple(replace(reading, samples=-1) for reading in STUDENT_SPECIALIZATION if reading.samples == -2)
