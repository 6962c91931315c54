"""Op `mlp_sgd_step` against autograd with torch.optim.SGD, and against its specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from fastspec.ops.mlp_sgd_step import Stepped, in_place, layers_of, mlp_sgd_step, parameter_count, reference
from fastspec.ops.precision import rounded

OP = torch.ops.fastspec.mlp_sgd_step.default
pytestmark = pytest.mark.usefixtures("poisoned")
N, D, C = 40, 7, 3
DEEP = [D, 12, 9, 10, C]
BACKENDS = {"default": OP, "in place": in_place.mlp_sgd_step, "reference": reference.mlp_sgd_step}


def problem(widths=DEEP, students=None, *, bias=None, dtype=torch.float64, seed=0, labels=False):
    """x, y and parameters; x and y are slices of wider tensors, so their strides are not trivial."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    x, y = normal(N, widths[0] + 3)[:, 1 : widths[0] + 1], normal(widths[-1], N).T
    count = parameter_count(widths, bias or [True] * (len(widths) - 1))
    parameters = 0.4 * normal(*(() if students is None else (students,)), count)
    return x, y.argmax(1) if labels else y, parameters


def batches(steps: int, size: int = 8, students: int | None = None, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(N, (*(() if students is None else (students,)), steps, size), generator=g)


def by_autograd(x: Tensor, y: Tensor, flat: Tensor, widths, indices: Tensor, lr, **o):
    """The same training by autograd and torch.optim.SGD: parameters, buffers, losses, gradient norms by layer."""
    bias = o.get("bias") or [True] * (len(widths) - 1)
    slope = o.get("negative_slope", 0.0)
    layers = [(w.clone(), None if b is None else b.clone()) for w, b in layers_of(flat, widths, bias)]
    trained = [p.requires_grad_() for pair in layers for p in pair if p is not None]
    optimizer = torch.optim.SGD(trained, 1.0, momentum=o.get("momentum", 0.0), weight_decay=o.get("weight_decay", 0.0))
    losses, norms = [], []
    for t, rows in enumerate(indices):
        h = x[rows]
        for i, (w, b) in enumerate(layers):
            z = F.linear(h, w, b)
            h = torch.where(z > 0, z, slope * z) if i < len(layers) - 1 else z
        labels = y.dtype == torch.int64
        loss = F.cross_entropy(h, y[rows]) if labels else (y[rows] - h).square().sum(1).mean() / 2
        optimizer.param_groups[0]["lr"] = float(lr[t]) if isinstance(lr, Tensor) else lr
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append([math.sqrt(sum(float(p.grad.square().sum()) for p in pair if p is not None)) for pair in layers])
        optimizer.step()
        if o.get("normalize"):
            for w, _ in layers[:-1]:
                w.data /= w.data.norm(dim=1, keepdim=True)
    flatten = torch.cat([p.detach().flatten() for p in trained])
    buffers = [optimizer.state[p].get("momentum_buffer") for p in trained]
    buffer = torch.cat([b.flatten() for b in buffers]) if o.get("momentum") else None
    return flatten, buffer, torch.tensor(losses), torch.tensor(norms)


CASES = {
    "plain": {},
    "leaky": {"negative_slope": 0.2},
    "decay": {"weight_decay": 0.03},
    "momentum": {"momentum": 0.9},
    "momentum_decay": {"momentum": 0.8, "weight_decay": 0.03},
    "normalize": {"normalize": True},
    "no_bias": {"bias": [False] * 4},
    "some_biases": {"bias": [True, False, False, True]},
    "schedule": {"lr": torch.linspace(0.05, 0, 100, dtype=torch.float64)},
    "all": {"momentum": 0.9, "weight_decay": 0.01, "normalize": True, "negative_slope": 0.1, "bias": [False, True] * 2},
}


@pytest.mark.parametrize("labels", [False, True], ids=["squares", "labels"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_autograd(backend, case, labels, monkeypatch):
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", BACKENDS[backend])
    options = {"lr": 0.02, **CASES[case]}
    x, y, parameters = problem(bias=options.get("bias"), labels=labels)
    rows = batches(100)
    out = mlp_sgd_step(x, y, parameters, DEEP, indices=rows, gradient_norms=True, **options)
    flat, buffer, losses, norms = by_autograd(x, y, parameters, DEEP, rows, **options)
    assert out.diverged_step == -1
    torch.testing.assert_close(out.parameters, flat, rtol=0, atol=1e-11)
    torch.testing.assert_close(out.loss, losses.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(out.gradient_norm, norms.double(), rtol=1e-6, atol=1e-9)
    assert (out.buffers is None) == (buffer is None)
    if buffer is not None:
        torch.testing.assert_close(out.buffers, buffer, rtol=0, atol=1e-11)
    assert not torch.equal(out.parameters, parameters)


@pytest.mark.parametrize("own", [False, True], ids=["shared batches", "own batches"])
@pytest.mark.parametrize("labels", [False, True], ids=["squares", "labels"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_population_is_many_students(backend, labels, own, monkeypatch):
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", BACKENDS[backend])
    x, y, parameters = problem(students=3, labels=labels)
    rows = batches(60, students=3 if own else None)
    options = {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.01, "normalize": True, "negative_slope": 0.1}
    out = mlp_sgd_step(x, y, parameters, DEEP, indices=rows, gradient_norms=True, **options)
    for k in range(3):
        flat, buffer, losses, norms = by_autograd(x, y, parameters[k], DEEP, rows[k] if own else rows, **options)
        torch.testing.assert_close(out.parameters[k], flat, rtol=0, atol=1e-11)
        torch.testing.assert_close(out.buffers[k], buffer, rtol=0, atol=1e-11)
        torch.testing.assert_close(out.loss[k], losses.double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(out.gradient_norm[k], norms.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("widths", [[D, C], [D, 5, C], [D, 1, 1, 1, 1], [D, 33, 64, 17, 50, C]])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_shapes(widths, size):
    x, y, parameters = problem(widths)
    rows = batches(20, size)
    out = mlp_sgd_step(x, y, parameters, widths, indices=rows, lr=0.003, momentum=0.5)
    flat, *_ = by_autograd(x, y, parameters, widths, rows, 0.003, momentum=0.5)
    torch.testing.assert_close(out.parameters, flat, rtol=0, atol=1e-11)


def test_more_terms_and_columns_than_are_taken_at_a_time():
    widths = [600, 5, 700, C]
    x, y, parameters = problem(widths)
    rows, parameters = batches(2, 300), parameters / 10
    out = mlp_sgd_step(x, y, parameters, widths, indices=rows, lr=1e-3)
    flat, _, losses, _ = by_autograd(x, y, parameters, widths, rows, 1e-3)
    assert losses.isfinite().all() and (flat - parameters).abs().max() > 1e-4
    torch.testing.assert_close(out.parameters, flat, rtol=0, atol=1e-11)


@pytest.mark.parametrize("students", [None, 2])
def test_integers_are_exact(students):
    """A step of small integers, at a rate that is a power of two: every backend makes the very same numbers."""
    g = torch.Generator().manual_seed(0)
    widths, population = [4, 6, 5, 3], () if students is None else (students,)
    x, y = torch.randint(-2, 3, (8, 4), generator=g).float(), torch.randint(-3, 4, (8, 3), generator=g).float()
    flat = torch.randint(-1, 2, (*population, parameter_count(widths, [True] * 3)), generator=g).float()
    rows = torch.randint(8, (1, 4), generator=g)
    given = (x, y, flat, None, rows, torch.full((1,), 2.0**-3).double(), torch.full(population, -1), widths, [True] * 3)
    rule = (0, 0.0, 0.0, 0.25, math.inf, False, False)
    one, two = (
        OP(*given, *rule, "fp32"),
        reference.mlp_sgd_step(*(t.double() if i < 3 else t for i, t in enumerate(given)), *rule, "fp64"),
    )
    assert not torch.equal(one[0], flat)
    assert torch.equal(one[0].double(), two[0])


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [False, True], ids=["squares", "labels"])
@pytest.mark.parametrize("size", [1, 20, 64])
def test_neither_students_nor_threads_change_a_bit(dtype, labels, size):
    widths = [D, 100, 33, 64, C]
    x, y, parameters = problem(widths, students=3, dtype=dtype, labels=labels)
    parameters, rows = parameters / 4, batches(12, size)
    options = {"indices": rows, "lr": 0.01, "momentum": 0.5, "gradient_norms": True}
    threads, many = torch.get_num_threads(), []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        many.append(mlp_sgd_step(x, y, parameters, widths, **options))
        one = mlp_sgd_step(x, y, parameters[1], widths, **options)
        for mine, theirs in zip(one, many[0], strict=True):
            assert torch.equal(mine, theirs[1])
    torch.set_num_threads(threads)
    for other in many[1:]:
        assert all(torch.equal(a, b) for a, b in zip(many[0], other, strict=True))


@pytest.mark.parametrize("students", [None, 2])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_chunks_change_nothing(students, momentum):
    x, y, parameters = problem(students=students, dtype=torch.float32)
    rows, lr = batches(50), torch.linspace(0.02, 0.01, 50, dtype=torch.float64)
    whole = mlp_sgd_step(x, y, parameters, DEEP, indices=rows, lr=lr, momentum=momentum)
    part = Stepped(parameters, None, torch.empty(0), None, torch.full(parameters.shape[:-1], -1))
    for start, end in ((0, 1), (1, 20), (20, 20), (20, 50)):
        part = mlp_sgd_step(
            x, y, part.parameters, DEEP, indices=rows[start:end], lr=lr[start:end], momentum=momentum,
            buffers=part.buffers, diverged_step=part.diverged_step, first_step=start,
        )  # fmt: skip
    assert torch.equal(whole.parameters, part.parameters)
    assert momentum == 0 or torch.equal(whole.buffers, part.buffers)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_steps_no_students_and_a_node_of_norm_zero(backend, monkeypatch):
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", BACKENDS[backend])
    x, y, parameters = problem(students=2)
    buffers = torch.ones_like(parameters)
    out = mlp_sgd_step(x, y, parameters, DEEP, indices=batches(3)[:0], lr=0.1, momentum=0.5, buffers=buffers)
    for got, given in ((out.parameters, parameters), (out.buffers, buffers)):
        assert torch.equal(got, given) and got.data_ptr() != given.data_ptr()
    assert out.loss.shape == (2, 0)
    out = mlp_sgd_step(x, y, parameters[:0], DEEP, indices=batches(3), lr=0.1)
    assert out.parameters.shape == parameters[:0].shape and out.diverged_step.shape == (0,)
    flat = parameters[0].clone()
    (weight, bias), (above, _) = layers_of(flat, DEEP, [True] * 4)[:2]
    weight[0], bias[0], above[:, 0] = 0, 0, 0
    out = mlp_sgd_step(x, y, flat, DEEP, indices=batches(3), lr=0.1, normalize=True)
    assert (layers_of(out.parameters, DEEP, [True] * 4)[0][0][0] == 0).all()


def test_gates_are_off_at_zero():
    """One node with z = 0 at every sample: nothing passes back through it."""
    x, y = torch.ones(4, 1), torch.ones(4, 1)
    flat = torch.tensor([0.0, 0.0, 1.0, 0.0])  # w1 b1 w2 b2
    out = mlp_sgd_step(x, y, flat, [1, 1, 1], indices=torch.zeros(1, 4, dtype=torch.int64), lr=0.5)
    assert out.parameters.tolist() == [0.0, 0.0, 1.0, 0.5]


def test_float32_is_as_near_to_float64_as_autograd():
    x, y, parameters = problem([D, 50, 60, 70, C])
    rows = batches(50, 32)
    exact, *_ = by_autograd(x, y, parameters, [D, 50, 60, 70, C], rows, 0.001)
    single = [t.float() for t in (x, y, parameters)]
    theirs, *_ = by_autograd(*single, [D, 50, 60, 70, C], rows, 0.001)
    ours = mlp_sgd_step(*single, [D, 50, 60, 70, C], indices=rows, lr=0.001).parameters
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm() + 1e-7 * exact.norm()


class Rounded(torch.autograd.Function):
    """A layer whose products take in rounded operands, forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, precision: str) -> Tensor:
        ctx.operands, ctx.precision = (rounded(x, precision), rounded(weight, precision)), precision
        return ctx.operands[0] @ ctx.operands[1].T + bias

    @staticmethod
    def backward(ctx, g: Tensor):
        (x, weight), g = ctx.operands, rounded(g, ctx.precision)
        return g @ weight, g.T @ x, g.sum(0), None


@pytest.mark.parametrize("labels", [False, True], ids=["squares", "labels"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("backend", ["in place", "reference"])
def test_operands_are_rounded(backend, precision, labels, monkeypatch):
    """Against autograd through layers that round."""
    monkeypatch.setattr("fastspec.ops.mlp_sgd_step._op", BACKENDS[backend])
    x, y, parameters = problem(dtype=torch.float32, labels=labels)
    rows, options = batches(6), {"lr": 0.05, "momentum": 0.5, "gradient_norms": True}
    with monkeypatch.context() as m:
        m.setattr(F, "linear", lambda h, w, b: Rounded.apply(h, w, b, precision))
        flat, buffer, losses, norms = by_autograd(x, y, parameters, DEEP, rows, 0.05, momentum=0.5)
    out = mlp_sgd_step(x, y, parameters, DEEP, indices=rows, precision=precision, **options)
    plain = mlp_sgd_step(x, y, parameters, DEEP, indices=rows, **options)
    for got, want, other in zip(out[:4], (flat, buffer, losses, norms), plain[:4], strict=True):
        error, scale = (got - want).abs().max(), want.abs().max()
        assert error < 1e-5 * scale and (other - want).abs().max() > 20 * error, precision


@pytest.mark.parametrize("students", [None, 2])
def test_in_place_rounds_as_specified(students):
    given = arguments(students=students, momentum=0.5)[:-1]
    for precision in ("tf32", "bf16", "tf32x3"):
        one, two = (way.mlp_sgd_step(*given, precision) for way in (in_place, reference))
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.native
def test_the_kernel_of_the_cpu_computes_in_float32_whatever_is_asked():
    given = arguments(momentum=0.5)[:-1]
    plain = OP(*given, "fp32")
    for precision in ("tf32x3", "tf32", "bf16"):
        assert all(torch.equal(a, b) for a, b in zip(plain, OP(*given, precision), strict=True))
    with pytest.raises(RuntimeError, match="precision is fp64 for float64"):
        OP(*given, "fp64")


def arguments(students=None, momentum=0.0, labels=False, own=False) -> tuple:
    x, y, flat = problem(students=students, dtype=torch.float32, labels=labels)
    rows = batches(3, 4, students if own else None)
    diverged = torch.full(flat.shape[:-1], -1)
    rates = torch.full((3,), 0.01, dtype=torch.float64)
    buffers = torch.ones_like(flat) if momentum else None
    rule = (0, momentum, 0.0, 0.0, math.inf, False, True, "fp32")
    return (x, y, flat, buffers, rows, rates, diverged, DEEP, [True] * 4, *rule)


@pytest.mark.parametrize(
    "options", [{}, {"students": 2, "momentum": 0.9}, {"labels": True}, {"students": 2, "own": True}]
)
def test_dispatcher(options):
    torch.library.opcheck(OP, arguments(**options))


def test_fake_tensors_on_cuda():
    with FakeTensorMode():
        x, y, flat = (torch.empty(s, device="cuda") for s in ((9, D), (9, C), (2, parameter_count(DEEP, [True] * 4))))
        rows = torch.empty(3, 4, dtype=torch.int64, device="cuda")
        rates, diverged = torch.empty(3, device="cuda").double(), torch.empty(2, dtype=torch.int64, device="cuda")
        rule = (0, 0.9, 0.0, 0.0, math.inf, False, False, "fp32")
        out = OP(x, y, flat, None, rows, rates, diverged, DEEP, [True] * 4, *rule)
    assert [tuple(t.shape) for t in out] == [tuple(flat.shape)] * 2 + [(2, 3), (0,), (2,)]
    assert {t.device.type for t in out} == {"cuda"}


def test_compiles_without_graph_breaks():
    (x, y, flat), rows = problem(), batches(4)

    def train(x: Tensor) -> Tensor:
        return mlp_sgd_step(2 * x, y, flat, DEEP, indices=rows, lr=0.01, momentum=0.5).parameters + 1

    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), train(x))


BAD = {
    "x one axis": ({"x": torch.zeros(7)}, ValueError, "x: got shape"),
    "x half": ({"x": torch.zeros(N, D).half()}, TypeError, "x: got dtype torch.float16"),
    "x NaN": ({"x": torch.full((N, D), math.nan).double()}, ValueError, "x: got 280 of 280"),
    "x empty": ({"x": torch.zeros(0, D).double()}, ValueError, "x: got shape"),
    "x width": ({"x": torch.zeros(N, 6).double()}, ValueError, "x: got shape"),
    "y samples": ({"y": torch.zeros(39, C).double()}, ValueError, "y: got shape"),
    "y outputs": ({"y": torch.zeros(N, 4).double()}, ValueError, "y: got shape"),
    "y dtype": ({"y": torch.zeros(N, C)}, TypeError, "y: got dtype"),
    "y kind": ({"y": [0] * N}, TypeError, "y: got list"),
    "y NaN": ({"y": torch.full((N, C), math.nan).double()}, ValueError, "y: got 120 of 120"),
    "labels": ({"y": torch.full((N,), C)}, ValueError, "y: got labels from 3 to 3"),
    "labels shape": ({"y": torch.zeros(N, 1).long()}, ValueError, "y: got shape"),
    "parameters": ({"parameters": torch.zeros(5).double()}, ValueError, "parameters: got shape"),
    "parameters dtype": ({"parameters": problem(dtype=torch.float32)[2]}, TypeError, "parameters: got dtype"),
    "parameters NaN": ({"parameters": math.nan * problem()[2]}, ValueError, "parameters: got"),
    "labels low": ({"y": torch.full((N,), -1)}, ValueError, "y: got labels from -1"),
    "buffers of two": ({"buffers": problem(students=2)[2]}, ValueError, "buffers: got shape"),
    "buffers": ({"buffers": torch.zeros(2, 4).double()}, ValueError, "buffers: got shape"),
    "widths": ({"widths": [D]}, ValueError, "widths: got"),
    "widths zero": ({"widths": [D, 0, C]}, ValueError, "widths[1]: got 0"),
    "bias": ({"bias": [True]}, ValueError, "bias: got 1 values"),
    "indices range": ({"indices": torch.full((4, 2), N)}, ValueError, "indices: got values from 40 to 40"),
    "indices negative": ({"indices": torch.full((4, 2), -1)}, ValueError, "indices: got values from -1"),
    "indices empty": ({"indices": torch.zeros(4, 0).long()}, ValueError, "indices: got shape"),
    "indices students": ({"indices": torch.zeros(2, 4, 3).long()}, ValueError, "indices: got shape"),
    "indices dtype": ({"indices": torch.zeros(4, 2)}, TypeError, "indices: got dtype"),
    "lr negative": ({"lr": -0.1}, ValueError, "lr: got -0.1"),
    "lr NaN": ({"lr": math.nan}, ValueError, "lr: got nan"),
    "lr table": ({"lr": torch.ones(3).double()}, ValueError, "lr: got torch.float64 shape [3]"),
    "lr below 0": ({"lr": -torch.ones(4).double()}, ValueError, "lr: got -1.0"),
    "diverged_step": ({"diverged_step": torch.zeros(2).long()}, ValueError, "diverged_step: got"),
    "first_step": ({"first_step": -1}, ValueError, "first_step: got -1"),
    "momentum": ({"momentum": 1.5}, ValueError, "momentum: got 1.5"),
    "weight_decay": ({"weight_decay": -1.0}, ValueError, "weight_decay: got -1.0"),
    "negative_slope": ({"negative_slope": 2.0}, ValueError, "negative_slope: got 2.0"),
    "loss_limit": ({"loss_limit": 0.0}, ValueError, "loss_limit: got 0.0"),
    "precision": ({"precision": "fp16"}, ValueError, "precision: got 'fp16'"),
    "precision of float64": ({"precision": "bf16"}, ValueError, "precision: got 'bf16'; takes 'fp64'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    change, error, message = BAD[case]
    x, y, parameters = problem()
    given = {"x": x, "y": y, "parameters": parameters, "widths": DEEP, "indices": batches(4), "lr": 0.1, **change}
    with pytest.raises(error) as caught:
        mlp_sgd_step(**given)
    assert str(caught.value).startswith(message) and "takes" in str(caught.value)
