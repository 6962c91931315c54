"""Figures of the CUDA kernels, read from the library that was built, and of their plans on an H200.

python -m tests.compiled.cuda_kernels --update    writes cuda_budgets.json anew
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastspec.ops.two_layer_sgd.schedule import cost, plan
from fastspec.ops.two_layer_sgd.simulation import FILE, H200, RESERVED

BUDGETS = Path(__file__).with_name("cuda_budgets.json")
WIDTHS = (5, 10, 20, 50, 100, 200, 500, 1000, 2048)
SHAPE = {"inputs": 100, "outputs": 50, "batch": 16, "teacher_nodes": 0, "momentum": False}


@cache
def _dump(option: str) -> str:
    spec = find_spec("fastspec._cuda")
    triton = find_spec("triton")
    assert spec is not None and spec.origin is not None and triton is not None and triton.origin is not None
    tool = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([str(tool), option, spec.origin], capture_output=True, text=True, check=True)
    return done.stdout


def kernels() -> dict[str, dict[str, dict[str, int]]]:
    """By architecture and kernel: registers and bytes of stack and local memory of a thread."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    architecture = name = ""
    for line in _dump("--dump-resource-usage").splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function \w*two_layer_sgdI([fd])Li(\d+)ELb([01])E", line):
            scalar = "fp32" if match[1] == "f" else "fp64"
            name = f"{scalar}, tile {match[2]}, {'resident' if match[3] == '1' else 'global'}"
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            figures = {"registers": int(match[1]), "stack": int(match[2]), "local": int(match[3])}
            found.setdefault(architecture, {})[name] = figures
    return found


def plans() -> dict[str, dict[str, Any]]:
    """By precision and width: the plan, and how many of its blocks and warps a multiprocessor holds."""
    found: dict[str, dict[str, Any]] = {}
    for precision, size in (("fp32", 4), ("fp64", 8)):
        for nodes in WIDTHS:
            shape = SHAPE | {"value_bytes": size}
            layout = plan(nodes, shape, H200)
            by_memory = H200.shared_bytes // (layout["shared_bytes"] + RESERVED)
            blocks = min(by_memory, FILE // (layout["threads"] * layout["registers"]))
            names = ("placement", "ranks", "threads", "shared_bytes")
            found[f"{precision}, {nodes} nodes"] = {name: layout[name] for name in names} | {
                "blocks": blocks,
                "occupancy": round(blocks * layout["threads"] / 2048, 3),
                "clocks of a step": round(cost(shape, layout).alone),
            }
    return found


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    BUDGETS.write_text(json.dumps({"kernels": kernels(), "plans": plans()}, indent=1) + "\n")
