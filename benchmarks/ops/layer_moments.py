"""Benchmarks of the op `layer_moments`: speed against torch, extra memory, and the host's cost of a call."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import memory, overhead, peers
from benchmarks.compare import OURS, Case, Peer, best, compare, fastest, free_bytes
from benchmarks.harness import Entry, Options, geometric_mean, register, smallest, target
from benchmarks.peers import LayerPair
from benchmarks.rates import RateCalls
from fastspec.ops.cross_moments import Moments
from fastspec.ops.layer_moments import reference

# samples, inputs, teacher nodes, student nodes
SHAPES = (
    (100_000, 100, 100, 100),
    (100_000, 100, 100, 1000),
    (100_000, 100, 100, 4000),
    (50_000, 784, 256, 2560),
    (200_000, 20, 50, 500),
)
MEMORY_SHAPE = (1_000_000, 100, 100, 1000)
PILOT = 8192 * 2  # samples on which chunk sizes are compared before the best go to the full size


def case(shape: tuple[int, int, int, int], options: Options) -> Case:
    """Random inputs of one shape, and the specification run in float64 as the truth."""
    samples, inputs, teacher, student = shape
    pair = LayerPair.random(*shape, device=options.device)
    exact = pair.double()
    truth = Moments(*reference.layer_moments(exact.x, *exact.teacher, exact.x, *exact.student, 0.0, False, False)[:8])
    copies = [pair] + [replace(pair, x=pair.x.clone()) for _ in range(2 if options.device == "cuda" else 0)]
    return Case(
        label=f"{samples:,} x {inputs}, {teacher} x {student}",
        shape={"samples": samples, "inputs": inputs, "teacher": teacher, "student": student},
        copies=copies,
        truth=truth,
        samples=samples,
        operations=2.0 * samples * (inputs * (teacher + student) + teacher * student),
        moved=4.0 * (samples * inputs + (teacher + student) * (inputs + 1)) + 8.0 * teacher * student,
    )


def contenders(item: Case, options: Options) -> dict[str, list[Peer]]:
    """The peers by family; of each chunked family, the best chunk sizes of a pilot run."""
    pair: LayerPair = item.copies[0]
    pilot = replace(pair, x=pair.x[:PILOT])
    chunks = peers.CHUNKS[1:4] if options.quick else peers.CHUNKS

    def family(name: str, call: Callable[..., Any], keep: int, **settings: Any) -> list[Peer]:
        variants = [Peer(f"{name} {c}", partial(call, chunk=c, **settings), {"chunk": c}) for c in chunks]
        return best(variants, pilot, rounds=2, keep=keep, device=options.device)

    m, n = item.shape["teacher"], item.shape["student"]
    joined = 3 * 4 * item.samples * (m + n)
    spare = free_bytes(options.device) // 2
    heavy = min(3, options.rounds)
    materialised = Peer("materialised", peers.materialised, rounds=heavy)
    corrcoef = Peer("torch.corrcoef", peers.corrcoef, rounds=heavy)
    if joined > spare:
        reason = f"needs about {joined / 2**30:.0f} GiB beyond the inputs"
        materialised, corrcoef = replace(materialised, skip=reason), replace(corrcoef, skip=reason)
    elif (work := 2.0 * item.samples * (m + n) ** 2) > 1e12:
        corrcoef = replace(corrcoef, skip=f"{work / item.operations:.0f} times the operations of the others")
    found = {
        "chunked": family("chunked", peers.chunked, 2)
        + family("chunked, float32 sums", peers.chunked, 2, accumulate=torch.float32),
        "chunked plain": family("chunked plain", peers.chunked_plain, 1),
        "chunked lean": family("chunked lean", peers.chunked_lean, 1),
        "materialised": [materialised],
        "torch.corrcoef": [corrcoef],
    }
    if options.compile:
        found |= compiled(found, heavy)
    return found


def compiled(families: dict[str, list[Peer]], heavy: int) -> dict[str, list[Peer]]:
    """torch.compile of the materialising peer and of the chunked one at its best chunk size."""
    plain, whole = families["chunked plain"][0], families["materialised"][0]
    chunked = Peer("compiled chunked", partial(peers.chunked_plain, compiled=True, **plain.settings), plain.settings)
    return {
        "compiled chunked": [chunked],
        "compiled materialised": [
            Peer("compiled materialised", peers.materialised_compiled, rounds=heavy, skip=whole.skip)
        ],
    }


@register("layer_moments", "the op against torch in five shapes, float32")
def speed(options: Options) -> Entry:
    shapes = [(s // 10, d, m, n // 4) for s, d, m, n in SHAPES] if options.quick else SHAPES
    rates = RateCalls(options.device, quick=options.quick)
    entries = []
    for shape in shapes:
        item = case(shape, options)
        families = contenders(item, options)
        every = [Peer(OURS, peers.fastspec), *(peer for family in families.values() for peer in family)]
        entry = compare(item, every, rates, options)
        entry["best"] = {name: fastest(entry, [p.name for p in family]) for name, family in families.items()}
        entries.append(entry)
        print(f"  {entry['label']}: {_line(entry)}", file=sys.stderr, flush=True)
    ratios = {name: [_ratio(entry, name) for entry in entries] for name in entries[0]["best"]}
    means = {name: geometric_mean([r for r in found if not math.isnan(r)]) for name, found in ratios.items()}
    return {"cases": entries, "geometric_means": means, "targets": _targets(entries, ratios)}


def _ratio(entry: Entry, family: str) -> float:
    """How many times slower than ours the best of a family is; NaN where either has no speed."""
    name = entry["best"][family]
    return math.nan if name is None else entry["peers"][name].get("times_slower", math.nan)


def _targets(entries: list[Entry], ratios: dict[str, list[float]]) -> list[Entry]:
    wide = [e["peers"][OURS].get("of_matrix_rate", math.nan) for e in entries if e["shape"]["student"] >= 1000]
    return [
        target("geometric mean over best chunked torch", geometric_mean(ratios["chunked"]), at_least=1.3, unit="x"),
        target("smallest ratio over best chunked torch", smallest(ratios["chunked"]), at_least=1.0, unit="x"),
        target("smallest share of the sgemm rate, student >= 1000", smallest(wide), at_least=0.75),
        target(
            "geometric mean over materialising torch", geometric_mean(ratios["materialised"]), at_least=3.0, unit="x"
        ),
    ]


def _line(entry: Entry) -> str:
    ours = entry["peers"][OURS]
    if "median_ms" not in ours:
        return ours.get("wrong", "not timed")
    return f"{ours['median_ms']:.1f} ms, {_ratio(entry, 'chunked'):.2f}x over {entry['best']['chunked']}"


@register("layer_moments_memory", "memory beyond inputs and result, at a million samples")
def extra_memory(options: Options) -> Entry:
    full = (20_000, 20, 20, 50) if options.quick else MEMORY_SHAPE
    tenth = (full[0] // 10, *full[1:])
    runs = [("fastspec", tenth, None), ("fastspec", full, None), ("chunked", full, 512), ("materialised", tenth, None)]
    rows = []
    for peer, shape, chunk in runs:
        found = memory.extra_memory(peer, shape, chunk=chunk, device=options.device)
        rows.append({"peer": peer, "chunk": chunk, "shape": list(shape), **found})
    megabytes = rows[1]["extra"] / 1e6
    return {
        "memory": rows,
        "targets": [target(f"extra memory at {full[0]:,} samples", megabytes, at_most=64, unit=" MB")],
    }


@register("layer_moments_overhead", "microseconds of a call on tiny tensors")
def call_overhead(options: Options) -> Entry:
    calls = overhead.small_calls(options.device)
    repeats = 3 if options.quick else 15
    found = {name: overhead.microseconds(call, repeats=repeats) for name, call in calls.items()}
    ours = [name for name in found if "moments" in name]
    return {
        "overhead_us": found,
        "targets": [target(f"host cost of {name}", found[name], at_most=20, unit=" us") for name in ours],
    }
