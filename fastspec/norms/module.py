"""Norms in a user's own network: every linear and convolutional layer, by hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastspec.adapters import check_placement, evaluation_mode, forward
from fastspec.batches import Data, read
from fastspec.initialization.layers import AnyLayer, weight_layers
from fastspec.norms.ratios import Running, Spread
from fastspec.ops.checks import check_integer, check_real, refuse, shape
from fastspec.randomness import generator

BATCH = 128  # samples at a time, where the caller leaves it open
GRADIENTS = 8  # per-sample weight gradients of a convolution that are held at a time

Loss = Callable[[Any], Tensor]  # the network's output -> one loss for each sample [N]
Verdict = Literal["preserves", "shrinks", "explodes"]


@dataclass(frozen=True, eq=False, repr=False)
class LayerNorms:
    """One layer: what it does to its own inputs, and what has come of the network's. Spreads are over the samples, [].

    gain: ||activation(layer(h))|| / ||h||. forward: ||activation(layer(h))|| / ||x||.
    backward: ||dloss / dW||_F / (||x|| ||delta||), delta the gradient at the outputs of the last layer but one.
    """

    name: str
    kind: str
    nodes: int
    gain: Spread
    forward: Spread
    backward: Spread
    verdict: Verdict
    scale: float  # what its weights and bias would have to be multiplied by to preserve norms


@dataclass(frozen=True, eq=False, repr=False)
class ModuleNorms:
    """What `norm_report` finds of a network, layers in the order of their calls; `print(report)` shows a table."""

    layers: list[LayerNorms]
    samples: int

    def __getitem__(self, name: str) -> LayerNorms:
        found = {layer.name: layer for layer in self.layers}
        if name not in found:
            refuse("name", repr(name), f"one of {', '.join(found)}", KeyError)
        return found[name]

    def scales(self) -> dict[str, float]:
        """What would mend each layer that does not preserve norms."""
        return {layer.name: layer.scale for layer in self.layers if layer.verdict != "preserves"}

    def __str__(self) -> str:
        rows = [("layer", "kind", "nodes", "gain", "worst", "forward", "backward", "verdict", "scale")]
        for layer in self.layers:
            gain, worst = float(layer.gain.mean), float(layer.gain.worst)
            forward, backward = float(layer.forward.mean), float(layer.backward.mean)
            rows.append((
                layer.name or "(itself)", layer.kind, str(layer.nodes), f"{gain:.3f}", f"{worst:.2f}", f"{forward:.3g}",
                f"{backward:.3g}", layer.verdict, "" if layer.verdict == "preserves" else f"{layer.scale:.3g}",
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"norms over {self.samples:,} samples"]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, NOTE])


NOTE = (
    "gain: norm of a layer's activations over that of its inputs, mean over samples; worst: largest |1 - gain|;\n"
    "forward, backward: activations and weight gradients against the network's inputs; scale: mends the gain"
)


def measure_module(
    network: nn.Module,
    data: Data,
    *,
    loss: Loss | None,
    activation: Callable[[Tensor], Tensor],
    tolerance: float,
    batch_size: int | None,
    progress: bool | None,
) -> ModuleNorms:
    """See `norm_report`."""
    check_real("tolerance", tolerance, "a finite number of at least 0", 0.0)
    if batch_size is not None:
        check_integer("batch_size", batch_size)
    layers = weight_layers(network)
    if not layers:
        refuse("network", f"a {type(network).__name__} without Linear or Conv layers", "one that has some")
    device = next(iter(layers.values())).weight.device
    found = {name: [Running() for _ in range(3)] for name in layers}
    order: list[str] = []
    samples = 0
    with evaluation_mode(network), _taps(layers) as calls:
        for x, place in read(data, batch_size or BATCH, partial(check_placement, network=network), progress, device):
            calls.clear()
            with torch.enable_grad():
                output = forward("network", network, x)
            if not calls:
                refuse("network", "no call of a Linear or Conv layer in the forward pass", "one that calls some")
            if samples and order != list(calls):
                refuse(
                    place,
                    "a forward pass that calls other layers than the first",
                    "a network that always calls the same",
                )
            order = list(calls)
            gradients = torch.autograd.grad(
                _losses(output, loss, len(x)).sum(), [call.output for call in calls.values()], allow_unused=True
            )
            _add(found, layers, calls, gradients, x, activation)
            samples += len(x)
    rows = []
    for name in order:
        gain, ahead, back = (running.finish() for running in found[name])
        mean = float(gain.mean)
        rows.append(
            LayerNorms(
                name,
                type(layers[name]).__name__,
                len(layers[name].weight),
                gain,
                ahead,
                back,
                _verdict(mean, tolerance),
                1 / mean if mean > 0 else math.nan,
            )
        )
    return ModuleNorms(rows, samples)


@dataclass
class _Call:
    input: Tensor
    output: Tensor


@contextmanager
def _taps(layers: dict[str, AnyLayer]) -> Iterator[dict[str, _Call]]:
    """What every layer was given and gave in the last forward pass, by name in the order of calls.

    What a layer gives is passed on as a copy, so that an in-place ReLU after it changes nothing here.
    """
    calls: dict[str, _Call] = {}

    def hook(name: str):
        def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
            if name in calls:
                refuse(
                    "network", f"two calls of layer {name!r} in one forward pass", "a network that calls layers once"
                )
            kept = output if output.requires_grad else output.detach().requires_grad_()
            calls[name] = _Call((inputs[0] if inputs else named["input"]).detach(), kept)
            return kept.clone()

        return keep

    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _add(
    found: dict[str, list[Running]],
    layers: dict[str, AnyLayer],
    calls: dict[str, _Call],
    gradients: tuple[Tensor | None, ...],
    x: Tensor,
    activation: Callable[[Tensor], Tensor],
) -> None:
    """Count a batch of inputs x [N, ...]."""
    size, names = _norm(x), list(calls)
    deltas = [
        torch.zeros_like(call.output) if g is None else g for call, g in zip(calls.values(), gradients, strict=True)
    ]
    for i, (name, call) in enumerate(calls.items()):
        if len(call.input) != len(x) or len(call.output) != len(x):
            refuse(
                "network",
                f"layer {name!r} with inputs of {shape(call.input)}",
                f"layers on [{len(x)}, ...], the samples",
            )
        last = i + 1 == len(names) and len(names) > 1
        after = _norm(call.output if last else activation(call.output))
        gain, ahead, back = found[name]
        gain.add(_ratio(after, _norm(call.input)))
        ahead.add(_ratio(after, size))
        reference = size * _norm(deltas[max(len(names) - 2, 0)])
        back.add(_ratio(_weight_gradient(layers[name], call.input, deltas[i]), reference))


def _weight_gradient(layer: AnyLayer, h: Tensor, delta: Tensor) -> Tensor:
    """The Frobenius norm of the weights' gradient for every sample, [N] float64."""
    if isinstance(layer, nn.Linear) and h.dim() == 2:
        return _norm(h) * _norm(delta)  # of delta h^T
    weight = layer.weight.detach()

    def pulled(weight: Tensor, h: Tensor, delta: Tensor) -> Tensor:
        out = F.linear(h, weight) if isinstance(layer, nn.Linear) else layer._conv_forward(h[None], weight, None)[0]
        return (out * delta).sum()

    gradients = torch.func.vmap(torch.func.grad(pulled), (None, 0, 0))
    parts = zip(h.split(GRADIENTS), delta.split(GRADIENTS), strict=True)
    return torch.cat([_norm(gradients(weight, *part)) for part in parts])


