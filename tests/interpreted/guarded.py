"""Inputs that lie inside larger tensors of NaN, as the interpreter reads out of bounds without a word."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LAYOUTS = ("plain", "transposed", "slice", "misaligned")


def guarded(tensor: Tensor | None, layout: str = "plain") -> Tensor | None:
    """The same values with NaN on all sides, in one of LAYOUTS."""
    if tensor is None:
        return None
    steps = 2 if layout == "slice" else 1
    shape = [steps * size + 2 * 4 for size in tensor.shape]
    if layout == "misaligned":
        flat = torch.full((tensor.numel() + 11,), math.nan, dtype=tensor.dtype)
        view = flat[5 : 5 + tensor.numel()].view(tensor.shape)
    elif layout == "transposed" and tensor.dim() > 1:
        order = [*range(tensor.dim() - 2), tensor.dim() - 1, tensor.dim() - 2]
        wide = torch.full([shape[i] for i in order], math.nan, dtype=tensor.dtype).transpose(-1, -2)
        view = wide[tuple(slice(4, 4 + size) for size in tensor.shape)]
    else:
        wide = torch.full(shape, math.nan, dtype=tensor.dtype)
        view = wide[tuple(slice(4, 4 + steps * size, steps) for size in tensor.shape)]
    view.copy_(tensor)
    return view
