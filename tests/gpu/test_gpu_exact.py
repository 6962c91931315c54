"""What must agree bit by bit: small integers with the CPU's specification, runs, populations, and any strides."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE, EVERY_PLAN, LOW, PLANS, integers, layers, normal, on, strided
from moments_oracle import assert_bitwise

from benchmarks.precision import dtype_of
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.cross_moments import reference as cross_reference
from fastspec.ops.layer_moments import layer_moments, plans, reference
from fastspec.ops.linear_relu import linear_relu
from fastspec.ops.linear_relu import reference as linear_relu_reference
from fastspec.ops.precision import PRECISIONS

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
POPULATIONS = [((), False), ((3,), False), ((3,), True)]


def calls(args, plan, *, precision=None, everything=True, slope=0.0):
    with plans.force(plan):
        return layer_moments(*args, slope, everything, everything, precision=precision)


def of_student(moments, k):
    return [value if i in (0, 2, 5) or not value.numel() else value[k] for i, value in enumerate(moments)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("plan", EVERY_PLAN)
@pytest.mark.parametrize("population, own", POPULATIONS)
def test_integers_agree_bitwise_with_the_cpu_reference(population, own, plan, precision):
    """Every sum is exact at every precision: operands are integers of at most eight bits."""
    args = layers(3000, 6, 13, 21, *population, dtype=dtype_of(precision), own=own, integer=True)
    got, kept = calls(args, plan, precision=precision)
    want = reference.layer_moments(*on("cpu", args, torch.float64), 0.0, "fp64", True, True)
    assert_bitwise([value.cpu() for value in got], want[:8])
    for activation, exact in zip(kept, want[8:], strict=True):
        assert torch.equal(activation.cpu().double(), exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1000, 13, 40), (385, 100, 4), (64, 1, 300), (20_000, 3, 5)])
def test_integers_of_given_activations(shape, dtype):
    n, m, k = shape
    t, s = integers(n, m, dtype=dtype, high=6), integers(2, n, k, dtype=dtype, high=6)
    got = cross_moments(t, s, True)
    want = cross_reference.cross_moments(*on("cpu", (t, s), torch.float64), "fp64", True)
    assert_bitwise([value.cpu() for value in got], want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (500, 6, 8), (5000, 3, 13), (50, 40, 100)])
def test_integers_of_a_layer(shape, dtype):
    samples, d, n = shape
    args = integers(samples, d, dtype=dtype), integers(2, n, d, dtype=dtype), integers(2, n, dtype=dtype)
    got = linear_relu(*args, negative_slope=0.25)
    want = linear_relu_reference.linear_relu(*on("cpu", args, torch.float64), 0.25, "fp64")
    assert torch.equal(got.activation.cpu(), want[0].to(dtype))
    for value, exact in zip(got[1:], want[1:], strict=True):
        assert torch.equal(value.cpu(), exact)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("plan", EVERY_PLAN)
def test_ten_runs_agree_bitwise(plan, precision):
    args = layers(40_000, 50, 60, 300, 2, dtype=dtype_of(precision))
    first, first_kept = calls(args, plan, precision=precision)
    for _ in range(9):
        again, kept = calls(args, plan, precision=precision)
        assert_bitwise(again, first)
        assert all(torch.equal(a, b) for a, b in zip(kept, first_kept, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ten_runs_of_the_other_ops_agree_bitwise(precision):
    t, s = (normal(40_000, n, dtype=dtype_of(precision)) for n in (60, 300))
    moments = cross_moments(t, s, True, precision)
    layer = linear_relu(t, s[:100, :60], None, precision=precision)
    for _ in range(9):
        assert_bitwise(cross_moments(t, s, True, precision), moments)
        again = linear_relu(t, s[:100, :60], None, precision=precision)
        assert all(torch.equal(a, b) for a, b in zip(again, layer, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("width", [5, 72])
def test_a_student_alone_is_the_same_as_in_its_population(width, own, plan, precision):
    x, w_t, b_t, x_s, w_s, b_s = layers(5000, 12, 24, width, 7, dtype=dtype_of(precision), own=own)
    together, _ = calls((x, w_t, b_t, x_s, w_s, b_s), plan, precision=precision)
    for k in (0, 3, 6):
        alone, _ = calls((x, w_t, b_t, x_s[k] if own else x_s, w_s[k], b_s[k]), plan, precision=precision)
        assert_bitwise(of_student(together, k), alone)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("width", [5, 72, 200])
def test_a_student_in_a_block_is_the_same_in_any_company(width, counts, precision):
    x, w_t, b_t, _, w_s, b_s = layers(5000, 13, 24, width, 40, dtype=dtype_of(precision))

    def measured(students):
        with plans.force("blocks"):
            args = x, w_t, b_t, x, w_s[students], b_s[students]
            return layer_moments(*args, 0.1, counts, True, precision=precision)

    together, kept = measured(slice(None))
    for students, place in (([17], 0), ([39, 17, 2], 1), (list(range(10, 30)), 7)):
        few, activations = measured(students)
        assert_bitwise(of_student(few, place), of_student(together, 17))
        assert torch.equal(activations[1][place], kept[1][17])


@pytest.mark.parametrize("kind", ["transposed", "slice", "misaligned"])
@pytest.mark.parametrize("plan", EVERY_PLAN)
@pytest.mark.parametrize("population, own", POPULATIONS)
def test_any_strides(population, own, plan, kind):
    args = layers(900, 12, 8, 20, *population, own=own, integer=True)
    got, kept = calls([strided(a, kind) for a in args], plan)
    want, plain = calls(args, plan)
    assert_bitwise(got, want)
    assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))


@pytest.mark.parametrize("precision", LOW)
def test_expanded_weights_and_inputs(precision):
    x, w_t, b_t, _, w_s, b_s = layers(2000, 8, 12, 20)
    alone, _ = calls((x, w_t, b_t, x, w_s, b_s), "recompute", precision=precision)
    everywhere = x.expand(4, -1, -1), w_s.expand(4, -1, -1), b_s.expand(4, -1)
    own, _ = calls((x, w_t, b_t, *everywhere), "recompute", precision=precision)
    for k in range(4):
        assert_bitwise(of_student(own, k), alone)


SPATIAL = {
    "sequence": lambda t, s: (t.flatten(2), s.flatten(2)),
    "image": lambda t, s: (t, s),
    "volume": lambda t, s: (t.unflatten(2, (2, 3)), s.unflatten(2, (2, 3))),
    "channels last": lambda t, s: tuple(a.to(memory_format=torch.channels_last) for a in (t, s)),
    "one side channels last": lambda t, s: (t, s.to(memory_format=torch.channels_last)),
    "transposed": lambda t, s: (t.transpose(2, 3), s.transpose(2, 3)),
    "cropped": lambda t, s: (t[1:, :, 2:-1, ::2], s[1:, :, 2:-1, ::2]),
    "expanded": lambda t, s: (t[:1].expand(len(t), -1, -1, -1), s),
}


@pytest.mark.parametrize("kind", SPATIAL)
@pytest.mark.parametrize("population", [False, True])
def test_convolutional_activations_by_strides(kind, population):
    t, s = SPATIAL[kind](integers(40, 5, 6, 7, high=6), integers(40, 19, 6, 7, high=6))
    rows = [a.movedim(1, -1).flatten(0, -2).contiguous() for a in (t, s)]
    s_of_three = torch.stack([s, s + 1, s * 2]) if population else s
    want = cross_moments(*rows, True)
    got = cross_moments(t, s_of_three, True)
    assert_bitwise(of_student(got, 0) if population else got, want)


def test_constant_nodes_and_nan_stay_with_themselves():
    t, s = normal(5000, 8).relu(), normal(5000, 40).relu()
    t[:, 1], s[:, 3] = 0.1, -7.3e5
    t[4000, 5], s[20, 33] = float("nan"), float("inf")
    moments = cross_moments(t, s)
    assert float(moments.teacher_scatter[1]) == float(moments.student_scatter[3]) == 0
    assert not moments.cross_scatter[1].nan_to_num().any()
    broken = ~moments.cross_scatter.isfinite()
    assert broken[5].all() and broken[:, 33].all() and int(broken.sum()) == 8 + 40 - 1


@pytest.mark.parametrize(
    "n, m, k, population", [(0, 3, 4, ()), (0, 3, 4, (2,)), (5, 3, 4, (0,)), (5, 0, 4, ()), (5, 3, 0, ())]
)
def test_empty_problems(n, m, k, population):
    args = layers(n, 6, m, k, *population, integer=True)
    got, kept = layer_moments(*args, 0.0, True, True)
    want = reference.layer_moments(*on("cpu", args), 0.0, "fp32", True, True)
    assert_bitwise([value.cpu() for value in got], want[:8])
    assert [a.shape for a in kept] == [a.shape for a in want[8:]] and kept[0].device.type == DEVICE
