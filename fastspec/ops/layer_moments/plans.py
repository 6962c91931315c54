"""Which way `layer_moments` goes on a GPU: a written cost model, from shapes and the device's rates alone.

The rates are the makers' figures, the shares of them that kernels reach are estimates: README.md says which of them
have been measured. A plan never depends on the size of a population, and neither do its results: students go one by
one, or in blocks that are always full.
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

Name = Literal["recompute", "stream", "blocks"]
NAMES: tuple[Name, ...] = ("recompute", "stream", "blocks")
ACTIVATIONS = 128 * 2**20  # bytes of both networks' activations that `stream` and `blocks` hold at a time
LAUNCH = 8e-6  # seconds between two kernels of a stream
BLOCK_BYTES = 8192  # at most, of a sample's activations in a block of students
BLOCK_STUDENTS = 32  # at most: so many are computed where fewer are there
EACH = 4  # a student of a block has a multiple of so many columns, so that all begin at 16 bytes
NARROW = 32  # nodes of a tile of torch's products: those of a narrower teacher take as long


# Estimates of the share of a rate that is reached: by torch's products, by the layers' kernel, by the one-pass kernel.
TORCH = {"fp64": 0.85, "fp32": 0.85}
LAYERS = {"fp64": 0.4, "fp32": 0.55, "tf32x3": 0.5, "tf32": 0.6, "bf16": 0.6}
MOMENTS = {"fp64": 0.4, "fp32": 0.55, "tf32x3": 0.4, "tf32": 0.35, "bf16": 0.3}
# The same where the one-pass kernel makes activations and writes them out, or counts co-activation: it waits for loads.
WAITING = MOMENTS | {"fp64": 0.05, "fp32": 0.05}

WHY: dict[Name, str] = {
    "recompute": "activations are computed again for every tile of the cross product, and written nowhere",
    "stream": "activations are computed once, student by student, and go through memory in chunks",
    "blocks": "activations are computed once, of many students in one product, and go through memory in chunks",
}


class Plan(NamedTuple):
    """One way through a problem."""

    name: Name
    tiles: Tiles  # of the one-pass kernel
    chunk: int  # samples whose activations `stream` and `blocks` hold
    slab: int  # student nodes, or columns of a block, whose activations they hold
    seconds: float  # predicted
    why: str
    students: int = 1  # side by side in a block


class Block(NamedTuple):
    """How students of one width lie side by side."""

    students: int  # a power of two
    each: int  # columns of a student

    @property
    def columns(self) -> int:
        return self.students * self.each

    @classmethod
    def of(cls, nodes: int, precision: str) -> Block:
        """Of students with so many nodes: a rule of their width alone."""
        each = ceil(nodes / EACH) * EACH
        fitting = min(BLOCK_BYTES // (_size(precision) * each), BLOCK_STUDENTS)
        return cls(2 ** (max(fitting, 1).bit_length() - 1), each)


def _size(precision: str) -> int:
    """Bytes of an activation."""
    return 8 if precision == "fp64" else 4


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
    """Every plan with its predicted time; the arguments are those of `choose`, for `population` students that share
    their inputs."""
    for name, value in (
        ("samples", samples), ("inputs", inputs), ("teacher_nodes", teacher_nodes), ("student_nodes", student_nodes),
        ("population", population),
    ):  # fmt: skip
        check_integer(name, value, 0 if name == "inputs" else 1)
    if precision not in PRECISIONS:
        refuse("precision", repr(precision), " or ".join(map(repr, PRECISIONS)))
    rates = device or DEVICES[-1]
    d_t, d_s, m, n = inputs, inputs if student_inputs is None else student_inputs, teacher_nodes, student_nodes
    rate, size = rates.products[precision], _size(precision)
    in_and_out = size * samples * (d_t + (0 if student_inputs is None else d_s))
    in_and_out += 8 * population * m * n + (size * samples * (m + population * n) if activations else 0)

    tiles = tiles_of(precision, True, m, coactivation or activations, rates.warpgroups)
    rows, columns = ceil(m / tiles.teachers), ceil(population * n / tiles.students)
    padded_m, padded_n = rows * tiles.teachers, columns * tiles.students
    deep_t, deep_s = (ceil(d / tiles.inputs) * tiles.inputs for d in (d_t, d_s))
    work = columns * padded_m * deep_t + rows * padded_n * deep_s + padded_m * padded_n
    share = (WAITING if coactivation or activations else MOMENTS)[precision]
    computing = 2 * samples * work / (rate * share)
    recompute = Plan("recompute", tiles, 0, n, max(computing, in_and_out / rates.memory), "")

    loaded = tiles_of(precision, False, m, coactivation, rates.warpgroups)
    span = span_of(samples, m)
    by_torch = precision in TORCH
    of_cross = TORCH[precision] if by_torch and not coactivation else MOMENTS[precision]

    def streamed(name: Name, slab: int, slabs: int, columns: int, students: int = 1) -> Plan:
        """In slabs, which have so many columns together."""
        fitting = min(ACTIVATIONS // (size * span * (m + slab)), WORKSPACE // (size * m * slab))  # spans
        chunk = max(1, min(fitting, ceil(samples / span))) * span
        chunks = ceil(samples / chunk)
        layers = 2 * samples * (m * d_t + columns * d_s) / (rate * (TORCH if by_torch else LAYERS)[precision])
        cross = 2 * samples * (max(m, NARROW) if by_torch else m) * columns / (rate * of_cross)
        passes = 4 if by_torch else 2  # over the activations, through the cache if a chunk fits there
        within = rates.cache if size * chunk * (m + slab) <= rates.cache_size else rates.memory
        moved = passes * size * samples * (m * slabs + columns) / within
        merged = ceil(samples / span) * m * columns * (2 * size + 16) / rates.memory
        seconds = layers + cross + moved + merged + LAUNCH * chunks * slabs * 6 + in_and_out / rates.memory
        return Plan(name, loaded, chunk, slab, seconds, "", students)

    room = max(min(ACTIVATIONS // (size * span) - m, WORKSPACE // (size * m)), loaded.students)  # student nodes
    slab = n if n <= room else room // loaded.students * loaded.students
    found = [recompute, streamed("stream", slab, population * ceil(n / slab), population * n)]
    block = Block.of(n, precision)
    if population > 1 and block.students > 1:
        blocks = ceil(population / block.students)
        found.append(streamed("blocks", block.columns, blocks, blocks * block.columns, block.students))
    best = min(found, key=lambda plan: plan.seconds)
    verdicts = ["the fastest here" if plan is best else "slower here" for plan in found]
    return [p._replace(why=f"{WHY[p.name]}: {verdict}") for p, verdict in zip(found, verdicts, strict=True)]


def choose(
    samples: int,
    inputs: int,
    teacher_nodes: int,
    student_nodes: int,
    precision: str,
    *,
    student_inputs: int | None = None,
    blocks: bool = False,
    coactivation: bool = False,
    activations: bool = False,
    device: Rates | None = None,
) -> Plan:
    """The plan with the smallest predicted time, or the one that `force` asks for; "stream" where blocks do not apply.

    student_inputs: the width of the students' inputs, where those are not the teacher's.
    blocks: students are a population's and share their inputs; the time is that of a full block of them, however many
        there are.
    device: its rates, see `fastspec.ops.gpu.devices`; None is a device not in the table.
    Raises ValueError, naming the argument, for sizes below 1 and unknown precisions.
    """
    students = Block.of(student_nodes, precision).students if blocks else 1
    plans = candidates(
        samples, inputs, teacher_nodes, student_nodes, precision, student_inputs=student_inputs, population=students,
        coactivation=coactivation, activations=activations, device=device,
    )  # fmt: skip
    if _forced is not None:
        return plans[min(NAMES.index(_forced), len(plans) - 1)]._replace(why="forced")
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
