"""Op moments_and_loss: moments of hidden activations and the loss of the outputs above them, neither of them stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moments_oracle import assert_bitwise

from fastspec.ops.layer_moments import layer_moments
from fastspec.ops.library import native_error
from fastspec.ops.moments_and_loss import moments_and_loss, reference

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = (torch.float64, torch.float32)
NAN = float("nan")


def problem(samples, inputs, m, n, outputs, *population, dtype=torch.float32, own=False, bias=True, integer=False):
    """Both sides of a call; students with inputs of their own when `own`."""

    def draw(*shape, scale=1.0):
        return torch.randint(-3, 4, shape).to(dtype) if integer else (scale * torch.randn(*shape)).to(dtype)

    def side(x, nodes, *networks):
        top = draw(*networks, outputs, nodes, scale=max(nodes, 1) ** -0.5)
        weight = draw(*networks, nodes, x.shape[-1], scale=max(x.shape[-1], 1) ** -0.5)
        biases = (draw(*networks, nodes), draw(*networks, outputs)) if bias else (None, None)
        return x, weight, biases[0], top, biases[1]

    x = draw(samples, inputs)
    return side(x, m), side(draw(*population, samples, inputs + 3) if own else x, n, *population)


def outputs_by_hand(x, weight, bias, top, top_bias, slope):
    """In 80-bit arithmetic, [*P, samples, outputs]."""
    x, w, b, v, c = (None if a is None else a.numpy().astype(np.longdouble) for a in (x, weight, bias, top, top_bias))
    x = np.broadcast_to(x, (*w.shape[:-2], *x.shape[-2:]))
    z = np.einsum("...ni,...ki->...nk", x, w) + (0 if b is None else b[..., None, :])
    return np.einsum("...nk,...ck->...nc", np.where(z > 0, z, slope * z), v) + (0 if c is None else c[..., None, :])


def loss_by_hand(teacher, student, slope=0.0):
    residuals = outputs_by_hand(*teacher, slope) - outputs_by_hand(*student, slope)
    return torch.from_numpy(np.asarray(((residuals**2).sum((-2, -1)) / 2).astype(float)))


def of_the_moments_alone(teacher, student, slope=0.0, coactivation=False):
    return layer_moments(*teacher[:3], *student[:3], slope, coactivation)[0]


def specification(teacher, student, slope=0.0, coactivation=False):
    return reference.moments_and_loss(*teacher[:3], *student[:3], *teacher[3:], *student[3:], slope, coactivation)


def assert_moments(got, want):
    """Bit by bit from one kernel; torch's products vary with strides."""
    if native_error() is None:
        assert_bitwise(got, want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slope, bias, coactivation", [(0.0, True, True), (0.25, False, False)])
@pytest.mark.parametrize("population, own", [((), False), ((1,), False), ((3,), False), ((3,), True)])
@pytest.mark.parametrize("outputs", [1, 9, 24, 50, 64, 130])
def test_integers_are_exact(dtype, slope, bias, coactivation, population, own, outputs):
    for samples, m, n in ((1, 1, 1), (50, 3, 12), (900, 20, 40)):
        sides = problem(samples, 4, m, n, outputs, *population, dtype=dtype, own=own, bias=bias, integer=True)
        moments, loss = moments_and_loss(*sides, negative_slope=slope, coactivation=coactivation)
        assert_moments(moments, of_the_moments_alone(*sides, slope, coactivation))
        assert loss.dtype == torch.float64
        if native_error() is None and (dtype == torch.float64 or samples < 900):  # short sums of these draws are exact
            assert torch.equal(loss, loss_by_hand(*sides, slope))
        torch.testing.assert_close(loss, loss_by_hand(*sides, slope), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("n", [1, 5, 15, 16, 31, 33, 100])  # panels of nodes cover several students, or parts of them
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_students_of_any_width(n, dtype):
    sides = problem(700, 6, 4, n, 10, 7, dtype=dtype)
    moments, loss = moments_and_loss(*sides)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(loss, loss_by_hand(*sides), rtol=bound, atol=0.0)
    assert_moments(moments, of_the_moments_alone(*sides))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300, 20, 5, 5, 50), (7000, 30, 20, 50, 50), (400, 30, 20, 400, 30)])
