"""One shape, several peers: check each result, time them in rotation with the machine's rates, write one entry."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gate import CONTRACT, PLAIN, WrongResultError, check
from benchmarks.harness import Entry, Options, Timing, geometric_mean, interleave, rotate
from benchmarks.rates import RateCalls, Rates

OURS = "fastspec"


@dataclass(frozen=True)
class Peer:
    """`call(inputs)` gives Moments or the correlation; `skip` says why it cannot run here."""

    name: str
    call: Callable[[Any], Any]
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    skip: str | None = None


Families = Mapping[str, Sequence[Peer]]  # the fastest peer of a family stands for it


@dataclass(frozen=True)
class Case:
    """One shape: its inputs (several copies where a cache has to be outrun), its float64 truth, its least work."""

    label: str
    shape: dict[str, int]
    copies: Sequence[Any]
    truth: Any
    samples: int
    operations: float  # of the matrix products alone; a multiply and an add are two
    moved: float  # bytes of inputs read once and results written once
    check: Callable[..., Entry] = check  # the gate


def compare(case: Case, ours: Callable[[Any], Any], families: Families, rates: RateCalls, options: Options) -> Entry:
    """Result entry of a case. A peer with a wrong result is named with its error and has no speed."""
    found: dict[str, Entry] = {}
    calls: dict[str, Callable[[], object]] = {}
    fewer: dict[str, int] = {}
    for peer in [Peer(OURS, ours), *(peer for family in families.values() for peer in family)]:
        found[peer.name] = {"settings": peer.settings}
        if peer.skip is not None:
            found[peer.name]["skipped"] = peer.skip
            continue
        try:
            bounds = CONTRACT if peer.name == OURS else PLAIN
            found[peer.name]["error"] = case.check(
                peer.name, peer.call(case.copies[0]), case.truth, case.samples, bounds
            )
        except WrongResultError as wrong:
            found[peer.name]["wrong"] = str(wrong)
            continue
        except torch.OutOfMemoryError as lack:
            if peer.name == OURS:
                raise
            found[peer.name]["skipped"] = str(lack).partition("\n")[0]
            continue
        calls[peer.name] = rotate(case.copies, peer.call)
        if peer.rounds is not None:
            fewer[peer.name] = peer.rounds
    timings = interleave({**calls, **rates.calls}, options.rounds, device=options.device, fewer=fewer)
    measured = rates.rates(timings["matrix"].median, timings["copy"].median)
    floor = measured.floor(case.operations, case.moved)
    for name in calls:
        found[name] |= _speed(timings[name], timings.get(OURS), case, measured, floor)
    entry: Entry = {
        "label": case.label,
        "shape": case.shape,
        "operations": case.operations,
        "moved": case.moved,
        "rates": {
            "matrix_gflops": measured.matrix / 1e9,
            "copy_gbytes": measured.copy / 1e9,
            "floor_ms": floor * 1e3,
        },
        "best": {name: _fastest(found, [p.name for p in family]) for name, family in families.items()},
        "peers": found,
    }
    print(f"  {case.label}: {_line(entry)}", file=sys.stderr, flush=True)
    return entry


def _speed(timing: Timing, ours: Timing | None, case: Case, rates: Rates, floor: float) -> Entry:
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


def _fastest(peers: Mapping[str, Entry], names: Sequence[str]) -> str | None:
    """The name with the smallest median; None where none of them has a speed."""
    timed = {n: peers[n]["median_ms"] for n in names if "median_ms" in peers[n]}
    return min(timed, key=timed.__getitem__) if timed else None


def _line(entry: Entry) -> str:
    ours = entry["peers"][OURS]
    if "median_ms" not in ours:
        return ours.get("wrong", "not timed")
    ratios = {name: ratio(entry, name) for name in entry["best"]}
    shown = [f"{r:.2f}x over {name}" for name, r in ratios.items() if not math.isnan(r)]
    return ", ".join([f"{ours['median_ms']:.1f} ms", *shown])


def ratio(entry: Entry, family: str) -> float:
    """How many times slower than ours the fastest of a family is; NaN where either has no speed."""
    name = entry["best"][family]
    return math.nan if name is None else entry["peers"][name].get("times_slower", math.nan)


def at_floor(entry: Entry, family: str) -> float:
    """The ratio if ours took as long as the floor; NaN where the family has no speed."""
    found = entry["peers"].get(entry["best"][family], {})
    return found.get("median_ms", math.nan) / entry["rates"]["floor_ms"]


def summary(entries: Sequence[Entry]) -> Entry:
    """The entries, and per family the geometric mean of its ratios over the shapes where it ran."""
    ratios = {name: [ratio(entry, name) for entry in entries] for name in entries[0]["best"]}
    means = {name: geometric_mean([r for r in found if not math.isnan(r)]) for name, found in ratios.items()}
    return {"cases": list(entries), "geometric_means": means}


def best(variants: Sequence[Peer], inputs: Any, *, keep: int, device: str, rounds: int = 2) -> list[Peer]:
    """The `keep` fastest variants on (a part of) the inputs, fastest first, timed in rotation."""
    calls = {str(i): (lambda peer=peer: peer.call(inputs)) for i, peer in enumerate(variants)}
    for call in calls.values():
        call()
    timings = interleave(calls, rounds, device=device)
    order = sorted(timings, key=lambda i: min(timings[i].rounds.values()))
    return [variants[int(i)] for i in order[:keep]]


def failure(call: Callable[[Any], Any], inputs: Any) -> str | None:
    """Why a call that not every machine can make fails on these inputs; None where it does not."""
    try:
        call(inputs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def lack_of_memory(need: float, device: str) -> str | None:
    """Why a peer that needs so many bytes beyond its inputs is left out; None where it fits."""
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    return None if need <= free * 0.6 else f"needs {need / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
