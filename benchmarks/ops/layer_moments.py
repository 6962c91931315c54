"""Benchmarks of the op `layer_moments`: speed against torch, extra memory, and the host's cost of a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import memory, overhead, peers
from benchmarks.compare import OURS, Case, Families, Peer, best, compare, lack_of_memory, ratio, summary
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
QUICK_SHAPES = ((5_000, 100, 100, 200), (10_000, 20, 50, 100))
MEMORY_SHAPE = (1_000_000, 100, 100, 1000)
PILOT = 16_384  # samples on which chunk sizes are compared before the best go to the full size
TOO_LONG = 1e12  # operations of torch.corrcoef beyond which it is left out


def case(shape: tuple[int, int, int, int], options: Options) -> Case:
    """Random inputs of one shape, and the specification run in float64 as the truth."""
    samples, inputs, teacher, student = shape
    pair = LayerPair.random(*shape, device=options.device)
    exact = pair.double()
    truth = Moments(
        *reference.layer_moments(exact.x, *exact.teacher, exact.x, *exact.student, 0.0, "fp64", False, False)[:8]
    )
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


def contenders(item: Case, options: Options) -> Families:
    """The peers by family; of each chunked family, the best chunk sizes of a pilot run."""
    pair: LayerPair = item.copies[0]
    pilot = replace(pair, x=pair.x[:PILOT])

    def chunked(name: str, call: Callable[..., Any], keep: int = 1, **settings: Any) -> list[Peer]:
        variants = [Peer(f"{name} {c}", partial(call, chunk=c, **settings), {"chunk": c}) for c in peers.CHUNKS]
        return best(variants, pilot, keep=keep, device=options.device)

    nodes, heavy = item.shape["teacher"] + item.shape["student"], min(3, options.rounds)
    lack = lack_of_memory(3 * 4.0 * item.samples * nodes, options.device)
    work = 2.0 * item.samples * nodes**2
    long = f"{work / item.operations:.0f} times the operations of the others" if work > TOO_LONG else None
    families: dict[str, list[Peer]] = {
        "chunked": chunked("chunked", peers.chunked, keep=2)
        + chunked("chunked, float32 sums", peers.chunked, keep=2, accumulate=torch.float32),
        "chunked plain": chunked("chunked plain", peers.chunked_plain),
        "chunked lean": chunked("chunked lean", peers.chunked_lean),
        "materialised": [Peer("materialised", peers.materialised, rounds=heavy, skip=lack)],
        "corrcoef": [Peer("corrcoef", peers.corrcoef, rounds=heavy, skip=lack or long)],
    }
    if options.compile:
        settings = families["chunked plain"][0].settings
        call = partial(peers.chunked_plain, compiled="default", **settings)
        families["compiled chunked"] = [Peer("compiled chunked", call, settings)]
        whole = Peer("compiled materialised", peers.materialised_compiled, rounds=heavy, skip=lack)
        families["compiled materialised"] = [whole]
    return families


@register("layer_moments", "the op against torch in five shapes, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    entries = []
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        item = case(shape, options)
        entries.append(compare(item, peers.fastspec, contenders(item, options), rates, options))
    return {**summary(entries), "targets": [] if options.quick else _targets(entries)}


def _targets(entries: Sequence[Entry]) -> list[Entry]:
    chunked, materialised = ([ratio(e, name) for e in entries] for name in ("chunked", "materialised"))
    wide = [e["peers"][OURS].get("of_matrix_rate", math.nan) for e in entries if e["shape"]["student"] >= 1000]
    return [
        target("geometric mean over best chunked torch", geometric_mean(chunked), at_least=1.3, unit="x"),
        target("smallest ratio over best chunked torch", smallest(chunked), at_least=1.0, unit="x"),
        target("share of the sgemm rate, student >= 1000, smallest", smallest(wide), at_least=0.75),
        target("geometric mean over materialising torch", geometric_mean(materialised), at_least=3.0, unit="x"),
    ]


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
    repeats = 3 if options.quick else 15
    found = {n: overhead.microseconds(c, repeats=repeats) for n, c in overhead.small_calls(options.device).items()}
    ours = [name for name in found if "moments" in name]
    return {
        "overhead_us": found,
        "targets": [target(f"host cost of {name}", found[name], at_most=20, unit=" us") for name in ours],
    }
