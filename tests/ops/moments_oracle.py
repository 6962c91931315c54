"""What both moments ops are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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


def assert_close(got: Sequence[Tensor], want: Sequence[Tensor], relative: float) -> None:
    """Counts exactly; statistics within `relative` of their field's natural size (a product of two spreads)."""
    spread_t, spread_s = want[2].clamp_min(0).sqrt(), want[3].clamp_min(0).sqrt()
    count = max(1, int(want[7].numel()))
    sizes = (
        want[0].abs().max() + spread_t.max() / count**0.5,
        want[1].abs().max() + spread_s.max() / count**0.5,
        want[2].max(),
        want[3].max(),
        spread_t.max() * spread_s.max(),
    )
    for name, a, b, size in zip(FIELDS, got, want, sizes, strict=False):
        assert a.shape == b.shape, name
        error = float((a - b).abs().max() / size) if size > 0 else float((a - b).abs().max())
        assert error <= relative, f"{name}: error {error:.2e} above {relative:.2e}"
    for name, a, b in zip(FIELDS[5:], got[5:], want[5:], strict=True):
        assert torch.equal(a, b), name
