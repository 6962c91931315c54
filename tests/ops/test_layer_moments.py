"""Op layer_moments: the moments of activations that are never stored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from moments_oracle import FIELDS, assert_bitwise, assert_close, assert_same, correlation, two_pass

from fastspec.ops import library
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.layer_moments import layer_moments, reference
from fastspec.ops.precision import check_precision

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def problem(n, d, m, k, *population, dtype=torch.float32, own=False, bias=True, integer=False):
    """The six tensors of a call; students with inputs of their own when `own`."""

    def draw(*shape):
        if integer:
            return torch.randint(-3, 4, shape).to(dtype)
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    x, width = draw(n, d), d + 3 if own else d
    x_student = draw(*population, n, width) if own else x
    scale = 1 if integer else d**0.5
    weights = draw(m, d) / scale, draw(*population, k, width) / scale
    biases = (draw(m), draw(*population, k)) if bias else (None, None)
    return x, weights[0], biases[0], x_student, weights[1], biases[1]


def doubled(args):
    return [None if a is None else a.double() for a in args]


NAMES = (*FIELDS[:5], "teacher_activation", "student_activation")
ACTIVATION_ERROR = 0.0 if library.native_error() is None else 2e-6  # torch's products vary with strides
SHAPES = [(1, 1, 1, 1), (5, 3, 2, 17), (100, 20, 50, 7), (390, 784, 13, 33), (3000, 20, 50, 90)]


def extended(args, slope):
    """Means, scatters and activations of one student in 80-bit arithmetic."""
    x, w_t, b_t, _, w_s, b_s = [None if a is None else a.numpy().astype(np.longdouble) for a in args]
    t, s = (x @ w.T + (0 if b is None else b) for w, b in ((w_t, b_t), (w_s, b_s)))
    t, s = np.where(t > 0, t, slope * t), np.where(s > 0, s, slope * s)
    t_mean, s_mean = t.mean(0), s.mean(0)
    a, b = t - t_mean, s - s_mean
    return t_mean, s_mean, (a * a).sum(0), (b * b).sum(0), a.T @ b, t, s


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("slope, bias", [(0.0, True), (0.0, False), (0.25, True), (1.0, True)])
def test_within_twice_the_error_of_torch(shape, dtype, slope, bias):
    args = problem(*shape, dtype=dtype, bias=bias)
    want = extended(args, slope)
    moments, kept = layer_moments(*args, slope, True, True)
    peer = reference.layer_moments(
        *args, slope, check_precision(None, dtype), True, True
    )  # torch, activations in the same precision
    spread_t, spread_s = want[2].max() ** 0.5, want[3].max() ** 0.5
    sizes = (abs(want[0]).max(), abs(want[1]).max(), spread_t**2, spread_s**2, spread_t * spread_s)
    sizes += (abs(want[5]).max(), abs(want[6]).max())
    floor = torch.finfo(dtype).eps * (shape[0] + shape[1]) ** 0.5
    for name, size, a, p, w in zip(NAMES, sizes, (*moments[:5], *kept), (*peer[:5], *peer[8:]), want, strict=True):
        error, torchs = (float(abs(v.numpy() - w).max() / (size or 1)) for v in (a, p))
        assert error <= 2 * torchs + floor, f"{name}: {error:.1e} against torch's {torchs:.1e}"


def test_hands_out_the_activations_that_it_measured():
    args = problem(3000, 784, 13, 33)  # deep inputs: the two ops cut their chunks differently
    moments, (t, s) = layer_moments(*args, 0.0, True, True)
    assert_close(moments, cross_moments(t, s, True), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("population, own", [((), False), ((), True), ((3,), False), ((4,), True)])
def test_integers_agree_bitwise_with_the_reference(dtype, population, own):
    args = problem(800, 6, 13, 21, *population, dtype=dtype, own=own, integer=True)
    got, _ = layer_moments(*args, 0.0, True)
    assert_bitwise(got, reference.layer_moments(*doubled(args), 0.0, "fp64", True, False)[:8])


@pytest.mark.parametrize("dtype, bound", [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)], ids=str)
def test_half_inputs_are_accumulated_in_float32(dtype, bound):
    args = problem(2000, 100, 20, 60, dtype=dtype)
    want = reference.layer_moments(*doubled(args), 0.0, "fp64", False, True)
    got, (t, s) = layer_moments(*args, 0.0, False, True)
    assert (correlation(got) - correlation(want)).abs().max() < 2e-6  # far below the inputs' own rounding
    assert t.dtype == s.dtype == dtype
    assert all(a.dtype == dtype for a in reference.layer_moments(*args, 0.0, "fp32", False, True)[8:])
    assert (s.double() - want[9]).abs().max() <= bound * want[9].abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_activations_are_rounded_to_nearest_even(dtype):
    """Every number of a dtype, with a quarter, a half and three quarters of the way to the next; and NaN."""
    last = int(torch.tensor(torch.inf, dtype=dtype).view(torch.int16))
    numbers = torch.arange(last, dtype=torch.int16)
    gaps = (numbers + 1).view(dtype).float() - numbers.view(dtype).float()
    gaps[-1] = gaps[-2]
    x = torch.stack([numbers.view(dtype), gaps.to(dtype)], 1)
    x = torch.cat([x, torch.tensor([[torch.nan, 0.0]], dtype=dtype)])
    weight = torch.tensor([[1, 0.25], [1, 0.5], [1, 0.75]], dtype=dtype)
    want = (x[:, :1].float() + x[:, 1:].float() * weight[:, 1].float()).to(dtype)
    for kept in layer_moments(x, weight, None, x, weight, None, activations=True)[1]:
        torch.testing.assert_close(kept, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("width", [1, 5, 16, 40])
def test_a_student_does_not_depend_on_its_population(own, width):
    x, w_t, b_t, x_s, w_s, b_s = problem(2000, 11, 9, width, 7, own=own)
    together, (_, activations) = layer_moments(x, w_t, b_t, x_s, w_s, b_s, 0.1, True, True)
    for k in range(7):
        alone, (_, one) = layer_moments(x, w_t, b_t, x_s[k] if own else x_s, w_s[k], b_s[k], 0.1, True, True)
        assert_same([v if i in (0, 2, 5) else v[k] for i, v in enumerate(together)], alone)
        torch.testing.assert_close(activations[k], one, rtol=0, atol=ACTIVATION_ERROR)


def strided(tensor, kind):
    if tensor is None:
        return None
    if kind == "transposed":
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor
    if kind == "slice":
        wide = torch.full([2 * e + 1 for e in tensor.shape], float("nan"))
        view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
        view.copy_(tensor)
        return view
    return torch.cat([torch.full((1,), float("nan")), tensor.flatten()])[1:].view(tensor.shape)  # misaligned


@pytest.mark.parametrize("kind", ["transposed", "slice", "misaligned"])
@pytest.mark.parametrize("population, own", [((), False), ((3,), False), ((3,), True)])
def test_any_strides(kind, population, own):
    args = problem(500, 12, 7, 19, *population, own=own)
    got, kept = layer_moments(*(strided(a, kind) for a in args), 0.0, True, True)
    want, plain = layer_moments(*args, 0.0, True, True)
    assert_same(got, want)
    torch.testing.assert_close(kept, plain, rtol=0, atol=ACTIVATION_ERROR)


def test_expanded_weights_and_inputs():
    x, w_t, b_t, _, w_s, b_s = problem(300, 5, 3, 8)
    shared, _ = layer_moments(x, w_t, b_t, x, w_s.expand(4, -1, -1), b_s.expand(4, -1))
    alone, _ = layer_moments(x, w_t, b_t, x, w_s, b_s)
    for k in range(4):
        assert torch.equal(shared.cross_scatter[k], alone.cross_scatter)
    own, _ = layer_moments(x, w_t, b_t, x.expand(4, -1, -1), w_s.expand(4, -1, -1), b_s.expand(4, -1))
    assert torch.equal(own.cross_scatter, shared.cross_scatter)


def test_views_of_one_array_with_different_widths():
    x, w_t, b_t, _, w_s, b_s = problem(700, 9, 4, 20)
    got, _ = layer_moments(x[:, :5], w_t[:, :5], b_t, x, w_s, b_s)
    want, _ = layer_moments(x[:, :5].clone(), w_t[:, :5], b_t, x.clone(), w_s, b_s)
    assert_same(got, want)


@pytest.mark.parametrize("m, k", [(1, 1), (13, 200), (700, 30), (30, 9000)])
def test_wide_layers(m, k):
    args = problem(150, 4, m, k)
    got, (t, s) = layer_moments(*args, 0.0, False, True)
    assert_close([*got[:7], torch.zeros(0)], [*two_pass(t, s)[:7], torch.zeros(0)], 2e-6)


@pytest.mark.native
def test_slabs_agree_with_one_piece():
    """90,000 student nodes against 64 teachers exceed one slab of sums; the columns agree with a small problem's."""
    x, w_t, b_t, _, w_s, b_s = problem(200, 3, 64, 90_000)
    whole, _ = layer_moments(x, w_t, b_t, x, w_s, b_s, 0.0, True)
    for part in (slice(0, 16), slice(70_000, 70_016), slice(-16, None)):
        piece, _ = layer_moments(x, w_t, b_t, x, w_s[part], b_s[part], 0.0, True)
        assert torch.equal(whole.cross_scatter[:, part], piece.cross_scatter)
        assert torch.equal(whole.coactive[:, part], piece.coactive)
        assert torch.equal(whole.student_mean[part], piece.student_mean)


