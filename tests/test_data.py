"""Noise, boundary points, augmentation, digits."""

from __future__ import annotations

import math

import pytest
import torch

from fastspec.data import augmented, crops_and_flips, digits, gaussian, teacher_boundary, uniform
from fastspec.networks import MLP
from fastspec.teachers import two_layer


def test_gaussian():
    x = gaussian(20_000, 4, std=1.5, seed=1)
    assert x.dtype == torch.float32
    assert (x.mean(0).abs() < 0.05).all()
    assert ((x.std(0) - 1.5).abs() < 0.03).all()
    assert gaussian(20_000, 4, std=1.5, seed=1).equal(x)
    assert gaussian(20_000, 4, std=1.5, seed=1, dtype=torch.float64).equal(x.double())
    assert not gaussian(20_000, 4, std=1.5, seed=2).equal(x)
    assert gaussian(3, (1, 5, 5)).shape == (3, 1, 5, 5)


def test_uniform():
    x = uniform(20_000, 4, low=2.0, high=5.0)
    assert x.min() >= 2
    assert x.max() <= 5
    assert abs(float(x.mean()) - 3.5) < 0.02
    assert abs(float(x.std()) - 3 / math.sqrt(12)) < 0.02


def test_data_and_teachers_of_one_seed_share_no_numbers():
    state = torch.get_rng_state()
    weight = MLP([50, 40, 2], seed=0, dtype=torch.float64).weights()[0][0]
    noise = gaussian(40, 50, seed=0, dtype=torch.float64)
    assert torch.get_rng_state().equal(state)
    assert abs(float(torch.corrcoef(torch.stack([weight.flatten(), noise.flatten()]))[0, 1])) < 0.1


def test_boundary_points_of_a_bias_free_teacher_lie_on_their_boundary():
    teacher = two_layer(30, 5, 4, bias=0.0, dtype=torch.float64)
    w = teacher.weights()[0][0]
    x = teacher_boundary(teacher, 100, seed=3)
    assert x.shape == (3 * 5 * 7, 30)
    torch.testing.assert_close(x.norm(dim=1), torch.full((105,), 1.5 * 30**0.5, dtype=torch.float64))
    for node, points in enumerate(x.view(5, 3, 7, 30)):
        on, above, below = points @ w[node]
        torch.testing.assert_close(on, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)
        assert (above > 0).all()
        torch.testing.assert_close(below, -above)
        assert points[0].unique(dim=0).shape[0] == 7


def test_boundary_points_follow_their_construction():
    teacher = two_layer(30, 1, 4, bias=-2.0, dtype=torch.float64)
    (w, b), _ = teacher.weights()
    on, above, below = teacher_boundary(teacher, 300, mean=3.0, sigma=0.5).view(3, 100, 30)
    # before the last scaling by 1 / r the points were x0, x0 + a w, x0 - a w, with w x0 = -b and |w| = 1
    r = -b / (on @ w[0])
    torch.testing.assert_close(on @ w[0] * r, torch.full((100,), 2.0, dtype=torch.float64))
    along = (on * r[:, None]).norm(dim=1)
    for points, sign in ((above, 1), (below, -1)):
        # |x0 + s a w|^2 = |x0|^2 + 2 s a (w x0) + a^2, and the component along w is w x0 + s a
        ratio = (points @ w[0]) / (1.5 * 30**0.5)  # (2 + s a) / |x0 + s a w|
        a = torch.linspace(3.0, 3.5, 51, dtype=torch.float64)
        possible = (2 + sign * a) / (along[:, None].square() + 4 * sign * a + a.square()).sqrt()
        low, high = possible.amin(1), possible.amax(1)
        assert ((ratio > low - 1e-9) & (ratio < high + 1e-9)).all()
        assert ((ratio - low) / (high - low)).std() > 0.2  # spread over the interval


def test_boundary_points_are_those_of_folded_batch_norm():
    teacher = MLP([6, 4, 2], batch_norm="before", dtype=torch.float64)
    with torch.no_grad():
        for tensor in (*teacher.norms[0].parameters(), teacher.norms[0].running_mean, teacher.norms[0].running_var):
            tensor.uniform_(0.5, 2.0)
    folded = MLP.from_weights(teacher.folded())
    assert torch.equal(teacher_boundary(teacher, 30), teacher_boundary(folded, 30))


