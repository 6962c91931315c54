"""Activations, and moments made without them, that tests of moments share."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspec.moments import CrossMoments


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pair(samples: int = 60, m: int = 4, n: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    shared = normal(samples, m + n, seed=seed)
    mixed = shared @ normal(m + n, m + n, seed=seed + 1) + 0.3
    return mixed[:, :m].relu(), mixed[:, m:].relu()


def exact_correlation(t: Tensor, s: Tensor) -> Tensor:
    t, s = t.double() - t.double().mean(0), s.double() - s.double().mean(0)
    return (t / t.norm(dim=0)).T @ (s / s.norm(dim=0))


def assert_same(a: CrossMoments, b: CrossMoments, rtol: float = 1e-9) -> None:
    assert a.tensors().keys() == b.tensors().keys()
    for name, tensor in a.tensors().items():
        other = b.tensors()[name]
        if tensor.dtype == torch.int64:
            assert torch.equal(tensor, other), name
        else:
            scale = max(float(tensor.abs().max()), 1e-300) if tensor.numel() else 1.0
            torch.testing.assert_close(tensor, other, rtol=rtol, atol=rtol * scale, msg=name)


def from_correlation(*rows: list[float]) -> CrossMoments:
    """Moments of unit scatter with the given correlations; rows and columns of NaN become constant nodes."""
    rho = torch.tensor(rows, dtype=torch.float64)
    scatters = {
        "teacher_scatter": (~rho.isnan().all(1)).double(),
        "student_scatter": (~rho.isnan().all(0)).double(),
        "cross_scatter": rho.nan_to_num(0.0),
    }
    return CrossMoments(**(CrossMoments.zeros(*rho.shape).tensors() | scatters | {"count": torch.tensor(10)}))
