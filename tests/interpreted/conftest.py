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
    from fastspec.ops.layer_moments import plans
    from fastspec.ops.linear_relu import triton as linear_relu
    from fastspec.ops.precision import PRECISIONS

    TILES = sizes.Tiles(rows=16, teachers=8, students=32, inputs=4, warps=4, stages=1)


@pytest.fixture(autouse=True)
def checked(poisoned, monkeypatch):
    """Every access is to an element of an argument, no program sees another's stores, and `empty` is NaN."""
    from checked_memory import watch

    watch(monkeypatch)


@pytest.fixture
def small(monkeypatch):
    """Tiles, spans, rounds, slabs and chunks so small that a few hundred samples have several of each."""
    monkeypatch.setattr(sizes, "SHORTEST", 48)
    monkeypatch.setattr(sizes, "ALIGNED", 16)
    monkeypatch.setattr(accumulate, "SPANS", 3)
    monkeypatch.setattr(accumulate, "WORKSPACE", 10_000)
    monkeypatch.setattr(plans, "ACTIVATIONS", 16_000)
    for module in (cross_moments, plans):
        monkeypatch.setattr(module, "tiles_of", lambda *_: TILES)
    for name in ("TILES", "WITH_GATES"):
        monkeypatch.setattr(linear_relu, name, dict.fromkeys(PRECISIONS, (16, 8, 4, 4, 1)))


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
