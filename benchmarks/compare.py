"""One shape, several peers: check each result, time them in rotation with the machine's rates, write one entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import harness
from benchmarks.gate import WrongResultError, check
from benchmarks.harness import Entry, Options
from benchmarks.rates import RateCalls, Rates
from fastspec.ops.cross_moments import Moments

OURS = "fastspec"


@dataclass(frozen=True)
class Peer:
    """`call(inputs)` gives Moments or the correlation; `skip` says why it cannot run here."""

    name: str
    call: Callable[[Any], Any]
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    skip: str | None = None


@dataclass(frozen=True)
class Case:
    """One shape: its inputs (several copies where a cache has to be outrun), its float64 truth, its least work."""

    label: str
    shape: dict[str, int]
    copies: Sequence[Any]
    truth: Moments
    samples: int
    operations: float  # multiply and add counted separately, matrix products alone
    moved: float  # bytes of inputs read once and results written once


def compare(case: Case, peers: Sequence[Peer], rates: RateCalls, options: Options) -> Entry:
    """Result entry of a case. A peer with a wrong result is named with its error and has no speed."""
    entry: Entry = {"label": case.label, "shape": case.shape, "operations": case.operations, "moved": case.moved}
    found: dict[str, Entry] = {}
    calls: dict[str, Callable[[], object]] = {}
    fewer: dict[str, int] = {}
    for peer in peers:
        found[peer.name] = {"settings": peer.settings}
        if peer.skip is not None:
            found[peer.name]["skipped"] = peer.skip
            continue
        try:
            result = peer.call(case.copies[0])
            found[peer.name]["error"] = check(peer.name, result, case.truth, case.samples)
        except WrongResultError as wrong:
            found[peer.name]["wrong"] = str(wrong)
            continue
        calls[peer.name] = harness.rotate(case.copies, peer.call)
        if peer.rounds is not None:
            fewer[peer.name] = peer.rounds
    timings = harness.interleave({**calls, **rates.calls}, options.rounds, device=options.device, fewer=fewer)
    measured = rates.rates(timings["matrix"].median, timings["copy"].median)
    floor = measured.floor(case.operations, case.moved)
    entry["rates"] = {
        "matrix_gflops": measured.matrix / 1e9,
        "copy_gbytes": measured.copy / 1e9,
        "floor_ms": floor * 1e3,
    }
    for name in calls:
        found[name] |= _speed(timings[name], timings.get(OURS), case, measured, floor)
    entry["peers"] = found
    return entry


def _speed(timing: harness.Timing, ours: harness.Timing | None, case: Case, rates: Rates, floor: float) -> Entry:
    speed: Entry = {
        "rounds_ms": [t * 1e3 for t in timing.rounds.values()],
        "median_ms": timing.median * 1e3,
        "spread": timing.spread,
        "gflops": case.operations / timing.median / 1e9,
        "of_matrix_rate": case.operations / timing.median / rates.matrix,
        "of_floor": floor / timing.median,
    }
    if ours is not None:
        speed["times_slower"] = timing.times_slower_than(ours)
    return speed


def best(variants: Sequence[Peer], inputs: Any, *, rounds: int, keep: int, device: str) -> list[Peer]:
    """The `keep` fastest variants on (a part of) the inputs, fastest first, timed in rotation."""
    calls = {str(i): (lambda peer=peer: peer.call(inputs)) for i, peer in enumerate(variants)}
    for call in calls.values():
        call()
    timings = harness.interleave(calls, rounds, device=device)
    order = sorted(timings, key=lambda i: min(timings[i].rounds.values()))
    return [variants[int(i)] for i in order[:keep]]


def fastest(entry: Entry, names: Sequence[str]) -> str | None:
    """The name with the smallest median in an entry; None where none of them has a speed."""
    timed = {n: entry["peers"][n]["median_ms"] for n in names if "median_ms" in entry["peers"].get(n, {})}
    return min(timed, key=timed.__getitem__) if timed else None


def free_bytes(device: str) -> int:
    """Memory that a peer may still take on a device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024
