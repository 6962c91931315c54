"""What follows from moments: constant nodes, matches, ranks, populations, Gaussian closed forms, overlaps."""

from __future__ import annotations

import math

import pytest
import torch
from moments_by_hand import from_correlation, normal, pair

from fastspec.moments import CrossMoments, cross_moments, layer_moments
from fastspec.statistics import overlaps


def test_constant_nodes_follow_the_policy_and_are_counted() -> None:
    t, s = (a.float() for a in pair(samples=100))
    t[:, 1], s[:, 0], s[:, 3] = 0.0, 0.1, 1e8
    for moments in (cross_moments(t, s), cross_moments(t[:33], s[:33]) + cross_moments(t[33:], s[33:])):
        assert [int(x) for x in moments.undefined_nodes()] == [1, 2]
        undefined = torch.zeros(4, 7, dtype=torch.bool)
        undefined[1], undefined[:, 0], undefined[:, 3] = True, True, True
        assert torch.equal(moments.correlation().isnan(), undefined)
        zero = moments.correlation(undefined="zero")
        assert torch.equal(zero == 0, undefined) and not zero.isnan().any()
        with pytest.raises(ValueError, match="1 of 4 teacher nodes and 2 of 7 student nodes constant"):
            moments.correlation(undefined="raise")
        values, indices = moments.best_student()
        assert values[1].isnan() and indices[1] == -1 and not set(indices.tolist()) & {0, 3}
        assert torch.equal(moments.best_teacher().indices == -1, undefined[0])
        assert moments.match_counts(-1.0).tolist() == [5, 0, 5, 5]
        assert float(moments.coverage(-1.0)) == 0.75
        torch.testing.assert_close(moments.layer_score(), values[[0, 2, 3]].mean())


def test_undefined_policy_is_checked() -> None:
    with pytest.raises(ValueError, match=r"undefined: got 'skip'; takes 'nan', 'zero' or 'raise'"):
        cross_moments(*pair()).correlation(undefined="skip")


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1e-15), (torch.float32, 1e15), (torch.float64, 1e-140), (torch.float64, 1e140)],
)
def test_correlation_of_very_small_and_very_large_activations(dtype: torch.dtype, scale: float) -> None:
    t, s = pair()
    rho = cross_moments(t, s).correlation()
    scaled = cross_moments((scale * t).to(dtype), (scale * s).to(dtype)).correlation()
    torch.testing.assert_close(scaled, rho, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)


def test_rounding_of_a_float64_mean_is_not_variation() -> None:
    constant, varying = torch.full((1000, 1), 0.1, dtype=torch.float64), torch.full((1000, 1), 0.1, dtype=torch.float64)
    varying[::2] += 1e-14
    moments = cross_moments(torch.cat([constant, varying], 1), varying)
    drifted = CrossMoments(**(moments.tensors() | {"teacher_scatter": moments.teacher_scatter + 1e-31}))
    assert drifted.undefined_nodes().teacher == 1
    assert not drifted.correlation()[1].isnan()


def test_layers_without_nodes() -> None:
    moments = cross_moments(normal(5, 0), normal(5, 3), grams=True)
    assert int(moments.count) == 5 and moments.correlation().shape == (0, 3)
    assert moments.best_teacher().indices.tolist() == [-1] * 3 and moments.layer_score().isnan()
    assert cross_moments(normal(5, 3), normal(5, 0)).best_student().indices.tolist() == [-1] * 3


def test_one_sample_has_no_correlation() -> None:
    t, s = pair(samples=1)
    moments = cross_moments(t, s)
    assert moments.correlation().isnan().all()
    assert [int(x) for x in moments.undefined_nodes()] == [4, 7]
    assert moments.layer_score().isnan()
    assert not moments.covered(-1.0).any()


def test_best_matches_and_rank() -> None:
    moments = from_correlation([0.2, 0.96, 0.7], [0.55, -0.5, 0.1])
    assert moments.best_student().indices.tolist() == [1, 0]
    assert moments.best_teacher().indices.tolist() == [1, 0, 0]
    assert moments.match_counts().tolist() == [[2, 1], [2, 0], [1, 0], [1, 0], [1, 0], [1, 0]]
    assert moments.match_counts(0.7).tolist() == [1, 0]  # strictly above
    assert moments.match_counts([0.7]).tolist() == [[1, 0]]
    assert moments.covered((0.5, 0.6)).tolist() == [[True, True], [True, False]]
    assert moments.coverage((0.5, 0.6)).tolist() == [1.0, 0.5]
    assert float(moments.layer_score()) == pytest.approx((0.96 + 0.55) / 2)
    early = from_correlation([0.9, 0.1, 0.5], [0.3, 0.2, 0.1])
    assert early.rank_of_winners(moments).tolist() == pytest.approx([2 / 3, 0.0])