def test_the_gate_is_off_at_zero():
    x = torch.tensor([[1.0], [0.0], [-1.0]])
    one = torch.ones(1, 1)
    moments, (t, _) = layer_moments(x, one, None, x, one, None, 0.0, True, True)
    assert t.flatten().tolist() == [1, 0, 0]
    assert (int(moments.teacher_active), int(moments.student_active), int(moments.coactive)) == (1, 1, 1)


@pytest.mark.parametrize("where", ["x", "weight", "bias"])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_nan_is_not_swallowed_by_the_gate(where, slope):
    x, w_t, b_t, _, w_s, b_s = problem(600, 5, 4, 20)
    {"x": x, "weight": w_s, "bias": b_s}[where].view(-1)[7] = float("nan")
    moments, _ = layer_moments(x, w_t, b_t, x, w_s, b_s, slope)
    bad = moments.student_scatter.isnan()
    assert int(bad.sum()) == (20 if where == "x" else 1)
    assert moments.cross_scatter[:, bad].isnan().all() and not moments.cross_scatter[:, ~bad].isnan().any()


@pytest.mark.native
def test_does_not_depend_on_threads():
    args = problem(5000, 10, 20, 70)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(layer_moments(*args, 0.0, True)[0])
    finally:
        torch.set_num_threads(threads)
    assert_bitwise(results[1], results[0])
    assert_bitwise(results[2], results[0])


