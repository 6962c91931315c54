"""Deep students: the op, autograd with torch.optim.SGD, compiled or not, and torch's products in a CUDA graph.

Compiled peers are items of their own, one each: compiling them may take longer than all else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import Case, Families, Peer, failure
from benchmarks.deep_peers import Compiled, CompiledWhole, Deep, by_hand, eager, fastspec, vmapped
from benchmarks.gate import WrongResultError
from benchmarks.gpu.populations import graphed
from benchmarks.harness import Entry
from benchmarks.ops.mlp_sgd_step import LM, PILOT, SS, check
from benchmarks.precision import dtype_of, tf32

BATCH = 64
COMPILED: dict[str, Callable[..., Callable[[Deep], Tensor]]] = {"compiled": Compiled, "compiled-step": CompiledWhole}
# relative error of how far a student has come: .0055 and .002 in plain torch with operands rounded to bf16 and tf32
OF_WAY = {"fp32": 1e-4, "tf32": 0.01, "bf16": 0.03}


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
    over_eager: float | None = 5.0  # wanted
    over_peers: float = 2.0  # wanted over the best other peer; over the best of all without over_eager
    narrow: bool = True
    batch: int = BATCH
    precisions: tuple[str, ...] = ("fp32",)
    floor: float | None = None  # wanted
    large: bool = False  # of random weights, like its teacher

    @property
    def operations(self) -> float:
        """Of the products; inputs need no gradient."""
        n = [self.widths[0], *(width * self.multi for width in self.widths[1:-1]), self.widths[-1]]
        products = [a * b for a, b in itertools.pairwise(n)]
        return 2.0 * self.steps * self.batch * (self.students or 1) * (3 * sum(products) - products[0])

    def small(self) -> DeepProblem:
        """To see whether everything runs."""
        if self.large:
            return replace(self, widths=(96,) * len(self.widths), batch=65, steps=4, lr=1e-3)
        return replace(self, multi=2, students=self.students and 2, steps=9)

    def case(self, precision: str, device: str) -> Case:
        """Autograd in float64 is the truth."""
        if self.large:
            problem = Deep.large(self.widths, self.batch, self.steps, self.lr, device)
        else:
            problem = Deep.of(self.widths, self.multi, self.students, self.batch, self.steps, self.lr)
        problem = replace(problem.to(dtype_of(precision)).to(device), precision=precision)
        count, itemsize = self.students or 1, problem.parameters.itemsize
        hidden = "-".join(map(str, self.widths[1:-1]))
        return Case(
            label=f"{hidden} x {self.multi}, {count} student{'s' * (count > 1)}, {self.steps} steps",
            shape={"students": count, "batch": self.batch, "multi": self.multi, "steps": self.steps},
            copies=[problem],
            truth=eager(problem.to(torch.float64)),
            samples=self.steps * self.batch,
            operations=self.operations,
            moved=float(itemsize * (2 * problem.parameters.numel() + problem.x.numel() + problem.y.numel())),
            check=partial(check_way, problem.parameters, OF_WAY[precision]) if self.large else check,
        )

    def ours(self, precision: str) -> Callable[[Deep], Tensor]:
        return fastspec

    def contenders(self, case: Case, precision: str, device: str) -> Families:
        """Eager with each optimizer, and products by hand in one graph of all steps."""
        captured = graphed if device == "cuda" else lambda call: call
        rounds = None if self.students is None else 1
        families = {
            "eager": [Peer(f"eager, {way}", allowed(precision, partial(eager, fused=way == "fused")),
                           {"optimizer": way}, rounds) for way in ("foreach", "fused")],
            "torch graph": [Peer("torch graph", captured(allowed(precision, by_hand)),
                                 skip="torch has no product of bf16 that is added to float32" * (precision == "bf16")
                                 or None)],
        }  # fmt: skip
        if self.students is not None:
            families["vmap"] = [Peer("vmap", vmapped, rounds=2)]
        return families

    def compiled_as(self, way: str, case: Case, precision: str) -> Families:
        """One of the compiled peers, in CUDA graphs of its own."""
        call = allowed(precision, COMPILED[way](case.copies[0], mode="reduce-overhead"))
        name = way.replace("-step", " with the step")
        return {"compiled": [Peer(name, call, skip=failure(call, case.copies[0].head(PILOT)))]}

    def facts(self, case: Case, precision: str) -> Entry:
        return {}


def allowed(precision: str, call: Callable[[Deep], Tensor]) -> Callable[[Deep], Tensor]:
    """A torch peer, to which tf32 is allowed where it is ours."""

    def run(t: Deep) -> Tensor:
        with tf32(precision == "tf32"):
            return call(t)

    return run


def check_way(start: Tensor, limit: float, name: str, result: Tensor, truth: Tensor, *_: Any) -> Entry:
    """The gate of large layers: the error of how far the parameters have moved, relative, in norm."""
    error = float((result.double() - truth).norm() / (truth - start.double()).norm())
    if not error <= limit:
        raise WrongResultError(f"{name}: got an error of {error:.3g} of the way, limit {limit:g}")
    return {"weights": error}


DEEP = (
    DeepProblem("deep-50-75-100-125x10", SS, 10, None, 96, 1e-5, compiled=True),
    DeepProblem("deep-10-15-20-25x10", LM, 10, None, 192, 1e-3),
    DeepProblem("deep-10-15-20-25x10-students64", LM, 10, 64, 32, 1e-4),
    DeepProblem("deep-4096x4", (4096,) * 5, 1, None, 8, 1e-4, compiled=True, over_eager=None, over_peers=1.15,
                narrow=False, batch=8192, precisions=("bf16", "tf32"), floor=0.75, large=True),
)  # fmt: skip
