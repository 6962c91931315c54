"""The tests of the ops again, in a process that is asked for the kernels of another instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastspec.ops.library import INSTRUCTION_SETS

FILES = (
    "test_cross_moments",
    "test_layer_moments",
    "test_two_layer_sgd",
    "test_two_layer_sgd_kernel",
    "test_chain_gram",
    "test_moments_and_loss",
)
COSTLY = "not compiles and not opcheck and not dispatcher"  # say nothing about instruction sets


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_other_instruction_sets(isa: str):
    from fastspec._host import build_facts

    facts = build_facts()
    if facts["instruction_set"] == facts["instruction_set_of_moments"] == isa:
        pytest.skip(f"all other tests run {isa}")
    if INSTRUCTION_SETS.index(isa) > INSTRUCTION_SETS.index(facts["largest_instruction_set"]):
        pytest.skip(f"this machine has no {isa}")
    environment = {**os.environ, "FASTSPEC_ISA": isa}
    check = "import fastspec._host as h; f = h.build_facts()"
    check += f"; assert f['instruction_set'] == f['instruction_set_of_moments'] == '{isa}'"
    subprocess.run([sys.executable, "-c", check], check=True, env=environment)
    files = [str(Path(__file__).parents[1] / "ops" / f"{name}.py") for name in FILES]
    command = [sys.executable, "-m", "pytest", "-k", COSTLY, *files]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "passed" in run.stdout


def test_an_unknown_instruction_set_is_refused():
    environment = {**os.environ, "FASTSPEC_ISA": "avx3"}
    run = subprocess.run([sys.executable, "-c", "import fastspec"], capture_output=True, text=True, env=environment)
    assert "FASTSPEC_ISA: got 'avx3'; takes baseline or avx2 or avx512" in run.stderr
