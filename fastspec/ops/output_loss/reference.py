"""Specification of `output_loss` in plain torch (see README.md of this op for the mathematics)."""

from __future__ import annotations

import torch
from torch import Tensor


def output_loss(answers: Tensor, activations: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One student after the other: products of several are rounded otherwise than those of one."""
    if weight.dim() == 2:
        outputs = activations @ weight.T if bias is None else torch.addmm(bias, activations, weight.T)
        norms = torch.linalg.vector_norm(outputs - answers, dim=-1)
        return norms.double().square().sum() / 2
    biases = [None] * len(weight) if bias is None else bias
    students = [output_loss(answers, h, w, b) for h, w, b in zip(activations, weight, biases, strict=True)]
    return torch.stack(students) if students else answers.new_empty(0, dtype=torch.float64)
