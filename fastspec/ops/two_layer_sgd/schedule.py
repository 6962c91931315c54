"""How the CUDA kernel of `two_layer_sgd` spreads a population over a GPU.

The clocks of `cost` are fitted to those of the kernel's phases on an H200, for students of 5 to 200 nodes, when it
changed two rows of weights at a time (README.md of this op).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from fastspec.ops.two_layer_sgd.simulation import Cost, Device, Group, simulate

BARRIER, CLUSTER_BARRIER = 50, 400  # clocks; the second is an estimate
# clocks before a phase's first term, of a term for a thread that waits for its own loads, and of a scheduler for a warp
PRODUCT, TERM, TERM_ISSUED = 500, 90, 36
LEARNING, ROWS, ROWS_ISSUED = 700, 400, 170  # the same of an outer product, a term being two rows of weights
OTHERS, OTHERS_ISSUED = 4000, 1200  # of all other phases together: residuals, gates, the next batch, the loss


def plan(nodes: int, shape: Mapping[str, Any], device: Device, ranks: int = 1) -> dict[str, Any]:
    """The plan of a student of so many nodes, on at least `ranks` blocks if its nodes allow it.

    Bytes of memory of each block, threads and registers of a thread, and how nodes and samples are divided.
    """
    limits = {"shared_limit": device.block_shared_bytes, "ranks_limit": device.cluster_blocks, "ranks": ranks}
    layout = import_module("fastspec._host").two_layer_plan({**shape, **limits, "nodes": nodes})
    light = shape["value_bytes"] == 4 and layout["placement"] == "shared"
    return layout | {"registers": 128 if light else 256}


def cost(shape: Mapping[str, Any], plan: Mapping[str, Any]) -> Cost:
    """Clocks of one step, phase by phase."""
    d, outputs, wider = shape["inputs"], shape["outputs"], shape["value_bytes"] // 4
    n, wide, tile, threads = plan["most_nodes"], plan["wide"], plan["tile"], plan["threads"]
    groups, slices = plan["groups"] // plan["ranks"], plan["slices"]
    work = alone = 0.0

    def phase(items: int, terms: float, start: float, waiting: float, issued: float) -> None:
        """Of so many items, dealt out to the threads, with so many terms each."""
        nonlocal work, alone
        rounds, warps = -(-items // threads), -(-min(items, threads) // 32)
        issued *= wider * tile / 16
        work += -(-items // 32) * terms * issued / 4
        alone += rounds * (start + terms * max(waiting, issued * -(-warps // 4)))

    tiles = 2 * wide // tile
    phase(slices * -(-n // 2) * tiles, d / slices, PRODUCT, TERM, TERM_ISSUED)
    phase(groups * -(-outputs // 2) * tiles, n / groups, PRODUCT, TERM, TERM_ISSUED)
    phase(slices * -(-n // 2) * tiles, outputs / slices, PRODUCT, TERM, TERM_ISSUED)
    for columns, rows in ((outputs, n + 1), (n, d + 1)):
        pairs = -(-columns // 2)
        strips = min(-(-rows // 2), max(1, threads // pairs))
        passes = wide // tile
        phase(pairs * strips, passes * -(-rows // (2 * strips)), LEARNING * passes, ROWS, ROWS_ISSUED)
    parts = -(-shape["batch"] // plan["part"])
    others = OTHERS_ISSUED * wide / 16 * threads / 128
    barriers = 5 * BARRIER + 2 * (BARRIER if plan["ranks"] == 1 else CLUSTER_BARRIER)
    work, alone = work + others, alone + OTHERS * max(1.0, wide / 16) + barriers
    return Cost(parts * work, parts * max(work, alone))


@lru_cache(maxsize=64)
def arrange(widths: tuple[int, ...], shape: tuple[tuple[str, Any], ...], device: Device) -> tuple[Group, ...]:
    """Students of each width as one group, those whose blocks take longest first.

    Where one width would finish long after the others, its students get more blocks each, as long as the simulated
    schedule becomes shorter by that; their results do not change.
    """
    sizes = dict(shape)
    members: dict[int, list[int]] = {}
    for student, nodes in enumerate(widths):
        members.setdefault(nodes, []).append(student)

    def group(nodes: int, ranks: int) -> Group:
        layout = plan(nodes, sizes, device, ranks)
        return Group(nodes, tuple(members[nodes]), layout, cost(sizes, layout))

    def ordered(groups: list[Group]) -> list[Group]:
        return sorted(groups, key=lambda g: -g.cost.alone)

    groups = ordered([group(nodes, 1) for nodes in members])
    clocks = simulate(groups, device).clocks
    while True:
        slowest = groups[0]
        wider = group(slowest.nodes, 2 * slowest.plan["ranks"])
        if slowest.plan["ranks"] < wider.plan["ranks"] <= device.multiprocessors:
            changed = ordered([wider, *groups[1:]])
            shorter = simulate(changed, device).clocks
            if shorter < clocks:
                groups, clocks = changed, shorter
                continue
        return tuple(groups)
