"""Matchings against brute force, layer similarities against an SVD of the raw activations in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from moments_by_hand import from_correlation, normal, pair
from torch import Tensor

from fastspec.matching import cca, greedy, hard, linear_cka, procrustes, soft, svcca
from fastspec.moments import cross_moments


def orthonormal(activations: Tensor, variance: float = 1.0, rtol: float = 1e-10) -> Tensor:
    """Left singular vectors of centred activations that explain the given part of the variance."""
    u, s, _ = torch.linalg.svd(activations - activations.mean(0), full_matrices=False)
    explained = s.square().cumsum(0) / s.square().sum()
    keep = int((explained < variance).sum()) + 1
    return u[:, : min(keep, int((s > rtol * s[0]).sum()))]


def svd_canonical(t: Tensor, s: Tensor, variance: float = 1.0) -> Tensor:
    return torch.linalg.svdvals(orthonormal(t, variance).T @ orthonormal(s, variance))


def test_hard_is_the_best_of_all_assignments() -> None:
    moments = cross_moments(*pair(n=6))
    rho = moments.correlation()
    best = max(float(rho[range(4), list(order)].mean()) for order in itertools.permutations(range(6), 4))
    students, correlations, mean = hard(moments)
    assert len(set(students.tolist())) == 4
    assert float(mean) == pytest.approx(best)
    assert torch.equal(correlations, rho[range(4), students])


def test_greedy_and_hard_differ_where_they_should() -> None:
    moments = from_correlation([0.9, 0.8, 0.0], [0.8, 0.1, 0.05])
    assert hard(moments).students.tolist() == [1, 0]
    assert greedy(moments).students.tolist() == [0, 1]
    assert float(greedy(moments).mean) == pytest.approx(0.5)
    ties = from_correlation([0.5, 0.5], [0.5, 0.5])
    assert greedy(ties).students.tolist() == [0, 1]


@pytest.mark.parametrize("match", [hard, greedy])
@pytest.mark.parametrize("population", [(), (3,), (0,)])
def test_no_teachers_take_no_students(match, population: tuple[int, ...]) -> None:
    students, _, mean = match(cross_moments(normal(9, 0), normal(*population, 9, 5)))
    assert students.shape == (*population, 0) and mean.isnan().all()


def test_soft() -> None:
    result = soft(from_correlation([0.9, 0.8, 0.0], [0.7, 0.1, 0.2]))
    assert [float(x) for x in result] == pytest.approx([0.8, (0.9 + 0.8 + 0.2) / 3, (0.8 + 1.9 / 3) / 2])


@pytest.mark.parametrize("match", [hard, greedy])
def test_constant_nodes_are_never_matched(match) -> None:
    t, s = pair(n=6)
    t[:, 1], s[:, [0, 5]] = 0.0, 3.0
    students, correlations, mean = match(cross_moments(t, s))
    assert students[1] == -1 and correlations[1].isnan()
    assert sorted({1, 2, 3, 4} & set(students.tolist())) == sorted(students[[0, 2, 3]].tolist())
    torch.testing.assert_close(mean, correlations[[0, 2, 3]].mean())
    s[:, 1:4] = 0.0  # one living student for three living teachers
    students, correlations, _ = match(cross_moments(t, s))
    assert sorted(students.tolist()) == [-1, -1, -1, 4]
    best = cross_moments(t, s).correlation()[:, 4].nan_to_num(-9.0).max()
    assert float(correlations.nan_to_num(-9.0).max()) == pytest.approx(float(best))
    s[:, 4] = 0.0
    students, _, mean = match(cross_moments(t, s))
    assert students.tolist() == [-1] * 4 and mean.isnan()


@pytest.mark.parametrize("match", [hard, greedy])
def test_fewer_students_than_teachers_is_an_error(match) -> None:
    with pytest.raises(ValueError, match="moments: got 3 student nodes for 4 teacher nodes; takes at least one"):
        match(cross_moments(*pair(m=4, n=3)))


def test_population_is_its_students_one_by_one() -> None:
    t, s = pair(m=3, n=5)[0], torch.stack([pair(m=3, n=5, seed=seed)[1] for seed in (0, 5, 9)])
    s[1, :, 2] = 0.0
    moments = cross_moments(t, s, grams=True)
    for statistic in (hard, greedy, soft, linear_cka, cca, svcca, procrustes):
        together = statistic(moments)
        for k in range(3):
            alone = statistic(moments[k])
            for a, b in zip(together, alone, strict=True) if isinstance(alone, tuple) else [(together, alone)]:
                torch.testing.assert_close(a[k], b, equal_nan=True)


@pytest.mark.parametrize(("m", "n"), [(4, 6), (6, 4), (1, 3)])
def test_similarities_match_the_raw_activations(m: int, n: int) -> None:
    t, s = pair(m=m, n=n)
    moments = cross_moments(t, s, grams=True)
    tc, sc = t - t.mean(0), s - s.mean(0)
    result = cca(moments, rtol=1e-12)
    torch.testing.assert_close(result.values, svd_canonical(t, s))
    assert (int(result.teacher_rank), int(result.student_rank)) == (m, n)
    torch.testing.assert_close(result.mean, result.values.mean())
    for variance in (0.7, 0.9, 1.0):
        expected = svd_canonical(t, s, variance)
        values = svcca(moments, variance=variance, rtol=1e-12).values
        torch.testing.assert_close(values[: len(expected)], expected)
        assert values[len(expected) :].isnan().all()
    kernel_t, kernel_s = tc @ tc.T, sc @ sc.T
    torch.testing.assert_close(linear_cka(moments), (kernel_t * kernel_s).sum() / (kernel_t.norm() * kernel_s.norm()))
    u, _, v = torch.linalg.svd(tc.T @ sc, full_matrices=False)
    aligned = ((tc @ u) * (sc @ v.T)).sum() / (tc.norm() * sc.norm())
    torch.testing.assert_close(procrustes(moments), aligned)


def test_svcca_keeps_no_direction_that_the_variance_does_not_need() -> None:
    t = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)  # half of the variance each
    moments = cross_moments(t, t, grams=True)
    assert [int(svcca(moments, variance=v).teacher_rank) for v in (0.5, 0.51)] == [1, 2]


def test_similarities_of_a_rotated_copy_are_one() -> None:
    t = pair(m=5)[0]
    rotation = torch.linalg.qr(normal(5, 5, seed=8))[0]
    moments = cross_moments(t, 3 * t @ rotation + 7, grams=True)
    assert float(linear_cka(moments)) == pytest.approx(1)
    assert float(procrustes(moments)) == pytest.approx(1)
    torch.testing.assert_close(cca(moments).values, torch.ones(5, dtype=torch.float64))
    invertible = cross_moments(t, t @ normal(5, 5, seed=9), grams=True)  # CCA alone does not see this one
    torch.testing.assert_close(cca(invertible).values, torch.ones(5, dtype=torch.float64))
    assert float(linear_cka(invertible)) < 0.99 and float(procrustes(invertible)) < 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dead_and_dependent_nodes_lower_the_rank_only(dtype: torch.dtype) -> None:
    t, s = pair(samples=400, m=4, n=6)
    expected = svd_canonical(t, s)
    dead = torch.zeros(400, 2, dtype=torch.float64)
    t_more = torch.cat([t, dead + 5, t[:, :1] * 2], 1).to(dtype)  # dead ones, and a multiple
    s_more = torch.cat([dead, s, s[:, :2].sum(1, keepdim=True)], 1).to(dtype)  # dead ones, and a sum
    moments = cross_moments(t_more, s_more, grams=True)
    result = cca(moments)
    assert (int(result.teacher_rank), int(result.student_rank)) == (4, 6)
    torch.testing.assert_close(result.values[:4], expected, rtol=0, atol=1e-4)
    assert result.values[4:].isnan().all()
    svcca_result = svcca(moments, variance=1.0)
    assert (int(svcca_result.teacher_rank), int(svcca_result.student_rank)) == (4, 6)
    torch.testing.assert_close(svcca_result.values[:4], expected, rtol=0, atol=1e-4)


def test_a_layer_of_constant_nodes_has_no_similarity() -> None:
    t, s = pair()
    moments = cross_moments(t, torch.zeros_like(s), grams=True)
    for value in (linear_cka(moments), procrustes(moments), cca(moments).mean, svcca(moments).mean, soft(moments).mean):
        assert value.isnan()
    assert int(cca(moments).student_rank) == 0


def test_wrong_arguments_are_refused() -> None:
    moments = cross_moments(*pair())
    for similarity in (linear_cka, cca, svcca):
        with pytest.raises(ValueError, match="moments: got no Grams; takes moments measured with grams=True"):
            similarity(moments)
    moments = cross_moments(*pair(), grams=True)
    for bad in ({"variance": 0.0}, {"variance": 1.1}, {"rtol": -1.0}, {"rtol": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: got"):
            svcca(moments, **bad)
