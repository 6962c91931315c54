"""Fixtures of the training tests."""

from __future__ import annotations

import pytest

from fastspec import workers


@pytest.fixture
def one_thread():
    """One thread: tiny networks take longer on several."""
    with workers.one_thread():
        yield
