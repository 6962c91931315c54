"""One teacher layer against a student's, or a population's: the op, and torch at the same precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.compare import OURS, Case, Families, Peer, best, failure, lack_of_memory
from benchmarks.gate import check
from benchmarks.harness import Entry
from benchmarks.peers import LayerPair
from benchmarks.precision import at, bounds, dtype_of
from fastspec.ops.cross_moments import Moments
from fastspec.ops.gpu.devices import rates_of
from fastspec.ops.layer_moments import layer_moments, plans, reference
from fastspec.ops.linear_relu import linear_relu
from fastspec.ops.linear_relu import reference as linear_relu_reference

CHUNKS = (2048, 8192, 32_768, 131_072)
CHUNK_ELEMENTS = 2**30  # of both networks' activations: larger chunks are not tried
OUTRUN = 256 * 2**20  # bytes of inputs that no cache holds
TOO_LONG = 5e13  # operations of torch.corrcoef beyond which it is left out
AUTOTUNE = "max-autotune-no-cudagraphs"  # graphs would overwrite the sums of one chunk with the next one's


@dataclass(frozen=True)
class LayerProblem:
    """One teacher layer against `students` layers of `student` nodes each."""

    name: str
    samples: int
    inputs: int
    teacher: int
    student: int
    students: int = 1
    narrow: bool = True

    @property
    def operations(self) -> float:
        nodes = self.student * self.students
        return 2.0 * self.samples * (self.inputs * (self.teacher + nodes) + self.teacher * nodes)

    def small(self) -> LayerProblem:
        """To see whether everything runs."""
        sizes = {"inputs": 20, "teacher": 24, "student": 72, "students": 3}
        return replace(self, samples=3000, **{name: min(getattr(self, name), most) for name, most in sizes.items()})

    def case(self, precision: str, device: str) -> Case:
        """Random inputs, enough copies to outrun a cache, and the specification run in float64 as the truth."""
        nodes, dtype = self.student * self.students, dtype_of(precision)
        pair = LayerPair.random(self.samples, self.inputs, self.teacher, nodes, device=device, dtype=dtype)
        exact = pair.double()
        truth = reference.layer_moments(exact.x, *exact.teacher, exact.x, *exact.student, 0.0, "fp64", False, False)
        each = f"{self.students} x {self.student}" if self.students > 1 else f"{self.student}"
        return Case(
            label=f"{self.samples:,} x {self.inputs}, {self.teacher} x {each}",
            shape={name: getattr(self, name) for name in ("samples", "inputs", "teacher", "student", "students")},
            copies=copies(pair),
            truth=Moments(*truth[:8]),
            samples=self.samples,
            operations=self.operations,
            moved=dtype.itemsize * (pair.x.numel() + (self.teacher + nodes) * (self.inputs + 1))
            + 8.0 * self.teacher * nodes,
            check=partial(_check, precision),
        )

    def ours(self, precision: str) -> Callable[[LayerPair], Moments]:
        """The op, on a population where there are several students."""

        def call(pair: LayerPair) -> Moments:
            weight, bias = pair.student
            if self.students > 1:
                weight, bias = weight.unflatten(0, (self.students, -1)), bias.unflatten(0, (self.students, -1))
            return layer_moments(pair.x, *pair.teacher, pair.x, weight, bias, precision=precision)[0]

        return call

    def contenders(self, case: Case, precision: str, device: str) -> Families:
        """Torch at the same precision, and the plan that was not taken where it is not far behind."""
        pair, nodes = case.copies[0], self.teacher + self.student * self.students
        size = pair.x.element_size()
        lack = lack_of_memory(3.0 * size * self.samples * nodes, device)
        long = "many times the operations of the others" if 2.0 * self.samples * nodes**2 > TOO_LONG else None
        chunked = partial(self._chunked, pair, precision, device)
        sums = [] if precision == "fp64" else chunked("chunked, float32 sums", peers.chunked, accumulate=torch.float32)
        families = {
            "eager": [Peer("eager", at(precision, peers.materialised), rounds=3, skip=lack)],
            "chunked": [*chunked("chunked", peers.chunked), *sums],
        }
        if precision in ("fp32", "tf32"):
            families["chunked plain"] = chunked("chunked plain", peers.chunked_plain)
            corrcoef = Peer("corrcoef", at(precision, peers.corrcoef), rounds=3, skip=lack or long)
            families["corrcoef"] = [corrcoef]
        chosen, *others = self._plans(precision, pair.x)
        near = [other.name for other in others if other.seconds < 4 * chosen.seconds]
        if near:
            families["other plan"] = [Peer(f"fastspec, {name}", _forced(name, self.ours(precision))) for name in near]
        return families

    def compiled(self, case: Case, precision: str, device: str) -> Families:
        """`torch.compile` of the eager and of the chunked peer, with its best tiles."""
        torch.compiler.reset()  # one function may be compiled for few shapes only
        pair, nodes = case.copies[0], self.teacher + self.student * self.students
        lack = lack_of_memory(3.0 * pair.x.element_size() * self.samples * nodes, device)
        (plain,) = self._chunked(pair, precision, device, "chunked plain", peers.chunked_plain)
        call = at(precision, partial(peers.chunked_plain, compiled=AUTOTUNE, **plain.settings))
        whole = at(precision, partial(peers.materialised_compiled, mode=AUTOTUNE))
        return {
            "compiled eager": [Peer("compiled eager", whole, rounds=3, skip=lack or failure(whole, pair))],
            "compiled chunked": [Peer("compiled chunked", call, plain.settings, skip=failure(call, pair))],
        }

    def _chunked(
        self, pair: LayerPair, precision: str, device: str, name: str, call: Callable[..., Any], **options: Any
    ) -> list[Peer]:
        """The peer at the best chunk size, by one round on the first samples."""
        nodes = self.teacher + self.student * self.students
        sizes = [c for c in CHUNKS if c <= self.samples and c * nodes <= CHUNK_ELEMENTS] or CHUNKS[:1]
        pilot = replace(pair, x=pair.x[: max(sizes[-1], CHUNKS[-2])])
        variants = [Peer(f"{name} {c}", at(precision, partial(call, chunk=c, **options)), {"chunk": c}) for c in sizes]
        return best(variants, pilot, keep=1, device=device, rounds=1)

    def facts(self, case: Case, precision: str) -> Entry:
        """What is said of the op beside its time."""
        pair: LayerPair = case.copies[0]
        plan = self._plans(precision, pair.x)[0]
        return {
            "plan": {"name": plan.name, "predicted_ms": plan.seconds * 1e3},
            "flipped_gates": flipped_gates(pair, precision),
        }

    def _plans(self, precision: str, like: Tensor) -> list[plans.Plan]:
        shape = (self.samples, self.inputs, self.teacher, self.student)
        found = plans.candidates(*shape, precision, population=self.students, device=rates_of(like))
        taken = plans.choose(*shape, precision, blocks=self.students > 1, device=rates_of(like)).name
        return sorted(found, key=lambda plan: plan.name != taken)


def flipped_gates(pair: LayerPair, precision: str) -> Entry:
    """Share of the students' gates that differ from float64's on the first samples: the op's, and torch's."""
    rows = max(1, min(len(pair.x), 2**26 // len(pair.student[0])))
    x, (weight, bias) = pair.x[:rows], pair.student
    want = linear_relu_reference.linear_relu(x.double(), weight.double(), bias.double(), 0.0, "fp64")[1]
    torchs = at(precision, lambda p: torch.nn.functional.linear(p.x, *p.student) > 0)(replace(pair, x=x))
    found = {
        OURS: linear_relu(x, weight, bias, precision=precision).gates,
        "torch": linear_relu_reference.packed(torchs),
    }
    differ = {name: sum(int(((gates ^ want) >> bit & 1).sum()) for bit in range(8)) for name, gates in found.items()}
    return {name: count / torchs.numel() for name, count in differ.items()}


def _check(precision: str, name: str, result: Any, truth: Moments, samples: int, _: Any) -> Entry:
    """The gate of `compare`; the students of a population side by side."""
    if isinstance(result, Moments) and result.cross_scatter.dim() == 3:
        sides = {key: value.flatten() for key, value in result._asdict().items() if key.startswith("student")}
        result = result._replace(cross_scatter=result.cross_scatter.transpose(0, 1).flatten(1), **sides)
    return check(name, result, truth, samples, bounds(precision, name.startswith(OURS)))


def _forced(plan: plans.Name, call: Callable[[LayerPair], Moments]) -> Callable[[LayerPair], Moments]:
    def forced(pair: LayerPair) -> Moments:
        with plans.force(plan):
            return call(pair)

    return forced


def copies(inputs: Any) -> list[Any]:
    """The inputs `x` of both networks as often as it takes for no cache to hold them."""
    size = inputs.x.numel() * inputs.x.element_size()
    more = min(max(1, -(-OUTRUN // size)), 15) if inputs.x.is_cuda else 0
    return [inputs, *(replace(inputs, x=inputs.x.clone()) for _ in range(more))]
