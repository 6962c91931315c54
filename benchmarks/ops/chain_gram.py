"""Benchmarks of the op `chain_gram`: gated backward maps of active nodes, against whole layers in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.compare import Case, Peer, compare, summary
from benchmarks.gate import Bounds, WrongResultError
from benchmarks.harness import Entry, Options, register
from benchmarks.rates import RateCalls
from fastspec.ops.chain_gram import chain_gram, reference

# hidden nodes of the teacher and the student, outputs, samples, slope
SHAPES = (
    ((50, 75, 100, 125), (100, 150, 200, 250), 100, 64, 0.0),
    ((50, 75, 100, 125), (100, 150, 200, 250), 100, 2048, 0.0),
    ((50, 75, 100, 125), (100, 150, 200, 250), 100, 2048, 0.1),
    ((64, 64, 64), (128, 128, 128), 10, 8192, 0.0),
)
QUICK_SHAPES = (((5, 4), (10, 8), 6, 32, 0.0), ((5, 4), (10, 8), 6, 32, 0.1))


class Chains(NamedTuple):
    """Arguments of the op."""

    teacher_maps: list[Tensor]
    teacher_gates: list[Tensor]
    student_maps: list[Tensor]
    student_gates: list[Tensor]

    @staticmethod
    def random(
        teacher: Sequence[int], student: Sequence[int], outputs: int, samples: int, slope: float, device: str
    ) -> Chains:
        """Gaussian maps that keep norms, gates of which half are 1."""
        generator = torch.Generator(device).manual_seed(0)
        sides: list[list[Tensor]] = []
        for hidden in (teacher, student):
            above = (*hidden[1:], outputs)
            sizes = list(zip(above, hidden, strict=True))
            sides.append([torch.randn(size, generator=generator, device=device) / size[0] ** 0.5 for size in sizes])
            draws = [torch.rand(samples, nodes, generator=generator, device=device) for nodes in hidden]
            sides.append([torch.where(draw < 0.5, 1.0, slope) for draw in draws])
        return Chains(*sides)

    def double(self) -> Chains:
        return Chains._make([tensor.double() for tensor in tensors] for tensors in self)


def fastspec(chains: Chains) -> list[Tensor]:
    """The op under test."""
    return [matrix for gram in chain_gram(*chains) for matrix in gram]


def whole_layers(chains: Chains) -> list[Tensor]:
    """The specification: maps of all nodes, in chunks of samples."""
    return reference.chain_gram(*chains, True)


def check(name: str, result: list[Tensor], truth: list[Tensor], samples: int, bounds: Bounds) -> Entry:
    """The gate of `compare`: the largest error of a matrix, relative to its largest element."""
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(result, truth, strict=True))
    if not error <= bounds.rho:
        raise WrongResultError(f"{name}: got an error against float64 of {error:.3g} (limit {bounds.rho:.3g})")
    return {"h": error}


def operations(chains: Chains, samples: int) -> float:
    """Of maps and products of active nodes below the highest hidden layer."""
    active = [[float((gate != 0).double().mean()) * gate.shape[1] for gate in gates] for gates in chains[1::2]]
    outputs, total = chains.teacher_maps[-1].shape[0], 0.0
    teacher, student = active
    for layer in range(len(teacher) - 1):
        total += sum(side[layer] * side[layer + 1] for side in active)
        total += teacher[layer] * student[layer] + (teacher[layer] ** 2 + student[layer] ** 2) / 2
    return 2.0 * samples * outputs * total


def case(shape: tuple[tuple[int, ...], tuple[int, ...], int, int, float], options: Options) -> Case:
    teacher, student, outputs, samples, slope = shape
    chains = Chains.random(teacher, student, outputs, samples, slope, options.device)
    size = sum(tensor.numel() for tensors in chains for tensor in tensors)
    result = sum(m * m + n * n + m * n for m, n in zip(teacher, student, strict=True))
    hidden = "-".join(map(str, student))
    return Case(
        label=f"{samples:,} x {outputs}, {hidden}, slope {slope:g}",
        shape={"samples": samples, "outputs": outputs, "depth": len(student)},
        copies=[chains],
        truth=whole_layers(chains.double()),
        samples=samples,
        operations=operations(chains, samples),
        moved=4.0 * size + 8.0 * result,
        check=check,
    )


@register("chain_gram", "the op against whole layers in torch, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    entries = []
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        item = case(shape, options)
        entries.append(compare(item, fastspec, {"whole layers": [Peer("whole layers", whole_layers)]}, rates, options))
    return {"axes": "samples x outputs, student", "error_of": "h", **summary(entries)}
