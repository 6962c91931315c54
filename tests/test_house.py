"""The house's own rules: data flows down the floors, and every op is complete."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from fastspec.ops import library

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastspec"
OPS = sorted(library.ops)

FLOORS = {  # as CONTRIBUTING.md draws them; the first name that fits
    5: ("experiments", "__main__"),
    4: ("figures", "plots", "dynamics_plots", "deep_plots", "initialization_plots", "theory_plots", "report",
        "two_layer_report", "digits_report", "deep_report", "matrix_dynamics_report", "initialization_report",
        "ode_report", "ablation_plots", "ablation_report", "sample_complexity_plots", "sample_complexity_report",
        "images_report"),
    3: ("measure", "measurement", "population_measurement", "layerwise", "adapters", "batches", "running", "training",
        "matching", "tables", "theory", "norms", "batchnorm"),
    2: ("moments", "statistics", "merging", "networks", "relu_network", "initialization", "pruning", "populations",
        "teachers", "data", "image_files"),
    1: ("ops", "config", "progress", "tensor_files", "atomic_files", "randomness", "workers"),
}  # fmt: skip


def floor_of(module: str) -> int:
    """The floor of `fastspec.<room>...`."""
    room = module.split(".")[1]
    (floor,) = [floor for floor, rooms in FLOORS.items() if room in rooms]
    return floor


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports(path: Path) -> set[str]:
    """Names `fastspec.x` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("fastspec.") and name.split(".")[1] not in ("_host",)}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_nothing_from_a_floor_above(path):
    own = floor_of(".".join(["fastspec", *path.relative_to(PACKAGE).with_suffix("").parts]))
    above = {name for name in imports(path) if name.split(".")[1] != "__version__" and floor_of(name) > own}
    assert not above


def test_every_file_is_short_enough_to_read():
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp")]
    assert not {p.name: n for p in sources if (n := len(p.read_text().splitlines())) > 400}


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_reference_fake_test_benchmark_and_readme(op):
    schema = torch._C._get_schema(f"fastspec::{op}", "")
    assert schema is not None
    assert torch._library.simple_registry.singleton.find(f"fastspec::{op}").fake_impl.kernel is not None
    reference = (PACKAGE / "ops" / op / "reference.py").read_text()
    assert re.search(rf"^def {op}\(", reference, re.MULTILINE)
    assert (ROOT / "tests/ops" / f"test_{op}.py").exists()
    assert (ROOT / "benchmarks/ops" / f"{op}.py").exists()
    assert (PACKAGE / "ops" / op / "README.md").exists()


def test_contributing_draws_the_house_as_it_is():
    picture = (ROOT / "CONTRIBUTING.md").read_text()
    for path in modules():
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert re.search(rf"\b{room}\b", picture), f"CONTRIBUTING.md does not know {room}"


def test_committed_results_are_whole():
    results = sorted((ROOT / "benchmarks/results").rglob("*.json"))
    assert results
    for path in results:
        assert {"device", "versions", "commit", "date"} <= set(json.loads(path.read_text())), path