def test_boundary_points_are_gaussian_along_their_boundary():
    teacher = two_layer(30, 1, 4, bias=0.0, dtype=torch.float64)
    w = teacher.weights()[0][0][0]
    above = teacher_boundary(teacher, 6000, std=1.5, mean=2.0, sigma=0.0).view(3, 2000, 30)[1]
    share = above @ w / above.norm(dim=1)  # 2 / sqrt(|x0|^2 + 4)
    squared = 4 / share.square() - 4
    assert abs(float(squared.mean()) / (1.5**2 * 29) - 1) < 0.03
    assert abs(float(squared.std()) / (1.5**2 * 58**0.5) - 1) < 0.06  # chi-squared with 29 degrees of freedom


def test_augmented_moves_along_every_direction():
    x = gaussian(4, 3)
    units = augmented(x, 0.5).view(7, 4, 3)
    assert units[0].equal(x)
    for u in range(3):
        moved = torch.zeros(3)
        moved[u] = 0.5
        assert units[1 + 2 * u].equal(x + moved)
        assert units[2 + 2 * u].equal(x - moved)
    w = torch.tensor([[1.0, 2.0, 3.0]])
    assert augmented(x, 2.0, w)[4:8].equal(x + 2 * w)


def test_crops_and_flips_are_places_in_the_margin():
    x = gaussian(1500, (2, 3, 4))
    found = crops_and_flips(x, padding=1, seed=3)
    margin = torch.nn.functional.pad(x, (1, 1, 1, 1))
    crops = [margin[:, :, top : top + 3, left : left + 4] for top in range(3) for left in range(3)]
    every = torch.stack([*crops, *(crop.flip(3) for crop in crops)])  # [18, N, C, H, W]
    hits = (every == found).flatten(2).all(2)
    assert hits.any(0).all()
    counts = hits.sum(1)
    assert counts.min() > 45 and counts.max() < 125  # 1500 / 18, within 4.5 standard deviations
    assert crops_and_flips(x, padding=1, seed=3).equal(found)
    assert not crops_and_flips(x, padding=1, seed=3, epoch=1).equal(found)
    assert crops_and_flips(x[:0]).shape == (0, 2, 3, 4)


def test_digits_are_split_and_standardised():
    data = digits(held_out=0.2, seed=1)
    assert len(data.held_out) == 360
    assert len(data.train) == 1437
    assert data.train.x.shape == (1437, 64)
    assert data.train.y.dtype == torch.int64
    assert abs(float(data.train.x.mean())) < 1e-6
    assert abs(float(data.train.x.std(correction=0)) - 1) < 1e-5
    shares = [part.y.bincount(minlength=10) / len(part) for part in (data.train, data.held_out)]
    assert (shares[0] - shares[1]).abs().max() < 0.003
    every = torch.cat([data.train.x, data.held_out.x])
    assert every.unique().numel() == 17  # pixels 0 to 16, one scale for both splits
    assert digits(held_out=0.2, seed=1).train.x.equal(data.train.x)
    assert not digits(held_out=0.2, seed=2).train.x.equal(data.train.x)


DEAD = MLP.from_weights([(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.ones(2)), (torch.ones(1, 2), None)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian(0, 3), "n: got 0"),
        (lambda: gaussian(3, 0), "d: got 0"),
        (lambda: gaussian(3, (2, 0)), r"d\[1\]: got 0"),
        (lambda: gaussian(3, 3, std=-1.0), "std: got -1.0"),
        (lambda: gaussian(3, 3, seed=-1), "seed: got -1"),
        (lambda: uniform(3, 3, low=1.0, high=1.0), "high: got 1.0; takes a finite number above low, 1.0"),
        (lambda: uniform(3, 3, low=float("nan")), "low: got nan"),
        (lambda: teacher_boundary(DEAD, 10), r"teacher: got first-layer nodes \[0\] with all weights 0"),
        (lambda: teacher_boundary([1], 10), "teacher: got list"),
        (lambda: teacher_boundary(two_layer(3, 2, 2), 0), "n: got 0"),
        (lambda: teacher_boundary(two_layer(3, 2, 2), 5, sigma=-1.0), "sigma: got -1.0"),
        (lambda: augmented(torch.ones(2, 3), 1.0, torch.ones(1, 2)), r"directions: got shape \[1, 2\]; takes \[k, 3\]"),
        (lambda: augmented(torch.ones(3), 1.0), r"x: got shape \[3\]"),
        (lambda: crops_and_flips(torch.ones(2, 3)), r"x: got shape \[2, 3\]"),
        (lambda: crops_and_flips(torch.ones(1, 1, 2, 2), padding=-1), "padding: got -1"),
        (lambda: digits(held_out=0.0), "held_out: got 0.0"),
        (lambda: digits(held_out=1.0), "held_out: got 1.0"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
