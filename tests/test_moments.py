"""CrossMoments and its statistics against plain torch in float64, closed forms, and each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastspec.measure import measure
from fastspec.moments import CrossMoments, cross_moments, layer_moments, layer_moments_with_activations
from fastspec.networks import MLP
from fastspec.statistics import overlaps


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


def from_correlation(rho: Tensor, **extra: Tensor) -> CrossMoments:
    """Moments of unit scatter with the given correlations; NaN rows and columns become constant nodes."""
    t_constant, s_constant = rho.isnan().all(-1), rho.isnan().all(-2)
    t_constant = t_constant.all(0) if rho.dim() == 3 else t_constant
    zeros = CrossMoments.zeros(rho.shape[-2], rho.shape[-1], population=len(rho) if rho.dim() == 3 else None)
    parts = zeros.tensors() | {
        "count": torch.tensor(10),
        "teacher_scatter": (~t_constant).double(),
        "student_scatter": (~s_constant).double(),
        "cross_scatter": rho.nan_to_num(0.0),
    }
    return CrossMoments(**(parts | extra))


# The numerical contract: scale, mean of float32 inputs.
REGIMES = {
    "scale 1e-2": (1e-2, 0.0),
    "scale 1e-3": (1e-3, 0.0),
    "scale 1e-5": (1e-5, 0.0),
    "mean 100, sd 1": (1.0, 100.0),
    "mean 1000, sd 0.1": (0.1, 1000.0),
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("batch", [None, 64])
def test_correlation_of_float32_inputs_is_within_1e_5(regime: str, batch: int | None) -> None:
    scale, mean = REGIMES[regime]
    hidden = normal(5000, 12, seed=3)
    t = (hidden[:, :6] * scale + mean).float()
    s = ((0.9 * hidden[:, :6] + 0.1 * hidden[:, 6:]).repeat(1, 2) * scale + mean).float()
    if mean == 0:
        t, s = t.relu(), s.relu()
    if batch is None:
        moments = cross_moments(t, s)
    else:
        moments = CrossMoments.zeros(6, 12)
        for a, b in zip(t.split(batch), s.split(batch), strict=True):
            moments = moments + cross_moments(a, b)
    assert int(moments.count) == 5000
    assert float((moments.correlation() - exact_correlation(t, s)).abs().max()) <= 1e-5


@pytest.mark.parametrize("batch", [None, 64])
@pytest.mark.parametrize(("scale", "bias"), [(1e-2, 0.0), (1e-3, 0.0), (1e-5, 0.0), (1.0, 100.0), (0.1, 1000.0)])
def test_correlation_of_networks_in_float32_is_within_1e_5(scale: float, bias: float, batch: int | None) -> None:
    x = normal(3000, 10, seed=5, dtype=torch.float32)
    shared = normal(5, 10, seed=6)
    student_weight = 0.9 * torch.cat([shared, shared]) + 0.1 * normal(10, 10, seed=7)
    teacher, student = (
        ((scale * weight / 3).float(), torch.full((len(weight),), bias)) for weight in (shared, student_weight)
    )
    t, s = (torch.relu(x @ w.T + b) for w, b in (teacher, student))  # float32, rounded as a user's own would be
    top = torch.ones(1, 5), torch.ones(1, 10)
    networks = (MLP.from_weights([layer, (w, None)]) for layer, w in zip((teacher, student), top, strict=True))
    for moments in (
        sum((layer_moments(rows, teacher, student) for rows in x.split(batch or 3000)), CrossMoments.zeros(5, 10)),
        measure(*networks, x, batch_size=batch).layers["hidden1"],
    ):
        assert int(moments.count) == 3000
        assert float((moments.correlation() - exact_correlation(t, s)).abs().max()) <= 1e-5


def test_moments_match_plain_torch() -> None:
    t, s = pair()
    moments = cross_moments(t, s, coactivation=True, grams=True)
    tc, sc = t - t.mean(0), s - s.mean(0)
    expected = CrossMoments(
        count=torch.tensor(60),
        teacher_mean=t.mean(0),
        student_mean=s.mean(0),
        teacher_scatter=tc.square().sum(0),
        student_scatter=sc.square().sum(0),
        cross_scatter=tc.T @ sc,
        teacher_active=(t > 0).sum(0),
        student_active=(s > 0).sum(0),
        coactive=((t > 0)[:, :, None] & (s > 0)[:, None, :]).sum(0),
        teacher_gram=tc.T @ tc,
        student_gram=sc.T @ sc,
    )
    assert_same(moments, expected)
    assert_same(CrossMoments.from_tensors(moments.tensors()), moments, rtol=0)
    torch.testing.assert_close(moments.correlation(), exact_correlation(t, s))
    torch.testing.assert_close(moments.activity().teacher, (t > 0).double().mean(0))
    torch.testing.assert_close(moments.activity().student, (s > 0).double().mean(0))
    torch.testing.assert_close(moments.coactivation(), moments.coactive.double() / 60)
    for j in range(t.shape[1]):
        for k in range(s.shape[1]):
            on, off = int(((t[:, j] > 0) & (s[:, k] > 0)).sum()), int(((t[:, j] <= 0) & (s[:, k] > 0)).sum())
            assert int(moments.observation()[j, k]) == min(on, off)


def test_convolutional_positions_count_as_samples() -> None:
    t, s = normal(5, 3, 4, 4, seed=1), normal(5, 6, 4, 4, seed=2)
    flat = cross_moments(*(a.permute(0, 2, 3, 1).reshape(-1, a.shape[1]) for a in (t, s)), grams=True)
    assert_same(cross_moments(t, s, grams=True), flat)
    assert int(flat.count) == 80


@pytest.mark.parametrize("own_inputs", [False, True])
def test_a_population_is_its_students_one_by_one(own_inputs: bool) -> None:
    t = normal(40, 3, seed=1)
    s = normal(4, 40, 5, seed=2)
    options = {"coactivation": True, "grams": True}
    population = cross_moments(t, s, **options)
    assert population.population == 4
    x, x_students = normal(40, 6, seed=3), normal(4, 40, 6, seed=4)
    teacher = (normal(3, 6, seed=5), normal(3, seed=6))
    student = (normal(4, 5, 6, seed=7), normal(4, 5, seed=8))
    layers = layer_moments((x, x_students) if own_inputs else x, teacher, student, **options)
    for k in range(4):
        assert_same(population.student(k), cross_moments(t, s[k], **options))
        one = layer_moments((x, x_students[k]) if own_inputs else x, teacher, (student[0][k], student[1][k]), **options)
        assert_same(layers[k], one)
        assert one.population is None
    assert_same(population[1:3], cross_moments(t, s[1:3], **options))
    assert_same(population[torch.tensor([3, 0])], cross_moments(t, s[[3, 0]], **options))


def test_layer_moments_are_those_of_the_activations() -> None:
    x = normal(50, 6, seed=1)
    teacher, student = (normal(3, 6, seed=2), normal(3, seed=3)), (normal(2, 5, 6, seed=4), None)
    options = {"coactivation": True, "grams": True}
    moments, (t, s) = layer_moments_with_activations(x, teacher, student, negative_slope=0.1, **options)
    torch.testing.assert_close(t, torch.nn.functional.leaky_relu(x @ teacher[0].T + teacher[1], 0.1))
    torch.testing.assert_close(s, torch.nn.functional.leaky_relu(x @ student[0].mT, 0.1))
    assert_same(moments, cross_moments(t, s, **options))
    assert_same(moments, layer_moments(x, teacher, student, negative_slope=0.1, **options))


def test_gradients_are_not_tracked() -> None:
    t, s = pair()
    assert not cross_moments(t.requires_grad_(), s.requires_grad_()).cross_scatter.requires_grad


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(0, 20)] * 3),
    population=st.sampled_from([None, 1, 3]),
    mean=st.sampled_from([0.0, 1e3, -1e6]),
    seed=st.integers(0, 1000),
)
def test_merge_is_associative_commutative_and_a_single_run(
    sizes: tuple[int, ...], population: int | None, mean: float, seed: int
) -> None:
    prefix = () if population is None else (population,)
    t, s = normal(60, 3, seed=seed) + mean, normal(*prefix, 60, 5, seed=seed + 1) - mean
    options = {"coactivation": True, "grams": True}
    parts, start = [], 0
    for size in sizes:
        rows = slice(start, start := start + size)
        zero = CrossMoments.zeros(3, 5, population=population, **options)
        parts.append(cross_moments(t[rows], s[..., rows, :], **options) if size else zero)
    a, b, c = parts
    # a mean of 1e6 is known to 1e-10, an error that its products with deviations near 1 inherit
    rtol = 1e-13 * max(1.0, abs(mean)) + 1e-12
    assert_same((a + b) + c, a + (b + c), rtol)
    assert_same(a + b, b + a, rtol)
    if start:
        assert_same(a + b + c, cross_moments(t[:start], s[..., :start, :], **options), rtol)


def test_zero_samples_are_neutral() -> None:
    moments = cross_moments(*pair(), coactivation=True, grams=True)
    zero = CrossMoments.zeros(4, 7, coactivation=True, grams=True)
    assert_same(moments + zero, moments, rtol=0)
    assert_same(zero.merge(moments), moments, rtol=0)
    assert int((zero + zero).count) == 0
    assert zero.correlation().isnan().all()


def test_merge_refuses_what_does_not_fit() -> None:
    moments = cross_moments(*pair())
    with pytest.raises(ValueError, match=r"other: got teacher_mean of shape \[3\]; takes shape \[4\]"):
        moments + cross_moments(*pair(m=3))
    with pytest.raises(ValueError, match="other: got moments where it has coactive and the other has not"):
        moments + cross_moments(*pair(), coactivation=True)
    with pytest.raises(ValueError, match=r"other: got .* on meta; takes device cpu"):
        moments + moments.to("meta")
    with pytest.raises(TypeError, match="other: got int"):
        moments + 1  # type: ignore[operator]


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
    rho = torch.tensor([[0.2, 0.96, 0.7], [0.55, -0.5, 0.1]], dtype=torch.float64)
    moments = from_correlation(rho)
    assert moments.best_student().indices.tolist() == [1, 0]
    assert moments.best_teacher().indices.tolist() == [1, 0, 0]
    assert moments.match_counts().tolist() == [[2, 1], [2, 0], [1, 0], [1, 0], [1, 0], [1, 0]]
    assert moments.match_counts(0.7).tolist() == [1, 0]  # strictly above
    assert moments.covered((0.5, 0.6)).tolist() == [[True, True], [True, False]]
    assert moments.coverage((0.5, 0.6)).tolist() == [1.0, 0.5]
    assert float(moments.layer_score()) == pytest.approx((0.96 + 0.55) / 2)
    early = from_correlation(torch.tensor([[0.9, 0.1, 0.5], [0.3, 0.2, 0.1]], dtype=torch.float64))
    assert early.rank_of_winners(moments).tolist() == pytest.approx([2 / 3, 0.0])


def test_rank_with_undefined_pairs() -> None:
    nan = math.nan
    final = from_correlation(torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.1, 0.2], [nan, nan, nan]], dtype=torch.float64))
    early = from_correlation(torch.tensor([[0.1, 0.2, nan], [nan, nan, nan], [0.1, 0.2, nan]], dtype=torch.float64))
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


def test_save_and_load(tmp_path) -> None:
    t = normal(50, 3, seed=1)
    for options in ({}, {"coactivation": True, "grams": True}):
        for s in (normal(50, 5, seed=2), normal(4, 50, 5, seed=2)):
            moments = cross_moments(t, s, **options)
            moments.save(tmp_path / "moments.safetensors")
            assert_same(CrossMoments.load(tmp_path / "moments.safetensors"), moments, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]


def test_damaged_and_foreign_files_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "moments.safetensors"
    moments = cross_moments(*pair())
    moments.save(path)
    whole = path.read_bytes()
    marks = {"fastspec": "CrossMoments", "version": "1"}
    misshapen = moments.tensors() | {"teacher_mean": torch.zeros(9, dtype=torch.float64)}
    half = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in moments.tensors().items()
    }
    cases = {
        "truncated": lambda: path.write_bytes(whole[:-10]),
        "another format": lambda: path.write_bytes(b"PK\x03\x04 not safetensors at all"),
        "fastspec did not write": lambda: save_file(moments.tensors(), path),
        "fastspec MLP file": lambda: save_file(moments.tensors(), path, marks | {"fastspec": "MLP"}),
        "version 999": lambda: save_file(moments.tensors(), path, marks | {"version": "999"}),
        "missing or unknown names: count, x": lambda: save_file(
            {("x" if name == "count" else name): t for name, t in moments.tensors().items()}, path, marks
        ),
        r"teacher_mean: got shape \[9\]; takes shape \[4\]": lambda: save_file(misshapen, path, marks),
        "got dtype torch.float32; takes torch.float64": lambda: save_file(half, path, marks),
    }
    for message, damage in cases.items():
        damage()
        with pytest.raises(ValueError, match=f"moments.safetensors'.*{message}"):
            CrossMoments.load(path)
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        CrossMoments.load(tmp_path / "no-such-file")


GOOD = (normal(8, 3), normal(8, 5))
WEIGHTS = ((normal(3, 6), None), (normal(5, 6), normal(5)))
BAD_CALLS = {
    "0 samples": lambda: cross_moments(GOOD[0][:0], GOOD[1][:0]),
    "teacher: got 0 samples": lambda: layer_moments(normal(0, 6), *WEIGHTS),
    "teacher: got NaN or infinite activations in 1 of 3 nodes": lambda: cross_moments(
        poisoned(GOOD[0], (0, 1)), GOOD[1]
    ),
    "student: got NaN or infinite activations in 1 of 5 nodes": lambda: layer_moments(
        normal(8, 6), WEIGHTS[0], (poisoned(WEIGHTS[1][0], (2, 2)), None)
    ),
    "student: got NaN or infinite activations in 2 of 10 nodes": lambda: cross_moments(
        GOOD[0], poisoned(normal(2, 8, 5), (slice(None), 1, 4), math.inf)
    ),
    "teacher: got NaN or infinite activations in 3 of 3 nodes": lambda: layer_moments(
        poisoned(normal(8, 6), 7), *WEIGHTS
    ),
    "thresholds: got none": lambda: cross_moments(*GOOD).match_counts(()),
    "thresholds: got 1.5": lambda: cross_moments(*GOOD).coverage(1.5),
    "no co-activation counts": lambda: cross_moments(*GOOD).observation(),
    "takes the samples and positions": lambda: cross_moments(GOOD[0], GOOD[1][:7]),
}


def poisoned(tensor: Tensor, index, value: float = math.nan) -> Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_input_gets_one_clear_error(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD_CALLS[message]()


def test_arguments_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="student: got Tensor; takes a pair"):
        layer_moments(normal(8, 6), WEIGHTS[0], WEIGHTS[1][0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"teacher: got dtype torch\.int64"):
        cross_moments(torch.ones(8, 3, dtype=torch.int64), GOOD[1])


def test_moments_with_non_finite_scatter_give_no_correlation() -> None:
    moments = cross_moments(*GOOD)
    broken = CrossMoments(**(moments.tensors() | {"student_scatter": poisoned(moments.student_scatter, 0, math.inf)}))
    with pytest.raises(ValueError, match="student: got NaN or infinite activations in 1 of 5 nodes"):
        broken.correlation()
