"""`python -m benchmarks.gpu.worker RESULT ITEM...`: measure items in their order, each one kept at once.

An item is `problem/precision`, or with a way to compile the peers `problem/precision/compiled`. A process of its own: a
kernel that breaks the device's context takes nothing else with it.
"""

from __future__ import annotations

import argparse
import time
import traceback
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from benchmarks.compare import OURS, compare
from benchmarks.gpu.deep import COMPILED, DeepProblem
from benchmarks.gpu.layers import LayerProblem
from benchmarks.gpu.populations import PopulationProblem
from benchmarks.gpu.problems import PROBLEMS, Problem
from benchmarks.gpu.result import Result, about
from benchmarks.gpu.snapshots import Found, SnapshotProblem
from benchmarks.harness import Entry, Options
from benchmarks.memory import measure as extra_memory
from benchmarks.precision import DTYPES, PRODUCTS, tf32
from benchmarks.rates import RateCalls, Rates
from benchmarks.training import Weights
from fastspec.moments import CrossMoments
from fastspec.ops.cross_moments import Moments

LONG = 2e13  # operations from which three rounds must do
ORDER = ("fp32", "tf32", "bf16", "tf32x3", "fp64")


def items() -> list[str]:
    """Everything there is to measure, what matters most first."""
    plain = [f"{p.name}/{precision}" for precision in ORDER for p in PROBLEMS if precision in precisions(p)]
    layers = [p.name for p in PROBLEMS if isinstance(p, LayerProblem)]
    compiled = [f"{name}/{precision}/compiled" for precision in ORDER[:2] for name in layers]
    deep = [p for p in PROBLEMS if isinstance(p, DeepProblem) and p.compiled]
    return [*plain, *compiled, *(f"{p.name}/{at}/{way}" for p in deep for at in p.precisions for way in COMPILED)]


def precisions(problem: Problem) -> tuple[str, ...]:
    """At which a problem is measured."""
    if isinstance(problem, DeepProblem):
        return problem.precisions
    if isinstance(problem, (PopulationProblem, SnapshotProblem)):
        return ("fp32", "fp64")
    return ORDER if problem.narrow else ORDER[:-1]


class PrecisionRates(RateCalls):
    """The device's own products at a precision; one of tf32x3 is three of tf32."""

    def __init__(self, precision: str, device: str, quick: bool):
        super().__init__(device, DTYPES.get(precision, torch.float32), quick)
        self.products, product = PRODUCTS.get(precision, 1), self.calls["matrix"]

        def matrix() -> object:
            with tf32(precision.startswith("tf32")):
                return product()

        self.calls["matrix"] = matrix

    def rates(self, matrix_seconds: float, copy_seconds: float) -> Rates:
        return super().rates(matrix_seconds * self.products, copy_seconds)


@lru_cache(maxsize=1)
def rates_at(precision: str, device: str, quick: bool) -> PrecisionRates:
    return PrecisionRates(precision, device, quick)


def measure(problem: Problem, precision: str, compiled: str, options: Options) -> Entry:
    """The entry of one item: `compare`'s, with the op's extra memory, its plan and its flipped gates.

    compiled: which compiled peers, or "" for all that are not.
    """
    case = problem.case(precision, options.device)
    ours = problem.ours(precision)
    if options.device == "cuda" and problem.operations > LONG:
        options = replace(options, rounds=min(options.rounds, 3))
    found: Entry = {} if compiled else problem.facts(case, precision)
    if compiled and isinstance(problem, DeepProblem):
        families = problem.compiled_as(compiled, case, precision)
    else:
        contenders = problem.compiled if compiled and isinstance(problem, LayerProblem) else problem.contenders
        families = contenders(case, precision, options.device)
    entry = compare(case, ours, families, rates_at(precision, options.device, options.quick), options)
    if not compiled and "wrong" not in entry["peers"][OURS]:
        found["extra_bytes"] = extra_memory(lambda: _tensors(ours(case.copies[0])), options.device)["extra"]
    return {**entry, **found}


def _tensors(result: Moments | Weights | Found | list[CrossMoments] | torch.Tensor) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if not isinstance(result, list):
        return list(result)
    return [tensor for moments in result for tensor in moments.tensors().values()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker", description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("items", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--until", type=float, default=float("inf"), help="begin nothing after this time")
    args = parser.parse_args()
    problems = {problem.name: problem.small() if args.quick else problem for problem in PROBLEMS}
    options = Options(args.device, args.quick, args.rounds)
    result = Result.load(args.result)
    for item in args.items:
        name, precision, *compiled = item.split("/")
        if time.time() > args.until:
            return
        start = time.perf_counter()
        result.start(item)
        try:
            entry = measure(problems[name], precision, "".join(compiled), options)
        except Exception as error:
            traceback.print_exc()
            entry = {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        problem = problems[name]
        named = {**about(item), "narrow": problem.narrow}
        if isinstance(problem, (PopulationProblem, DeepProblem)):
            named["over_peers"] = problem.over_peers
        if isinstance(problem, DeepProblem):
            wanted = {"over_eager": problem.over_eager, "floor": problem.floor}
            named |= {name: value for name, value in wanted.items() if value is not None}
        result.add_case({**named, **entry, "seconds": time.perf_counter() - start})
        if args.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
