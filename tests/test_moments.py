"""CrossMoments against plain torch in float64: the numerical contract, populations, merge, files, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moments_by_hand import assert_same, exact_correlation, normal, pair
from torch import Tensor

from fastspec.measure import measure
from fastspec.moments import CrossMoments, cross_moments, layer_moments, layer_moments_with_activations
from fastspec.networks import MLP

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


def test_moments_say_what_they_are_of() -> None:
    moments = cross_moments(normal(9, 3), normal(2, 9, 5), coactivation=True)
    assert repr(moments) == "CrossMoments(9 samples, 3 teacher nodes, 5 student nodes of each of 2 students, coactive)"
    assert repr(moments[0].to("meta")).endswith("3 teacher nodes, 5 student nodes, coactive)")


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
        "missing or unknown names: luck;": lambda: save_file(moments.tensors() | {"luck": torch.zeros(1)}, path, marks),
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
    "teacher: got NaN, infinite or too large activations in 1 of 3 nodes": lambda: cross_moments(
        poisoned(GOOD[0], (0, 1)), GOOD[1]
    ),
    "student: got NaN, infinite or too large activations in 1 of 5 nodes": lambda: layer_moments(
        normal(8, 6), WEIGHTS[0], (poisoned(WEIGHTS[1][0], (2, 2)), None)
    ),
    "student: got NaN, infinite or too large activations in 2 of 10 nodes": lambda: cross_moments(
        GOOD[0], poisoned(normal(2, 8, 5), (slice(None), 1, 4), math.inf)
    ),
    "teacher: got NaN, infinite or too large activations in 3 of 3 nodes": lambda: layer_moments(
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
    with pytest.raises(ValueError, match="student: got NaN, infinite or too large activations in 1 of 5 nodes"):
        broken.correlation()
