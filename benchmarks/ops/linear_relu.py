"""Benchmarks of the op `linear_relu`: a layer with its gates and sums, against torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.compare import Case, Families, Peer, compare, failure, summary
from benchmarks.gate import Bounds, WrongResultError
from benchmarks.harness import Entry, Options, register
from benchmarks.rates import RateCalls
from fastspec.ops.linear_relu import LinearRelu, linear_relu, reference

# samples, inputs, nodes
SHAPES = ((100_000, 20, 500), (100_000, 100, 500), (20_000, 784, 2560))
QUICK_SHAPES = ((5_000, 20, 50), (5_000, 100, 200))


class Layer(NamedTuple):
    """x [N, d], weight [n, d], bias [n]."""

    x: Tensor
    weight: Tensor
    bias: Tensor

    @staticmethod
    def random(samples: int, inputs: int, nodes: int, device: str) -> Layer:
        """Gaussian samples and weights, biases -0.1 .. 0.1."""
        generator = torch.Generator(device).manual_seed(0)
        sizes = ((samples, inputs), (nodes, inputs), (nodes,))
        x, weight, bias = (torch.randn(size, generator=generator, device=device) for size in sizes)
        return Layer(x, weight / inputs**0.5, 0.1 * bias)


def fastspec(layer: Layer) -> LinearRelu:
    """The op under test."""
    return linear_relu(*layer)


def eager(layer: Layer) -> LinearRelu:
    """As one writes it: gates as a boolean mask, eight times the op's bytes."""
    activation = F.relu(F.linear(*layer))
    gates = activation > 0
    return LinearRelu(activation, gates, activation.sum(0, dtype=torch.float64), gates.sum(0))


def layer_alone(layer: Layer) -> LinearRelu:
    """The activation only: fewer outputs, a bound from below on what torch can reach."""
    none = layer.x.new_empty(0)
    return LinearRelu(F.relu(F.linear(*layer)), none, none, none)


def check(name: str, result: LinearRelu, truth: LinearRelu, samples: int, bounds: Bounds) -> Entry:
    """The gate of `compare`: errors relative to the largest activation, and gates that differ from float64's."""
    size = truth.activation.abs().max()
    found = {"activation": float((result.activation - truth.activation).abs().max() / size)}
    limits = {"activation": bounds.rho, "mean": bounds.mean, "flipped": bounds.flipped * truth.activation.numel()}
    if result.node_sum.numel():
        found["mean"] = float((result.node_sum - truth.node_sum).abs().max() / size / samples)
        gates = reference.packed(result.gates) if result.gates.dtype == torch.bool else result.gates
        found["flipped"] = float((gates != truth.gates).sum())
        found["miscounted"] = float((result.active - counted(gates, result.active)).abs().max())
        limits["miscounted"] = 0.0
    wrong = [f"{key} {value:.3g} (limit {limits[key]:.3g})" for key, value in found.items() if not value <= limits[key]]
    if wrong:
        raise WrongResultError(f"{name}: got errors against float64 of {', '.join(wrong)}")
    return found


def counted(gates: Tensor, active: Tensor) -> Tensor:
    """Packed gates [N, bytes] as counts over the samples, of the shape of `active` [n]."""
    bits = gates.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=gates.device) & 1
    return bits.sum(0).flatten()[: len(active)]


def case(shape: tuple[int, int, int], options: Options) -> Case:
    """A random layer, and the specification run in float64 as the truth."""
    samples, inputs, nodes = shape
    layer = Layer.random(*shape, device=options.device)
    exact = Layer(*(tensor.double() for tensor in layer))
    copies = [layer] + [layer._replace(x=layer.x.clone()) for _ in range(2 if options.device == "cuda" else 0)]
    return Case(
        label=f"{samples:,} x {inputs}, {nodes}",
        shape={"samples": samples, "inputs": inputs, "nodes": nodes},
        copies=copies,
        truth=LinearRelu(*reference.linear_relu(*exact, 0.0, "fp64")),
        samples=samples,
        operations=2.0 * samples * inputs * nodes,
        moved=4.0 * (samples * inputs + nodes * (inputs + 1)) + samples * (4.0 * nodes + -(-nodes // 8)),
        check=check,
    )


def contenders(item: Case, options: Options) -> Families:
    """The peers by family."""
    families = {"eager": [Peer("eager", eager)], "layer alone": [Peer("layer alone", layer_alone)]}
    if options.compile:
        compiled = torch.compile(eager, dynamic=False)
        families["compiled"] = [Peer("compiled", compiled, skip=failure(compiled, item.copies[0]))]
    return families


@register("linear_relu", "the op against torch in three shapes, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    entries = []
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        item = case(shape, options)
        entries.append(compare(item, fastspec, contenders(item, options), rates, options))
    return {"axes": "samples x inputs, nodes", "error_of": "activation", **summary(entries)}
