"""Op `output_loss`: the squared loss of a linear layer's outputs, which are never written to memory."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.checks import check_same_kind, check_tensor, refuse, shape
from fastspec.ops.linear_relu import check_layer
from fastspec.ops.output_loss import reference


def _fake(answers: Tensor, activations: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return answers.new_empty(weight.shape[:-2], dtype=torch.float64)


library.define(
    "output_loss",
    "(Tensor answers, Tensor activations, Tensor weight, Tensor? bias) -> Tensor",
    reference=reference.output_loss,
    fake=_fake,
)

_op = torch.ops.fastspec.output_loss.default


def output_loss(answers: Tensor, activations: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Sum over N samples of 1/2 ||answers - (weight h + bias)||^2 for each student, [*P] float64.

    answers: [N, outputs], of the teacher. activations: [*P, N, nodes] of the layer below; weight: [*P, outputs, nodes];
    bias: [*P, outputs] or None; `*P` an optional population axis. All are float64 or all float32, on one device, of any
    strides.
    Residuals and short sums of their squares are rounded to the dtype, their sums are float64; where a square is beyond
    the dtype, the loss is inf, or NaN where a value is. A student's loss does not depend on the others, and memory
    beyond the result does not grow with N.
    Raises ValueError or TypeError, naming the argument, for wrong ranks, shapes, dtypes or devices.
    """
    check_layer(("activations", "weight", "bias"), (2, 3), activations, weight, bias)
    if activations.dim() != weight.dim():
        refuse("activations", shape(activations), f"[*students, samples, nodes], as weight, {shape(weight)}")
    check_tensor("answers", answers, (2,), "[samples, outputs]")
    if answers.dtype not in (torch.float64, torch.float32):
        refuse("answers", f"dtype {answers.dtype}", "float64 or float32", TypeError)
    check_same_kind(answers=answers, activations=activations, weight=weight, bias=bias)
    wanted = activations.shape[-2], weight.shape[-2]
    if answers.shape != wanted:
        refuse("answers", shape(answers), f"shape {list(wanted)}, the samples of activations, the outputs of weight")
    return _op(answers, activations, weight, bias)
