"""Sizes of the one-pass kernel, from shapes alone. This file needs no Triton."""

from __future__ import annotations

import math
from typing import NamedTuple

WORKSPACE = 96 * 2**20  # bytes of a round's sums
SPANS = 64  # in a round, where the workspace holds them
TEACHER = 128 * 2**20  # bytes of a span of the teacher's activations, in float64
SHORTEST, LONGEST, ALIGNED = 256, 8192, 128  # samples of a span


class Tiles(NamedTuple):
    """What one program of the kernel works on at a time."""

    rows: int
    teachers: int
    students: int
    inputs: int
    warps: int
    stages: int


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up; `triton.cdiv` takes the host ten times as long."""
    return -(-a // b)


def span_of(samples: int, m: int) -> int:
    """Samples whose products are summed before they go to float64: many, but in enough spans to fill a device, and
    few enough for a span of the teacher's activations to fit.

    It depends on the problem of one student alone: a result depends neither on the device nor on a population.
    """
    wanted = min(math.ceil(samples / 128 / ALIGNED) * ALIGNED, TEACHER // (8 * m) // ALIGNED * ALIGNED)
    return min(max(wanted, SHORTEST), LONGEST)


def tiles_of(precision: str, layered: bool, m: int, extras: bool, warpgroups: bool) -> Tiles:
    """Tiles of the one-pass kernel that compile without spills (tests/compiled holds their registers).

    layered: it computes the activations. extras: it counts co-activation, writes the activations out, or reads them at
    positions in space. warpgroups: see `fastspec.ops.gpu.devices`.
    """
    if precision == "fp64":
        if extras:
            return Tiles(32, 32, 32, 16, 8, 1)
        return Tiles(32, 32, 64, 16, 8, 1) if layered else Tiles(32, 64, 64, 16, 8, 2)
    if precision == "fp32":
        if extras:
            return Tiles(16 if layered else 32, 64, 64, 16, 8, 1)
        if m <= 32:
            return Tiles(32, 32, 128, 16, 8, 2)
        return Tiles(32, 64, 128, 16, 8, 1 if layered else 2)
    if not warpgroups:
        if extras or (precision == "tf32x3" and not layered):
            return Tiles(16, 32, 64, 16, 4, 1) if layered else Tiles(32, 32, 32, 16, 4, 1)
        return Tiles(32, 64, 64, 16, 8, 2) if precision == "tf32x3" else Tiles(32, 64, 128, 32, 8, 2)
    if precision == "tf32x3":
        if layered:
            return Tiles(32, 64, 64, 16, 8, 1) if extras else Tiles(32, 64, 64, 32, 4, 2)
        return Tiles(32, 64, 64, 32, 8, 1) if extras else Tiles(32, 64, 128, 32, 8, 2)
    if extras:
        return Tiles(64 if not layered else 32, 64, 64, 32, 8, 2)
    if layered:
        return Tiles(64, 64, 128, 32, 8, 2) if m <= 64 else Tiles(32, 128, 128, 32, 8, 2)
    return Tiles(32, 128, 128, 32, 8, 3)
