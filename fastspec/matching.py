"""One-to-one matchings of nodes, and similarities of whole layers, from moments alone.

Shapes: `m` teacher nodes, `n` student nodes, `*P` an optional population axis. Pairs with a constant node have no
correlation: they are never matched, and constant nodes add nothing to a layer's similarity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.moments import CrossMoments
from fastspec.ops.checks import check_real, refuse
from fastspec.statistics import check_finite, constant_nodes


class Matching(NamedTuple):
    """One student node for every teacher node."""

    students: Tensor  # [*P, m] int64, -1 for a teacher node that is left without
    correlations: Tensor  # [*P, m] float64, NaN there
    mean: Tensor  # [*P] over the matched teacher nodes, NaN where there is none


class SoftMatching(NamedTuple):
    """Mean best correlations; a node may serve several others."""

    teacher: Tensor  # [*P] mean over teacher nodes of the best student's correlation: the layer score
    student: Tensor  # [*P] mean over student nodes of the best teacher's correlation
    mean: Tensor  # [*P] of the two


class CanonicalCorrelations(NamedTuple):
    """Canonical correlations of two layers, largest first, as many as the smaller of the two ranks."""

    values: Tensor  # [*P, min(m, n)] float64, NaN beyond that rank
    mean: Tensor  # [*P] over the defined values, NaN where there is none
    teacher_rank: Tensor  # [*P] int64, directions kept of each layer
    student_rank: Tensor  # [*P] int64


def hard(moments: CrossMoments) -> Matching:
    """The one-to-one matching of the largest total correlation (the linear assignment problem, by scipy).

    Constant nodes take no part: a teacher node is left without a student (index -1) when it is constant itself, or when
    fewer student nodes vary than teacher nodes. Raises ValueError where there are fewer student than teacher nodes.
    """
    from scipy.optimize import linear_sum_assignment

    rho = _one_to_one_correlation(moments)
    students = torch.full(rho.shape[:-1], -1, dtype=torch.int64)
    single = moments.population is None
    for values, chosen in zip(*(a[None] if single else a for a in (rho.cpu(), students)), strict=True):
        defined = ~values.isnan()
        teachers, candidates = defined.any(1).nonzero()[:, 0], defined.any(0).nonzero()[:, 0]
        row, column = linear_sum_assignment(values[teachers][:, candidates].numpy(), maximize=True)
        chosen[teachers[row]] = candidates[column]
    return _matching(rho, students.to(rho.device))


def greedy(moments: CrossMoments) -> Matching:
    """The one-to-one matching that takes the largest correlation left, again and again; ties to the lowest teacher.

    Constant nodes and too few student nodes: as in `hard`.
    """
    rho = _one_to_one_correlation(moments)
    m, n = rho.shape[-2:]
    left = rho.nan_to_num(nan=-torch.inf)
    left = left.unsqueeze(0) if moments.population is None else left  # [P, m, n]
    students = torch.full(left.shape[:-1], -1, dtype=torch.int64, device=rho.device)
    networks = torch.arange(len(left), device=rho.device)
    for _ in range(m):
        value, pair = left.flatten(1).max(1)
        teacher, student = pair // n, pair % n
        found = value > -torch.inf
        students[networks, teacher] = torch.where(found, student, students[networks, teacher])
        left[networks, teacher] = -torch.inf
        left[networks, :, student] = -torch.inf
    return _matching(rho, students.view(rho.shape[:-1]))


def soft(moments: CrossMoments) -> SoftMatching:
    """The mean of row maxima, of column maxima, and of both; constant nodes are left out of the means."""
    teacher = moments.layer_score()
    student = moments.best_teacher().values.nanmean(-1)
    return SoftMatching(teacher, student, (teacher + student) / 2)


def linear_cka(moments: CrossMoments) -> Tensor:
    """Linear centred kernel alignment [*P], in [0, 1]: `‖C_ts‖²_F / (‖C_tt‖_F ‖C_ss‖_F)` of the covariances.

    Source: Kornblith et al. 2019. Needs moments measured with `grams=True`. NaN where all nodes of a side are constant.
    """
    teacher_gram, student_gram = _grams(moments)
    scale = torch.sqrt(_frobenius(teacher_gram)) * torch.sqrt(_frobenius(student_gram))
    return (_frobenius(moments.cross_scatter) / scale) ** 2


def cca(moments: CrossMoments, *, rtol: float = 1e-6) -> CanonicalCorrelations:
    """Canonical correlation analysis of teacher and student layer.

    Nodes are scaled to unit variance (constant ones removed), and only directions whose eigenvalue of the correlation
    matrix is above `rtol` times the largest are kept: the others are linear dependences up to noise. The default fits
    Grams of float32 activations; for float64 ones 1e-12 resolves more. Correlations are not clipped at 1.
    Needs moments measured with `grams=True`; ValueError else, and for rtol outside [0, 1).
    """
    check_real("rtol", rtol, "a number in [0, 1)", 0.0, 1.0 - 1e-15)
    teacher_gram, student_gram = _grams(moments)
    t_constant, s_constant = constant_nodes(moments)
    t_scale, s_scale = _unit_scale(teacher_gram, t_constant), _unit_scale(student_gram, s_constant)
    t_values, t_vectors = torch.linalg.eigh(teacher_gram * t_scale.unsqueeze(-1) * t_scale.unsqueeze(-2))
    s_values, s_vectors = torch.linalg.eigh(student_gram * s_scale.unsqueeze(-1) * s_scale.unsqueeze(-2))
    cross = moments.cross_scatter * t_scale.unsqueeze(-1) * s_scale.unsqueeze(-2)
    return _canonical(cross, t_values, t_vectors, _above(t_values, rtol), s_values, s_vectors, _above(s_values, rtol))


def svcca(moments: CrossMoments, *, variance: float = 0.99, rtol: float = 1e-6) -> CanonicalCorrelations:
    """Singular vector CCA (Raghu et al. 2017): CCA between the leading principal directions of both layers.

    variance: the fraction of each layer's variance that its kept directions must explain, in (0, 1]; as few as do.
    rtol: directions with less than `rtol` of the largest one's variance are never kept.
    Needs moments measured with `grams=True`; ValueError else, and for variance or rtol out of range.
    """
    check_real("variance", variance, "a number in (0, 1]", 1e-15, 1.0)
    check_real("rtol", rtol, "a number in [0, 1)", 0.0, 1.0 - 1e-15)
    teacher_gram, student_gram = _grams(moments)
    t_values, t_vectors = torch.linalg.eigh(teacher_gram)
    s_values, s_vectors = torch.linalg.eigh(student_gram)
    t_kept = _above(t_values, rtol) & _leading(t_values, variance)
    s_kept = _above(s_values, rtol) & _leading(s_values, variance)
    return _canonical(moments.cross_scatter, t_values, t_vectors, t_kept, s_values, s_vectors, s_kept)


def procrustes(moments: CrossMoments) -> Tensor:
    """Orthogonal Procrustes similarity [*P], in [0, 1]: `‖C_ts‖_* / sqrt(tr C_tt tr C_ss)`, `‖·‖_*` the nuclear norm.

    1 where the student's activations are the teacher's, rotated, scaled and shifted; the squared distance of the
    layers, each of unit Frobenius norm, is twice its difference from 1. NaN where all nodes of a side are constant.
    Needs no Grams.
    """
    check_finite(moments)
    nuclear = torch.linalg.svdvals(moments.cross_scatter).sum(-1)
    return nuclear / moments.teacher_scatter.sum(-1).sqrt() / moments.student_scatter.sum(-1).sqrt()


def _one_to_one_correlation(moments: CrossMoments) -> Tensor:
    m, n = moments.cross_scatter.shape[-2:]
    if n < m:
        refuse("moments", f"{n} student nodes for {m} teacher nodes", "at least one student node for each teacher node")
    return moments.correlation()


def _matching(rho: Tensor, students: Tensor) -> Matching:
    unmatched = students < 0
    correlations = rho.new_full(students.shape, torch.nan)
    if rho.shape[-1]:
        chosen = rho.gather(-1, students.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        correlations = chosen.masked_fill(unmatched, torch.nan)
    return Matching(students, correlations, correlations.nanmean(-1))


def _grams(moments: CrossMoments) -> tuple[Tensor, Tensor]:
    if moments.teacher_gram is None or moments.student_gram is None:
        refuse("moments", "no Grams", "moments measured with grams=True")
    check_finite(moments)
    return moments.teacher_gram, moments.student_gram


def _frobenius(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)


def _unit_scale(gram: Tensor, constant: Tensor) -> Tensor:
    """1 / sqrt of the diagonal, 0 for constant nodes."""
    return gram.diagonal(dim1=-2, dim2=-1).masked_fill(constant, torch.inf).rsqrt()


def _above(values: Tensor, rtol: float) -> Tensor:
    """Which eigenvalues [.., k], ascending, are above rtol times the largest, and so positive."""
    return values > rtol * values[..., -1:]


def _leading(values: Tensor, variance: float) -> Tensor:
    """Which eigenvalues [.., k], ascending, are needed to explain a fraction of their sum, largest first."""
    positive = values.clamp(min=0)
    below = positive.cumsum(-1)  # what an eigenvalue and all smaller ones explain
    return below > (1 - variance) * below[..., -1:]


def _canonical(
    cross: Tensor,
    t_values: Tensor,
    t_vectors: Tensor,
    t_kept: Tensor,
    s_values: Tensor,
    s_vectors: Tensor,
    s_kept: Tensor,
) -> CanonicalCorrelations:
    """Singular values of the cross scatter [*P, m, n] between the whitened kept eigenvectors of both sides."""
    t_whiten = t_vectors * torch.where(t_kept, t_values, torch.inf).rsqrt().unsqueeze(-2)  # [m, m]
    s_whiten = s_vectors * torch.where(s_kept, s_values, torch.inf).rsqrt().unsqueeze(-2)  # [*P, n, n]
    values = torch.linalg.svdvals(t_whiten.mT @ cross @ s_whiten)
    t_rank, s_rank = t_kept.sum(-1).expand(values.shape[:-1]), s_kept.sum(-1)
    beyond = torch.arange(values.shape[-1], device=values.device) >= torch.minimum(t_rank, s_rank).unsqueeze(-1)
    values = values.masked_fill(beyond, torch.nan)
    return CanonicalCorrelations(values, values.nanmean(-1), t_rank, s_rank)
