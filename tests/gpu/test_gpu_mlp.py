"""Deep students on the GPU: what the CPU gives, and the same bits however they are launched."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_problems import DEVICE, on_hardware
from torch import Tensor

import fastspec as fs
from fastspec.networks import student_like
from fastspec.ops.mlp_sgd_step import Stepped, mlp_sgd_step, parameter_count, reference

pytestmark = pytest.mark.gpu
WIDTHS = [20, 100, 150, 75, 10]
CASES = {
    "plain": {},
    "labels": {"gradient_norms": True},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01, "negative_slope": 0.1},
    "normalize": {"normalize": True, "bias": [False, True, False, True]},
}


PRECISIONS = ("tf32x3", "tf32", "bf16")  # on matrix units


def problem(widths=WIDTHS, students=(), *, steps=100, batch=64, dtype=torch.float64, labels=False, bias=None, own=()):
    """x, y, parameters, widths and the batches, on the CPU."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, widths[0], generator=g, dtype=torch.float64).to(dtype)
    y = torch.randn(500, widths[-1], generator=g, dtype=torch.float64).to(dtype)
    flat = torch.randn(*students, parameter_count(widths, bias or [True] * (len(widths) - 1)), generator=g)
    rows = torch.randint(500, (*own, steps, batch), generator=g)
    return x, y.argmax(1) if labels else y, (0.1 * flat.double()).to(dtype), widths, rows


def train(x, y, flat, widths, rows, device=DEVICE, **options) -> Stepped:
    there = [t.to(device) for t in (x, y, flat, rows)]
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    out = mlp_sgd_step(*there[:3], widths, indices=there[3], **{"lr": 0.02, **options})
    return Stepped(*(None if t is None else t.cpu() for t in out))


def same(one: Stepped, two: Stepped) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_as_on_the_cpu(case):
    options = CASES[case]
    given = problem(labels=case == "labels", bias=options.get("bias"))
    got, want = train(*given, **options), train(*given, device="cpu", **options)
    for a, b in zip(got, want, strict=True):
        assert a is b is None or bool((a - b).abs().max() < 1e-11)
    assert got.diverged_step == -1 and not torch.equal(got.parameters, given[2])


@pytest.mark.parametrize(("widths", "batch"), [([3, 5, 1, 7, 2], 1), ([21, 33], 17), ([5, 600, 9], 100)], ids=str)
def test_other_shapes(widths, batch):
    given = problem(widths, (2,), batch=batch, steps=20)
    options = {"lr": 0.005, "momentum": 0.5}
    assert (train(*given, **options).parameters - train(*given, device="cpu", **options).parameters).abs().max() < 1e-11


def test_float32_is_as_exact_as_plain_torch():
    x, y, flat, widths, rows = problem(dtype=torch.float32)
    truth = train(x.double(), y.double(), flat.double(), widths, rows, device="cpu").parameters
    plain = by_reference(x, y, flat, widths, rows, "fp32")
    floor = 4 * torch.finfo(torch.float32).eps * 100**0.5 * truth.abs().max()
    assert (train(x, y, flat, widths, rows).parameters - truth).abs().max() <= 2 * (plain - truth).abs().max() + floor


def by_reference(x, y, flat, widths, rows, precision, device=DEVICE, lr=0.02, **rule) -> Tensor:
    """The parameters that the specification gives on a device, in the dtype of what it is given."""
    rates, diverged = torch.full((rows.shape[-2],), lr, dtype=torch.float64), torch.full(flat.shape[:-1], -1)
    there = [t.to(device) for t in (x, y, flat)]
    rule = {"momentum": 0.0, "weight_decay": 0.0, "negative_slope": 0.0, **rule}
    given = (*there, None, *(t.to(device) for t in (rows, rates, diverged)), widths, [True] * (len(widths) - 1), 0)
    return reference.mlp_sgd_step(*given, *rule.values(), math.inf, False, False, precision)[0].cpu()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("labels", [False, True], ids=["squares", "labels"])
