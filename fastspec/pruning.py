"""Pruning: hidden nodes that the layer above hardly uses are removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fastspec.networks import MLP, ConvNet
from fastspec.ops.checks import check_real, refuse

AnyNetwork = TypeVar("AnyNetwork", MLP, ConvNet)


@dataclass(frozen=True)
class Pruned(Generic[AnyNetwork]):
    """A pruned network and, for each of its hidden layers, the indices [nodes] its nodes had before, ascending."""

    network: AnyNetwork
    kept: list[Tensor]


def mean_fan_out(above: Tensor, nodes: int) -> Tensor:
    """Mean absolute weight from each of `nodes` nodes (or channels) into the layer above, [nodes].

    above: weights of that layer, [out, in, ...]. A linear layer on flattened channels has several columns for each
    channel, side by side.
    """
    return above.detach().abs().reshape(len(above), nodes, -1).mean(dim=(0, 2))


def prune(network: AnyNetwork, fractions: float | Sequence[float]) -> Pruned[AnyNetwork]:
    """A smaller copy without the hidden nodes of lowest mean absolute fan-out (Student Specialization, Tian 2020).

    fractions: in [0, 1); one for all hidden layers or one for each. floor(fraction * nodes) nodes are removed from a
    layer, so that at least one stays; of equal ones the first. All layers are ranked before any node is removed.
    The result computes what the network computes with the removed nodes' fan-outs set to 0, in its train/eval mode.

    Raises ValueError or TypeError naming the argument.
    """
    if not isinstance(network, (MLP, ConvNet)):
        refuse("network", type(network).__name__, "an MLP or a ConvNet", TypeError)
    widths = network.hidden_widths
    values = [fractions] * len(widths) if isinstance(fractions, (int, float)) else list(fractions)
    if len(values) != len(widths):
        refuse("fractions", f"{len(values)} values", f"one number, or one for each of {len(widths)} hidden layers")
    kept = []
    for fraction, nodes, above in zip(values, widths, network.layers[1:], strict=True):
        check_real("fractions", fraction, "numbers of at least 0 and below 1", 0.0, 1 - 2**-53)
        order = mean_fan_out(above.weight, nodes).argsort(stable=True)
        # the addition undoes rounding as in 0.29 * 100 = 28.999999999999996
        removed = min(int(fraction * nodes + 1e-9), nodes - 1)
        kept.append(order[removed:].sort().values)
    return Pruned(_select(network, kept), kept)


def _select(network: AnyNetwork, kept: list[Tensor]) -> AnyNetwork:
    options = network.architecture()
    if isinstance(network, MLP):
        options["widths"][1:-1] = [len(nodes) for nodes in kept]
    else:
        options["channels"] = [len(nodes) for nodes in kept]
    like = network.layers[0].weight
    small = type(network)(**options, dtype=like.dtype, device=like.device)
    rows = [*kept, torch.arange(len(network.layers[-1].weight), device=like.device)]
    with torch.no_grad():
        for i, (target, source) in enumerate(zip(small.layers, network.layers, strict=True)):
            weight = source.weight[rows[i]]
            if i:
                grouped = weight.reshape(len(weight), network.hidden_widths[i - 1], -1)  # [out, nodes below, columns]
                weight = grouped[:, kept[i - 1]].reshape(target.weight.shape)
            target.weight.copy_(weight)
            if source.bias is not None and target.bias is not None:
                target.bias.copy_(source.bias[rows[i]])
        for norm, whole_norm, nodes in zip(small.norms, network.norms, kept if network.batch_norm else [], strict=True):
            state = whole_norm.state_dict()
            norm.load_state_dict({name: value[nodes] if value.dim() else value for name, value in state.items()})
    return small.train(network.training)
