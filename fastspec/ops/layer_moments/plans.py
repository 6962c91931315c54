"""Which way `layer_moments` goes on a GPU: a written cost model, from shapes and the device's rates alone.

The rates are the makers' figures, the shares of them that kernels reach are estimates: README.md says which of them
have been measured. A plan never depends on the size of a population, and neither do its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Literal, NamedTuple

from fastspec.ops.checks import check_integer, refuse
from fastspec.ops.gpu.devices import DEVICES, Rates
from fastspec.ops.gpu.sizes import WORKSPACE, Tiles, span_of, tiles_of
from fastspec.ops.precision import PRECISIONS

Name = Literal["recompute", "stream"]
NAMES: tuple[Name, ...] = ("recompute", "stream")
ACTIVATIONS = 128 * 2**20  # bytes of both networks' activations that `stream` holds at a time
LAUNCH = 8e-6  # seconds between two kernels of a stream


# Estimates of the share of a rate that is reached: by torch's products, by the layers' kernel, by the one-pass kernel.
TORCH = {"fp64": 0.85, "fp32": 0.85}
LAYERS = {"fp64": 0.4, "fp32": 0.55, "tf32x3": 0.5, "tf32": 0.6, "bf16": 0.6}
MOMENTS = {"fp64": 0.4, "fp32": 0.55, "tf32x3": 0.4, "tf32": 0.35, "bf16": 0.3}


class Plan(NamedTuple):
    """One way through a problem."""

    name: Name
    tiles: Tiles  # of the one-pass kernel
    chunk: int  # samples whose activations `stream` holds
    slab: int  # student nodes whose activations it holds
    seconds: float  # predicted
    why: str


def candidates(
    samples: int,
    inputs: int,
    teacher_nodes: int,
    student_nodes: int,
    precision: str,
    *,
    student_inputs: int | None = None,
    population: int = 1,
    coactivation: bool = False,
    activations: bool = False,
    device: Rates | None = None,
) -> list[Plan]:
    """Every plan with its predicted time; the arguments are those of `choose`, for `population` students."""
    for name, value in (
        ("samples", samples), ("inputs", inputs), ("teacher_nodes", teacher_nodes), ("student_nodes", student_nodes),
        ("population", population),
    ):  # fmt: skip
        check_integer(name, value, 0 if name == "inputs" else 1)
    if precision not in PRECISIONS:
        refuse("precision", repr(precision), " or ".join(map(repr, PRECISIONS)))
    rates = device or DEVICES[-1]
    d_t, d_s, m, n = inputs, inputs if student_inputs is None else student_inputs, teacher_nodes, student_nodes
    rate, size = rates.products[precision], 8 if precision == "fp64" else 4
    in_and_out = size * samples * (d_t + (0 if student_inputs is None else population * d_s))
    in_and_out += 8 * population * m * n + (size * samples * (m + population * n) if activations else 0)

    tiles = tiles_of(precision, True, m, coactivation or activations, rates.warpgroups)
    rows, columns = ceil(m / tiles.teachers), ceil(population * n / tiles.students)
    padded_m, padded_n = rows * tiles.teachers, columns * tiles.students
    deep_t, deep_s = (ceil(d / tiles.inputs) * tiles.inputs for d in (d_t, d_s))
    work = columns * padded_m * deep_t + rows * padded_n * deep_s + padded_m * padded_n
    computing = 2 * samples * work / (rate * MOMENTS[precision])
    recompute = Plan("recompute", tiles, 0, n, max(computing, in_and_out / rates.memory), "")

    loaded = tiles_of(precision, False, m, coactivation, rates.warpgroups)
    span = span_of(samples, m)
    room = max(min(ACTIVATIONS // (size * span) - m, WORKSPACE // (size * m)), loaded.students)  # student nodes
    slab = n if n <= room else room // loaded.students * loaded.students
    fitting = min(ACTIVATIONS // (size * span * (m + slab)), WORKSPACE // (size * m * slab))  # spans
    chunk = max(1, min(fitting, ceil(samples / span))) * span
    slabs, chunks = population * ceil(n / slab), ceil(samples / chunk)
    by_torch = precision in TORCH
    layers = 2 * samples * (m * d_t + population * n * d_s) / (rate * (TORCH if by_torch else LAYERS)[precision])
    of_cross = TORCH[precision] if by_torch and not coactivation else MOMENTS[precision]
    cross = 2 * samples * m * population * n / (rate * of_cross)
    passes = 4 if by_torch else 2  # over the activations, through the cache if a chunk fits there
    within = rates.cache if size * chunk * (m + slab) <= rates.cache_size else rates.memory
    moved = passes * size * samples * (m * slabs + population * n) / within
    merged = ceil(samples / span) * population * m * n * (2 * size + 16) / rates.memory
    seconds = layers + cross + moved + merged + LAUNCH * chunks * slabs * 6 + in_and_out / rates.memory
    streamed = Plan("stream", loaded, chunk, slab, seconds, "")
    return [_explained(plan, other) for plan, other in ((recompute, streamed), (streamed, recompute))]


def choose(
    samples: int,
    inputs: int,
    teacher_nodes: int,
    student_nodes: int,
    precision: str,
    *,
    student_inputs: int | None = None,
    coactivation: bool = False,
    activations: bool = False,
    device: Rates | None = None,
) -> Plan:
    """The plan with the smallest predicted time for one student, or the one that `force` asks for.

    student_inputs: the width of the students' inputs, where they have inputs of their own.
    device: its rates, see `fastspec.ops.gpu.devices`; None is a device not in the table.
    Raises ValueError, naming the argument, for sizes below 1 and unknown precisions.
    """
    plans = candidates(
        samples, inputs, teacher_nodes, student_nodes, precision, student_inputs=student_inputs,
        coactivation=coactivation, activations=activations, device=device,
    )  # fmt: skip
    if _forced is not None:
        return plans[NAMES.index(_forced)]._replace(why="forced")
    return min(plans, key=lambda plan: plan.seconds)


_forced: Name | None = None


@contextmanager
def force(name: Name) -> Iterator[None]:
    """Take one plan whatever the model says, to test or to measure it."""
    global _forced
    if name not in NAMES:
        refuse("name", repr(name), " or ".join(map(repr, NAMES)))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _explained(plan: Plan, other: Plan) -> Plan:
    what = {
        "recompute": "activations are computed again for every tile of the cross product, and written nowhere",
        "stream": "activations are computed once and go through memory in chunks",
    }[plan.name]
    verdict = "faster" if plan.seconds <= other.seconds else "slower"
    return plan._replace(why=f"{what}: the {verdict} of the two here")
