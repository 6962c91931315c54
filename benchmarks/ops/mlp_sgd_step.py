"""Benchmarks of the op `mlp_sgd_step`: deep students against the ways in which torch users train them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import Case, Families, Peer, best, compare, failure, ratio, summary
from benchmarks.deep_peers import Compiled, Deep, eager, fastspec, on_threads, vmapped
from benchmarks.gate import WrongResultError
from benchmarks.harness import Entry, Options, register, target
from benchmarks.rates import RateCalls

LM, SS = (20, 10, 15, 20, 25, 100), (20, 50, 75, 100, 125, 100)
# teacher, multiple, students side by side (None: one without an axis), batch, steps, learning rate
SHAPES = ((LM, 10, None, 64, 200, 1e-3), (LM, 10, 8, 64, 40, 1e-3), (SS, 10, None, 64, 30, 1e-4))
QUICK_SHAPES = ((LM, 2, None, 16, 8, 1e-3), (LM, 2, 2, 16, 8, 1e-3))
PILOT = 8  # steps in which the variants of a peer are compared
# of the largest error of a parameter, relative to the largest: of three of four students, and of any
LIMITS = (1e-4, 2e-2)
OVER_EAGER = 2.0


def check(name: str, result: Tensor, truth: Tensor, *_: Any) -> Entry:
    """The gate of `compare`: each student's largest error of a parameter, relative to the largest parameter.

    Rounding that opens or closes a gate sends a student another way: a quarter of them may be that far off.
    """
    pairs = [t.double().view(-1, t.shape[-1]) for t in (result, truth)]
    errors = (pairs[0] - pairs[1]).abs().amax(1) / pairs[1].abs().amax(1)
    ordered = errors.nan_to_num(math.inf).sort().values
    found = {"weights": float(ordered[math.ceil(0.75 * len(ordered)) - 1]), "worst": float(ordered[-1])}
    if found["weights"] > LIMITS[0] or found["worst"] > LIMITS[1]:
        got = f"errors against float64 of {found['weights']:.3g} (three of four students) and {found['worst']:.3g}"
        raise WrongResultError(f"{name}: got {got}, limits {LIMITS[0]:g} and {LIMITS[1]:g}")
    return found


def case(shape: tuple[Sequence[int], int, int | None, int, int, float], options: Options) -> Case:
    """A teacher and its students; autograd in float64 is the truth."""
    widths, multi, students, batch, steps, lr = shape
    problem = Deep.of(widths, multi, students, batch, steps, lr).to(options.device)
    products = [a * b for a, b in itertools.pairwise(problem.widths)]
    count, weights = students or 1, problem.parameters.numel()
    return Case(
        label=f"{'-'.join(map(str, widths[1:-1]))} × {multi}, {count} student{'s' * (count > 1)}, {steps} steps",
        shape={"students": count, "batch": batch, "inputs": widths[0], "outputs": widths[-1], "steps": steps},
        copies=[problem],
        truth=eager(problem.to(torch.float64)),
        samples=steps * batch,
        operations=2.0 * steps * batch * count * (3 * sum(products) - products[0]),  # inputs need no gradient
        moved=4.0 * (2 * weights + steps * batch * (widths[0] + widths[-1])),
        check=check,
    )


def contenders(item: Case, options: Options) -> Families:
    """The peers by family, each at its best number of threads."""
    problem: Deep = item.copies[0]
    pilot = problem.head(PILOT)

    def fastest(name: str, call: Callable[..., Tensor], variants: Sequence[dict] = ({},)) -> list[Peer]:
        peers = []
        for threads, settings in itertools.product(sorted({1, torch.get_num_threads()}), variants):
            label = ", ".join([name, f"threads {threads}", *(f"{key} {value}" for key, value in settings.items())])
            peers.append(Peer(label, on_threads(partial(call, **settings), threads), {"threads": threads, **settings}))
        return best(peers, pilot, keep=1, device=options.device)

    families = {"eager": fastest("eager", eager, [{"fused": False}, {"fused": True}])}
    families["vmap"] = fastest("vmap", vmapped) if item.shape["students"] > 1 else [_skipped("vmap", "one student")]
    if options.quick and not options.compile:
        families["compiled"] = [_skipped("compiled", "quick runs compile nothing without --compile")]
    else:
        compiled = Compiled(problem)
        families["compiled"] = [Peer("compiled", compiled, skip=failure(compiled, pilot))]
    return families


def _skipped(name: str, reason: str) -> Peer:
    return Peer(name, eager, skip=reason)


@register("mlp_sgd_step", "training deep students, one and eight, against autograd with torch.optim.SGD, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    entries = []
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        item = case(shape, options)
        entries.append(compare(item, fastspec, contenders(item, options), rates, options))
    found = {"axes": "hidden layers of the teacher × multiple", "error_of": "weights", **summary(entries)}
    wanted = "over eager, 10-15-20-25 × 10"
    return found | {
        "targets": [] if options.quick else [target(wanted, ratio(entries[0], "eager"), at_least=OVER_EAGER, unit="x")]
    }
