"""Rung 3: every Triton kernel compiled for GPUs that are not here, its figures held against budgets.json."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from tests.compiled.launches import BUDGETS, DEVICES, calls

RECORDED = json.loads(BUDGETS.read_text())
CASES = [(architecture, name) for architecture in DEVICES for name in RECORDED[f"sm_{architecture}"]]


@pytest.mark.parametrize("architecture", DEVICES)
def test_every_kernel_has_a_budget(architecture):
    assert list(calls(architecture)) == list(RECORDED[f"sm_{architecture}"])


@pytest.mark.parametrize("architecture, name", CASES, ids=lambda value: str(value))
def test_within_budget(architecture, name):
    budget = RECORDED[f"sm_{architecture}"][name]
    found = calls(architecture)[name].figures(architecture)
    assert found["spills"] == 0
    assert found["matrix units"] == budget["matrix units"]
    if triton.__version__ == RECORDED["triton"]:
        assert found["registers"] <= budget["registers"] and found["shared"] <= budget["shared"]
