"""Fixtures for every test: seeded randomness, and uninitialised memory that is NaN."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils import deterministic

from fastspec.ops import library


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def poisoned():
    """`torch.empty` returns NaN (floats) or the largest integer, so that an element nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    deterministic.fill_uninitialized_memory = before[1]


def pytest_collection_modifyitems(items):
    missing = library.native_error()
    for item in items:
        if missing and item.get_closest_marker("native"):
            item.add_marker(pytest.mark.skip(reason=missing))
        if item.get_closest_marker("gpu") and not (torch.cuda.is_available() or "FASTSPEC_GPU_TESTS_ON" in os.environ):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
