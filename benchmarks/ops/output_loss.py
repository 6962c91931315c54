"""Benchmarks of the op `output_loss`: residuals that stay in registers, against torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.compare import Case, Peer, compare, summary
from benchmarks.gate import Bounds, WrongResultError
from benchmarks.harness import Entry, Options, register
from benchmarks.rates import RateCalls
from fastspec.ops.output_loss import output_loss, reference

# students, samples, nodes, outputs; the first four as in the two-layer study
SHAPES = ((32, 1152, 5, 50), (32, 1152, 20, 50), (32, 1152, 50, 50), (32, 1152, 200, 50), (4, 8192, 1000, 1000))
QUICK_SHAPES = ((3, 100, 5, 10),)


class Outputs(NamedTuple):
    """Arguments of the op."""

    answers: Tensor
    activations: Tensor
    weight: Tensor
    bias: Tensor

    @staticmethod
    def random(students: int, samples: int, nodes: int, outputs: int, device: str) -> Outputs:
        """Gaussian, with activations above 0."""
        generator = torch.Generator(device).manual_seed(0)
        sizes = ((samples, outputs), (students, samples, nodes), (students, outputs, nodes), (students, outputs))
        y, h, w, b = (torch.randn(size, generator=generator, device=device) for size in sizes)
        return Outputs(y, h.relu(), w / nodes**0.5, b)


def fastspec(outputs: Outputs) -> Tensor:
    """The op under test."""
    return output_loss(*outputs)


def together(outputs: Outputs) -> Tensor:
    """One product of all students, residuals in its place."""
    y, h, w, b = outputs
    residuals = torch.baddbmm(b.unsqueeze(1), h, w.mT).sub_(y)
    return torch.linalg.vector_norm(residuals, dim=-1).double().square().sum(-1) / 2


def one_by_one(outputs: Outputs) -> Tensor:
    """The specification, a student at a time: residuals stay in a cache."""
    return reference.output_loss(*outputs)


def check(name: str, result: Tensor, truth: Tensor, samples: int, bounds: Bounds) -> Entry:
    """The gate of `compare`: the largest relative error of a student's loss."""
    error = float((result / truth - 1).abs().max())
    if not error <= bounds.rho:
        raise WrongResultError(f"{name}: got an error against float64 of {error:.3g} (limit {bounds.rho:.3g})")
    return {"loss": error}


def case(shape: tuple[int, int, int, int], options: Options) -> Case:
    students, samples, nodes, outputs = shape
    item = Outputs.random(*shape, device=options.device)
    return Case(
        label=f"{students} x {samples:,}, {nodes} -> {outputs}",
        shape={"students": students, "samples": samples, "nodes": nodes, "outputs": outputs},
        copies=[item],
        truth=reference.output_loss(*(tensor.double() for tensor in item)),
        samples=samples,
        operations=2.0 * students * samples * nodes * outputs,
        moved=4.0 * sum(tensor.numel() for tensor in item),
        check=check,
    )


@register("output_loss", "the op against torch, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    families = {"together": [Peer("together", together)], "one by one": [Peer("one by one", one_by_one)]}
    shapes = QUICK_SHAPES if options.quick else SHAPES
    entries = [compare(case(shape, options), fastspec, families, rates, options) for shape in shapes]
    return {"axes": "students x samples, nodes -> outputs", "error_of": "loss", **summary(entries)}
