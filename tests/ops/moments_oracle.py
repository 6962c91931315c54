"""What both moments ops are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastspec.ops import library

FIELDS = (
    "teacher_mean",
    "student_mean",
    "teacher_scatter",
    "student_scatter",
    "cross_scatter",
    "teacher_active",
    "student_active",
    "coactive",
)


def two_pass(t: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """Moments of t [N, m] and s [*P, N, n] as a textbook writes them, in float64; shares nothing with the reference."""
    t, s = t.double(), s.double()
    t_mean, s_mean = t.mean(0), s.mean(-2)
    a, b = t - t_mean, s - s_mean.unsqueeze(-2)
    on_t, on_s = t > 0, s > 0
    coactive = torch.einsum("im,...in->...mn", on_t.double(), on_s.double())
    cross = torch.einsum("im,...in->...mn", a, b)
    square_t, square_s = a.square().sum(0), b.square().sum(-2)
    return t_mean, s_mean, square_t, square_s, cross, on_t.sum(0), on_s.sum(-2), coactive.to(torch.int64)


def correlation(moments: Sequence[Tensor]) -> Tensor:
    """rho [*P, m, n] from raw moments."""
    return moments[4] / (moments[2].unsqueeze(-1) * moments[3].unsqueeze(-2)).sqrt()


def assert_bitwise(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for name, a, b in zip(FIELDS, got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert torch.equal(a, b), f"{name}: {int((a != b).sum())} of {a.numel()} differ"


def assert_same(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Bitwise, which the kernels promise; torch's own products, on the reference path, are only close."""
    if library.native_error() is None:
        assert_bitwise(got, want)
    else:
        assert_close(got, want, 1e-6)


def assert_close(got: Sequence[Tensor], want: Sequence[Tensor], relative: float) -> None:
    """Counts exactly; statistics within `relative` of their natural size, a product of spreads."""

    def largest(x: Tensor) -> float:
        return float(x.abs().max()) if x.numel() else 0.0

    spread_t, spread_s = largest(want[2]) ** 0.5, largest(want[3]) ** 0.5
    sizes = (largest(want[0]) + spread_t, largest(want[1]) + spread_s, spread_t**2, spread_s**2, spread_t * spread_s)
    for name, a, b, size in zip(FIELDS, got, want, sizes, strict=False):
        assert a.shape == b.shape, name
        error = largest(a - b) / (size or 1.0)
        assert error <= relative, f"{name}: error {error:.2e} above {relative:.2e}"
    for name, a, b in zip(FIELDS[5:], got[5:], want[5:], strict=True):
        assert torch.equal(a, b), name