@pytest.mark.parametrize(
    "n, m, k, population",
    [(0, 3, 4, ()), (0, 3, 4, (2,)), (5, 3, 4, (0,)), (5, 0, 4, ()), (5, 3, 0, ()), (5, 3, 0, (2,))],
)
def test_empty_problems(n, m, k, population):
    args = problem(n, 6, m, k, *population, integer=True)
    got, kept = layer_moments(*args, 0.0, True, True)
    want = reference.layer_moments(*args, 0.0, "fp32", True, True)
    assert_bitwise(got, want[:8])
    assert torch.equal(kept[0], want[8]) and torch.equal(kept[1], want[9])


def test_no_inputs_leave_the_bias():
    moments, (t, s) = layer_moments(*problem(9, 0, 3, 4), 0.0, False, True)
    assert torch.equal(t, t[:1].expand(9, -1)) and not moments.teacher_scatter.any()
    assert torch.equal(moments.student_mean, s[0].double())


@pytest.mark.parametrize("population, own", [((), False), ((3,), True)])
@pytest.mark.parametrize("coactivation, activations", list(itertools.product([False, True], repeat=2)))
def test_opcheck(population, own, coactivation, activations):
    args = problem(20, 3, 4, 5, *population, own=own)
    torch.library.opcheck(torch.ops.fastspec.layer_moments.default, (*args, 0.0, "fp32", coactivation, activations))


