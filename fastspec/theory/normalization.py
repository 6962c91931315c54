"""What batch norm does to gradients: it takes away their parts along 1 and along the normalised activations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastspec.adapters import check_placement, forward
from fastspec.ops.checks import check_finite, check_tensor, refuse, shape
from fastspec.theory.chains import check_statistics
from fastspec.theory.tracing import leaf, untouched


class Projection(NamedTuple):
    """Of the gradients by the inputs of one batch norm, [nodes] each; 0 but for rounding and the norm's eps.

    Both are absolute values of sums over samples and positions, relative to the sum of absolute values.
    """

    mean: Tensor  # of the gradient
    normal: Tensor  # of the gradient times the normalised input


def batch_norm_projections(teacher: nn.Module, student: nn.Module, x: Tensor) -> dict[str, Projection]:
    """How far the student's gradients are from the projection that batch norm in training mode makes, by layer name.

    With the statistics of the batch, the gradient by a normalisation's input is orthogonal, over the batch, to 1 and to
    the normalised input (Luck Matters, Tian et al. 2019, section on batch normalisation); with running statistics it is
    not, and a network in the wrong mode is seen. The loss is that of `gradient_terms`; running statistics are left as
    they are. Raises ValueError or TypeError, naming the argument, for a student without batch norm in training mode,
    a teacher in training mode, and whatever does not fit.
    """
    for name, network in (("teacher", teacher), ("student", student)):
        if not isinstance(network, nn.Module):
            refuse(name, type(network).__name__, "a Module", TypeError)
    norms = {name: layer for name, layer in student.named_modules() if isinstance(layer, _BatchNorm) and layer.training}
    if not norms:
        refuse("student", "no batch norm in training mode", "a network with some: call .train()")
    check_statistics("teacher", teacher)
    check_tensor("x", x, range(2, 9), "[samples, ...]")
    if len(x) < 2:
        refuse("x", shape(x), "at least two samples")
    check_placement("x", x, teacher=teacher, student=student)
    check_finite("x", x)
    inputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
            inputs[name] = given[0]
            return (given[0].clone(),)

        return hook

    handles = [norm.register_forward_pre_hook(keep(name)) for name, norm in norms.items()]
    try:
        with torch.enable_grad(), untouched(student):
            output = forward("student", student, leaf(x))
            with torch.no_grad():
                answer = forward("teacher", teacher, x)
            if answer.shape != output.shape:
                refuse("student", f"outputs of {shape(output)}", f"{shape(answer)}, as the teacher's")
            gradients = torch.autograd.grad((answer - output).square().sum() / 2, list(inputs.values()))
    finally:
        for handle in handles:
            handle.remove()
    return {name: _projection(z.detach(), g) for (name, z), g in zip(inputs.items(), gradients, strict=True)}


def _projection(x: Tensor, gradient: Tensor) -> Projection:
    """x, gradient [N, nodes, *space]."""
    rows, g = (side.movedim(1, -1).flatten(0, -2) for side in (x, gradient))
    normal = rows - rows.mean(0)  # up to a scale, which cancels
    found = [(part.sum(0).abs() / part.abs().sum(0)).nan_to_num(0.0) for part in (g, g * normal)]
    return Projection(*found)


def normalization_pull_back(norm: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
    """J^T rows of batch norm at inputs x [N, nodes], rows [N, nodes] being derivatives by its outputs.

    In training mode gain / sd times rows without their parts along 1 and along x normalised, over the samples: the
    projection of Luck Matters (Tian et al. 2019, section on batch normalisation). In evaluation mode gain / sd times
    rows.
    """
    assert isinstance(norm, _BatchNorm)
    gain = norm.weight if norm.weight is not None else 1.0
    if not norm.training and norm.running_var is not None:
        return gain / (norm.running_var + norm.eps).sqrt() * rows
    variance, mean = torch.var_mean(x, 0, correction=0)
    deviation = (variance + norm.eps).sqrt()
    normal = (x - mean) / deviation
    return gain / deviation * (rows - rows.mean(0) - normal * (rows * normal).mean(0))
