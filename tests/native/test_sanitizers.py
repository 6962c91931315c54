"""The CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, for every vector width.

The code of the widest instruction set is compiled for narrower vectors here, so that it runs on every machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHAPES = {"baseline": (16, 6), "avx2": (32, 6), "avx512": (64, 12)}  # bytes of a vector, rows of a tile
COMPILER = os.environ.get("CXX", "g++")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER}")]


def build(folder: Path, driver: str, isa: str, sanitizers: str, *, source: Path | None = None) -> Path:
    binary, (width, rows) = folder / f"{driver}_{isa}", SHAPES[isa]
    command = [COMPILER, "-std=c++20", "-O1", "-g", "-Wno-psabi"]
    command += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    command += [f"-DFASTSPEC_ISA={isa}", f"-DFASTSPEC_VECTOR_BYTES={width}", f"-DFASTSPEC_TILE_ROWS={rows}"]
    command += ["-I", str(ROOT / "csrc/include"), "-I", str(source or ROOT / "csrc/cpu")]
    command += [str(ROOT / f"tests/native/{driver}_driver.cpp"), "-pthread", "-o", str(binary)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return binary


def run(binary: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(binary)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("driver", ["moments", "two_layer_sgd"])
@pytest.mark.parametrize(
    "isa, sanitizers",
    [("baseline", "address,undefined"), ("avx2", "thread"), ("avx512", "address,undefined"), ("avx512", "thread")],
)
def test_kernels_are_clean(tmp_path, driver, isa, sanitizers):
    done = run(build(tmp_path, driver, isa, sanitizers))
    assert done.returncode == 0 and done.stdout.startswith("ok"), (done.stdout + done.stderr)[-3000:]


ADDRESS, THREAD = "address,undefined", "thread"
TEACHER = "teacher_chunk(chunk + at, at, work_.scratch[{}])"
ROWS = "clamp(problem_.samples - first_row(chunk), 0, plan_.rows)"
MUTATIONS = {  # driver, sanitizers, file, what stands there, what it becomes
    "one row too many": ("moments", ADDRESS, "one_pass.h", ROWS, "plan_.rows"),
    "one sum for all parts": ("moments", THREAD, "one_pass.h", "inputs, work_.sums[slot]", "inputs, work_.sums[0]"),
    "shared scratch": ("moments", THREAD, "one_pass.h", TEACHER.format("part"), TEACHER.format("0")),
    "no shift in the cross product": ("moments", ADDRESS, "panels.h", "tile.sum[r] * offset", "0.0 * offset"),
    "a row of inputs too long": (
        *("two_layer_sgd", ADDRESS, "batches.h"),
        *("x_row(row(first + b)), d * sizeof(T)", "x_row(row(first + b)), sizes_.fan_in * sizeof(T)"),
    ),
    "one workspace for all cores": ("two_layer_sgd", THREAD, "two_layer_sgd.h", "part * each.used", "0 * each.used"),
    "an open gate": ("two_layer_sgd", ADDRESS, "student.h", "on ? g : rule_.slope * g", "on ? g : g"),
    "half a batch": ("two_layer_sgd", ADDRESS, "student.h", "first_part = first == 0", "first_part = true"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_driver_sees_a_broken_kernel(tmp_path, mutation):
    driver, sanitizers, name, before, after = MUTATIONS[mutation]
    broken = tmp_path / "cpu"
    shutil.copytree(ROOT / "csrc/cpu", broken)
    text = (broken / name).read_text()
    assert text.count(before) == 1, "the kernel has changed: write the mutation anew"
    (broken / name).write_text(text.replace(before, after))
    done = run(build(tmp_path, driver, "avx2", sanitizers, source=broken))
    assert done.returncode != 0
