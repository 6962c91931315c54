"""How far random ReLU layers are from keeping norms: exact moments, tail bounds, and the widths they ask for.

A layer is h = ReLU(W u), W of `width` rows with entries N(0, 2 / width), no bias: E||h||^2 = ||u||^2. Source: Arpit &
Bengio, The Benefits of Over-parameterization at Initialization in Deep ReLU Networks (arXiv 1901.03611).
"""

from __future__ import annotations

import math

from fastspec.ops.checks import check_integer, check_real, refuse


def energy_variance(width: int, layers: int = 1) -> float:
    """The variance of ||h_l||^2 / ||x||^2 after so many layers of one width, exactly: (1 + 5 / width)^layers - 1."""
    _check_sizes(width=width, layers=layers)
    return math.expm1(layers * math.log1p(5 / width))


def exponent(error: float) -> float:
    """error / 4 + log(2 / (1 + sqrt(1 + error))), the rate of `tail_bound`; about 3 error^2 / 32 for small errors."""
    _check_error(error)
    if error > 1e-3:
        return error / 4 - math.log1p((math.sqrt(1 + error) - 1) / 2)
    return error * error * (3 / 32 + error * (-5 / 96 + error * 35 / 1024))  # the series: no cancellation


def tail_bound(width: int, error: float) -> float:
    """A bound on P(| ||h||^2 - ||u||^2 | >= error ||u||^2) for one layer: 2 exp(-width exponent(error)), at most 1."""
    _check_sizes(width=width)
    return min(1.0, 2 * math.exp(-width * exponent(error)))


def width_for(error: float, confidence: float, *, samples: int = 1, layers: int = 1) -> int:
    """The least width at which, by `tail_bound`, every layer keeps the squared norm of every sample to a factor
    1 +- error, with probability `confidence`: log(2 samples layers / (1 - confidence)) / exponent(error)."""
    return math.ceil(_budget(confidence, samples, layers) / exponent(error))


def error_for(width: int, confidence: float, *, samples: int = 1, layers: int = 1) -> float:
    """The error that `width_for` would need this width for; the inverse function, found by bisection."""
    _check_sizes(width=width)
    wanted = _budget(confidence, samples, layers) / width
    low, high = 0.0, 1.0
    while exponent(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if exponent(middle) < wanted else (low, middle)
    return high


def published_bound(width: int, confidence: float, *, samples: int, layers: int) -> float:
    """What the paper's published code plots as the bound on the error of the norms after all layers:
    (1 + (4 / width) log(4 samples layers / (1 - confidence)))^layers - 1.

    Mean errors are below it. The worst of many samples may be above it in networks of few layers, where `error_for`
    gives a bound: ||h_l||^2 / ||x||^2 is within (1 +- error)^l.
    """
    _check_sizes(width=width)
    return math.expm1(layers * math.log1p(4 / width * (_budget(confidence, samples, layers) + math.log(2))))


def _budget(confidence: float, samples: int, layers: int) -> float:
    _check_sizes(samples=samples, layers=layers)
    check_real("confidence", confidence, "a number above 0 and below 1", math.ulp(0.0), math.nextafter(1.0, 0.0))
    return math.log(2 * samples * layers / (1 - confidence))


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_integer(name, size)


def _check_error(error: float) -> None:
    if not (isinstance(error, (int, float)) and 0 < error < math.inf):
        refuse("error", repr(error), "a finite number above 0")