@pytest.mark.parametrize(
    ("widths", "batch", "students"),
    [(WIDTHS, 64, (2,)), ([3, 5, 1, 7, 2], 1, ()), ([21, 33], 17, (3,)), ([70, 1100, 1200, 30], 2048, ()),
     ([300, 2300, 1000, 300], 2048, ())],
    ids=str,
)  # fmt: skip
def test_a_precision_is_as_exact_as_in_plain_torch(widths, batch, students, labels, precision):
    """Few steps: what rounding sends the other way through a gate grows. All sizes of tiles."""
    x, y, flat, widths, rows = problem(widths, students, batch=batch, steps=4, dtype=torch.float32, labels=labels)
    options = {"momentum": 0.5, "weight_decay": 0.01, "negative_slope": 0.1}
    wide = [t.double() if t.is_floating_point() else t for t in (x, y, flat)]
    truth = by_reference(*wide, widths, rows, "fp64", "cpu", **options)
    plain = by_reference(x, y, flat, widths, rows, precision, **options)
    got = train(x, y, flat, widths, rows, precision=precision, **options).parameters
    way = (truth - flat).norm()
    assert (got - truth).norm() <= 2 * (plain - truth).norm() + 1e-5 * way and way > 0
    if precision != "tf32x3" and DEVICE == "cuda":  # the same operands
        assert (got - plain).norm() <= 0.3 * (plain - truth).norm() + 1e-6 * way


@pytest.mark.parametrize("precision", ["fp64", "fp32", *PRECISIONS])
def test_students_and_calls_are_independent(precision):
    """Alone, in a population, and in calls of other lengths, which other graphs make."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    x, y, flat, widths, rows = problem(students=(5,), own=(5,), steps=45, dtype=dtype)
    options = {"momentum": 0.5, "gradient_norms": True, "precision": precision}
    many = train(x, y, flat, widths, rows, **options)
    assert same(many, train(x, y, flat, widths, rows, **options))
    if DEVICE == "cuda":
        alone = train(x, y, flat[2], widths, rows[2], **options)
        assert all(torch.equal(a, b[2]) for a, b in zip(alone, many, strict=True))
    part = Stepped(flat, None, many.loss, None, torch.full((5,), -1))
    for start, end in ((0, 1), (1, 2), (2, 9), (9, 45)):
        part = train(
            x, y, part.parameters, widths, rows[:, start:end], first_step=start, buffers=part.buffers,
            diverged_step=part.diverged_step, **options,
        )  # fmt: skip
    assert torch.equal(part.parameters, many.parameters) and torch.equal(part.buffers, many.buffers)


def on_launches(monkeypatch):
    """Every step is launched; none is a graph's."""
    from fastspec.ops.mlp_sgd_step import triton as kernels

    monkeypatch.setattr(kernels.Steps, "make", lambda self, steps: self.room.launch(steps))


@on_hardware
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("labels", [False, True], ids=["squares", "labels"])
def test_graphs_change_nothing(labels, precision, monkeypatch):
    given, options = problem(dtype=torch.float32, steps=80, labels=labels), {"precision": precision, "normalize": True}
    graphs = [train(*given, **options) for _ in range(3)]
    other = train(*given, lr=0.01, **options)
    on_launches(monkeypatch)
    plain = train(*given, **options)
    assert all(same(plain, one) for one in graphs)
    assert same(other, train(*given, lr=0.01, **options)) and not same(other, plain)


@on_hardware
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_large_room_is_not_captured(precision, monkeypatch):
    """Its steps are launched, and give the bits of a room that is."""
    from fastspec.ops.mlp_sgd_step import triton as kernels

    given = problem([70, 1100, 1200, 30], batch=2048, steps=5, dtype=torch.float32)
    want = train(*given, precision=precision)
    monkeypatch.setattr(kernels, "KEPT", 2**20)
    assert same(want, train(*given, precision=precision))


