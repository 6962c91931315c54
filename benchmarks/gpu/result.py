"""The result file of `make gpu`, whole on disk after every part and every shape, and what is said of it at the end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.compare import OURS, ratio
from benchmarks.harness import Entry, finite, target

MEMORY = 256e6  # bytes beyond inputs and result
NOT_PEERS = ("other plan",)
# of narrow and wide shapes: over eager, over the best other peer (wide: the best of all), share of the floor
TARGETS = {True: (5.0, 2.5, 0.6), False: (math.nan, 1.2, 0.8)}


class Result:
    """A JSON object in a file."""

    def __init__(self, path: Path, body: Entry):
        self.path, self.body = path, body

    @classmethod
    def load(cls, path: Path) -> Result:
        return cls(path, json.loads(path.read_text()))

    def write(self) -> None:
        """Appear whole or not at all."""
        half = self.path.with_suffix(".half")
        half.write_text(json.dumps(finite(self.body), indent=1) + "\n")
        os.replace(half, self.path)

    def part(self, name: str, found: Entry) -> None:
        """Keep what a part of the run came to."""
        self.body["parts"][name] = found
        self.write()

    def start(self, item: str) -> None:
        """Say which item is under way, for whoever finds the file if it never ends."""
        self.body["running"] = item
        self.write()

    def add_case(self, case: Entry) -> None:
        """Keep what an item came to."""
        self.body["cases"].append(case)
        self.body["running"] = None
        self.body["targets"] = [] if self.body["quick"] else targets(self.body["cases"])
        self.write()

    def failures(self) -> list[str]:
        """What failed, in words; left out or not there is no failure."""
        parts = [f"{name}: {part['why']}" for name, part in self.body["parts"].items() if part["state"] == "failed"]
        tests = [f"{test['test']}" for test in self.body["parts"].get("test", {}).get("failed", [])]
        cases = [f"{case['item']}: {why}" for case in self.body["cases"] if (why := failure(case))]
        return parts + tests + cases


def about(item: str) -> Entry:
    """What an item's name says, `problem/precision` or `problem/precision/way to compile`."""
    problem, precision, *_ = item.split("/")
    return {"item": item, "problem": problem, "precision": precision}


def failure(case: Entry) -> str | None:
    """Why an item has no time of ours; None if it has."""
    return case["failed"] if "failed" in case else case["peers"][OURS].get("wrong")


def best_peer(cases: list[Entry], without: tuple[str, ...] = ()) -> tuple[str | None, float]:
    """The fastest family over all measurements of a problem, and how many times slower than ours it is."""
    found = {
        name: ratio(case, name)
        for case in cases
        for name in case.get("best", {})
        if name not in (*NOT_PEERS, *without) and not math.isnan(ratio(case, name))
    }
    name = min(found, key=found.__getitem__) if found else None
    return name, found[name] if name else math.nan


def by_problem(cases: list[Entry]) -> Mapping[tuple[str, str], list[Entry]]:
    """Measurements by problem and precision; the first of each is the one without compiled peers."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for case in cases:
        found.setdefault((case["problem"], case["precision"]), []).append(case)
    return found


def targets(cases: list[Entry]) -> list[Entry]:
    """The targets of every problem and precision measured, with their verdicts."""
    rows = []
    for (problem, precision), measured in by_problem(cases).items():
        first = measured[0]
        if "peers" not in first:
            continue
        if "over_peers" in first:
            rows += _population_targets(f"{problem}, {precision}", measured)
            continue
        eager, best, floor = TARGETS[first["narrow"]]
        _, over_best = best_peer(measured, ("eager",) if first["narrow"] else ())
        extra = first.get("extra_bytes", math.nan) / 1e6
        found = {
            "eager": target("over eager", ratio(first, "eager"), at_least=eager, unit="x"),
            "best peer": target("over the best peer", over_best, at_least=best, unit="x"),
            "floor": target("of the floor", first["peers"][OURS].get("of_floor", math.nan), at_least=floor),
            "memory": target("extra memory", extra, at_most=MEMORY / 1e6, unit=" MB"),
        }
        for what, row in found.items():
            if what != "eager" or first["narrow"]:
                rows.append({**row, "name": f"{problem}, {precision}: {row['name']}", "what": what})
    return rows


def _population_targets(name: str, cases: list[Entry]) -> list[Entry]:
    """Over the best peer, and, where a device is full, of its rate; of deep students over eager and the best other."""
    first, (_, over_best) = cases[0], best_peer(cases, ("eager",) if "over_eager" in cases[0] else ())
    share = first["peers"][OURS].get("of_matrix_rate", math.nan)
    found = {
        "best peer": target("over the best peer", over_best, at_least=first["over_peers"], unit="x"),
        "rate": target("of the rate of products", share, at_least=0.35),
    }
    if "floor" in first:
        found["floor"] = target("of the floor", first["peers"][OURS].get("of_floor", math.nan), at_least=first["floor"])
    if "over_eager" in first:
        found["eager"] = target("over eager", ratio(first, "eager"), at_least=first["over_eager"], unit="x")
    full = first["shape"]["students"] > 1000
    return [
        {**row, "name": f"{name}: {row['name']}", "what": what} for what, row in found.items() if full or what != "rate"
    ]
