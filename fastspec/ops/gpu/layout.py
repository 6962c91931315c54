"""How tensors lie in memory, as the kernels are told it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Launches go to the tensor's device, whichever is the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def strides(tensor: Tensor | None, population: bool, rank: int) -> tuple[int, ...]:
    """(student, ...) of a tensor of `rank` axes after the population's; 0 for what is not there."""
    if tensor is None:
        return (0,) * (rank + 1)
    return (*(tensor.stride()[:1] if population else (0,)), *tensor.stride()[int(population) :][:rank])


def reach(tensor: Tensor | None, axis: int = 0, rows: int | None = None) -> int:
    """The furthest element from the first one, counting `rows` along an axis."""
    if tensor is None:
        return 0
    sizes = list(tensor.shape)
    sizes[axis] = sizes[axis] if rows is None else rows
    return sum((size - 1) * stride for size, stride in zip(sizes, tensor.stride(), strict=True))


def index_type(*reaches: int) -> tl.dtype:
    """The type of offsets within a tile: 32 bits save registers, where they are enough."""
    return tl.int32 if max(reaches) < 2**31 else tl.int64


def grain(last: Iterable[int], others: Iterable[int]) -> int:
    """4 if elements are neighbours in memory (`last` strides all 1) and rows start at multiples of 4, else 1."""
    return 4 if all(s == 1 for s in last) and all(s % 4 == 0 for s in others) else 1


class Space(NamedTuple):
    """Positions of a sample, and how far apart they lie on both sides; the last axis is the fastest."""

    sizes: list[int]  # [3]
    teacher: list[int]
    student: list[int]

    @classmethod
    def of(cls, teacher: Tensor, student: Tensor) -> Space:
        """Of activations [.., nodes, *space]; axes that lie alike on both sides are joined."""
        axes = teacher.dim() - 2
        found: list[tuple[int, int, int]] = []
        columns = (x[len(x) - axes :] for x in (teacher.shape, teacher.stride(), student.stride()))
        for size, t, s in zip(*columns, strict=True):
            if found and found[-1][1] == size * t and found[-1][2] == size * s:
                found[-1] = (found[-1][0] * size, t, s)
            elif size != 1:
                found.append((size, t, s))
        found = [(1, 0, 0)] * (3 - len(found)) + found
        return cls(*(list(column) for column in zip(*found, strict=True)))

    @property
    def positions(self) -> int:
        return math.prod(self.sizes)
