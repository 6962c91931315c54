"""The correctness gate: a result that is not right has no speed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from benchmarks.harness import Entry
from fastspec.ops.cross_moments import Moments


class WrongResultError(AssertionError):
    """A peer's result failed the correctness check; it has no speed."""


@dataclass(frozen=True)
class Bounds:
    """Largest errors against float64 with which a result is still called right."""

    rho: float = 1e-5  # absolute, of the correlation
    scatter: float = 1e-5  # relative; of a cross scatter, relative to the two nodes' own scatters
    mean: float = 1e-5  # in standard deviations of the node
    flipped: float = 1e-5  # active samples more or fewer, as a fraction of the samples, beyond two samples


CONTRACT = Bounds()  # what the ops promise
PLAIN = Bounds(rho=1e-3, scatter=1e-3, mean=1e-3, flipped=1e-4)  # float32 sums as peers may form them; errors are shown


def correlation(moments: Moments) -> Tensor:
    """rho [m, n] in float64; NaN for constant nodes."""
    own = moments.teacher_scatter.unsqueeze(-1) * moments.student_scatter.unsqueeze(-2)
    return moments.cross_scatter / own.sqrt()


def errors(result: Moments | Tensor, truth: Moments, samples: int) -> Entry:
    """Errors of a result (moments, or the correlation alone) against float64; NaN matches NaN in the correlation."""
    rho = correlation(truth)
    if isinstance(result, Tensor):
        return {"rho": _largest(result.double() - rho, rho)}
    found: Entry = {"rho": _largest(correlation(result) - rho, rho), "scatter": 0.0, "mean": 0.0}
    own = (truth.teacher_scatter.unsqueeze(-1) * truth.student_scatter.unsqueeze(-2)).sqrt()
    pairs = ((result.cross_scatter - truth.cross_scatter) / own).nan_to_num(0.0, math.inf, math.inf)
    found["scatter"] = float(pairs.abs().max())
    for side in ("teacher", "student"):
        scatter, mean = getattr(truth, f"{side}_scatter"), getattr(truth, f"{side}_mean")
        live = scatter > 0
        relative = (getattr(result, f"{side}_scatter") - scatter)[live] / scatter[live]
        shift = (getattr(result, f"{side}_mean") - mean)[live] / (scatter[live] / samples).sqrt()
        found["scatter"] = max(found["scatter"], _largest(relative))
        found["mean"] = max(found["mean"], _largest(shift))
        active = getattr(result, f"{side}_active")
        if active.numel():
            flipped = int((active - getattr(truth, f"{side}_active")).abs().max())
            found["flipped"] = max(found.get("flipped", 0), flipped)
    return found


def _largest(difference: Tensor, undefined: Tensor | None = None) -> float:
    """Largest magnitude; NaN counts as infinite unless `undefined` has it too."""
    size = difference.abs()
    if undefined is not None:
        size = size[~undefined.isnan()]
    return float(size.nan_to_num(math.inf).max()) if size.numel() else 0.0


def check(name: str, result: Moments | Tensor, truth: Moments, samples: int, bounds: Bounds = Bounds()) -> Entry:
    """The gate: the errors of a right result; raises WrongResultError for any other."""
    found = errors(result, truth, samples)
    limits = {
        "rho": bounds.rho,
        "scatter": bounds.scatter,
        "mean": bounds.mean,
        "flipped": 2 + bounds.flipped * samples,
    }
    wrong = [f"{key} {value:.3g} (limit {limits[key]:.3g})" for key, value in found.items() if not value <= limits[key]]
    if wrong:
        raise WrongResultError(f"{name}: got errors against float64 of {', '.join(wrong)}")
    return found
