"""What `layer_moments` is measured against: the same moments of one layer pair in plain torch, written several ways.

Every function takes a `LayerPair` and returns `Moments`, except `corrcoef`, which can only give the correlation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastspec.ops.cross_moments import Moments
from fastspec.ops.layer_moments import layer_moments

CHUNKS = (256, 512, 1024, 2048, 4096, 8192)
PROVISIONAL = 256  # samples whose mean is the provisional mean


@dataclass(frozen=True)
class LayerPair:
    """One input for both sides: x [N, d], teacher (weight [m, d], bias [m]), student (weight [n, d], bias [n])."""

    x: Tensor
    teacher: tuple[Tensor, Tensor]
    student: tuple[Tensor, Tensor]

    @staticmethod
    def random(
        samples: int,
        inputs: int,
        teacher: int,
        student: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LayerPair:
        """Gaussian samples and weights, biases -0.1 .. 0.1; the first student nodes are perturbed teacher nodes."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        w_t, w_s = normal(teacher, inputs) / inputs**0.5, normal(student, inputs) / inputs**0.5
        shared = min(teacher, student) // 2
        w_s[:shared] = 0.2 * w_s[:shared] + w_t[:shared]
        b_t, b_s = 0.1 * normal(teacher), 0.1 * normal(student)
        return LayerPair(normal(samples, inputs), (w_t, b_t), (w_s, b_s))

    def to(self, dtype: torch.dtype) -> LayerPair:
        (w_t, b_t), (w_s, b_s) = self.teacher, self.student
        return LayerPair(self.x.to(dtype), (w_t.to(dtype), b_t.to(dtype)), (w_s.to(dtype), b_s.to(dtype)))

    def double(self) -> LayerPair:
        return self.to(torch.float64)


def fastspec(pair: LayerPair) -> Moments:
    """The op under test."""
    return layer_moments(pair.x, *pair.teacher, pair.x, *pair.student)[0]


def materialised(pair: LayerPair) -> Moments:
    """As the research code writes it: both activation arrays, centred copies of them, then a matrix product."""
    return materialised_moments(
        F.relu(F.linear(pair.x, *pair.teacher)),
        F.relu(F.linear(pair.x, *pair.student)),  # [N, m], [N, n]
    )


def materialised_moments(t: Tensor, s: Tensor) -> Moments:
    """Of activations [N, m] and [N, n], by centred copies of both."""
    wide = at_least_float32(t)
    t_mean, s_mean = t.mean(0, dtype=wide), s.mean(0, dtype=wide)
    t_active, s_active = (t > 0).sum(0), (s > 0).sum(0)
    t, s = t - t_mean.to(t.dtype), s - s_mean.to(s.dtype)
    squares = (t * t).sum(0, dtype=wide), (s * s).sum(0, dtype=wide)
    return moments(t_mean, s_mean, *squares, t.T @ s, t_active, s_active)


def at_least_float32(x: Tensor) -> torch.dtype:
    """The type in which sums over the samples are kept."""
    return torch.promote_types(x.dtype, torch.float32)


def corrcoef(pair: LayerPair) -> Tensor:
    """`torch.corrcoef` of the joined activations; it computes the two within-network blocks too. rho [m, n]."""
    t, s = F.relu(F.linear(pair.x, *pair.teacher)), F.relu(F.linear(pair.x, *pair.student))
    m = t.shape[1]
    return torch.corrcoef(torch.cat([t, s], dim=1).T)[:m, m:]


def chunked_plain(pair: LayerPair, chunk: int, *, compiled: str | None = None) -> Moments:
    """Chunked torch as first written: idiomatic operations, a provisional mean, float64 sums over chunks.

    compiled: a mode of `torch.compile`, for the work on a chunk.
    """
    shift_t, shift_s = _provisional_means(pair)
    block = _compiled_block(compiled) if compiled else _block
    sums: list[Tensor] = []
    for start in range(0, len(pair.x), chunk):
        found = block(pair.x[start : start + chunk], pair.teacher, pair.student, shift_t, shift_s)
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return centred(len(pair.x), shift_t, shift_s, *sums)


def _block(
    x: Tensor, teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor], shift_t: Tensor, shift_s: Tensor
) -> list[Tensor]:
    """Sums over one chunk of both layers' activations."""
    return shifted_sums(F.relu(F.linear(x, *teacher)), F.relu(F.linear(x, *student)), shift_t, shift_s)


def shifted_sums(t: Tensor, s: Tensor, shift_t: Tensor, shift_s: Tensor) -> list[Tensor]:
    """Of shifted activations [chunk, m] and [chunk, n], their squares and cross products, and of active samples."""
    active = [(t > 0).sum(0), (s > 0).sum(0)]
    t, s = t - shift_t, s - shift_s
    summed = [x.sum(0, dtype=at_least_float32(x)) for x in (t, s, t * t, s * s)]
    return [found.double() for found in (*summed, t.T @ s)] + active


@cache
def _compiled_block(mode: str) -> Callable[..., list[Tensor]]:
    return torch.compile(_block, dynamic=False, mode=mode)