def test_rank_with_undefined_pairs() -> None:
    nan = math.nan
    final = from_correlation([0.1, 0.2, 0.9], [0.9, 0.1, 0.2], [nan, nan, nan])
    early = from_correlation([0.1, 0.2, nan], [nan, nan, nan], [0.1, 0.2, nan])
    rank = early.rank_of_winners(final)
    assert rank[0] == pytest.approx(2 / 3)  # the winner was dead: behind both others
    assert rank[1:].isnan().all()
    with pytest.raises(ValueError, match="final: got"):
        early.rank_of_winners(cross_moments(*pair()))


def test_statistics_of_a_population_are_those_of_its_students() -> None:
    t, s = normal(50, 3, seed=1), normal(4, 50, 5, seed=2)
    s[1, :, 2] = 1.0
    moments = cross_moments(t, s, coactivation=True)
    early = cross_moments(t, s.flip(0).contiguous(), coactivation=True)
    for statistic in (
        lambda m, e: m.correlation(),
        lambda m, e: m.best_student().values,
        lambda m, e: m.best_teacher().indices,
        lambda m, e: m.match_counts((0.1, 0.2)),
        lambda m, e: m.coverage((0.1, 0.2)),
        lambda m, e: m.layer_score(),
        lambda m, e: m.observation(),
        lambda m, e: m.undefined_nodes().student,
        lambda m, e: e.rank_of_winners(m),
    ):
        each = torch.stack([statistic(moments[k], early[k]) for k in range(4)])
        torch.testing.assert_close(statistic(moments, early), each, equal_nan=True)
    torch.testing.assert_close(moments.success_rate(0.1), (moments.match_counts(0.1) > 0).double().mean(0))
    with pytest.raises(ValueError, match="no population axis"):
        moments[0].success_rate()
    with pytest.raises(ValueError, match="index: got 0; takes moments with a population axis"):
        moments[0][0]


def test_gaussian_closed_forms() -> None:
    samples, sigma = 200_000, 1.5
    x = sigma * normal(samples, 6, seed=11)
    u, v = normal(3, 6, seed=12), normal(5, 6, seed=13)
    v[0] = u[0]
    moments = layer_moments(x, (u, None), (v, None), coactivation=True)
    lengths = u.norm(dim=1)[:, None] * v.norm(dim=1)
    cos = (u @ v.T / lengths).clamp(-1, 1)
    theta = cos.arccos()
    product = sigma**2 * lengths * (theta.sin() + (math.pi - theta) * cos) / (2 * math.pi)
    mean_u, mean_v = (sigma * w.norm(dim=1) / math.sqrt(2 * math.pi) for w in (u, v))
    var_u, var_v = (sigma**2 * w.norm(dim=1) ** 2 * (0.5 - 0.5 / math.pi) for w in (u, v))
    rho = (product - mean_u[:, None] * mean_v) / (var_u[:, None] * var_v).sqrt()
    both = (math.pi - theta) / (2 * math.pi)
    # six standard deviations: a fraction has at most 1/(2 sqrt N), a sample correlation of these nodes below 2/sqrt N
    assert float((moments.coactivation() - both).abs().max()) < 3 / math.sqrt(samples)
    assert float((moments.activity().student - 0.5).abs().max()) < 3 / math.sqrt(samples)
    assert float((moments.correlation() - rho).abs().max()) < 12 / math.sqrt(samples)
    assert float(((moments.student_mean - mean_v) / var_v.sqrt()).abs().max()) < 6 / math.sqrt(samples)


def test_overlaps() -> None:
    t, s = normal(2, 4, seed=1), normal(3, 5, 4, seed=2)
    result = overlaps(t, s)
    torch.testing.assert_close(result.teacher_student, torch.einsum("ji,pki->pjk", t, s) / 4)
    torch.testing.assert_close(result.student_student, torch.einsum("pli,pki->plk", s, s) / 4)
    torch.testing.assert_close(result.teacher_teacher, t @ t.T / 4)
    with pytest.raises(ValueError, match="student_weight: got shape"):
        overlaps(t, s[..., :3])
    with pytest.raises(ValueError, match=r"student_weight: got shape \[2, 3, 0\]; .* above 0"):
        overlaps(t[:, :0], s[:2, :3, :0])
