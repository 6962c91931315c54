"""The one-pass kernel, its merge and both plans, on CPU tensors."""

from __future__ import annotations

import math

import pytest
import torch
from guarded import LAYOUTS, guarded
from moments_oracle import assert_bitwise, correlation

from fastspec.ops.cross_moments import reference as cross_reference
from fastspec.ops.cross_moments.triton import cross_moments
from fastspec.ops.gpu import accumulate
from fastspec.ops.gpu.layout import Space, grain, index_type, reach
from fastspec.ops.layer_moments import plans, reference
from fastspec.ops.layer_moments.triton import layer_moments

pytestmark = pytest.mark.usefixtures("small", "poisoned")


def integers(*shape, dtype=torch.float32):
    return torch.randint(-3, 4, shape).to(dtype)


def layer(samples, inputs, m, n, *population, own=False, bias=True, dtype=torch.float32, draw=integers):
    x = draw(samples, inputs, dtype=dtype)
    x_student = draw(*population, samples, inputs + 3, dtype=dtype) if own else x
    teacher, student = draw(m, inputs, dtype=dtype), draw(*population, n, x_student.shape[-1], dtype=dtype)
    biases = (draw(m, dtype=dtype), draw(*population, n, dtype=dtype)) if bias else (None, None)
    return [x, teacher, biases[0], x_student, student, biases[1]]


def doubled(arguments):
    return [None if a is None else a.double() for a in arguments]


def assert_exact(arguments, slope, coactivation, activations, precision="fp32"):
    want = reference.layer_moments(*doubled(arguments), slope, "fp64", coactivation, activations)
    got = layer_moments(*arguments, slope, precision, coactivation, activations)
    assert_bitwise(got[:8], want[:8])
    for a, b in zip(got[8:], want[8:], strict=True):
        assert torch.equal(a.double(), b)


@pytest.mark.parametrize("plan", plans.NAMES)
@pytest.mark.parametrize(
    "population, own, bias, slope, coactivation, activations",
    [
        ((), False, True, 0.0, True, False),
        ((3,), False, True, 0.25, False, True),
        ((2,), True, False, 0.0, True, True),
        ((), True, True, 0.25, False, False),
    ],
)
def test_layers_of_integers_are_exact(plan, population, own, bias, slope, coactivation, activations):
    with plans.force(plan):
        assert_exact(layer(330, 18, 19, 21, *population, own=own, bias=bias), slope, coactivation, activations)


@pytest.mark.parametrize("plan", plans.NAMES)
@pytest.mark.parametrize("dtype, precision", [(torch.float64, "fp64"), (torch.float16, "fp32")], ids=str)
def test_other_dtypes_are_exact(plan, dtype, precision):
    with plans.force(plan):
        assert_exact(layer(130, 5, 3, 9, 2, dtype=dtype), 0.0, True, False, precision)


