"""Rounding: Gaussian data, the regimes where raw sums fail, constant nodes; and what must not change a bit."""

from __future__ import annotations

import pytest
import torch
from moments_oracle import FIELDS, assert_bitwise, correlation, two_pass
from problems import assert_exact_layers, draw, layers, of_student

from fastspec.ops.cross_moments.triton import cross_moments
from fastspec.ops.gpu import accumulate
from fastspec.ops.layer_moments import plans, reference
from fastspec.ops.layer_moments.triton import layer_moments


def within_twice_the_error(got, peer, want, floor):
    spread_t, spread_s = (float(want[i].max()) ** 0.5 for i in (2, 3))
    sizes = (float(want[0].abs().max()), float(want[1].abs().max()), spread_t**2, spread_s**2, spread_t * spread_s)
    for name, size, a, p, w in zip(FIELDS[:5], sizes, got, peer, want, strict=False):
        error, of_torch = (float((x - w).abs().max()) / size for x in (a, p))
        assert error <= 2 * of_torch + floor, f"{name}: {error:.1e} against torch's {of_torch:.1e}"


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.usefixtures("small")
def test_layers_within_twice_the_error_of_torch(way, slope):
    args = layers(75, 12, 9, 35, integer=False)
    want = reference.layer_moments(*(a.double() for a in args), slope, "fp64", False, True)
    peer = reference.layer_moments(*args, slope, "fp32", False, True)
    got = layer_moments(*args, slope, "fp32", False, True)
    within_twice_the_error(got, peer, want, torch.finfo(torch.float32).eps * (75 + 12) ** 0.5)
    for a, p, w in zip(got[8:], peer[8:], want[8:], strict=True):
        error, of_torch = (float((x - w).abs().max() / w.abs().max()) for x in (a, p))
        assert error <= 2 * of_torch + torch.finfo(torch.float32).eps * 12**0.5


REGIMES = {"scale 1e-2": (0, 1e-2), "scale 1e-5": (0, 1e-5), "mean 100": (100, 1), "mean 1000": (1000, 0.1)}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.usefixtures("small")
def test_correlations_of_layers(way, regime):
    """Of the activations as they were rounded: those of mean 1000 lose more to float32 than to the moments."""
    mean, scale = REGIMES[regime]
    x, w_t, _, _, w_s, _ = layers(75, 12, 5, 35, integer=False)
    args = x, w_t * scale, torch.full((5,), float(mean)), x, w_s * scale, torch.full((35,), float(mean))
    got = layer_moments(*args, 0.0, "fp32", False, True)
    assert (correlation(got) - correlation(two_pass(*got[8:]))).abs().max() <= 1e-5


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.usefixtures("small")
def test_correlations_of_activations(regime):
    mean, scale = REGIMES[regime]
    common = draw(75, 1, integer=False)
    t, s = ((common + draw(75, nodes, integer=False)) * scale + mean for nodes in (5, 35))
    got, want = cross_moments(t, s, "fp32", False), two_pass(t, s)
    assert (correlation(got) - correlation(want)).abs().max() <= 1e-5
    for i in (0, 1):
        torch.testing.assert_close(got[i], want[i], rtol=1e-7, atol=1e-7 * scale)


@pytest.mark.parametrize("count, value", [(1, 1e4), (5, -300.0), (16, 1000.0), (40, 1e3)])
@pytest.mark.usefixtures("small")
def test_first_samples_far_from_the_others(count, value):
    t, s = draw(75, 5, integer=False), draw(75, 35, integer=False)
    t[:count] += value
    s[:count] -= value / 2
    got, want = cross_moments(t, s, "fp32", False), two_pass(t, s)
    assert (correlation(got) - correlation(want)).abs().max() <= 1e-5


@pytest.mark.usefixtures("small")
def test_constant_and_dead_activations():
    t, s = draw(75, 4, integer=False), draw(75, 35, integer=False)
    t[:, 1], s[:, 2], s[:, 3] = 0.1, 1e6 / 3, 0.0
    got = cross_moments(t, s, "fp32", True)
    assert not got[2][1] and not got[3][2:4].any() and not got[4][1].any() and not got[4][:, 2:4].any()
    assert got[0][1] == t[0, 1].double() and got[1][2] == s[0, 2].double() and got[1][3] == 0
    assert (int(got[5][1]), int(got[6][2]), int(got[6][3])) == (75, 75, 0)


@pytest.mark.usefixtures("small")
def test_constant_and_dead_nodes(way):
    x, w_t, b_t, _, w_s, b_s = layers(75, 12, 5, 35, integer=False)
    w_t[1], b_t[1] = 0, 0.1
    w_s[2], b_s[2], b_s[3] = 0, 1e6 / 3, -1000
    got = layer_moments(x, w_t, b_t, x, w_s, b_s, 0.0, "fp32", True, False)
    assert not got[2][1] and not got[3][2:4].any() and not got[4][1].any() and not got[4][:, 2:4].any()
    assert got[0][1] == b_t[1].double() and got[1][2] == b_s[2].double() and got[1][3] == 0
    assert (int(got[5][1]), int(got[6][2]), int(got[6][3])) == (75, 75, 0)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.usefixtures("small")
def test_a_student_is_the_same_alone(way, own):
    x, w_t, b_t, x_s, w_s, b_s = layers(40, 6, 5, 21, (2,), own=own, integer=False)
    together = layer_moments(x, w_t, b_t, x_s, w_s, b_s, 0.2, "fp32", True, False)[:8]
    for k in range(2):
        one = x_s[k] if own else x_s, w_s[k], b_s[k]
        alone = layer_moments(x, w_t, b_t, *one, 0.2, "fp32", True, False)[:8]
        assert_bitwise(of_student(together, k), alone)


@pytest.mark.usefixtures("small")
def test_rounds_slabs_and_chunks_change_no_bit(way, monkeypatch):
    """Torch's products are bitwise the same for a slab of columns only where they are sums of integers."""
    args = layers(75, 5, 9, 35, integer=way == "stream by torch")
    parts = layer_moments(*args, 0.0, "fp32", False, False)[:8]
    monkeypatch.setattr(accumulate, "WORKSPACE", 2**30)
    monkeypatch.setattr(accumulate, "SPANS", 64)
    monkeypatch.setattr(plans, "ACTIVATIONS", 2**30)
    assert_bitwise(parts, layer_moments(*args, 0.0, "fp32", False, False)[:8])


@pytest.mark.usefixtures("small")
def test_rounds_and_slabs_change_no_bit(monkeypatch):
    t, s = draw(75, 9, integer=False), draw(2, 75, 35, integer=False)
    parts = cross_moments(t, s, "fp32", True)
    for workspace, spans in ((1, 64), (7000, 64), (2**30, 1), (2**30, 64)):
        monkeypatch.setattr(accumulate, "WORKSPACE", workspace)
        monkeypatch.setattr(accumulate, "SPANS", spans)
        assert_bitwise(cross_moments(t, s, "fp32", True), parts)


def test_layers_in_tiles_of_their_true_size(way):
    args = layers(300, 6, 13, 70)
    got = layer_moments(*args, 0.25, "fp32", False, True)
    assert_exact_layers(got, args, 0.25, False, True)
