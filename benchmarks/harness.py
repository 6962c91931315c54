"""How everything here is timed: a registry, interleaved rounds, ratios of neighbours in time, targets."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch

Entry = dict[str, Any]
SCHEMA = 1  # of the result files


@dataclass(frozen=True)
class Options:
    """What the command line asks of every benchmark."""

    device: str = "cpu"
    quick: bool = False
    rounds: int = 5
    compile: bool = False


@dataclass(frozen=True)
class Benchmark:
    """`run` measures and returns the body of a result file; `name` is the file's stem."""

    name: str
    about: str
    run: Callable[[Options], Entry]


REGISTRY: dict[str, Benchmark] = {}


def register(name: str, about: str) -> Callable[[Callable[[Options], Entry]], Callable[[Options], Entry]]:
    """Add a function to the registry under a name that is used once."""

    def add(run: Callable[[Options], Entry]) -> Callable[[Options], Entry]:
        if name in REGISTRY:
            raise ValueError(f"name: got {name!r}, already registered; takes a new name")
        REGISTRY[name] = Benchmark(name, about, run)
        return run

    return add


def select(pattern: str | None) -> list[Benchmark]:
    """The benchmarks whose name contains the pattern or matches it as a shell wildcard; all of them for None."""
    return [b for b in REGISTRY.values() if pattern is None or pattern in b.name or fnmatch(b.name, pattern)]


SHORT, MOST_CALLS = 5e-3, 20  # seconds between two events at least, in at most so many calls


def seconds(call: Callable[[], object], device: str = "cpu") -> float:
    """Wall time of one call; on a GPU between two events on the current stream, of several calls if it is short."""
    if device == "cuda":
        once = _between_events(call, 1)
        return once if once >= SHORT else _between_events(call, min(math.ceil(SHORT / once), MOST_CALLS))
    start_time = time.perf_counter()
    call()
    return time.perf_counter() - start_time


def _between_events(call: Callable[[], object], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


@dataclass
class Timing:
    """Seconds of each round in which a peer ran, by round number."""

    rounds: dict[int, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds.values())

    @property
    def spread(self) -> float:
        """Largest minus smallest, as a fraction of the median."""
        return (max(self.rounds.values()) - min(self.rounds.values())) / self.median

    def times_slower_than(self, other: Timing) -> float:
        """Median over shared rounds of this time / the other's: neighbours in time share the machine's mood."""
        shared = sorted(self.rounds.keys() & other.rounds.keys())
        return statistics.median(self.rounds[r] / other.rounds[r] for r in shared)


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: str = "cpu",
    fewer: Mapping[str, int] | None = None,
    timer: Callable[[Callable[[], object], str], float] = seconds,
) -> dict[str, Timing]:
    """Time every call once a round, in alternating order; calls named in `fewer` sit out the later rounds."""
    timings = {name: Timing() for name in calls}
    names = list(calls)
    for r in range(rounds):
        for name in names if r % 2 == 0 else reversed(names):
            if r < (fewer or {}).get(name, rounds):
                timings[name].rounds[r] = timer(calls[name], device)
    return timings


def rotate(copies: Sequence[Any], function: Callable[[Any], object]) -> Callable[[], object]:
    """A call that takes the next copy of its input each time, so that a cache never holds it from the last call."""
    state = {"next": 0}

    def call() -> object:
        state["next"] = (state["next"] + 1) % len(copies)
        return function(copies[state["next"]])

    return call


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean log; NaN for no values."""
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else math.nan


def target(name: str, got: float, at_least: float | None = None, at_most: float | None = None, unit: str = "") -> Entry:
    """One target with its verdict; a value that could not be measured (NaN) is a miss."""
    passed = (at_least is None or got >= at_least) and (at_most is None or got <= at_most)
    want = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    return {
        "name": name,
        "want": f"{want}{unit}",
        "got": got,
        "unit": unit,
        "pass": bool(passed and not math.isnan(got)),
    }


def smallest(values: Sequence[float]) -> float:
    """min, but NaN if any value is NaN or there is none."""
    return math.nan if not values or any(map(math.isnan, values)) else min(values)


def finite(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