def test_compiles_without_a_graph_break():
    args = problem(50, 3, 4, 5, 2)
    compiled = torch.compile(layer_moments, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(*args, 0.1, True)[0], layer_moments(*args, 0.1, True)[0])


def test_fake_of_a_cuda_tensor():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(10, 4, device="cuda")
        w_t, w_s = torch.empty(3, 4, device="cuda"), torch.empty(2, 5, 4, device="cuda")
        out = torch.ops.fastspec.layer_moments(x, w_t, None, x, w_s, None, 0.0, "tf32", True, True)
    assert out[4].shape == (2, 3, 5) and out[9].shape == (2, 10, 5) and out[9].device.type == "cuda"


X, W, B, V = torch.zeros(8, 4), torch.zeros(3, 4), torch.zeros(3), torch.zeros(5, 4)
NAN = float("nan")
BAD = {
    "integer data": ((X.long(), W, B, X, V, None), TypeError, "teacher_input: got dtype torch.int64"),
    "a list": ((X, [[1.0]], B, X, V, None), TypeError, "teacher_weight: got list"),
    "rank": ((X[0], W, B, X, V, None), ValueError, r"teacher_input: got shape \[4\]"),
    "width of the teacher": ((X, W[:, :3], B, X, V, None), ValueError, "teacher_weight: got shape .* 4 inputs"),
    "width of the student": ((X, W, B, X, V[:, :3], None), ValueError, "student_weight: got shape .* 4 inputs"),
    "bias of the teacher": ((X, W, B[:2], X, V, None), ValueError, r"teacher_bias: got shape \[2\]; takes shape \[3\]"),
    "bias rank": ((X, W, B, X, V, torch.zeros(1, 5)), ValueError, "student_bias: got shape"),
    "samples": ((X, W, B, X[:3], V, None), ValueError, "student_input: got shape .* samples of teacher_input"),
    "networks": ((X, W, B, X.expand(2, -1, -1), V.expand(3, -1, -1), None), ValueError, "student_input: got"),
    "inputs of one network": ((X, W, B, X[None], V, None), ValueError, "student_input: got"),
    "dtypes": ((X, W, B, X, V.double(), None), TypeError, "student_weight: got dtype torch.float64"),
    "devices": ((X, W, B.to("meta"), X, V, None), ValueError, "teacher_bias: got device meta"),
    "slope": ((X, W, B, X, V, None, 1.5), ValueError, r"negative_slope: got 1.5; takes a number in \[0, 1\]"),
    "slope NaN": ((X, W, B, X, V, None, NAN), ValueError, "negative_slope: got nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    args, error, message = BAD[case]
    with pytest.raises(error, match=message):
        layer_moments(*args)


@pytest.mark.native
@pytest.mark.parametrize("case", [c for c in BAD if c not in ("a list", "slope", "slope NaN", "devices")])
def test_a_direct_call_does_not_read_out_of_bounds(case):
    args, _, _ = BAD[case]
    with pytest.raises(RuntimeError, match="fastspec"):
        torch.ops.fastspec.layer_moments(*args, 0.0, "fp32", True, True)
