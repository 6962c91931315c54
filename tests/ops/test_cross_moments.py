"""Op cross_moments: against a two-pass float64 oracle, on every layout that callers have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moments_oracle import assert_bitwise, assert_close, assert_same, correlation, two_pass

from fastspec.ops.cross_moments import cross_moments, reference
from fastspec.ops.precision import check_precision

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BOUND = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, dtype=torch.float64) - 0.2).relu().to(dtype)


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randint(-3, 6, shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, m, k", [(1, 1, 1), (2, 3, 17), (97, 6, 16), (400, 7, 33), (2500, 50, 90), (30_000, 3, 5)])
def test_agrees_with_two_passes(dtype, n, m, k):
    t, s = activations(n, m, dtype=dtype), activations(n, k, dtype=dtype)
    assert_close(cross_moments(t, s, True), two_pass(t, s), BOUND[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1000, 13, 40), (385, 100, 4), (64, 1, 300)])
def test_integers_agree_bitwise_with_the_reference(dtype, shape):
    n, m, k = shape
    t, s = integers(n, m, dtype=dtype), integers(3, n, k, dtype=dtype)
    assert_bitwise(cross_moments(t, s, True), reference.cross_moments(t, s, check_precision(None, dtype), True))


def spatial(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "sequence":
        return activations(40, 7, 9), activations(40, 12, 9)
    if kind == "volume":
        return activations(5, 3, 2, 3, 4), activations(5, 20, 2, 3, 4)
    t, s = activations(12, 5, 6, 7), activations(12, 19, 6, 7)
    return {
        "image": (t, s),
        "channels_last": (t.to(memory_format=torch.channels_last), s.to(memory_format=torch.channels_last)),
        "mixed": (t, s.to(memory_format=torch.channels_last)),
        "transposed": (t.transpose(2, 3), s.transpose(2, 3)),
        "cropped": (t[1:, :, 2:-1, ::2], s[1:, :, 2:-1, ::2]),
        "expanded": (t[:1].expand(12, -1, -1, -1), s),
        "offset": (activations(12 * 5 * 42 + 1)[1:].view(12, 5, 6, 7), s),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["sequence", "volume", "image", "channels_last", "mixed", "transposed", "cropped", "expanded", "offset"],
)
def test_convolutional_activations_by_strides(kind):
    t, s = spatial(kind)
    got = cross_moments(t, s, True)
    flat_t, flat_s = t.movedim(1, -1).flatten(0, -2), s.movedim(1, -1).flatten(0, -2)
    assert_same(got, cross_moments(flat_t.contiguous(), flat_s.contiguous(), True))
    assert_close(got, two_pass(flat_t, flat_s), 2e-6)


def test_a_population_with_positions():
    t, s = activations(6, 4, 5, 5), activations(3, 6, 9, 5, 5)
    got = cross_moments(t, s, True)
    for k in range(3):
        one = cross_moments(t, s[k], True)
        assert_same([x if i in (0, 2, 5) else x[k] for i, x in enumerate(got)], one)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 300), m=st.integers(1, 40), k=st.integers(1, 40), step=st.integers(1, 3), transposed=st.booleans()
)
def test_any_shape_and_stride(n, m, k, step, transposed):
    wide = activations(m * step + 2, n * step) if transposed else activations(n * step, m * step + 2)
    t = wide.T[::step, 1 : 1 + m * step : step] if transposed else wide[::step, 1 : 1 + m * step : step]
    s = activations(n, k)
    assert t.shape == (n, m)
    assert_same(cross_moments(t, s, True), cross_moments(t.contiguous(), s, True))
    assert_close(cross_moments(t, s, True), two_pass(t, s), 2e-6)


REGIMES = {
    "scale 1e-2": lambda x: 1e-2 * x.relu(),
    "scale 1e-3": lambda x: 1e-3 * x.relu(),
    "scale 1e-5": lambda x: 1e-5 * x.relu(),
    "mean 100, sd 1": lambda x: 100 + x,
    "mean 1000, sd 0.1": lambda x: 1000 + 0.1 * x,
    "mean -1e4, sd 1": lambda x: x - 1e4,
    "a step in the middle": lambda x: x + 1000.0 * (torch.arange(len(x)) > 2 * len(x) // 3)[:, None],
    "the first sample an outlier": lambda x: x + 1e4 * (torch.arange(len(x)) == 0)[:, None],
    "sparse": lambda x: (x - 3).relu() * 100,
    "sorted": lambda x: x.sort(0).values * 10 + 5,
}


@pytest.mark.parametrize("regime", REGIMES)
def test_correlation_within_1e_5_in_every_regime(regime):
    base = torch.randn(20_000, 12)
    mixed = 0.8 * base[:, :6].repeat(1, 3) + 0.6 * torch.randn(20_000, 18)
    t, s = REGIMES[regime](base), REGIMES[regime](mixed)
    error = (correlation(cross_moments(t, s)) - correlation(two_pass(t, s))).abs().max()
    assert error <= 1e-5


def test_constant_nodes_have_scatter_exactly_zero():
    t, s = activations(1000, 4), activations(1000, 5)
    t[:, 1], s[:, 0], s[:, 3] = 0.1, -7.3e5, 0.0
    moments = cross_moments(t, s)
    assert (moments.teacher_scatter == 0).tolist() == [False, True, False, False]
    assert (moments.student_scatter == 0).tolist() == [True, False, False, True, False]
    assert not moments.cross_scatter[1].any() and not moments.cross_scatter[:, [0, 3]].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_reach_their_own_nodes_only(bad):
    t, s = activations(1000, 8), activations(1000, 40)
    t[700, 3], s[20, 33] = bad, bad
    moments = cross_moments(t, s)
    assert (~moments.teacher_scatter.isfinite()).nonzero().flatten().tolist() == [3]
    assert (~moments.student_scatter.isfinite()).nonzero().flatten().tolist() == [33]
    broken = ~moments.cross_scatter.isfinite()
    assert broken[3].all() and broken[:, 33].all() and int(broken.sum()) == 8 + 40 - 1


@pytest.mark.native
def test_does_not_depend_on_threads():
    t, s = activations(9000, 21), activations(9000, 70)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(cross_moments(t, s, True))
    finally:
        torch.set_num_threads(threads)
    assert_bitwise(results[1], results[0])
    assert_bitwise(results[2], results[0])


@pytest.mark.native
def test_offsets_beyond_2_to_the_31():
    stride = 2**30 + 8  # rows 2 and 3 begin beyond 2^31 elements; the memory between rows is never touched
    wide = torch.empty(0, dtype=torch.bfloat16)
    wide.untyped_storage().resize_(2 * (3 * stride + 64))
    t = wide.as_strided((4, 5), (stride, 1))
    values = integers(4, 5, dtype=torch.bfloat16)
    t.copy_(values)
    s = integers(4, 9, dtype=torch.bfloat16)
    assert_bitwise(cross_moments(t, s, True), cross_moments(values, s, True))


@pytest.mark.parametrize("shape_t, shape_s", [((0, 3), (0, 5)), ((4, 3), (0, 4, 5)), ((0, 3), (2, 0, 5))])
def test_no_samples_and_no_networks(shape_t, shape_s):
    got = cross_moments(torch.zeros(shape_t), torch.zeros(shape_s), True)
    assert got.cross_scatter.shape == (*shape_s[:-2], shape_t[1], shape_s[-1])
    assert all(not x.isnan().any() and not x.any() for x in got if x.numel())


@pytest.mark.parametrize("m, k", [(0, 5), (3, 0), (0, 0)])
def test_one_side_without_nodes(m, k):
    t, s = activations(700, m), activations(700, k)
    assert_close(cross_moments(t, s, True), two_pass(t, s), 2e-6)


@pytest.mark.parametrize("coactivation", [False, True])
@pytest.mark.parametrize("student", [(30, 5, 2), (3, 30, 5, 2)])
def test_opcheck(coactivation, student):
    torch.library.opcheck(
        torch.ops.fastspec.cross_moments.default, (activations(30, 4, 2), activations(*student), "fp32", coactivation)
    )


def test_compiles_without_a_graph_break():
    t, s = activations(50, 4), activations(2, 50, 6)
    compiled = torch.compile(cross_moments, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(t, s, True), cross_moments(t, s, True))


def test_fake_of_a_cuda_tensor():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        t, s = torch.empty(10, 4, device="cuda"), torch.empty(3, 10, 6, device="cuda", dtype=torch.float32)
        out = torch.ops.fastspec.cross_moments(t, s, "tf32", True)
    assert out[4].shape == (3, 4, 6) and out[4].device.type == "cuda" and out[4].dtype == torch.float64


X, Y = torch.zeros(4, 3), torch.zeros(4, 5)
BAD = {
    "list": ([1.0], Y, TypeError, "teacher: got list"),
    "integer activations": (X.long(), Y, TypeError, "teacher: got dtype torch.int64"),
    "rank 1": (X[0], Y, ValueError, r"teacher: got shape \[3\]"),
    "rank 6": (X[None, None, None, None], Y, ValueError, "teacher: got shape"),
    "student rank": (X, Y[0], ValueError, r"student: got shape \[5\]"),
    "two axes more": (X, Y[None, None], ValueError, "student: got shape"),
    "samples": (X, Y[:3], ValueError, r"student: got shape \[3, 5\]; takes the samples"),
    "positions": (torch.zeros(4, 3, 2), torch.zeros(4, 5, 3), ValueError, "student: got shape"),
    "dtypes": (X, Y.double(), TypeError, "student: got dtype torch.float64; takes the dtype of teacher"),
    "devices": (X, Y.to("meta"), ValueError, "student: got device meta; takes the device of teacher, cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    teacher, student, error, message = BAD[case]
    with pytest.raises(error, match=message):
        cross_moments(teacher, student)


@pytest.mark.native
@pytest.mark.parametrize("student", [Y[:3], Y[0], Y.double(), Y[None, None]])
def test_a_direct_call_does_not_read_out_of_bounds(student):
    with pytest.raises(RuntimeError, match="fastspec"):
        torch.ops.fastspec.cross_moments(X, student, "fp32", False)
