"""Statistics of a layer pair, from its moments; each is also a method of `CrossMoments`.

Shapes: `m` teacher nodes, `n` student nodes, `*P` an optional population axis. A node that is constant over the
samples (a dead one, or any node of a single sample) has no correlation. Its pairs are *undefined*: `correlation` treats
them as its caller asks, and every other statistic leaves them out, as each says; `undefined_nodes` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastspec.ops.checks import all_finite, check_real, check_same_kind, check_tensor, refuse, shape

if TYPE_CHECKING:
    from fastspec.moments import CrossMoments

SIDES = ("teacher", "student")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
EPSILON = torch.finfo(torch.float64).eps


class Best(NamedTuple):
    """Largest correlations and where they are; NaN and -1 where none is defined."""

    values: Tensor  # float64
    indices: Tensor  # int64


class NodeCounts(NamedTuple):
    """A number of teacher nodes, and of student nodes."""

    teacher: Tensor  # [] int64
    student: Tensor  # [*P] int64


class Overlaps(NamedTuple):
    """Scalar products of weight vectors, divided by the number of inputs."""

    teacher_teacher: Tensor  # [m, m], T = W* W*^T / d
    teacher_student: Tensor  # [*P, m, n], R^T = W* W^T / d
    student_student: Tensor  # [*P, n, n], Q = W W^T / d


class Activity(NamedTuple):
    """The fraction of samples where a node is active."""

    teacher: Tensor  # [m] float64
    student: Tensor  # [*P, n] float64


def correlation(moments: CrossMoments, undefined: str = "nan") -> Tensor:
    """Pearson correlation [*P, m, n] of every teacher node with every student node, float64.

    `rho[j, k] = Σ (t_j − t̄_j)(s_k − s̄_k) / sqrt(Σ (t_j − t̄_j)² Σ (s_k − s̄_k)²)`, with no epsilon in the variances.
    It is not clipped: rounding may leave a value beyond 1, by about 1e-7 where an op accumulates products in float32.
    undefined: what pairs with a constant node get, "nan" or "zero"; "raise" makes such nodes a ValueError.
    Raises ValueError for moments that are NaN or infinite.
    """
    if undefined not in ("nan", "zero", "raise"):
        refuse("undefined", repr(undefined), "'nan', 'zero' or 'raise'")
    check_finite(moments)
    t_constant, s_constant = constant_nodes(moments)
    if undefined == "raise":
        teacher, student = int(t_constant.sum()), int(s_constant.sum())
        if teacher or student:
            of_teacher, of_student = f"{teacher} of {t_constant.numel()}", f"{student} of {s_constant.numel()}"
            got = f"{of_teacher} teacher nodes and {of_student} student nodes constant"
            refuse("moments", got, "nodes that vary over the samples (undefined='raise')")
    # two divisions, as the product of two scatters may overflow or underflow
    rho = moments.cross_scatter / moments.teacher_scatter.sqrt().unsqueeze(-1)
    rho = rho / moments.student_scatter.sqrt().unsqueeze(-2)
    no_value = t_constant.unsqueeze(-1) | s_constant.unsqueeze(-2)
    return rho.masked_fill_(no_value, 0.0 if undefined == "zero" else torch.nan)


def undefined_nodes(moments: CrossMoments) -> NodeCounts:
    """How many teacher nodes [] and student nodes [*P] are constant over the samples, and so have no correlation."""
    teacher, student = constant_nodes(moments)
    return NodeCounts(teacher.sum(-1), student.sum(-1))


def best_student(moments: CrossMoments) -> Best:
    """The best student of every teacher node, `max_k rho[j, k]`: values and indices [*P, m].

    Undefined pairs are passed over; a teacher node without a defined pair has value NaN and index -1.
    """
    return best(correlation(moments))


def best_teacher(moments: CrossMoments) -> Best:
    """The best teacher of every student node, `max_j rho[j, k]`: values and indices [*P, n]; as `best_student`."""
    return best(correlation(moments).mT)


def best(rho: Tensor) -> Best:
    """Maxima of correlations over the last axis, and their places; as `best_student`."""
    if rho.shape[-1] == 0:
        return Best(rho.new_full(rho.shape[:-1], torch.nan), rho.new_full(rho.shape[:-1], -1, dtype=torch.int64))
    values, indices = rho.nan_to_num(nan=-torch.inf).max(-1)
    none = values == -torch.inf
    return Best(values.masked_fill(none, torch.nan), indices.masked_fill(none, -1))


def layer_score(moments: CrossMoments) -> Tensor:
    """`mean_j max_k rho[j, k]` [*P], over the teacher nodes that vary; NaN where no pair is defined."""
    return best_student(moments).values.nanmean(-1)


def match_counts(moments: CrossMoments, thresholds: float | Sequence[float] = THRESHOLDS) -> Tensor:
    """How many students match a teacher node: `#{k : rho[j, k] > threshold}`, [*P, threshold, m] int64.

    A single number for `thresholds` gives [*P, m]. An undefined pair is never a match.
    """
    levels = _levels(thresholds)
    rho = correlation(moments)
    counts = torch.stack([(rho > level).sum(-1) for level in levels], dim=-2)
    return counts if isinstance(thresholds, Sequence) else counts.squeeze(-2)


def covered(moments: CrossMoments, thresholds: float | Sequence[float] = THRESHOLDS) -> Tensor:
    """Whether some student matches a teacher node above the threshold: bool, shaped as `match_counts`."""
    return match_counts(moments, thresholds) > 0


def coverage(moments: CrossMoments, thresholds: float | Sequence[float] = THRESHOLDS) -> Tensor:
    """The fraction of all teacher nodes, constant ones too, that are covered: [*P, threshold], or [*P] for a number."""
    return covered(moments, thresholds).double().mean(-1)


def success_rate(moments: CrossMoments, thresholds: float | Sequence[float] = 0.95) -> Tensor:
    """The fraction of the population's students that cover each teacher node: [m], or [threshold, m] for several."""
    if moments.population is None:
        refuse("moments", "no population axis", "the moments of a population of students")
    return covered(moments, thresholds).double().mean(0)