def test_within_twice_the_error_of_torch(dtype, shape):
    sides = problem(*shape, 4, dtype=dtype)
    want = loss_by_hand(*sides)
    error, torchs = (float((f(*sides)[-1] / want - 1).abs().max()) for f in (moments_and_loss, specification))
    assert error <= 2 * torchs + torch.finfo(torch.float64).eps * shape[0] ** 0.5  # sums over samples are float64


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_the_specification_itself(dtype, bound):
    for bias in (True, False):
        sides = problem(90, 5, 4, 7, 6, 3, dtype=dtype, bias=bias)
        *moments, loss = specification(*sides, 0.1)
        torch.testing.assert_close(loss, loss_by_hand(*sides, 0.1), rtol=bound, atol=0.0)
        for a, b in zip(moments, of_the_moments_alone(*sides, 0.1), strict=True):
            torch.testing.assert_close(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_network_less_itself_is_nothing(dtype):
    teacher, _ = problem(3000, 20, 30, 1, 50, dtype=dtype)
    student = teacher[0], *(torch.stack([a, a, a]) for a in teacher[1:])
    if native_error() is None:
        assert moments_and_loss(teacher, student)[1].tolist() == [0, 0, 0]
    student[1][1, 0, 0] += 1e-3
    assert (moments_and_loss(teacher, student)[1] > 1e-9).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [7, 50])
def test_a_population_is_its_students(dtype, n):
    teacher, student = problem(4000, 20, 6, n, 50, 5, dtype=dtype)
    moments, loss = moments_and_loss(teacher, student)
    for k in range(5):
        for one in (tuple(a[k] for a in student[1:]), tuple(a[k : k + 1] for a in student[1:])):
            alone, its_loss = moments_and_loss(teacher, (student[0], *one))
            assert torch.equal(its_loss.flatten()[0], loss[k])
            assert torch.equal(alone.cross_scatter.reshape(6, n), moments.cross_scatter[k])


@pytest.mark.parametrize("own", [False, True])
def test_threads_do_not_change_a_bit(own):
    sides, before, found = problem(9000, 20, 8, 20, 50, 3, own=own), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            moments, loss = moments_and_loss(*sides)
            found.append((*moments, loss))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def strided(tensor, kind):
    if kind == "transposed":
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor
    if kind == "expanded":
        return tensor[..., :1].expand_as(tensor)
    wide = torch.full([2 * size + 1 for size in tensor.shape], NAN)
    return wide[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)


@pytest.mark.parametrize("kind", ["transposed", "slice", "expanded"])
@pytest.mark.parametrize("population, own", [((), False), ((3,), False), ((3,), True)])
def test_any_strides(kind, population, own):
    sides = problem(40, 5, 4, 7, 6, *population, own=own, integer=True)
    sides = tuple(tuple(strided(a, kind) for a in side) for side in sides)
    plain = tuple(tuple(a.clone(memory_format=torch.contiguous_format) for a in side) for side in sides)
    moments, loss = moments_and_loss(*sides)
    torch.testing.assert_close(loss, loss_by_hand(*plain), rtol=1e-6, atol=0.0)
    assert_moments(moments, of_the_moments_alone(*plain))


@pytest.mark.parametrize("empty", ["samples", "inputs", "teacher", "student", "outputs", "students"])
def test_empty_problems(empty):
    sizes = {"samples": 600, "inputs": 4, "teacher": 3, "student": 5, "outputs": 5, "students": 2, empty: 0}
    sides = problem(*sizes.values(), dtype=torch.float64)
    moments, loss = moments_and_loss(*sides)
    *want, its_loss = specification(*sides)
    for a, b in zip((*moments, loss), (*want, its_loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, loss_by_hand(*sides), rtol=1e-12, atol=0.0)
    assert bool(loss.any()) == (empty in ("inputs", "teacher", "student"))


@pytest.mark.parametrize("where", range(1, 5))
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_what_is_not_finite_spoils_its_student_alone(where, value):
    teacher, student = problem(60, 5, 4, 9, 3, 3)
    student[where].view(-1)[-1] = value
    for *_, loss in (moments_and_loss(teacher, student), specification(teacher, student)):
        assert (~loss.isfinite()).tolist() == [False, False, True]


def test_squares_beyond_the_dtype_are_not_finite():
    teacher, student = problem(60, 5, 4, 9, 3, 2)
    student[3].mul_(1e25)
    assert not moments_and_loss(teacher, student)[1].isfinite().any()
    exact = (tuple(a.double() for a in side) for side in (teacher, student))
    assert moments_and_loss(*exact)[1].isfinite().all()


@pytest.mark.parametrize("population, own", [((), False), ((2,), False), ((2,), True)])
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(population, own, bias):
    t, s = problem(20, 3, 4, 5, 6, *population, own=own, bias=bias)
    args = *t[:3], *s[:3], *t[3:], *s[3:], 0.1, bias
    torch.library.opcheck(torch.ops.fastspec.moments_and_loss.default, args)


def test_compiles_without_a_graph_break():
    sides = problem(20, 3, 4, 5, 6, 2)
    compiled = torch.compile(moments_and_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*sides)[1], moments_and_loss(*sides)[1])


