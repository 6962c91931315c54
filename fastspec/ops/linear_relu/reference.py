"""Specification of `linear_relu` in plain torch (see README.md of this op for the mathematics)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, pad

from fastspec.ops.cross_moments.reference import BLOCK
from fastspec.ops.precision import rounded


def activations(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float, precision: str) -> Tensor:
    """x [.., N, d], weight [.., nodes, d], bias [.., nodes] -> activations [.., N, nodes], float32 or better.

    The gate is off at a pre-activation of 0. The operands of the product are rounded to `precision`.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    pre_activation = rounded(x.to(compute), precision) @ rounded(weight.to(compute), precision).mT
    if bias is not None:
        pre_activation = pre_activation + bias.to(compute).unsqueeze(-2)
    return leaky_relu(pre_activation, negative_slope)


def packed(gates: Tensor) -> Tensor:
    """Gates [.., nodes] as bytes [.., ceil(nodes / 8)]: bit k % 8 of byte k // 8 is that of node k."""
    nodes = gates.shape[-1]
    size = -(-nodes // 8)
    eights = pad(gates, (0, 8 * size - nodes)).contiguous().unflatten(-1, (size, 8))
    words = eights.view(torch.int64).squeeze(-1)  # a byte a gate
    return (words * 0x0102040810204080 >> 56).to(torch.uint8)  # the product gathers their lowest bits in its top byte


def linear_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float, precision: str
) -> tuple[Tensor, ...]:
    """Activations and gates of x [N, d] or [P, N, d] under weight [n, d] or [P, n, d], and their sums over samples."""
    *population, n, _ = weight.shape
    samples = x.shape[-2]
    activation = x.new_empty(*population, samples, n)
    gates = x.new_empty(*population, samples, -(-n // 8), dtype=torch.uint8)
    node_sum = x.new_zeros(*population, n, dtype=torch.float64)
    active = x.new_zeros(*population, n, dtype=torch.int64)
    for start in range(0, samples, BLOCK):
        rows = slice(start, start + BLOCK)
        block = activations(x[..., rows, :], weight, bias, negative_slope, precision)
        activation[..., rows, :] = block
        on = block > 0
        gates[..., rows, :] = packed(on)
        node_sum += block.sum(-2, dtype=torch.float64)
        active += on.sum(-2)
    return activation, gates, node_sum, active
