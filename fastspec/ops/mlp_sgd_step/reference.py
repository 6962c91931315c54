"""Specification of `mlp_sgd_step` in plain torch (see README.md of this op for the mathematics)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, log_softmax, one_hot

from fastspec.ops.precision import rounded


def layers_of(parameters: Tensor, widths: Sequence[int], bias: Sequence[bool]) -> list[tuple[Tensor, Tensor | None]]:
    """Views (weight [.., out, in], bias [.., out] or None) of flat parameters [.., K], lowest layer first."""
    layers, start = [], 0
    for (inputs, outputs), has_bias in zip(pairwise(widths), bias, strict=True):
        weight = parameters.narrow(-1, start, outputs * inputs).unflatten(-1, (outputs, inputs))
        start += outputs * inputs
        layers.append((weight, parameters.narrow(-1, start, outputs) if has_bias else None))
        start += outputs * has_bias
    return layers


def parameter_count(widths: Sequence[int], bias: Sequence[bool]) -> int:
    """K, the length of the flat parameters of one student."""
    return sum(o * (i + b) for (i, o), b in zip(pairwise(widths), bias, strict=True))


def loss_and_residual(output: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """output [.., B, C] and the answer to it: [.., B, C], or labels [.., B] int64.

    The loss of every sample, [.., B], and its gradient with respect to the outputs, [.., B, C].
    """
    if answer.dtype == torch.int64:
        answer = answer.expand(output.shape[:-1])
        logarithm = log_softmax(output, -1)
        label = one_hot(answer, output.shape[-1]).to(output.dtype)
        return -logarithm.gather(-1, answer.unsqueeze(-1)).squeeze(-1), logarithm.exp() - label
    residual = output - answer
    return residual.square().sum(-1) / 2, residual


def normalize_(parameters: Tensor, widths: Sequence[int], bias: Sequence[bool]) -> None:
    """Divide the weight vector of every hidden node by its norm, in place; one of norm 0 stays as it is."""
    for weight, _ in layers_of(parameters, widths, bias)[:-1]:
        norm = weight.norm(dim=-1, keepdim=True)
        weight.div_(norm.masked_fill_(norm == 0, 1))


def gradient(
    x: Tensor,
    answer: Tensor,
    parameters: Tensor,
    widths: Sequence[int],
    bias: Sequence[bool],
    negative_slope: float,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch loss [..], its gradient [.., K], and the norm of that of every layer [.., L], at x [.., B, d].

    The operands of every product are rounded to `precision`: inputs, weights, activations, and gradients with respect
    to pre-activations, of which the gradient of a bias is the mean. Gates are of activations before they are rounded.
    """
    layers = layers_of(parameters, widths, bias)
    activations = [x]
    for i, (weight, b) in enumerate(layers):
        z = rounded(activations[-1], precision) @ rounded(weight, precision).mT + (0 if b is None else b.unsqueeze(-2))
        activations.append(leaky_relu(z, negative_slope) if i < len(layers) - 1 else z)
    losses, g = loss_and_residual(activations.pop(), answer)
    found = torch.empty_like(parameters)
    places = layers_of(found, widths, bias)
    norms: list[Tensor] = []
    for (weight, _), (weight_place, bias_place), h in zip(
        reversed(layers), reversed(places), reversed(activations), strict=True
    ):
        g = rounded(g, precision)
        weight_place.copy_(g.mT @ rounded(h, precision) / x.shape[-2])
        square = weight_place.double().square().sum((-2, -1))
        if bias_place is not None:
            bias_place.copy_(g.sum(-2) / x.shape[-2])
            square = square + bias_place.double().square().sum(-1)
        norms.insert(0, square.sqrt())
        g = (g @ rounded(weight, precision)) * torch.where(h > 0, torch.ones_like(h), negative_slope)
    return losses.mean(-1).double(), found, torch.stack(norms, -1)


def mlp_sgd_step(
    x: Tensor,
    y: Tensor,
    parameters: Tensor,
    buffers: Tensor | None,
    indices: Tensor,
    lr: Tensor,
    diverged_step: Tensor,
    widths: Sequence[int],
    bias: Sequence[bool],
    first_step: int,
    momentum: float,
    weight_decay: float,
    negative_slope: float,
    loss_limit: float,
    normalize: bool,
    gradient_norms: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Parameters, buffers (empty without momentum), losses, gradient norms (empty unless asked for), diverged steps."""
    population, steps = parameters.shape[:-1], indices.shape[-2]
    parameters, diverged = parameters.clone(memory_format=torch.contiguous_format), diverged_step.clone()
    buffers = torch.zeros_like(parameters) if buffers is None else buffers.clone()
    losses = x.new_full((*population, steps), torch.nan, dtype=torch.float64)
    norms = x.new_full((*population, steps, len(widths) - 1), torch.nan, dtype=torch.float64)
    for t in range(steps):
        rows = indices[..., t, :]
        loss, g, norm = gradient(x[rows], y[rows], parameters, widths, bias, negative_slope, precision)
        stopped = diverged >= 0
        losses[..., t] = loss.masked_fill(stopped, torch.nan)
        fails = ~(loss <= loss_limit) | loss.isinf()
        diverged = torch.where(fails & ~stopped, first_step + t, diverged)
        stopped = stopped | fails
        norms[..., t, :] = norm.masked_fill(stopped.unsqueeze(-1), torch.nan)
        ahead = momentum * buffers + g + weight_decay * parameters
        moved = parameters - float(lr[t]) * ahead
        if normalize:
            normalize_(moved, widths, bias)
        parameters = torch.where(stopped.unsqueeze(-1), parameters, moved)
        buffers = torch.where(stopped.unsqueeze(-1), 0.0, ahead).to(parameters.dtype)
    none = losses.new_empty(0)
    return (
        parameters,
        buffers if momentum else parameters.new_empty(0),
        losses,
        norms if gradient_norms else none,
        diverged,
    )
