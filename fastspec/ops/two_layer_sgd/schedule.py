"""How the CUDA kernel of `two_layer_sgd` spreads a population over a GPU.

The model counts instructions (README.md of this op); what it leaves out are the stalls.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from fastspec.ops.two_layer_sgd.simulation import Cost, Device, Group, simulate

BARRIER, CLUSTER_BARRIER = 40, 400  # clocks, estimates


def plan(nodes: int, shape: Mapping[str, Any], device: Device, ranks: int = 1) -> dict[str, Any]:
    """The plan of a student of so many nodes, on at least `ranks` blocks if its nodes allow it.

    Bytes of memory of each block, threads and registers of a thread, and how nodes and samples are divided.
    """
    limits = {"shared_limit": device.block_shared_bytes, "ranks_limit": device.cluster_blocks, "ranks": ranks}
    layout = import_module("fastspec._host").two_layer_plan({**shape, **limits, "nodes": nodes})
    light = shape["value_bytes"] == 4 and layout["placement"] == "shared"
    return layout | {"registers": 128 if light else 256}


def cost(shape: Mapping[str, Any], plan: Mapping[str, Any]) -> Cost:
    """Instructions of one step, phase by phase: how often a thread's tile goes round, and what a round takes."""
    d, outputs, size = shape["inputs"], shape["outputs"], shape["value_bytes"]
    n, wide, tile, threads = plan["most_nodes"], plan["wide"], plan["tile"], plan["threads"]
    groups = plan["groups"] // plan["ranks"]
    samples, wider = tile // 2, size // 4  # a float64 operation takes its unit for two clocks
    vectors = size / 16  # loads of 16 bytes for each value
    product = 2 + samples * vectors + 2 * samples * wider + 1  # for each k
    outer = tile * vectors + 4 + 2 * (tile + 1) * wider  # for each row and pass over the samples

    def tiles(columns: int) -> int:
        return -(-columns // 2) * (wide // samples)

    def slices(columns: int, rows: int) -> tuple[int, float]:
        pairs = max(1, -(-columns // 2))
        count = min(rows, max(1, threads // pairs))
        return pairs * count, wide // tile * (outer * rows / count + 2 * tile * (vectors + wider))

    phases = [  # items, instructions of each
        (tiles(n), product * d + 4 * samples),
        (groups * tiles(outputs), product * n / groups + samples),
        (outputs * wide // 4, 12.0 + 6 * plan["groups"]),
        (tiles(n), product * outputs + 4 * samples),
        slices(outputs, n + 1),
        slices(n, d + 1),
        ((d + outputs), 3.0 * wide),  # the next batch
    ]
    parts = -(-shape["batch"] // plan["part"])
    work = sum(-(-items // 32) * instructions for items, instructions in phases) / 4
    longest = sum(-(-items // threads) * -(-threads // 128) * instructions for items, instructions in phases)
    barriers = 3 * BARRIER + 2 * (BARRIER if plan["ranks"] == 1 else CLUSTER_BARRIER)
    return Cost(parts * work, parts * (max(work, longest) + barriers))


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