@cache
def _compiled_materialised(mode: str) -> Callable[[LayerPair], Moments]:
    return torch.compile(materialised, dynamic=False, mode=mode)


def materialised_compiled(pair: LayerPair, mode: str = "default") -> Moments:
    """`torch.compile` of `materialised`."""
    return _compiled_materialised(mode)(pair)


def chunked(pair: LayerPair, chunk: int, *, accumulate: torch.dtype = torch.float64) -> Moments:
    """Chunked torch written for speed; the same outputs as the op.

    Both layers are one `addmm` into a buffer that is kept; the shift is free, because relu(z) - c = max(z - c, -c);
    masks are float32, which torch counts ten times faster than booleans. `accumulate` is the type of the sums of the
    cross product over chunks: float64, or float32 inside the matrix product itself.
    """
    m, rows, wide = len(pair.teacher[0]), min(chunk, len(pair.x)), at_least_float32(pair.x)
    shift = torch.cat(_provisional_means(pair))
    weight = torch.cat([pair.teacher[0], pair.student[0]]).T  # [d, m + n]
    bias, floor = torch.cat([pair.teacher[1], pair.student[1]]) - shift, -shift
    nodes = len(shift)
    activation, scratch = pair.x.new_empty(rows, nodes), pair.x.new_empty(rows, nodes)
    product = pair.x.new_empty(m, nodes - m)
    cross = pair.x.new_zeros(m, nodes - m, dtype=accumulate)
    sums = pair.x.new_zeros(3, nodes, dtype=torch.float64)  # of activations, of their squares, of active samples
    for start in range(0, len(pair.x), chunk):
        x = pair.x[start : start + chunk]
        a, b = activation[: len(x)], scratch[: len(x)]
        torch.addmm(bias, x, weight, out=a)
        torch.maximum(a, floor, out=a)
        sums[0] += a.sum(0, dtype=wide)
        sums[1] += torch.mul(a, a, out=b).sum(0, dtype=wide)
        sums[2] += torch.gt(a, floor, out=b).sum(0, dtype=wide)
        if accumulate is a.dtype:
            cross.addmm_(a[:, :m].T, a[:, m:])
        else:
            cross += torch.mm(a[:, :m].T, a[:, m:], out=product)
    total, square, active = sums
    count = active.to(torch.int64)
    return centred(
        len(pair.x), shift[:m], shift[m:], total[:m], total[m:], square[:m], square[m:], cross, count[:m], count[m:]
    )


def chunked_lean(pair: LayerPair, chunk: int) -> Moments:
    """The least that gives a correlation: raw float32 sums, no shift and no counts.

    Not the same outputs, and wrong where means are large against deviations; a lower bound of chunked torch's time.
    """
    m, rows = len(pair.teacher[0]), min(chunk, len(pair.x))
    weight = torch.cat([pair.teacher[0], pair.student[0]]).T
    bias = torch.cat([pair.teacher[1], pair.student[1]])
    nodes = len(bias)
    activation, scratch = pair.x.new_empty(rows, nodes), pair.x.new_empty(rows, nodes)
    cross = pair.x.new_zeros(m, nodes - m)
    sums = pair.x.new_zeros(2, nodes, dtype=torch.float64)
    for start in range(0, len(pair.x), chunk):
        x = pair.x[start : start + chunk]
        a, b = activation[: len(x)], scratch[: len(x)]
        torch.addmm(bias, x, weight, out=a).relu_()
        sums[0] += a.sum(0)
        sums[1] += torch.mul(a, a, out=b).sum(0)
        cross.addmm_(a[:, :m].T, a[:, m:])
    zero, none = torch.zeros_like(bias), pair.x.new_empty(0, dtype=torch.int64)
    total, square = sums
    return centred(len(pair.x), zero[:m], zero[m:], total[:m], total[m:], square[:m], square[m:], cross, none, none)


def _provisional_means(pair: LayerPair) -> tuple[Tensor, Tensor]:
    x = pair.x[:PROVISIONAL]
    return F.relu(F.linear(x, *pair.teacher)).mean(0), F.relu(F.linear(x, *pair.student)).mean(0)


def centred(
    count: int,
    t_shift: Tensor,
    s_shift: Tensor,
    t_sum: Tensor,
    s_sum: Tensor,
    t_square: Tensor,
    s_square: Tensor,
    cross: Tensor,
    t_active: Tensor,
    s_active: Tensor,
) -> Moments:
    """Moments from sums of shifted activations."""
    return moments(
        t_shift + t_sum / count,
        s_shift + s_sum / count,
        t_square - t_sum * t_sum / count,
        s_square - s_sum * s_sum / count,
        cross - torch.outer(t_sum, s_sum) / count,
        t_active,
        s_active,
    )


def moments(t_mean: Tensor, s_mean: Tensor, t: Tensor, s: Tensor, cross: Tensor, t_on: Tensor, s_on: Tensor) -> Moments:
    coactive = cross.new_empty(0, dtype=torch.int64)
    return Moments(t_mean.double(), s_mean.double(), t.double(), s.double(), cross.double(), t_on, s_on, coactive)
