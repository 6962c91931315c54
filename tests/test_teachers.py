"""Separated teachers: distinct nodes, strength decay, median biases, standardised outputs."""

from __future__ import annotations

import pytest
import torch

from fastspec.data import gaussian
from fastspec.networks import MLP
from fastspec.randomness import generator
from fastspec.teachers import LUCK_MATTERS, STUDENT_SPECIALIZATION, random, separated, separated_vectors, two_layer

F64 = torch.float64


def cosines(weight: torch.Tensor) -> torch.Tensor:
    unit = weight / weight.norm(dim=1, keepdim=True)
    return unit @ unit.T - 2 * torch.eye(len(weight), dtype=weight.dtype)


def test_two_layer_teacher_of_the_study():
    teacher = two_layer(100, 20, 50, strength_decay=1.0, seed=3, dtype=F64)
    (w1, b1), (w2, b2) = teacher.weights()
    assert teacher.widths == [100, 20, 50]
    torch.testing.assert_close(w1.norm(dim=1), torch.ones(20, dtype=F64))
    assert cosines(w1).max() < 0.9
    assert (b1 == -0.1).all()
    assert (b2 == -0.1).all()
    drawn = w2 * torch.arange(1, 21, dtype=F64)
    assert torch.isin(drawn.mul(4).round(), torch.arange(-4.0, 5.0, dtype=F64)).all()
    torch.testing.assert_close(drawn, drawn.mul(4).round() / 4)
    assert len(drawn.unique(dim=0)) == 50
    # entries are uniform in the set: mean square (1 + .75^2 + .5^2 + .25^2) * 2 / 9
    assert abs(float(drawn.square().mean()) - 3.75 / 9) < 0.05


def test_strength_decay_is_a_power():
    plain, decayed = (two_layer(10, 5, 8, strength_decay=p, seed=1, dtype=F64).weights() for p in (0.0, 2.5))
    torch.testing.assert_close(decayed[1][0], plain[1][0] / torch.arange(1, 6, dtype=F64) ** 2.5)
    assert decayed[0][0].equal(plain[0][0])


def test_separated_teacher_before_tuning():
    teacher = separated([20, 30, 40, 10], seed=2, weight_set=LUCK_MATTERS, dtype=F64)
    for weight, bias in teacher.weights():
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight), dtype=F64))
        assert cosines(weight).max() < 0.99
        steps = weight / weight.abs().where(weight != 0, torch.inf).amin(dim=1, keepdim=True)
        torch.testing.assert_close(steps, steps.round())  # multiples of .25 before the norm was divided out
        assert bias.abs().max() < 0.5 / 0.25
        assert (bias != 0).all()


def test_biases_are_of_either_sign():
    biases = separated([20, 200, 3], bias=0.5, seed=1).weights()[0][1]
    assert 0.4 < float((biases < 0).double().mean()) < 0.6


def test_random_nodes_are_linear_layers_at_norm_1():
    for (w, b), (drawn, bias) in zip(
        random([5, 4, 3], seed=2, dtype=F64).weights(), MLP([5, 4, 3], seed=2, dtype=F64).weights(), strict=True
    ):
        norm = drawn.norm(dim=1)
        torch.testing.assert_close(w, drawn / norm[:, None])
        torch.testing.assert_close(b, bias / norm)


def test_separated_strength_decay_comes_before_the_norm():
    plain, decayed = (separated([20, 30, 40, 10], strength_decay=p, dtype=F64).weights() for p in (0.0, 1.5))
    assert decayed[0][0].equal(plain[0][0])
    for (w, b), (w_0, b_0) in zip(decayed[1:], plain[1:], strict=True):
        expected = w_0 / torch.arange(1, w.shape[1] + 1, dtype=F64) ** 1.5
        norm = expected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(w, expected / norm)
        torch.testing.assert_close(b, b_0 / norm.squeeze(1))


def test_tuned_teacher_is_half_active_and_standardised():
    x = gaussian(2000, 20, std=10.0, seed=5, dtype=F64)
    teacher = separated([20, 50, 75, 100], seed=0, x=x, strength_decay=0.5, dtype=F64)
    for activation in teacher.activations(x):
        active = (activation > 0).sum(0)
        assert ((active - 1000).abs() <= 1).all()
    outputs = teacher(x)
    torch.testing.assert_close(outputs.mean(0), torch.zeros(100, dtype=F64), rtol=0, atol=1e-10)
    torch.testing.assert_close(outputs.std(0), torch.ones(100, dtype=F64))


