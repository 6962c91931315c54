"""Tensors as callers have them: any strides, with NaN all around."""

from __future__ import annotations

import math
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

KINDS = ("rows", "transposed", "slice", "misaligned", "expanded")
MARGIN = 1024  # elements before and after


def placed(tensor: Tensor | None, kind: str) -> Tensor | None:
    """The same values in memory that is NaN elsewhere.

    rows: apart by a multiple of 4. transposed: the last two axes change places. slice: every other element.
    misaligned: not at the start of a vector. expanded: the first axis has stride 0, and its first element's values.
    """
    if tensor is None:
        return None
    sizes = list(tensor.shape)
    if kind == "expanded":
        return placed(tensor[:1], "rows").expand(sizes)
    if kind == "transposed" and len(sizes) > 1:
        return placed(tensor.mT, "rows").mT
    room = [2 * size + 1 for size in sizes] if kind == "slice" else [*sizes[:-1], (sizes[-1] + 11) // 4 * 4]
    strides = [math.prod(room[i + 1 :]) * (2 if kind == "slice" else 1) for i in range(len(room))]
    around = tensor.new_full((math.prod(room) * 2 + 2 * MARGIN,), math.nan)
    return around.as_strided(sizes, strides, MARGIN + (kind == "misaligned")).copy_(tensor)


def distant(folder: Path, tensor: Tensor, axis: int, stride: int) -> Tensor:
    """The same values with neighbours along an axis `stride` elements apart, in a file that has holes between them."""
    strides = [stride if i == axis else step for i, step in enumerate(tensor.contiguous().stride())]
    size = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, strides, strict=True))
    elements = torch.from_file(str(folder / str(uuid4())), shared=True, size=size, dtype=tensor.dtype)
    return elements.as_strided(tensor.shape, strides).copy_(tensor)
