"""Rung 3: every Triton kernel compiled for GPUs that are not here, its figures held against budgets.json."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from tests.compiled.launches import BUDGETS, DEVICES, calls, main_loop

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


LARGE = [f"{kernel}, {precision}, large, {what}" for precision in ("bf16", "tf32") for kernel, what in (
    ("up_kernel", "labels and all options, hidden"), ("up_kernel", "plain, residuals"),
    ("down_kernel", "labels and all options"), ("update_matrix_kernel", "plain"),
)]  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_products_of_large_layers_are_nothing_but_matrix_instructions(name):
    """On an H200: whole tiles by descriptors, no operand through registers, sums of 128 x 256 in place."""
    loop = main_loop(calls(90)[name].compiled(90)[2])
    product = "HGMMA.64x256x16.F32.BF16" if "bf16" in name else "HGMMA.64x256x8.F32.TF32"
    assert {op: count for op, count in loop.items() if "MMA" in op} == {product: 4}
    assert sum(count for op, count in loop.items() if op.startswith("UTMALDG")) >= 2
    moves = ("LDS", "STS", "LDG", "STG", "LDL", "STL", "LDSM", "LDGSTS", "F2F", "PRMT", "SHFL", "FADD", "FMUL")
    assert not [op for op in loop if op.split(".")[0] in moves] and loop.total() < 110
