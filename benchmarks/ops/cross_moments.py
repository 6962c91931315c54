"""Benchmarks of the op `cross_moments`: activations that are given, fully connected and convolutional."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.compare import Case, Families, Peer, best, compare, lack_of_memory, summary
from benchmarks.harness import Entry, Options, register
from benchmarks.peers import CHUNKS, PROVISIONAL, centred, moments
from benchmarks.rates import RateCalls
from fastspec.ops.cross_moments import Moments, cross_moments, reference

# samples, teacher nodes, student nodes, positions of a convolutional layer
SHAPES = ((100_000, 100, 1000, ()), (50_000, 256, 2560, ()), (512, 64, 256, (15, 15)))
QUICK_SHAPES = ((5_000, 50, 200, ()), (20, 16, 32, (15, 15)))


class Activations(NamedTuple):
    """teacher [N, m, *space], student [N, n, *space]."""

    teacher: Tensor
    student: Tensor

    @staticmethod
    def random(samples: int, m: int, n: int, space: tuple[int, ...], device: str) -> Activations:
        """Rectified Gaussians; the first student nodes follow the teacher's."""
        generator = torch.Generator(device).manual_seed(0)
        teacher = torch.randn(samples, m, *space, generator=generator, device=device)
        student = torch.randn(samples, n, *space, generator=generator, device=device)
        shared = min(m, n) // 2
        student[:, :shared] = 0.2 * student[:, :shared] + teacher[:, :shared]
        return Activations(teacher.relu_(), student.relu_())


def _rows(activations: Tensor) -> Tensor:
    """[N, nodes, *space] -> [N * positions, nodes]: a permuted copy where there is space."""
    return activations.movedim(1, -1).flatten(0, -2)


def fastspec(pair: Activations) -> Moments:
    """The op under test."""
    return cross_moments(*pair)


def materialised(pair: Activations) -> Moments:
    """Centred copies of both arrays, then one matrix product."""
    t, s = _rows(pair.teacher), _rows(pair.student)
    t_active, s_active = (t > 0).sum(0), (s > 0).sum(0)
    t_mean, s_mean = t.mean(0), s.mean(0)
    t, s = t - t_mean, s - s_mean
    return moments(t_mean, s_mean, (t * t).sum(0), (s * s).sum(0), t.T @ s, t_active, s_active)


def corrcoef(pair: Activations) -> Tensor:
    """`torch.corrcoef` of the joined activations; rho [m, n]."""
    m = pair.teacher.shape[1]
    return torch.corrcoef(torch.cat([_rows(pair.teacher), _rows(pair.student)], dim=1).T)[:m, m:]


def chunked(pair: Activations, chunk: int) -> Moments:
    """Chunks of about `chunk` samples and positions, shifted by a provisional mean; masks counted as float32."""
    positions = prod(pair.teacher.shape[2:])
    step = max(chunk // positions, 1)
    first = -(-PROVISIONAL // positions)
    shifts = [_rows(a[:first]).mean(0) for a in pair]
    zeros = partial(pair.teacher.new_zeros, dtype=torch.float64)
    sums = [zeros(3, len(shift)) for shift in shifts]
    cross = zeros(len(shifts[0]), len(shifts[1]))
    for start in range(0, len(pair.teacher), step):
        shifted = []
        for a, shift, total in zip(pair, shifts, sums, strict=True):
            rows = _rows(a[start : start + step])
            scratch = torch.gt(rows, 0, out=torch.empty_like(rows))
            total[2] += scratch.sum(0)
            shifted.append(rows - shift)
            total[0] += shifted[-1].sum(0)
            total[1] += torch.mul(shifted[-1], shifted[-1], out=scratch).sum(0)
        cross += shifted[0].T @ shifted[1]
    t, s = sums
    counts = t[2].to(torch.int64), s[2].to(torch.int64)
    return centred(len(pair.teacher) * positions, shifts[0], shifts[1], t[0], s[0], t[1], s[1], cross, *counts)


def case(shape: tuple[int, int, int, tuple[int, ...]], options: Options) -> Case:
    """Random activations of one shape, and the specification run in float64 as the truth."""
    samples, m, n, space = shape
    pair = Activations.random(samples, m, n, space, options.device)
    truth = Moments(*reference.cross_moments(pair.teacher.double(), pair.student.double(), "fp64", False))
    copies = [pair] + [Activations(*(a.clone() for a in pair)) for _ in range(2 if options.device == "cuda" else 0)]
    count = samples * prod(space)
    layout = f"{samples:,}" + "".join(f" x {side}" for side in space)
    return Case(
        label=f"{layout}, {m} x {n}",
        shape={"samples": samples, "teacher": m, "student": n, "positions": prod(space)},
        copies=copies,
        truth=truth,
        samples=count,
        operations=2.0 * count * m * n,
        moved=4.0 * count * (m + n) + 8.0 * m * n,
    )


def contenders(item: Case, options: Options) -> Families:
    """The peers by family; the chunked one at the best chunk sizes."""
    nodes, heavy = item.shape["teacher"] + item.shape["student"], min(3, options.rounds)
    lack = lack_of_memory(2 * 4.0 * item.samples * nodes, options.device)
    long = "many times the operations of the others" if 2.0 * item.samples * nodes**2 > 5e11 else None
    variants = [Peer(f"chunked {c}", partial(chunked, chunk=c), {"chunk": c}) for c in CHUNKS]
    return {
        "chunked": best(variants, item.copies[0], keep=2, device=options.device),
        "materialised": [Peer("materialised", materialised, rounds=heavy, skip=lack)],
        "corrcoef": [Peer("corrcoef", corrcoef, rounds=heavy, skip=lack or long)],
    }


@register("cross_moments", "the op against torch on given activations, float32")
def speed(options: Options) -> Entry:
    rates = RateCalls(options.device, quick=options.quick)
    entries = []
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        item = case(shape, options)
        entries.append(compare(item, fastspec, contenders(item, options), rates, options))
    return summary(entries)
