"""Rung 5: the CUDA kernels as nvcc compiled them for GPUs that are not here, and the plans they are launched with."""

from __future__ import annotations

import json

import pytest

from fastspec.ops import library
from tests.compiled.cuda_kernels import BUDGETS, kernels, plans

RECORDED = json.loads(BUDGETS.read_text())

built = pytest.mark.skipif(library.cuda_error() is not None, reason=f"CUDA kernels: {library.cuda_error()}")


@built
def test_no_kernel_spills():
    pytest.importorskip("triton", reason="Triton brings cuobjdump")
    found = kernels()
    assert set(RECORDED["kernels"]) <= set(found)
    for architecture, figures in found.items():
        for name, kernel in figures.items():
            assert kernel["stack"] == kernel["local"] == 0, (architecture, name)
            assert kernel["registers"] <= RECORDED["kernels"][architecture][name]["registers"], (architecture, name)


@built
def test_registers_are_what_the_schedule_counts_on():
    pytest.importorskip("triton", reason="Triton brings cuobjdump")
    for figures in kernels().values():
        for name, kernel in figures.items():
            assert kernel["registers"] <= (128 if name.startswith("fp32") and name.endswith("resident") else 256)


def test_plans_are_those_on_record():
    pytest.importorskip("fastspec._host", reason="no native code")
    assert plans() == RECORDED["plans"]
