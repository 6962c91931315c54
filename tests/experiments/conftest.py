"""Tiny experiments, a second each."""

from __future__ import annotations

import pytest

from fastspec.experiments.digits import Digits
from fastspec.experiments.two_layer import TwoLayer


@pytest.fixture
def tiny_two_layer():
    return TwoLayer(
        teacher_nodes=(2, 3), multi=(1, 2), teacher_strength_decay=(0.0, 1.0), seeds=2, inputs=6, outputs=4,
        samples=200, evaluation_samples=100, steps=60, lr=0.05, measurements=4,
    )  # fmt: skip


@pytest.fixture
def tiny_digits():
    return Digits(hidden=(6, 5), multi=(1, 2), seeds=2, teacher_steps=30, student_steps=20, measurements=3)
