"""Moments of disjoint samples put together: two at a time, or across the processes of a torch.distributed group.

Both are the pairwise formula of Chan, Golub and LeVeque (1979) in float64: with `d` the difference of two means,
`S = S_a + S_b + d_t d_s n_a n_b / (n_a + n_b)`. Raw second moments are never formed, so nothing cancels when means are
large against deviations, and a node with the same constant value everywhere keeps a scatter of exactly 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from fastspec.ops.checks import refuse

if TYPE_CHECKING:
    from fastspec.moments import CrossMoments


def merge(moments: CrossMoments, other: CrossMoments) -> CrossMoments:
    """The moments of both sets of samples, as if all had been measured together; also `moments + other`.

    Associative and commutative up to rounding in float64; moments of 0 samples (`CrossMoments.zeros`) change nothing.
    Raises ValueError where nodes, population, device or optional statistics of the two differ.
    """
    _check_compatible(moments, other)
    total = moments.count + other.count
    weight = other.count.double() / total.clamp(min=1)  # 0-d
    teacher_step = other.teacher_mean - moments.teacher_mean  # [m]
    student_step = other.student_mean - moments.student_mean  # [*P, n]
    spread = moments.count.double() * weight  # n_a n_b / (n_a + n_b)
    parts = {name: tensor + getattr(other, name) for name, tensor in moments.tensors().items()}
    parts["teacher_mean"] = moments.teacher_mean + teacher_step * weight
    parts["student_mean"] = moments.student_mean + student_step * weight
    _add_between(parts, teacher_step, student_step, spread)
    return type(moments)(**parts)


def all_reduce(moments: CrossMoments, group: dist.ProcessGroup | None = None) -> CrossMoments:
    """The merged moments of every process of `group`, on every process, bitwise the same on all of them.

    Each process passes the moments of its own samples, possibly none, and all of them call together. Counts and means
    are reduced first, as deviations from one process's means; then every scatter is moved to the global mean and
    summed. Sends the moments once through an all-reduce, whatever the number of samples.
    Raises ValueError, on every process, where nodes, population or optional statistics differ between processes.
    """
    counts = _gather_counts(moments, group)  # [ranks], on the host
    if not any(counts):
        return moments
    source = next(rank for rank, count in enumerate(counts) if count)
    m = len(moments.teacher_mean)
    means = torch.cat([moments.teacher_mean, moments.student_mean.flatten()])  # [m + P * n]
    shift = means.clone()
    dist.broadcast(shift, group=group, group_src=source)
    deviation = moments.count.double() * (means - shift)
    dist.all_reduce(deviation, group=group)
    total = sum(counts)
    global_means = shift + deviation / total
    step = means - global_means

    parts = dict(moments.tensors())
    _add_between(parts, step[:m], step[m:].reshape(moments.student_mean.shape), moments.count.double())
    parts = _sum_over(group, parts)
    parts["teacher_mean"] = global_means[:m].clone()
    parts["student_mean"] = global_means[m:].reshape(moments.student_mean.shape).clone()
    return type(moments)(**parts)


def _add_between(parts: dict[str, Tensor], teacher_step: Tensor, student_step: Tensor, weight: Tensor) -> None:
    """Add `weight` times the products of the steps of the means to every scatter of `parts`."""
    parts["teacher_scatter"] = parts["teacher_scatter"] + weight * teacher_step**2
    parts["student_scatter"] = parts["student_scatter"] + weight * student_step**2
    weighted = (weight * teacher_step).unsqueeze(-1)  # [m, 1]
    parts["cross_scatter"] = torch.addcmul(parts["cross_scatter"], weighted, student_step.unsqueeze(-2))
    for side, steps in (("teacher_gram", teacher_step), ("student_gram", student_step)):
        if side in parts:
            parts[side] = torch.addcmul(parts[side], (weight * steps).unsqueeze(-1), steps.unsqueeze(-2))


def _check_compatible(moments: CrossMoments, other: CrossMoments) -> None:
    if not isinstance(other, type(moments)):
        refuse("other", type(other).__name__, type(moments).__name__, TypeError)
    own, others = moments.tensors(), other.tensors()
    for name in sorted(own.keys() ^ others.keys()):
        has, lacks = ("it", "the other") if name in others else ("the other", "it")
        refuse("other", f"moments where {has} has {name} and {lacks} has not", "moments measured with the same options")
    for name, tensor in own.items():
        if tensor.shape != others[name].shape:
            refuse(
                "other", f"{name} of shape {list(others[name].shape)}", f"shape {list(tensor.shape)}, as merged with"
            )
        if tensor.device != others[name].device:
            refuse("other", f"{name} on {others[name].device}", f"device {tensor.device}, as merged with")


def _gather_counts(moments: CrossMoments, group: dist.ProcessGroup | None) -> list[int]:
    """Every process's number of samples, after a check that all hold moments of one shape."""
    *population, n = moments.student_mean.shape
    layout = [len(moments.teacher_mean), n, population[0] if population else -1]
    layout += [moments.coactive is not None, moments.teacher_gram is not None]
    mine = torch.tensor([*layout, int(moments.count)], device=moments.count.device)
    everyone = mine.new_empty(dist.get_world_size(group), len(mine))
    dist.all_gather(list(everyone.unbind(0)), mine, group=group)
    rows = everyone.tolist()
    for rank, (*theirs, _) in enumerate(rows):
        if theirs != rows[0][:-1]:
            names = "[teacher nodes, student nodes, population (-1: none), coactivation, grams]"
            refuse("moments", f"{theirs} on rank {rank}, {rows[0][:-1]} on rank 0", f"the same {names} on every rank")
    return [count for *_, count in rows]


def _sum_over(group: dist.ProcessGroup | None, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum every tensor over the group; one all-reduce for each dtype."""
    summed: dict[str, Tensor] = {}
    for dtype in (torch.float64, torch.int64):
        chosen = {name: tensor for name, tensor in parts.items() if tensor.dtype == dtype}
        flat = torch.cat([tensor.flatten() for tensor in chosen.values()])
        dist.all_reduce(flat, group=group)
        pieces = flat.split([tensor.numel() for tensor in chosen.values()])
        summed |= {name: piece.view(tensor.shape) for (name, tensor), piece in zip(chosen.items(), pieces, strict=True)}
    return summed
