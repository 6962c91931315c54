"""The package installed in other ways: without native code, without a compiler, and refusing to be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.install, pytest.mark.slow]

SMOKE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, fastspec as fs
    from fastspec.ops import library
said = [(w.category, w.filename) for w in caught if "fastspec" in str(w.message)]
assert said == [(UserWarning, "<string>")], "it says so, once, at the line that imports it"
assert "installed without its native code" in library.native_error()
teacher = fs.teachers.separated([8, 6, 5, 3], seed=0)
student = fs.networks.student_like(teacher, multi=2, seed=1)
report = fs.measure(teacher, student, fs.data.gaussian(500, 8, seed=2), coactivation=True)
assert len(report.layers) == 2 and report.loss.isfinite()
print("fine", fs.__file__)
"""


def install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Installs a copy of the checkout (without what was built in it) into folder/site."""
    source = folder / "source"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "__pycache__", "tests", "benchmarks")
    shutil.copytree(ROOT, source, ignore=ignore)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--target", str(folder / "site"), str(source)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def without_native(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("without_native")
    done = install(folder, FASTSPEC_NATIVE="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((folder / "site/fastspec").glob("*.so"))
    return folder


def test_without_native_code(without_native):
    done = python(without_native, "-c", SMOKE)
    assert done.returncode == 0, done.stderr
    assert str(without_native) in done.stdout


def test_the_ops_pass_their_tests_on_the_reference_path(without_native):
    tests = [str(ROOT / "tests" / name) for name in ("ops/test_layer_moments.py", "ops/test_cross_moments.py")]
    skip = "not compiles and not opcheck and not instruction_set"
    config = [
        "-c",
        str(ROOT / "pyproject.toml"),
        "-o",
        f"pythonpath={ROOT / 'tests/ops'}",
    ]  # not the checkout's package
    done = python(without_native, "-m", "pytest", "-v", "-k", skip, *config, *tests)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " skipped" in done.stdout  # those about the native code: this is the other install


def test_the_command_line_without_native_code(without_native):
    done = python(without_native, "-m", "fastspec", "doctor")
    assert done.returncode == 0, done.stderr
    assert "without its native code" in done.stdout


def test_a_missing_compiler_leaves_a_working_package(tmp_path):
    done = install(tmp_path, FASTSPEC_NATIVE="auto", CC="no-such-compiler", CXX="no-such-compiler")
    assert done.returncode == 0, done.stdout + done.stderr
    done = python(tmp_path, "-c", SMOKE)
    assert done.returncode == 0, done.stderr


def test_a_missing_compiler_is_an_error_when_native_code_is_asked_for(tmp_path):
    done = install(tmp_path, FASTSPEC_NATIVE="1", CC="no-such-compiler", CXX="no-such-compiler")
    assert done.returncode != 0 and "no-such-compiler" in done.stdout + done.stderr


def test_an_unknown_switch_is_refused(tmp_path):
    done = install(tmp_path, FASTSPEC_NATIVE="maybe")
    assert done.returncode != 0 and "FASTSPEC_NATIVE: got 'maybe'; takes auto, 0 or 1" in done.stdout + done.stderr


def test_a_broken_nvcc_is_an_error_when_cuda_kernels_are_asked_for(tmp_path):
    broken = tmp_path / "bin/nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho this nvcc is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    path = f"{broken.parent}{os.pathsep}{os.environ['PATH']}"
    done = install(tmp_path, FASTSPEC_NATIVE="1", FASTSPEC_CUDA="1", PATH=path)
    assert done.returncode != 0 and "this nvcc is broken" in done.stdout + done.stderr


def test_an_unknown_cuda_switch_is_refused(tmp_path):
    done = install(tmp_path, FASTSPEC_CUDA="perhaps")
    assert done.returncode != 0 and "FASTSPEC_CUDA: got 'perhaps'; takes auto, 0 or 1" in done.stdout + done.stderr