@on_hardware
def test_no_call_is_seen_by_another():
    """Two problems of one shape by turns, on two streams at once."""
    x, y, flat, widths, rows = problem(dtype=torch.float32, steps=64)
    there = [[t.to(DEVICE) for t in (x + k, y, flat * (1 + k), rows)] for k in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    want = [mlp_sgd_step(*one[:3], widths, indices=one[3], lr=0.01).parameters for one in there]
    torch.cuda.synchronize()
    found = []
    for _ in range(3):
        for one, stream in zip(there, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(mlp_sgd_step(*one[:3], widths, indices=one[3], lr=0.01, check=False).parameters)
    torch.cuda.synchronize()
    assert all(torch.equal(a, want[k % 2]) for k, a in enumerate(found)) and not torch.equal(*want)


@on_hardware
def test_in_a_graph_of_the_callers():
    x, y, flat, widths, rows = (t.to(DEVICE) if isinstance(t, Tensor) else t for t in problem(steps=5))
    want = mlp_sgd_step(x, y, flat, widths, indices=rows, lr=0.01, check=False)
    rates, graph = torch.full((5,), 0.01, dtype=torch.float64, device=DEVICE), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mlp_sgd_step(x, y, flat, widths, indices=rows, lr=rates, check=False)
    graph.replay()
    assert torch.equal(out.parameters, want.parameters)
    flat.mul_(0.5)
    graph.replay()
    assert torch.equal(out.parameters, mlp_sgd_step(x, y, flat, widths, indices=rows, lr=0.01).parameters)


@on_hardware
@pytest.mark.parametrize("way", [{"backend": "aot_eager"}, {"mode": "reduce-overhead"}], ids=str)
def test_compiled(way):
    x, y, flat, widths, rows = (t.to(DEVICE) if isinstance(t, Tensor) else t for t in problem(steps=20))

    def twice(flat: Tensor) -> Tensor:
        return mlp_sgd_step(2 * x, y, flat, widths, indices=rows, lr=0.01, check=False).parameters + 1

    compiled, want = torch.compile(twice, fullgraph=True, **way), twice(flat)
    for _ in range(4):
        assert torch.equal(compiled(flat), want)


def test_dispatcher():
    x, y, flat, widths, rows = (t.to(DEVICE) if isinstance(t, Tensor) else t for t in problem(students=(2,), steps=3))
    rates, diverged = torch.full((3,), 0.01, dtype=torch.float64, device=DEVICE), torch.full((2,), -1, device=DEVICE)
    rule = (0, 0.5, 0.0, 0.0, math.inf, False, True, "fp64")
    given = (x, y, flat, None, rows, rates, diverged, widths, [True] * 4, *rule)
    torch.library.opcheck(torch.ops.fastspec.mlp_sgd_step.default, given)


def test_a_diverging_student_stops_and_harms_no_other():
    x, y, flat, widths, rows = problem(students=(4,), steps=40)
    flat[1] *= 60
    options = {"momentum": 0.5, "diverged_step": torch.tensor([-1, -1, 2, -1]), "first_step": 5, "gradient_norms": True}
    got, want = (train(x, y, flat, widths, rows, device=d, **options) for d in (DEVICE, "cpu"))
    assert torch.equal(got.diverged_step, want.diverged_step) and got.diverged_step[1] > 5
    assert torch.equal(got.loss.isnan(), want.loss.isnan())
    assert (got.parameters - want.parameters)[[0, 2, 3]].abs().max() < 1e-11 and not got.buffers[[1, 2]].any()


@pytest.mark.parametrize("precision, bound", [("fp32", 1e-3), ("tf32", 1e-2), ("bf16", 5e-2)])
def test_training_on_the_gpu(precision, bound):
    teacher = fs.teachers.separated([20, 10, 15, 10, 5], seed=0)
    x = fs.data.gaussian(2000, 20, std=3.0, seed=1)
    losses = []
    for device, products in ((DEVICE, precision), ("cpu", "fp32")):
        student = student_like(teacher, multi=4, seed=0).to(device)
        options = {"epochs": 3, "batch_size": 64, "lr": 0.003, "progress": False, "precision": products}
        history = fs.train(teacher.to(device), student, x.to(device), **options)
        losses.append(history.loss.cpu())
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(*losses, rtol=bound, atol=0)
