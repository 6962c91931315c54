"""`python -m benchmarks`: run benchmarks, write one JSON file for each, print the tables."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import environment, harness, ops, table

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the ops against their peers.")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    parser.add_argument("--only", metavar="PATTERN", help="those whose name contains the pattern or matches it")
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run, not how fast it is")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice if not given")
    parser.add_argument("--rounds", type=int, default=5, help="times that every peer runs")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the peers as well (slow to start)")
    parser.add_argument("--out", type=Path, help="folder for the JSON files (default benchmarks/results/DEVICE)")
    args = parser.parse_args(arguments)
    ops.load()
    chosen = harness.select(args.only)
    if not chosen:
        parser.error(f"--only: got {args.only!r}; takes part of one of {', '.join(harness.REGISTRY)}")
    if args.list:
        for benchmark in chosen:
            print(f"{benchmark.name:24} {benchmark.about}")
        return 0
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    options = harness.Options(args.device, args.quick, args.rounds, args.compile)
    where = environment.provenance(args.device)
    folder = args.out or RESULTS / environment.slug(where["device"])
    if args.quick and args.out is None:
        folder = Path("build") / "benchmarks-quick"
    folder.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    written = [_run(b, options, {"command": command, **where}, folder) for b in chosen]
    for path in written:
        print(f"\n{table.render(json.loads(path.read_text()))}")
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _run(benchmark: harness.Benchmark, options: harness.Options, where: harness.Entry, folder: Path) -> Path:
    print(f"{benchmark.name}: {benchmark.about}", file=sys.stderr, flush=True)
    neighbours = environment.Neighbours()
    body = benchmark.run(options)
    result = {
        "schema": harness.SCHEMA,
        "benchmark": benchmark.name,
        "quick": options.quick,
        "rounds": options.rounds,
        **where,
        "neighbours_cores": neighbours.cores(),
        **body,
    }
    path = folder / f"{benchmark.name}.json"
    path.write_text(json.dumps(harness.finite(result), indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