def test_fake_of_cuda_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    def side(*sizes):
        return tuple(torch.empty(size, device="cuda") for size in sizes)

    with FakeTensorMode():
        teacher = side((8, 6), (3, 6), (3,), (4, 3), (4,))
        moments, loss = moments_and_loss(teacher, side((8, 6), (2, 5, 6), (2, 5), (2, 4, 5), (2, 4)))
    assert loss.shape == (2,) and loss.device.type == "cuda" and loss.dtype == torch.float64
    assert moments.cross_scatter.shape == (2, 3, 5)


T, S = problem(8, 6, 3, 5, 4, 2)


def changed(which, tensor):
    """A side with another tensor at place `which`."""
    return lambda side: (*side[:which], tensor, *side[which + 1 :])


def same(side):
    return side


BAD = {
    "too few": (
        lambda t: t[:3],
        same,
        TypeError,
        r"teacher: got 3 of them; takes \(input, weight, bias, top, top_bias\)",
    ),
    "a tensor": (same, lambda s: s[0], TypeError, "student: got Tensor; takes"),
    "a list": (changed(3, [1.0]), same, TypeError, "teacher_top: got list; takes a tensor"),
    "rank": (same, changed(3, S[3][0]), ValueError, r"student_top: got shape \[4, 5\]"),
    "nodes": (same, changed(3, S[3][..., 1:]), ValueError, r"student_top: got shape \[2, 4, 4\].*above student_weight"),
    "students": (same, changed(3, S[3][:1]), ValueError, r"student_top: got shape \[1, 4, 5\]"),
    "outputs": (same, lambda s: (*s[:3], s[3][:, 1:], None), ValueError, r"student_top: got shape .*takes 4 outputs"),
    "bias": (same, changed(4, S[4][:, 1:]), ValueError, r"student_top_bias: got shape \[2, 3\]; takes shape \[2, 4\]"),
    "teacher's bias": (changed(4, T[4][1:]), same, ValueError, r"teacher_top_bias: got shape \[3\]"),
    "inputs": (changed(1, T[1][:, 1:]), same, ValueError, r"teacher_weight: got shape \[3, 5\]"),
    "samples": (same, changed(0, S[0][1:]), ValueError, r"student_input: got shape \[7, 6\]; takes the samples"),
    "a population of teachers": (changed(1, T[1][None]), same, ValueError, "teacher_weight: got shape"),
    "half": (lambda t: [a.half() for a in t], lambda s: [a.half() for a in s], TypeError, "teacher_input: got dtype"),
    "dtypes": (same, changed(3, S[3].double()), TypeError, "student_top: got dtype torch.float64"),
    "devices": (same, changed(4, S[4].to("meta")), ValueError, "student_top_bias: got device meta"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    of_teacher, of_student, error, message = BAD[case]
    with pytest.raises(error, match=message):
        moments_and_loss(of_teacher(T), of_student(S))


@pytest.mark.parametrize("slope", [-0.1, 1.5, NAN])
def test_bad_slopes(slope):
    with pytest.raises(ValueError, match="negative_slope"):
        moments_and_loss(T, S, negative_slope=slope)


@pytest.mark.native
def test_a_direct_call_stays_within_bounds():
    def call(t, s):
        torch.ops.fastspec.moments_and_loss.default(*t[:3], *s[:3], *t[3:], *s[3:], 0.0, False)

    call(T, S)
    bad = [changed(3, S[3][..., 1:]), changed(3, S[3][:1]), changed(3, S[3][0]), changed(3, S[3][:, 1:])]
    bad += [changed(4, S[4][:, 1:]), changed(4, S[4][0]), changed(3, S[3].double()), changed(4, S[4].double())]
    for change in bad:
        with pytest.raises(RuntimeError):
            call(T, change(S))
    for change in (changed(3, T[3][:, 1:]), changed(3, T[3][None]), changed(4, T[4][1:])):
        with pytest.raises(RuntimeError):
            call(change(T), S)
    with pytest.raises(RuntimeError):
        call([a.half() for a in T], [a.half() for a in S])
