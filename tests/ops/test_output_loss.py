"""Op output_loss: the squared loss of outputs that are never in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastspec.ops.library import native_error
from fastspec.ops.output_loss import output_loss, reference

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = (torch.float64, torch.float32)
NAN = float("nan")


def problem(samples, nodes, outputs, *population, dtype=torch.float32, bias=True, integer=False):
    """answers, activations, weight and bias of a call."""

    def draw(*shape):
        return torch.randint(-3, 4, shape).to(dtype) if integer else torch.randn(shape, dtype=torch.float64).to(dtype)

    weight = draw(*population, outputs, nodes)
    return (
        draw(samples, outputs),
        draw(*population, samples, nodes),
        weight,
        draw(*population, outputs) if bias else None,
    )


def by_hand(answers, activations, weight, bias):
    """In 80-bit arithmetic."""
    y, h, w, b = (None if a is None else a.numpy().astype(np.longdouble) for a in (answers, activations, weight, bias))
    outputs = np.einsum("...nj,...cj->...nc", h, w) + (0 if b is None else b[..., None, :])
    return torch.from_numpy(np.asarray((((y - outputs) ** 2).sum((-2, -1)) / 2).astype(float)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("population", [(), (1,), (3,)])
@pytest.mark.parametrize("outputs", [1, 8, 9, 24, 40, 50, 64, 70, 130])
def test_integers_are_exact(dtype, bias, population, outputs):
    for samples, nodes in ((1, 1), (7, 3), (50, 12), (13, 40)):
        args = problem(samples, nodes, outputs, *population, dtype=dtype, bias=bias, integer=True)
        got = output_loss(*args)
        assert got.dtype == torch.float64
        if native_error() is None:
            assert torch.equal(got, by_hand(*args))
        torch.testing.assert_close(got, by_hand(*args), rtol=1e-5, atol=0.0)  # of torch, which takes roots


@pytest.mark.parametrize("samples", [1535, 1536, 1537, 4000])
def test_long_ones_go_in_chunks(samples):
    args = problem(samples, 4, 5, 2, integer=True, dtype=torch.float64)
    torch.testing.assert_close(output_loss(*args), by_hand(*args), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300, 5, 50), (1200, 50, 50), (100, 400, 30)])
def test_within_twice_the_error_of_torch(dtype, shape):
    args = problem(*shape, 4, dtype=dtype)
    want = by_hand(*args)
    error, torchs = (float((f(*args) / want - 1).abs().max()) for f in (output_loss, reference.output_loss))
    assert error <= 2 * torchs + torch.finfo(dtype).eps * shape[1] ** 0.5


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_the_specification_itself(dtype, bound):
    for bias in (True, False):
        args = problem(90, 7, 6, 3, dtype=dtype, bias=bias)
        torch.testing.assert_close(reference.output_loss(*args), by_hand(*args), rtol=bound, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [1, 50])
def test_a_population_is_its_students(dtype, outputs):
    y, h, w, b = problem(2000, 20, outputs, 5, dtype=dtype)
    together = output_loss(y, h, w, b)
    for k in range(5):
        assert torch.equal(output_loss(y, h[k], w[k], b[k]), together[k])
        assert torch.equal(output_loss(y, h[k : k + 1], w[k : k + 1], b[k : k + 1])[0], together[k])


def test_threads_do_not_change_a_bit():
    args, before, found = problem(5000, 20, 50, 3), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(output_loss(*args))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def strided(tensor, kind):
    if kind == "transposed":
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor
    if kind == "expanded":
        return tensor[..., :1].expand_as(tensor)
    wide = torch.full([2 * size + 1 for size in tensor.shape], NAN)
    return wide[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)


@pytest.mark.parametrize("kind", ["transposed", "slice", "expanded"])
@pytest.mark.parametrize("population", [(), (3,)])
def test_any_strides(kind, population):
    args = [strided(a, kind) for a in problem(40, 5, 7, *population, integer=True)]
    plain = [a.clone(memory_format=torch.contiguous_format) for a in args]
    torch.testing.assert_close(output_loss(*args), output_loss(*plain), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(output_loss(*args), by_hand(*plain), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("empty", ["samples", "nodes", "outputs", "students"])
def test_empty_problems(empty):
    sizes = {"samples": 6, "nodes": 4, "outputs": 5, "students": 2, empty: 0}
    args = problem(*sizes.values(), dtype=torch.float64)
    for got in (output_loss(*args), reference.output_loss(*args)):
        torch.testing.assert_close(got, by_hand(*args), rtol=1e-14, atol=0.0)
    assert bool(output_loss(*args).any()) == (empty == "nodes")


@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_what_is_not_finite_spoils_its_student_alone(where, value):
    args = problem(60, 5, 9, 3)
    args[where].view(-1)[-1] = value
    bad = [True] * 3 if where == 0 else [False, False, True]
    for got in (output_loss(*args), reference.output_loss(*args)):
        assert (~got.isfinite()).tolist() == bad


def test_squares_beyond_the_dtype_are_not_finite():
    args = [1e25 * a for a in problem(60, 5, 9, 2, bias=False)[:2]]
    weight = torch.ones(2, 9, 5)
    assert not output_loss(*args, weight, None).isfinite().any()
    assert output_loss(*(a.double() for a in args), weight.double(), None).isfinite().all()


@pytest.mark.parametrize("population", [(), (2,)])
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(population, bias):
    torch.library.opcheck(torch.ops.fastspec.output_loss.default, problem(20, 3, 4, *population, bias=bias))


def test_compiles_without_a_graph_break():
    args = problem(20, 3, 4, 2)
    compiled = torch.compile(output_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), output_loss(*args))


def test_fake_of_cuda_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        loss = output_loss(*(torch.empty(shape, device="cuda") for shape in ((8, 4), (2, 8, 3), (2, 4, 3), (2, 4))))
    assert loss.shape == (2,) and loss.device.type == "cuda" and loss.dtype == torch.float64


Y, H, W, B = torch.zeros(8, 4), torch.zeros(2, 8, 3), torch.zeros(2, 4, 3), torch.zeros(2, 4)
BAD = {
    "a list": (([1.0], H, W, B), TypeError, "answers: got list; takes a tensor"),
    "rank": ((Y[0], H, W, B), ValueError, r"answers: got shape \[4\]"),
    "nodes": ((Y, H, W[..., 1:], B), ValueError, r"weight: got shape \[2, 4, 2\].* 3 inputs"),
    "students": ((Y, H[:1], W, B), ValueError, r"activations: got shape \[1, 8, 3\]"),
    "one for all": ((Y, H[0], W, B), ValueError, r"activations: got shape \[8, 3\]; takes \[\*students, samples"),
    "samples": ((Y[1:], H, W, B), ValueError, r"answers: got shape \[7, 4\]; takes shape \[8, 4\]"),
    "outputs": ((Y[:, 1:], H, W, B), ValueError, r"answers: got shape \[8, 3\]; takes shape \[8, 4\]"),
    "bias": ((Y, H, W, B[:, 1:]), ValueError, r"bias: got shape \[2, 3\]"),
    "integers": ((Y.long(), H, W, B), TypeError, "answers: got dtype torch.int64"),
    "half": ((Y.half(), H.half(), W.half(), B.half()), TypeError, "answers: got dtype torch.float16"),
    "dtypes": ((Y, H.double(), W, B), TypeError, "activations: got dtype torch.float64"),
    "devices": ((Y, H, W, B.to("meta")), ValueError, "bias: got device meta"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    args, error, message = BAD[case]
    with pytest.raises(error, match=message):
        output_loss(*args)


@pytest.mark.native
def test_a_direct_call_stays_within_bounds():
    bad = ((Y[1:], H, W, B), (Y, H[0], W, B), (Y, H, W[:1], B), (Y, H, W, B[:, 1:]), (Y, H, W, B[0]), (Y, H, W[0], B))
    for args in (*bad, (Y.long(), H, W, B), (Y, H.double(), W, B), (Y[0], H, W, B), (Y, H, W[..., 1:], None)):
        with pytest.raises(RuntimeError):
            torch.ops.fastspec.output_loss.default(*args)
