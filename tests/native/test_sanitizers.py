"""The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

Those of the CPU for every vector width: the code of the widest instruction set is compiled for narrower vectors here,
so that it runs on every machine. The body of the CUDA kernel in emulated blocks, whole and with each barrier left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHAPES = {"baseline": (16, 6), "avx2": (32, 6), "avx512": (64, 12)}  # bytes of a vector, rows of a tile
ADDRESS, THREAD = "address,undefined", "thread"
COMPILER = os.environ.get("CXX", "g++")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER}")]


def build(folder: Path, driver: str, isa: str, sanitizers: str, *flags: str, source: Path | None = None) -> Path:
    """isa: an instruction set, or "emulated" for blocks of the GPU."""
    binary = folder / f"{driver}_{isa}"
    # to compile, by minutes
    slow = sanitizers == ADDRESS if isa == "emulated" else driver in ("two_layer_sgd", "mlp_sgd_step")
    quick = "-O0" if slow else "-O1"
    command = [COMPILER, "-std=c++20", quick, "-g", "-DFASTSPEC_INLINE=", "-Wno-psabi", "-Wno-unknown-pragmas"]
    command += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *flags]
    if isa == "emulated":
        command += ["-DFASTSPEC_EMULATED"]
    else:
        width, rows = SHAPES[isa]
        command += [f"-DFASTSPEC_ISA={isa}", f"-DFASTSPEC_VECTOR_BYTES={width}", f"-DFASTSPEC_TILE_ROWS={rows}"]
    command += ["-I", str(ROOT / "csrc/include"), "-I", str(source or ROOT / "csrc/cpu")]
    command += [str(ROOT / f"tests/native/{driver}_driver.cpp"), "-pthread", "-o", str(binary)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return binary


def run(binary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([str(binary), *arguments], env=environment, capture_output=True, text=True, timeout=300)


CLEAN = [("baseline", "address,undefined"), ("avx2", "thread"), ("avx512", "address,undefined"), ("avx512", "thread")]
CASES = [(driver, *case) for driver in ("moments", "two_layer_sgd", "chain_gram") for case in CLEAN]
CASES += [("mlp_sgd_step", *CLEAN[2])]  # under the thread sanitizer in the test of its barriers


@pytest.mark.parametrize("driver, isa, sanitizers", CASES)
def test_kernels_are_clean(tmp_path, driver, isa, sanitizers):
    done = run(build(tmp_path, driver, isa, sanitizers))
    assert done.returncode == 0 and done.stdout.startswith("ok"), (done.stdout + done.stderr)[-3000:]


def test_what_only_avx512_can_is_clean(tmp_path):
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "avx512vl" not in cpu.read_text():
        pytest.skip("this machine has no avx512")
    flags = ("-DFASTSPEC_AVX512", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl")
    done = run(build(tmp_path, "chain_gram", "avx512", ADDRESS, *flags))
    assert done.returncode == 0 and done.stdout.startswith("ok"), (done.stdout + done.stderr)[-3000:]


BODIES = ROOT / "csrc/include/fastspec/block"
WAITS = [  # every call of a barrier, or of what waits for fetched values, in the bodies of CUDA kernels
    f"{path.name}:{number}"
    for path in sorted(BODIES.glob("*.h"))
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if re.search(r"\bblock_?\.(sync|sync_all|fetched)\(\);", line)
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("emulated"), "two_layer_sgd", "emulated", THREAD)


def test_emulated_blocks_have_no_races(emulated):
    done = run(emulated)
    assert done.returncode == 0 and done.stdout.startswith("ok"), (done.stdout + done.stderr)[-3000:]


def test_emulated_blocks_stay_within_their_memory(tmp_path):
    done = run(build(tmp_path, "two_layer_sgd", "emulated", ADDRESS))
    assert done.returncode == 0 and done.stdout.startswith("ok"), (done.stdout + done.stderr)[-3000:]


def test_the_calls_that_wait_are_known():
    assert len(WAITS) > 10


@pytest.mark.parametrize("call", WAITS)
def test_no_barrier_can_be_missing(emulated, call):
    assert run(emulated, call).returncode != 0


TEACHER = "teacher_chunk(chunk + at, at, work_.scratch[{}])"
ROWS = "clamp(problem_.samples - first_row(chunk), 0, plan_.rows)"
MUTATIONS = {  # driver, sanitizers, file, what stands there, what it becomes
    "one row too many": ("moments", ADDRESS, "one_pass.h", ROWS, "plan_.rows"),
    "one sum for all parts": ("moments", THREAD, "one_pass.h", "inputs, work_.sums[slot]", "inputs, work_.sums[0]"),
    "shared scratch": ("moments", THREAD, "one_pass.h", TEACHER.format("part"), TEACHER.format("0")),
    "no shift in the cross product": ("moments", ADDRESS, "panels.h", "tile.sum[r] * offset", "0.0 * offset"),
    "a row of inputs too long": (
        *("two_layer_sgd", ADDRESS, "batches.h"),
        *("part_.x + b * sizes_.fan_in, d)", "part_.x + b * sizes_.fan_in, sizes_.fan_in)"),
    ),
    "one workspace for all cores": ("two_layer_sgd", THREAD, "two_layer_sgd.h", "part * each.used", "0 * each.used"),
    "an open gate": ("two_layer_sgd", ADDRESS, "student.h", "on ? g : slope * g", "on ? g : g"),
    "one slot for all blocks": ("chain_gram", THREAD, "chain_gram.h", "first_slot + slot * values_);", "first_slot);"),
    "products of other columns": ("chain_gram", ADDRESS, "open_columns.h", "+= packed[j - start];", "+= packed[j];"),
    "activations over another's": ("moments", ADDRESS, "plan.h", "student_nodes : 1) + 2;", "student_nodes : 1) + 1;"),
    "answers of another chunk": ("moments", ADDRESS, "losses.h", "work_.answers + at *", "work_.answers + 0 *"),
    "parts of students": ("moments", THREAD, "one_pass.h", "unit = plan_.unit", "unit = 1"),
    "an open gate below": ("mlp_sgd_step", ADDRESS, "deep_student.h", "on ? g : rules_.slope * g", "g"),
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


SKIP = """void wait(int site) {
    static const char* const skipped = std::getenv("SKIPPED");
    if (skipped && site == std::atoi(skipped)) return;"""


def test_every_barrier_of_a_team_is_needed(tmp_path, monkeypatch):
    """Each barrier of the deep training kernel left out in turn: cores that do not wait for each other are seen."""
    changed, sites = tmp_path / "cpu", 0
    shutil.copytree(ROOT / "csrc/cpu", changed)
    for name in ("deep_student.h", "mlp_sgd_step.h"):
        parts = (changed / name).read_text().split("barrier->wait()")
        text = parts[0] + "".join(f"barrier->wait({sites + i}){part}" for i, part in enumerate(parts[1:]))
        (changed / name).write_text(text)
        sites += len(parts) - 1
    team = (changed / "team.h").read_text()
    assert sites == 7 and team.count("void wait() {") == 1, "the kernel has changed: write the test anew"
    (changed / "team.h").write_text("#include <cstdlib>\n" + team.replace("void wait() {", SKIP))
    binary = build(tmp_path, "mlp_sgd_step", "avx2", THREAD, source=changed)
    assert run(binary).returncode == 0
    for site in range(sites):
        monkeypatch.setenv("SKIPPED", str(site))
        assert run(binary).returncode != 0, f"nobody misses barrier {site}"
