"""Benchmarks of the op `moments_and_loss`: a population measured in one pass, against passes over its activations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.compare import Case, Peer, compare, summary
from benchmarks.gate import Bounds, WrongResultError
from benchmarks.harness import Entry, Options, register
from benchmarks.rates import RateCalls
from fastspec.moments import CrossMoments, layer_moments_with_activations
from fastspec.ops.moments_and_loss import moments_and_loss, reference

SideTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # input, weight, bias, and of the outputs
SAMPLES, INPUTS, OUTPUTS = 10_000, 100, 50  # those of the two-layer study
# teacher nodes, student nodes, students: of about as many nodes in all
SHAPES = ((5, 5, 128), (5, 50, 32), (20, 20, 64), (20, 200, 8))
QUICK_SHAPES = ((3, 5, 4),)
CHUNK = 1152  # samples at a time


class Networks(NamedTuple):
    """Both arguments of the op."""

    teacher: SideTensors
    student: SideTensors

    @staticmethod
    def random(samples: int, m: int, n: int, students: int, device: str, dtype: torch.dtype) -> Networks:
        """Gaussian inputs, weights and biases, float32 numbers in any dtype."""
        generator = torch.Generator(device).manual_seed(0)

        def draw(*size: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(size, generator=generator, device=device)).to(dtype)

        def side(nodes: int, *networks: int) -> SideTensors:
            weight, bias = draw(*networks, nodes, INPUTS, scale=INPUTS**-0.5), draw(*networks, nodes)
            return x, weight, bias, draw(*networks, OUTPUTS, nodes, scale=nodes**-0.5), draw(*networks, OUTPUTS)

        x = draw(samples, INPUTS)
        return Networks(side(m), side(n, students))


class Measured(NamedTuple):
    cross: Tensor  # [P, m, n], scatter of teacher and student nodes, float64
    loss: Tensor  # [P], float64


def fastspec(networks: Networks) -> Measured:
    """The op under test."""
    moments, loss = moments_and_loss(*networks)
    return Measured(moments.cross_scatter, loss)


def in_passes(networks: Networks) -> Measured:
    """The op of the moments alone, merged, and the loss by torch."""
    (x, w, b, top, top_bias), (_, ws, bs, tops, top_biases) = networks
    moments: CrossMoments | None = None
    loss = torch.zeros(len(ws), dtype=torch.float64, device=x.device)
    for rows in x.split(CHUNK):
        some, (t, s) = layer_moments_with_activations(rows, (w, b), (ws, bs))
        moments = some if moments is None else moments + some
        loss += _loss(_outputs(t, top, top_bias), s, tops, top_biases)
    assert moments is not None
    return Measured(moments.cross_scatter, loss)


def torch_alone(networks: Networks) -> Measured:
    """Chunks of torch's products with raw float32 sums of each: no scatters of nodes, no counts."""
    (x, w, b, top, top_bias), (_, ws, bs, tops, top_biases) = networks
    lowest, shift, (students, n) = ws.flatten(0, 1).T, bs.flatten(), ws.shape[:2]
    cross = torch.zeros(len(w), students * n, dtype=torch.float64, device=x.device)
    sums = [torch.zeros(size, dtype=torch.float64, device=x.device) for size in (len(w), students * n, students)]
    for rows in x.split(CHUNK):
        t, s = torch.addmm(b, rows, w.T).relu_(), torch.addmm(shift, rows, lowest).relu_()
        cross += t.T @ s
        sums[0] += t.sum(0)
        sums[1] += s.sum(0)
        sums[2] += _loss(_outputs(t, top, top_bias), s.unflatten(1, (students, n)).transpose(0, 1), tops, top_biases)
    centred = cross - torch.outer(sums[0], sums[1]) / len(x)
    return Measured(centred.unflatten(1, (students, n)).transpose(0, 1), sums[2])


def _outputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight.T)


def _loss(answers: Tensor, activations: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    residuals = torch.baddbmm(bias.unsqueeze(1), activations, weight.mT).sub_(answers)
    return torch.linalg.vector_norm(residuals, dim=-1).double().square().sum(-1) / 2


def check(name: str, result: Measured, truth: Measured, samples: int, bounds: Bounds) -> Entry:
    """The gate of `compare`: the cross scatter's largest error, by its largest element, and a loss's, by itself."""
    found = {
        "cross": float((result.cross - truth.cross).abs().max() / truth.cross.abs().max()),
        "loss": float((result.loss / truth.loss - 1).abs().max()),
    }
    if not all(error <= bounds.rho for error in found.values()):
        raise WrongResultError(f"{name}: got errors against float64 of {found} (limit {bounds.rho:.3g})")
    return found


def case(shape: tuple[int, int, int], samples: int, options: Options) -> Case:
    m, n, students = shape
    networks, exact = (
        Networks.random(samples, *shape, options.device, dtype) for dtype in (torch.float32, torch.float64)
    )
    *moments, loss = reference.moments_and_loss(
        *exact.teacher[:3], *exact.student[:3], *exact.teacher[3:], *exact.student[3:], 0.0, False
    )
    nodes = students * n
    return Case(
        label=f"{m}, {students} x {n}",
        shape={"samples": samples, "teacher": m, "nodes": n, "students": students},
        copies=[networks],
        truth=Measured(moments[4], loss),
        samples=samples,
        operations=2.0 * samples * (m * (INPUTS + OUTPUTS) + nodes * (INPUTS + OUTPUTS + m)),
        moved=4.0 * (samples * INPUTS + nodes * (INPUTS + OUTPUTS)) + 8.0 * nodes * m,
        check=check,
    )


@register("moments_and_loss", "the op against passes over the activations, and torch, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    families = {"in passes": [Peer("in passes", in_passes)], "torch": [Peer("torch", torch_alone)]}
    shapes, samples = (QUICK_SHAPES, 500) if options.quick else (SHAPES, SAMPLES)
    entries = [compare(case(shape, samples, options), fastspec, families, rates, options) for shape in shapes]
    return {"axes": "teacher, students x nodes", "error_of": "loss", **summary(entries)}
