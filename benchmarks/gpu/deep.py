"""Deep students: the op, autograd with torch.optim.SGD, compiled or not, and torch's products in a CUDA graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.compare import Case, Families, Peer, failure
from benchmarks.deep_peers import Compiled, CompiledWhole, Deep, by_hand, eager, fastspec, vmapped
from benchmarks.gpu.populations import graphed
from benchmarks.harness import Entry
from benchmarks.ops.mlp_sgd_step import LM, PILOT, SS, check
from benchmarks.precision import dtype_of

BATCH = 64


@dataclass(frozen=True)
class DeepProblem:
    """Students of a teacher's hidden widths times a multiple; None: one student without a population axis."""

    name: str
    widths: tuple[int, ...]
    multi: int
    students: int | None
    steps: int
    lr: float
    compiled: bool = False  # whether compiled peers are worth the time that compiling takes
    over_eager: float = 5.0  # wanted
    over_peers: float = 2.0  # wanted over the best other peer
    narrow: bool = True

    @property
    def operations(self) -> float:
        """Of the products; inputs need no gradient."""
        n = [self.widths[0], *(width * self.multi for width in self.widths[1:-1]), self.widths[-1]]
        products = [a * b for a, b in itertools.pairwise(n)]
        return 2.0 * self.steps * BATCH * (self.students or 1) * (3 * sum(products) - products[0])

    def small(self) -> DeepProblem:
        """To see whether everything runs."""
        return replace(self, multi=2, students=self.students and 2, steps=9)

    def case(self, precision: str, device: str) -> Case:
        """Autograd in float64 is the truth."""
        problem = Deep.of(self.widths, self.multi, self.students, BATCH, self.steps, self.lr)
        problem = problem.to(dtype_of(precision)).to(device)
        count, itemsize = self.students or 1, problem.parameters.itemsize
        hidden = "-".join(map(str, self.widths[1:-1]))
        return Case(
            label=f"{hidden} x {self.multi}, {count} student{'s' * (count > 1)}, {self.steps} steps",
            shape={"students": count, "batch": BATCH, "multi": self.multi, "steps": self.steps},
            copies=[problem],
            truth=eager(problem.to(torch.float64)),
            samples=self.steps * BATCH,
            operations=self.operations,
            moved=float(itemsize * (2 * problem.parameters.numel() + problem.x.numel() + problem.y.numel())),
            check=check,
        )

    def ours(self, precision: str) -> Callable[[Deep], Tensor]:
        return fastspec

    def contenders(self, case: Case, precision: str, device: str) -> Families:
        """Eager with each optimizer, compiled in CUDA graphs, and products by hand in one graph of all steps."""
        problem: Deep = case.copies[0]
        captured = graphed if device == "cuda" else lambda call: call
        rounds = None if self.students is None else 1
        families = {
            "eager": [Peer(f"eager, {way}", partial(eager, fused=way == "fused"), {"optimizer": way}, rounds)
                      for way in ("foreach", "fused")],
            "torch graph": [Peer("torch graph", captured(by_hand))],
        }  # fmt: skip
        if self.students is not None:
            return families | {"vmap": [Peer("vmap", vmapped, rounds=2)]}
        reason = None if self.compiled and device == "cuda" else "not compiled here"
        peers = []
        for name, kind in (("compiled", Compiled), ("compiled with the step", CompiledWhole)):
            call = eager if reason else kind(problem, mode="reduce-overhead")
            peers.append(Peer(name, call, skip=reason or failure(call, problem.head(PILOT))))
        return families | {"compiled": peers}

    def facts(self, case: Case, precision: str) -> Entry:
        return {}


DEEP = (
    DeepProblem("deep-50-75-100-125x10", SS, 10, None, 96, 1e-5, compiled=True),
    DeepProblem("deep-10-15-20-25x10", LM, 10, None, 192, 1e-3),
    DeepProblem("deep-10-15-20-25x10-students64", LM, 10, 64, 32, 1e-4),
)