def test_tuning_follows_the_slope():
    x = gaussian(500, 5, dtype=F64)
    teacher = separated([5, 8, 6, 3], x=x, negative_slope=0.3, dtype=F64)
    assert teacher.negative_slope == 0.3
    torch.testing.assert_close(teacher(x).std(0), torch.ones(3, dtype=F64))
    assert ((teacher.activations(x)[1] > 0).sum(0) - 250).abs().max() <= 1


def test_float32_teacher_is_the_rounded_float64_teacher():
    narrow, wide = separated([10, 8, 4], seed=6), separated([10, 8, 4], seed=6, dtype=F64)
    for (w, b), (w_64, b_64) in zip(narrow.weights(), wide.weights(), strict=True):
        assert w.equal(w_64.float())
        assert b.equal(b_64.float())


def test_seeds_are_deterministic_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (two_layer(10, 5, 8, seed=s).weights()[0][0] for s in (0, 0, 1))
    assert torch.get_rng_state().equal(state)
    assert first.equal(again)
    assert not first.equal(other)


def test_all_directions_of_a_small_set_are_found():
    vectors = separated_vectors("m", 48, 2, STUDENT_SPECIALIZATION, generator(0, "test"))
    assert cosines(vectors).max() < 1 - 1e-6
    with pytest.raises(ValueError, match="m: got 49; takes at most 48, the directions of 2 weights"):
        separated_vectors("m", 49, 2, STUDENT_SPECIALIZATION, generator(0, "test"))
    with pytest.raises(ValueError, match="m: got 3; takes at most 2"):
        separated_vectors("m", 3, 1, STUDENT_SPECIALIZATION, generator(0, "test"))
    assert (
        separated_vectors("c", 8, 1, STUDENT_SPECIALIZATION, generator(0, "test"), parallel=True).unique().numel() == 8
    )


def test_directions_are_told_apart_beyond_rounding():
    tenths = [i / 10 for i in range(1, 10)]  # (.1, .3) and (.3, .9) have quotients of different last bits
    with pytest.raises(ValueError, match="m: got 56; takes at most 55, the directions"):
        separated_vectors("m", 56, 2, tenths, generator(0, "test"))


def test_drawn_and_enumerated_vectors_have_one_distribution():
    # 9^6 vectors are drawn, 9^5 are enumerated; each value of the set is equally likely in both
    for dim in (5, 6):
        vectors = separated_vectors("m", 4000, dim, STUDENT_SPECIALIZATION, generator(1, "test"))
        shares = torch.stack([(vectors == value).double().mean() for value in STUDENT_SPECIALIZATION])
        assert (shares - 1 / 9).abs().max() < 0.012
        assert (vectors != 0).any(dim=1).all()


def test_large_layers_are_drawn():
    assert separated_vectors("m", 500, 300, LUCK_MATTERS, generator(0, "test")).shape == (500, 300)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_layer(2, 49, 4), "m: got 49; takes at most 48"),
        (lambda: two_layer(4, 1, 9), "c: got 9; takes at most 8, the distinct nonzero vectors of 1 weights"),
        (lambda: two_layer(0, 1, 1), "d: got 0"),
        (lambda: two_layer(3, 2, 1, strength_decay=-1.0), "strength_decay: got -1.0"),
        (lambda: two_layer(3, 2, 1, bias=float("nan")), "bias: got nan"),
        (lambda: two_layer(3, 2, 1, weight_set=[]), "weight_set: got"),
        (lambda: two_layer(3, 2, 1, weight_set=[1.0, 1.0]), "weight_set: got"),
        (lambda: two_layer(3, 2, 1, weight_set=[0.0]), "m: got 2; takes at most 0"),
        (lambda: two_layer(3, 2, 1, weight_set=[1.0, float("inf")]), r"weight_set\[1\]: got inf"),
        (lambda: separated([1, 3, 2]), r"widths\[1\]: got 3; takes at most 2"),
        (lambda: separated([3]), "widths: got"),
        (lambda: separated([3, 2, 2], bias=-1.0), "bias: got -1.0"),
        (lambda: separated([3, 2, 2], bias=None, x=torch.ones(4, 3)), "x: got data to tune biases on"),
        (lambda: separated([3, 2, 2], x=torch.ones(4, 2)), r"x: got shape \[4, 2\]; takes \[samples, 3\]"),
        (lambda: separated([3, 2, 2], x=torch.ones(1, 3)), "x: got .* at least 2 samples"),
        (lambda: separated([3, 2, 2], x=torch.ones(4, 3)), "x: got data on which output 0 is constant"),
        (lambda: separated([3, 2, 2], x=torch.full((4, 3), torch.nan)), "x: got 12 of 12 values NaN"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_seeds_end_at_32_bits():
    assert generator(2**32 - 1, "teacher").initial_seed() < 2**32
    with pytest.raises(ValueError, match="seed: got 4294967296"):
        generator(2**32, "teacher")
