"""Small calls of `two_layer_sgd` for the sanitizer: exact, by one block, by several, and in global memory."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE
from torch import Tensor

import fastspec as fs
from fastspec.ops.two_layer_sgd import Packed, two_layer_sgd

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("widths", "d"), [([1, 6, 17], 9), ([130, 300], 9), ([7], 16_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integers_are_exact(widths, d, dtype):
    """At a rate that is a power of two every sum is exact."""
    draw, students, nodes = torch.Generator().manual_seed(0), len(widths), sum(widths)

    def integers(*size: int) -> Tensor:
        return torch.randint(-2, 3, size, generator=draw).to(dtype)

    x, y = integers(64, d), integers(64, 5)
    weights = Packed(integers(nodes, d), integers(nodes), integers(nodes, 5), integers(students, 5))
    offsets, lr = torch.tensor([0, *widths]).cumsum(0), torch.full((students,), 2.0**-4, dtype=torch.float64)

    def train(device: str) -> list[Tensor]:
        there = [t.to(device) for t in (x, y, *weights, offsets, lr, torch.arange(students))]
        out = two_layer_sgd(
            *there[:2], Packed(*there[2:6]), there[6], lr=there[7], seeds=there[8], steps=1, batch_size=16
        )
        return [t.cpu() for t in out.weights]

    with fs.backend("reference"):
        want = train("cpu")
    assert all(torch.equal(a, b) for a, b in zip(train(DEVICE), want, strict=True))
