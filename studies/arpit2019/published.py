"""Readings of the published code: He's scheme by fan-out, 2000 samples of 500 Gaussian inputs, 10 layers, one draw."""

from __future__ import annotations

from typing import NamedTuple


class Reading(NamedTuple):
    """Mean |1 - ratio| over layers and samples of one network."""

    width: int
    forward: float
    backward: float


READINGS = (
    Reading(100, 0.176, 0.232),
    Reading(500, 0.077, 0.112),
    Reading(1000, 0.063, 0.076),
    Reading(2000, 0.037, 0.065),
    Reading(4000, 0.026, 0.036),
)
