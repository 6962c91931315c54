"""Fully connected networks as the theory has them: augmented maps, activations, gates and backward maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad

from fastspec.networks import MLP
from fastspec.ops.checks import check_finite, refuse
from fastspec.relu_network import Layer


class Chain(NamedTuple):
    """The linear layers of a network whose batch norm is part of them, lowest first, and the slope of its ReLUs."""

    weights: list[Tensor]  # [out, in]
    biases: list[Tensor | None]  # [out]
    slope: float

    @property
    def hidden(self) -> int:
        return len(self.weights) - 1

    @property
    def outputs(self) -> int:
        return len(self.weights[-1])

    def augmented(self) -> list[Tensor]:
        """The maps of activations that end with a 1: [[W, b], [0, 1]], and [W, b] at the top."""
        maps = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            column = weight.new_zeros(len(weight)) if bias is None else bias
            maps.append(torch.cat([weight, column.unsqueeze(1)], 1))
        one = [pad(m.new_ones(1, 1), (m.shape[1] - 1, 0)) for m in maps[:-1]]
        return [*(torch.cat(pair) for pair in zip(maps[:-1], one, strict=True)), maps[-1]]


class Forward(NamedTuple):
    """What a forward pass of N samples leaves, hidden layers lowest first."""

    activations: list[Tensor]  # [N, nodes]
    gates: list[Tensor]  # [N, nodes], 1 and the slope
    output: Tensor  # [N, C]


def chain(side: str, network: MLP) -> Chain:
    """The chain of a network in evaluation mode with finite weights; ValueError naming the layer for another one."""
    check_statistics(side, network)
    if not network.hidden_widths:
        refuse(side, "a network without hidden layers", "at least one hidden layer")
    layers: list[Layer] = network.folded()
    for i, (weight, bias) in enumerate(layers):
        check_finite(f"{side}, weight of layer {i + 1}", weight)
        if bias is not None:
            check_finite(f"{side}, bias of layer {i + 1}", bias)
    return Chain([w for w, _ in layers], [b for _, b in layers], network.negative_slope)


def check_statistics(side: str, network: nn.Module) -> None:
    """Check that no layer's output depends on the other samples of a batch, or on chance."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            got = f"{type(layer).__name__} with the statistics of the batch"
            refuse(f"{side}, layer {name!r}", got, "evaluation mode and running statistics: call .eval()")
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p:
            refuse(
                f"{side}, layer {name!r}", f"{type(layer).__name__} in training mode", "evaluation mode: call .eval()"
            )


def check_chains(teacher: Chain, student: Chain) -> None:
    """Check that two chains have one depth, and inputs and outputs in common."""
    if teacher.hidden != student.hidden:
        refuse("student", f"{student.hidden} hidden layers", f"the depth of the teacher, {teacher.hidden}")
    for what, layer, axis in (("inputs", 0, 1), ("outputs", -1, 0)):
        mine, wanted = student.weights[layer].shape[axis], teacher.weights[layer].shape[axis]
        if mine != wanted:
            refuse("student", f"{mine} {what}", f"the {what} of the teacher, {wanted}")


def forward(network: Chain, x: Tensor) -> Forward:
    """x [N, inputs] through a chain."""
    activations, gates = [], []
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        x = x @ weight.mT if bias is None else torch.addmm(bias, x, weight.mT)
        if i < network.hidden:
            gates.append(gates_of(x, network.slope))
            x = leaky_relu(x, network.slope)
            activations.append(x)
    return Forward(activations, gates, x)


def gates_of(pre_activations: Tensor, slope: float) -> Tensor:
    """1 where a pre-activation is above 0, the slope elsewhere, in their dtype."""
    return torch.full_like(pre_activations, slope).masked_fill_(pre_activations > 0, 1.0)


def with_one(rows: Tensor) -> Tensor:
    """[N, nodes] with a last column of ones."""
    return pad(rows, (0, 1), value=1.0)


def backward_maps(maps: Sequence[Tensor], gates: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """(l, V [N, C, nodes of hidden layer l]) from the top layer down, l from 0: what each node adds to the outputs.

    maps: of all layers, lowest first, [out, in]; gates [N, nodes] of the hidden layers. Augmented or not.
    """
    factor = maps[-1].expand(len(gates[0]), -1, -1)
    for layer in reversed(range(len(gates))):
        yield layer, factor
        if layer:
            factor = (factor * gates[layer].unsqueeze(1)) @ maps[layer]
