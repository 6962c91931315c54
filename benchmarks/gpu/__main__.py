"""`python -m benchmarks.gpu`, or `make gpu`: build, test and measure on an NVIDIA GPU within a number of minutes.

It takes the Python and the torch that are there, no network, no virtual environment. Exit status: 0, 1 where a test
fails or a result is wrong, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from benchmarks.gpu.build import build

PARTS = ("build", "test", "sanitizer", "bench")
SHARES = {"build": 0.4, "test": 0.45, "sanitizer": 0.15}  # of the time that is left, if other parts follow
SHORTEST, LAST = 5.0, 5.0  # seconds: worth starting a part for; kept for the tables


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    end = time.time() + 60 * args.minutes - LAST
    lack = None if args.device == "cpu" else lack_of_gpu()
    if lack:
        print(f"make gpu needs an NVIDIA GPU: {lack}.", file=sys.stderr)
        return 2
    chosen = [part for part in PARTS if args.part is None or part in args.part]
    found = {}
    if "build" in chosen:
        found["build"] = _timed(lambda: build(_until(end, "build", chosen)))
    from benchmarks import environment, table  # they load the native code that was just built
    from benchmarks.gpu import parts
    from benchmarks.gpu.result import Result
    from benchmarks.gpu.worker import items
    from benchmarks.harness import SCHEMA

    where, neighbours = environment.provenance(args.device), environment.Neighbours()
    command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])
    name = "-".join(["gpu", *(chosen if args.part else []), *(["only"] if args.only else [])])
    folder = "build/benchmarks-quick" if args.quick else f"benchmarks/results/{environment.slug(where['device'])}"
    path = args.out or environment.ROOT / folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"schema": SCHEMA, "benchmark": name, "command": command, "quick": args.quick, "rounds": args.rounds}
    body = {**head, **where, "parts": found, "planned": [], "running": None, "cases": [], "targets": []}
    result = Result(path, body)
    result.write()
    planned = [item for item in items() if args.only is None or args.only in item or fnmatch(item, args.only)]
    options = ["--device", args.device, "--rounds", str(args.rounds), *(["--quick"] if args.quick else [])]
    calls: dict[str, Callable[[float], dict]] = {
        "test": lambda until: parts.test(until, path.with_suffix(".tests"), args.only, args.device),
        "sanitizer": parts.sanitizer,
        "bench": lambda until: parts.bench(until, result, planned, options),
    }
    for part in (part for part in chosen if part != "build"):
        until = _until(end, part, chosen)
        if until - time.time() < SHORTEST:
            result.part(part, {"state": "left out", "why": "the time is over", "seconds": 0.0})
            continue
        print(f"{part}: {until - time.time():.0f} s", file=sys.stderr, flush=True)
        result.part(part, _timed(partial(calls[part], until)))
    result.body["neighbours_cores"] = neighbours.cores()
    result.write()
    print(f"\n{table.render(result.body)}\n\nwritten: {path}")
    for failure in result.failures():
        print(f"FAILED {failure}")
    return 1 if result.failures() else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="this part alone (may be repeated)")
    parser.add_argument("--only", metavar="PATTERN", help="tests and measurements with this in their names")
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run, not how fast it is")
    parser.add_argument("--minutes", type=float, default=10.0, help="what no longer fits is left out and named")
    parser.add_argument("--rounds", type=int, default=5, help="times that every peer runs")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal; nothing to quote")
    parser.add_argument("--out", type=Path, help="the result file (default benchmarks/results/DEVICE/gpu.json)")
    return parser


def lack_of_gpu() -> str | None:
    """Why nothing can run on a GPU here; None if it can."""
    try:
        import torch
    except ImportError as error:
        return f"this Python ({sys.executable}) has no torch: {error}"
    if not torch.cuda.is_available():
        kind = "has no CUDA" if torch.version.cuda is None else "sees no device"
        return f"torch {torch.__version__} of {sys.executable} {kind}"
    return None


def _until(end: float, part: str, chosen: list[str]) -> float:
    """When a part must be over, so that those after it have time."""
    return end if part == chosen[-1] else time.time() + (end - time.time()) * SHARES[part]


def _timed(call: Callable[[], dict]) -> dict:
    start = time.time()
    return {**call(), "seconds": time.time() - start}


if __name__ == "__main__":
    sys.exit(main())
