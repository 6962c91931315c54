"""Triton kernels run by Triton's interpreter, which must be asked for before Triton is imported.

`tests/test_interpreted.py` runs these tests in processes of their own; by hand it is
`TRITON_INTERPRET=1 python -m pytest tests/interpreted`. Kernels take CPU tensors here.
"""

from __future__ import annotations

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]

if INTERPRETED:
    from fastspec.ops.cross_moments import triton as cross_moments
    from fastspec.ops.gpu import accumulate, sizes
    from fastspec.ops.layer_moments import plans, stream
    from fastspec.ops.linear_relu import triton as linear_relu
    from fastspec.ops.precision import PRECISIONS

    TILES = sizes.Tiles(rows=16, teachers=8, students=32, inputs=4, warps=4, stages=1)


@pytest.fixture(autouse=True)
def checked(poisoned, monkeypatch):
    """Every access is to an element of an argument, no program sees another's stores, and `empty` is NaN."""
    from as_compiled import correct
    from checked_memory import watch

    correct(monkeypatch)
    watch(monkeypatch)


@pytest.fixture
def small(monkeypatch):
    """Tiles, spans, rounds, slabs and chunks so small that 75 samples and 35 student nodes have several of each."""
    for module, name, size in (
        (sizes, "SHORTEST", 32), (sizes, "ALIGNED", 16), (accumulate, "SPANS", 2), (accumulate, "WORKSPACE", 4000),
        (plans, "WORKSPACE", 4000), (plans, "ACTIVATIONS", 5400), (plans, "BLOCK_STUDENTS", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, size)
    for module in (cross_moments, plans):
        monkeypatch.setattr(module, "tiles_of", lambda *_: TILES)
    for name in ("TILES", "WITH_GATES"):
        monkeypatch.setattr(linear_relu, name, dict.fromkeys(PRECISIONS, (16, 8, 4, 4, 1)))


@pytest.fixture(params=["recompute", "stream by torch", "stream by kernels"])
def way(request, monkeypatch):
    """A way through layer_moments: a plan, and whose products a stream takes."""
    yield from taken(request.param, monkeypatch)


@pytest.fixture(params=["blocks by torch", "blocks by kernels"])
def blocks(request, monkeypatch):
    """The way of populations that share their inputs."""
    yield from taken(request.param, monkeypatch)


def taken(way, monkeypatch):
    if way.endswith("kernels"):
        for module in (stream, linear_relu):
            monkeypatch.setattr(module, "vendor", lambda _: False)
    with plans.force(way.split()[0]):
        yield way


@pytest.fixture
def launched(monkeypatch):
    """The compile-time arguments of every launch of the one-pass kernel."""
    found: list[dict] = []
    arguments = accumulate.Accumulator._arguments

    def recorded(*args):
        found.append(arguments(*args))
        return found[-1]

    monkeypatch.setattr(accumulate.Accumulator, "_arguments", recorded)
    return found