def _ratio(norm: Tensor, to: Tensor) -> Tensor:
    return torch.where(to > 0, norm / to, torch.nan)


def _norm(x: Tensor) -> Tensor:
    """Of every sample, [N] float64."""
    return torch.linalg.vector_norm(x.flatten(1).double(), dim=1)


def _losses(output: Any, loss: Loss | None, samples: int) -> Tensor:
    """One loss for each sample: the user's, or cross-entropy with random probabilities, the same for all samples."""
    if loss is not None:
        losses = loss(output)
        if not isinstance(losses, Tensor) or losses.shape != (samples,):
            got = shape(losses) if isinstance(losses, Tensor) else type(losses).__name__
            refuse("loss", f"a function that returns {got}", f"one that returns a loss for each sample, [{samples}]")
        return losses
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != samples:
        got = shape(output) if isinstance(output, Tensor) else type(output).__name__
        refuse("loss", f"None for a network whose output is {got}", "a function from that to a loss for each sample")
    target = torch.rand(output.shape[1], dtype=torch.float64, generator=generator(0, "targets"), device="cpu").to(
        output
    )
    return -(target / target.sum() * F.log_softmax(output, 1)).sum(1)


def _verdict(gain: float, tolerance: float) -> Verdict:
    if gain * (1 + tolerance) < 1 or math.isnan(gain):
        return "shrinks"
    return "explodes" if gain > 1 + tolerance else "preserves"
