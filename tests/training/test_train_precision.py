"""`train` at a precision: that of the op."""

from __future__ import annotations

import pytest
import torch

from fastspec import data
from fastspec.networks import MLP
from fastspec.ops.mlp_sgd_step import reference
from fastspec.training import train


@pytest.mark.parametrize("students", [1, 2])
def test_precision_is_the_ops(students, monkeypatch):
    """What the op rounds in torch, it rounds in a training."""
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", reference.mlp_sgd_step)
    teacher, x = MLP([5, 4, 3], seed=0), data.gaussian(60, 5)
    reached = {}
    for precision in (None, "fp32", "tf32", "bf16"):
        networks = [MLP([5, 8, 3], seed=k + 1) for k in range(students)]
        student = networks if students > 1 else networks[0]
        train(teacher, student, x, steps=20, batch_size=10, lr=0.05, precision=precision, progress=False)
        assert networks[0].layers[0].weight.dtype == torch.float32
        reached[precision] = torch.cat([p.detach().flatten() for n in networks for p in n.parameters()])
    away = {name: float((flat - reached["fp32"]).abs().max()) for name, flat in reached.items()}
    assert away[None] == 0 and 0 < away["tf32"] < 0.25 * away["bf16"] < 0.01