def rank_of_winners(moments: CrossMoments, final: CrossMoments) -> Tensor:
    """How early the final winners were ahead ("luck"): [*P, m] float64, 0 for a winner that led from the start.

    The winner of teacher `j` is its best student in `final`; its rank is the fraction of the `n` students that have a
    larger correlation with `j` in `moments` (Luck Matters, Tian et al. 2019). There, undefined pairs rank below all
    others. NaN where `final` has no winner, or where the teacher node is constant in `moments`.
    """
    if not isinstance(final, type(moments)):
        refuse("final", type(final).__name__, "CrossMoments", TypeError)
    if moments.cross_scatter.shape != final.cross_scatter.shape:
        got, takes = list(final.cross_scatter.shape), list(moments.cross_scatter.shape)
        refuse("final", f"[*population, teacher, student] of {got}", f"{takes}, as in the earlier moments")
    return rank_of(best_student(final).indices, correlation(moments))


def rank_of(winner: Tensor, rho: Tensor) -> Tensor:
    """The rank of students `winner` [*P, m], -1 for none, by correlations [*P, m, n]: as in `rank_of_winners`."""
    winner = winner.unsqueeze(-1)  # [*P, m, 1]
    rho = rho.nan_to_num(nan=-torch.inf)
    ahead = rho > rho.gather(-1, winner.clamp(min=0))
    rank = ahead.double().mean(-1)
    unknown = (winner.squeeze(-1) < 0) | (rho == -torch.inf).all(-1)
    return rank.masked_fill(unknown, torch.nan)


def activity(moments: CrossMoments) -> Activity:
    """The fraction of samples where each teacher node [m] and each student node [*P, n] is active (above 0)."""
    samples = moments.count.double()
    return Activity(moments.teacher_active / samples, moments.student_active / samples)


def coactivation(moments: CrossMoments) -> Tensor:
    """The fraction of samples where both nodes of a pair are active, [*P, m, n]; needs `coactivation=True`."""
    return _coactive(moments) / moments.count.double()


def observation(moments: CrossMoments) -> Tensor:
    """On how many samples each side of a teacher node's boundary is seen inside a student node's active region.

    `min(#{t_j > 0, s_k > 0}, #{t_j <= 0, s_k > 0})`, [*P, m, n] int64 (Student Specialization, Tian, ICML 2020).
    Needs moments measured with `coactivation=True`.
    """
    both = _coactive(moments)
    return torch.minimum(both, moments.student_active.unsqueeze(-2) - both)


def overlaps(teacher_weight: Tensor, student_weight: Tensor) -> Overlaps:
    """The order parameters T, R and Q of a layer, from its weights [m, d] and [*P, n, d], in their dtype."""
    check_tensor("teacher_weight", teacher_weight, (2,), "[teacher nodes, inputs]")
    check_tensor("student_weight", student_weight, (2, 3), "[*population, student nodes, inputs]")
    check_same_kind(teacher_weight=teacher_weight, student_weight=student_weight)
    d = teacher_weight.shape[1]
    if student_weight.shape[-1] != d or d == 0:
        refuse(
            "student_weight", shape(student_weight), f"the inputs of teacher_weight, {shape(teacher_weight)}, above 0"
        )
    t, s = teacher_weight, student_weight
    return Overlaps(t @ t.T / d, t @ s.mT / d, s @ s.mT / d)


def check_finite(moments: CrossMoments) -> None:
    """ValueError, naming the side and its number of nodes, where activations or sums of squares were not finite."""
    if all_finite(of_nodes(moments)):
        return
    for side in SIDES:
        finite = (getattr(moments, f"{side}_mean").isfinite()) & (getattr(moments, f"{side}_scatter").isfinite())
        if not finite.all():
            bad = int((~finite).sum())
            got = f"NaN, infinite or too large activations in {bad} of {finite.numel()} nodes"
            refuse(side, got, "finite activations, up to 1e15 in float32")


def of_nodes(moments: CrossMoments) -> list[Tensor]:
    """What is not finite where activations or sums of squares were not: means and scatters."""
    return [getattr(moments, f"{side}_{what}") for side in SIDES for what in ("mean", "scatter")]


def constant_nodes(moments: CrossMoments) -> tuple[Tensor, Tensor]:
    """Which nodes [m], [*P, n] have a scatter of 0, or no more than the rounding of a float64 mean explains."""

    def constant(mean: Tensor, scatter: Tensor) -> Tensor:
        return scatter <= moments.count * (EPSILON * mean) ** 2

    return (
        constant(moments.teacher_mean, moments.teacher_scatter),
        constant(moments.student_mean, moments.student_scatter),
    )


def _levels(thresholds: float | Sequence[float]) -> Sequence[float]:
    levels = thresholds if isinstance(thresholds, Sequence) else (thresholds,)
    if not levels:
        refuse("thresholds", "none", "a number in [-1, 1], or a sequence of them")
    for level in levels:
        check_real("thresholds", level, "a number in [-1, 1], or a sequence of them", -1.0, 1.0)
    return levels


def _coactive(moments: CrossMoments) -> Tensor:
    if moments.coactive is None:
        refuse("moments", "no co-activation counts", "moments measured with coactivation=True")
    return moments.coactive