@pytest.mark.parametrize("plan", plans.NAMES)
def test_a_slope_of_float64_is_one(plan):
    arguments = [None if a is None else a / 7 for a in layer(100, 5, 3, 9, dtype=torch.float64)]
    want = reference.layer_moments(*arguments, 0.1, "fp64", False, True)
    with plans.force(plan):
        got = layer_moments(*arguments, 0.1, "fp64", False, True)
    for a, b in zip(got[:5] + got[8:], want[:5] + want[8:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("plan", plans.NAMES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (64, 16, 16, 16), (97, 4, 33, 5), (290, 0, 2, 3)], ids=str)
def test_edges_of_blocks_spans_and_tiles(plan, sizes):
    with plans.force(plan):
        assert_exact(layer(*sizes), 0.0, True, True)


@pytest.mark.parametrize("plan", plans.NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inputs", [5, 8])
def test_any_strides_and_nothing_beside_the_inputs_is_read(plan, layout, inputs):
    with plans.force(plan):
        assert_exact([guarded(a, layout) for a in layer(150, inputs, 6, 19, 2)], 0.0, True, True)


def test_expanded_inputs_and_weights():
    x, teacher, bias, _, student, b = layer(100, 4, 3, 8)
    arguments = [x, teacher, bias, x.expand(3, -1, -1), student.expand(3, -1, -1), b.expand(3, -1)]
    for plan in plans.NAMES:
        with plans.force(plan):
            assert_exact(arguments, 0.0, True, False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("population", [(), (3,)])
def test_activations_of_any_strides(layout, population):
    t, s = integers(310, 19), integers(*population, 310, 20)
    got = cross_moments(guarded(t, layout), guarded(s, layout), "fp32", True)
    assert_bitwise(got, cross_reference.cross_moments(t.double(), s.double(), "fp64", True))


@pytest.mark.parametrize("space", [(6,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_positions_are_samples(space, channels_last):
    t, s = integers(17, 5, *space), integers(2, 17, 6, *space)
    want = cross_reference.cross_moments(t.double(), s.double(), "fp64", True)
    if channels_last:
        t, s = (a.movedim(-len(space) - 1, -1).contiguous().movedim(-1, -len(space) - 1) for a in (t, s))
    assert_bitwise(cross_moments(guarded(t), guarded(s), "fp32", True), want)


def test_axes_that_lie_alike_are_joined():
    whole, cut = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 6)[..., :5]
    assert Space.of(whole, whole) == ([1, 1, 20], [0, 0, 1], [0, 0, 1])
    assert Space.of(whole, cut) == ([1, 4, 5], [0, 5, 1], [0, 6, 1])


@pytest.mark.parametrize("plan", plans.NAMES)
def test_a_student_is_the_same_alone(plan):
    def normal(*shape, dtype):
        return torch.randn(shape, dtype=dtype)

    x, w_t, b_t, _, w_s, b_s = layer(200, 6, 7, 21, 5, draw=normal)
    with plans.force(plan):
        together = layer_moments(x, w_t, b_t, x, w_s, b_s, 0.0, "fp32", True, False)
        for k in (0, 3, 4):
            alone = layer_moments(x, w_t, b_t, x, w_s[k], b_s[k], 0.0, "fp32", True, False)
            assert_bitwise([v if i in (0, 2, 5) else v[k] for i, v in enumerate(together[:8])], alone[:8])


def test_rounds_and_slabs_change_no_bit(monkeypatch):
    t, s = torch.randn(700, 18), torch.relu(torch.randn(700, 50))
    parts = cross_moments(t, s, "fp32", True)
    monkeypatch.setattr(accumulate, "WORKSPACE", 2**30)
    monkeypatch.setattr(accumulate, "SPANS", 64)
    assert_bitwise(parts, cross_moments(t, s, "fp32", True))


REGIMES = {
    "scale 1e-2": (0.0, 1e-2), "scale 1e-5": (0.0, 1e-5), "mean 100, sd 1": (100.0, 1.0),
    "mean 1000, sd .1": (1000.0, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", REGIMES)
def test_correlations_are_right_in_every_regime(name):
    mean, deviation = REGIMES[name]
    common = torch.randn(600, 1, dtype=torch.float64)
    t, s = (mean + deviation * (common + torch.randn(600, k, dtype=torch.float64)) for k in (5, 18))
    t, s = t.float(), s.float()
    want = correlation(cross_reference.cross_moments(t.double(), s.double(), "fp64", False))
    assert (correlation(cross_moments(t, s, "fp32", False)) - want).abs().max() <= 1e-6


def test_first_samples_far_from_the_others():
    t, s = torch.randn(600, 3), torch.randn(600, 4)
    t[:40] += 1000
    s[:40] -= 500
    want = correlation(cross_reference.cross_moments(t.double(), s.double(), "fp64", False))
    assert (correlation(cross_moments(t, s, "fp32", False)) - want).abs().max() <= 1e-5


def test_constant_nodes_have_no_scatter():
    t, s = torch.randn(333, 4), torch.randn(333, 5)
    t[:, 1], s[:, 2], s[:, 3] = 0.1, 1e6 / 3, 0.0
    got = cross_moments(t, s, "fp32", False)
    assert got[2][1] == 0 and (got[3][2:4] == 0).all() and (got[4][1] == 0).all() and (got[4][:, 2:4] == 0).all()


@pytest.mark.parametrize("plan", plans.NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_with_its_node(plan, value):
    arguments = layer(150, 5, 4, 20)
    arguments[4][7, 2] = value
    with plans.force(plan):
        out = layer_moments(*arguments, 0.0, "fp32", False, False)
    bad = ~out[3].isfinite()
    assert bad.nonzero().flatten().tolist() == [7]
    assert out[4][:, ~bad].isfinite().all() and not out[4][:, bad].isfinite().any() and out[2].isfinite().all()


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (7, 3, 0, 5), (7, 3, 4, 0)], ids=str)
def test_empty_problems(sizes):
    assert_exact(layer(*sizes), 0.0, True, True)
    t, s = integers(sizes[0], sizes[2]), integers(sizes[0], sizes[3])
    want = cross_reference.cross_moments(t.double(), s.double(), "fp64", True)
    assert_bitwise(cross_moments(t, s, "fp32", True), want)


def test_offsets_beyond_32_bits(tmp_path):
    """A sparse file of more than 2^31 elements; rows, columns and students far apart in it."""
    far = 2**31 + 64
    elements = torch.from_file(str(tmp_path / "sparse"), shared=True, size=far + 2**20, dtype=torch.float32)
    t, s = integers(40, 3), integers(2, 40, 5)
    distant_t, distant_s = (
        elements.as_strided((40, 3), (3, far // 2)),
        elements.as_strided((2, 40, 5), (far, 5, 1), 512),
    )
    distant_t.copy_(t), distant_s.copy_(s)
    assert index_type(reach(distant_t, 0, 16)) is not index_type(reach(t, 0, 16))
    want = cross_reference.cross_moments(t.double(), s.double(), "fp64", True)
    assert_bitwise(cross_moments(distant_t, distant_s, "fp32", True), want)
    x, w_t, b_t, _, w_s, b_s = layer(40, 3, 4, 5, 2)
    distant_x, distant_w = elements.as_strided((40, 3), (1, far // 2)), elements.as_strided((2, 5, 3), (far, 3, 1), 768)
    distant_x.copy_(x), distant_w.copy_(w_s)
    for plan in plans.NAMES:
        with plans.force(plan):
            assert_exact([distant_x, w_t, b_t, distant_x, distant_w, b_s], 0.0, True, False)


def test_the_border_of_32_bits():
    assert str(index_type(2**31 - 1, 5)) == "int32" and str(index_type(5, 2**31)) == "int64"
    assert reach(torch.zeros(4, 6)) == 23 and reach(torch.zeros(4, 6), 0, 2) == 11 and reach(None) == 0


def test_when_four_elements_are_read_at_once():
    assert grain((1, 1), (8, 12, 0)) == 4 and grain((1, 2), (8, 12)) == 1 and grain((1,), (8, 6)) == 1
