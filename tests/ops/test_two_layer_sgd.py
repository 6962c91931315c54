"""Op `two_layer_sgd` against autograd, and the independence of its students."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastspec.ops.philox import batch_indices
from fastspec.ops.two_layer_sgd import Fresh, Packed, Trained, two_layer_sgd

OP = torch.ops.fastspec.two_layer_sgd.default


def problem(widths: list[int], n: int = 40, d: int = 7, c: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Data and packed students; x and y are slices of wider tensors, so their strides are not trivial."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    nodes = sum(widths)
    x, y = normal(n, d + 3)[:, 1 : d + 1], normal(c, n).T
    weights = Packed(0.4 * normal(nodes, d), 0.2 * normal(nodes), 0.4 * normal(nodes, c), 0.2 * normal(len(widths), c))
    offsets = torch.tensor([0, *widths]).cumsum(0)
    return x, y, weights, offsets


def tables(students: int, lr: float = 0.05) -> dict[str, Tensor]:
    return {
        "lr": lr * (1 + torch.arange(students, dtype=torch.float64) / students),
        "seeds": 5 + 3 * torch.arange(students),
    }


def student(weights: Packed, offsets: Tensor, k: int) -> list[Tensor]:
    rows = slice(int(offsets[k]), int(offsets[k + 1]))
    return [weights.w1[rows], weights.b1[rows], weights.w2[rows], weights.b2[k]]


def alone(weights: Packed, offsets: Tensor, k: int) -> tuple[Packed, Tensor]:
    w1, b1, w2, b2 = student(weights, offsets, k)
    return Packed(w1, b1, w2, b2[None]), torch.tensor([0, len(w1)])


def assert_same_student(one: Trained, many: Trained, offsets: Tensor, k: int, note: object = None) -> None:
    for got, expected in zip(one.weights, student(many.weights, offsets, k), strict=True):
        assert torch.equal(got.flatten(), expected.flatten()), note
    assert one.diverged_step[0] == many.diverged_step[k]


CASES = {
    "plain": {},
    "leaky": {"negative_slope": 0.2},
    "no_bias": {"bias": False},
    "decay": {"weight_decay": 0.03},
    "momentum": {"momentum": 0.9},
    "momentum_decay": {"momentum": 0.8, "weight_decay": 0.03},
    "normalize": {"normalize": True},
    "fixed_first": {"fixed_first": True},
    "fixed_top": {"fixed_top": True, "momentum": 0.5},
    "schedule": {"multipliers": torch.linspace(1, 0.1, 120, dtype=torch.float64)},
    "full_batch": {"batch_size": 0},
    "all": {
        "multipliers": torch.linspace(1, 0, 120, dtype=torch.float64),
        "momentum": 0.9,
        "weight_decay": 0.01,
        "normalize": True,
        "negative_slope": 0.1,
    },
}


def autograd_student(x: Tensor, y: Tensor, parameters: list[Tensor], rows: Tensor | None, steps: int, lr: float, **o):
    """The same training by autograd and torch.optim.SGD: w1 [n, d], b1 [n], w2 [n, C], b2 [C]."""
    w1, b1, w2, b2 = parameters = [p.clone() for p in parameters]
    bias, slope = o.get("bias", True), o.get("negative_slope", 0.0)
    trained = ([] if o.get("fixed_first") else [w1, b1]) + ([] if o.get("fixed_top") else [w2, b2])
    for p in trained:
        p.requires_grad_(bias or p.dim() == 2)
    trained = [p for p in trained if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr, momentum=o.get("momentum", 0.0), weight_decay=o.get("weight_decay", 0.0))
    for t in range(steps):
        batch = slice(None) if rows is None else rows[t]
        z = x[batch] @ w1.T + (b1 if bias else 0)
        f = torch.where(z > 0, z, slope * z) @ w2 + (b2 if bias else 0)
        loss = (y[batch] - f).square().sum(1).mean() / 2
        optimizer.param_groups[0]["lr"] = lr * (float(o["multipliers"][t]) if "multipliers" in o else 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if o.get("normalize") and not o.get("fixed_first"):
            w1.data /= w1.data.norm(dim=1, keepdim=True)
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("case", CASES)
def test_equals_autograd(case: str):
    widths, steps = [3, 15, 16, 3, 40], 120
    x, y, weights, offsets = problem(widths)
    options = {"batch_size": 8, **CASES[case]}
    settings = tables(len(widths), 0.02)  # small enough that no student's motion is chaotic
    out = two_layer_sgd(x, y, weights, offsets, steps=steps, **settings, **options)
    assert (out.diverged_step == -1).all()
    batch_size = options.pop("batch_size")
    for k in range(len(widths)):
        rows = None
        if batch_size:
            rows = batch_indices(settings["seeds"][k : k + 1], torch.arange(steps), batch_size, len(x))[0]
        start = student(weights, offsets, k)
        expected = autograd_student(x, y, start, rows, steps, float(settings["lr"][k]), **options)
        for got, want, before in zip(student(out.weights, offsets, k), expected, start, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
            assert torch.equal(want, before) == torch.equal(got, before)


@pytest.mark.parametrize("shared", [True, False])
def test_explicit_indices(shared: bool):
    widths, steps = [4, 9], 60
    x, y, weights, offsets = problem(widths)
    g = torch.Generator().manual_seed(1)
    indices = torch.randint(len(x), (steps, 5) if shared else (2, steps, 5), generator=g)
    out = two_layer_sgd(x, y, weights, offsets, steps=steps, indices=indices, **tables(2))
    for k in range(2):
        rows, lr = indices if shared else indices[k], float(tables(2)["lr"][k])
        expected = autograd_student(x, y, student(weights, offsets, k), rows, steps, lr)
        for got, want in zip(student(out.weights, offsets, k), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [1, 3, 16, 64, 0])
@pytest.mark.parametrize(("d", "c"), [(5, 1), (33, 10), (100, 50)])
def test_students_are_independent_bitwise(dtype: torch.dtype, batch_size: int, d: int, c: int):
    widths = [1, 2, 7, 15, 16, 17, 31, 50, 64, 99, 100, 15, 15, 16, 13, 12, 11, 10, 9, 8, 100, 100]
    x, y, weights, offsets = problem(widths, n=70, d=d, c=c, dtype=dtype)
    settings = tables(len(widths), 0.02)
    options = {"steps": 7, "batch_size": batch_size}
    many = two_layer_sgd(x, y, weights, offsets, **settings, **options)
    for k in range(len(widths)):
        mine, edges = alone(weights, offsets, k)
        one = two_layer_sgd(x, y, mine, edges, **{n: t[k : k + 1] for n, t in settings.items()}, **options)
        assert_same_student(one, many, offsets, k, widths[k])


@pytest.mark.parametrize("options", [{"batch_size": 200}, {"batch_size": 16, "momentum": 0.9, "normalize": True}])
def test_threads_change_nothing(options: dict):
    widths = [10, 20, 50, 100, 33]
    x, y, weights, offsets = problem(widths, n=500, d=60, c=20, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(two_layer_sgd(x, y, weights, offsets, steps=5, **options, **tables(5, 0.02)))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0].weights, other.weights, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_chunks_change_nothing(momentum: float):
    widths = [4, 30]
    x, y, weights, offsets = problem(widths, dtype=torch.float32)
    factors = torch.linspace(1, 0.5, 50, dtype=torch.float64)
    whole = two_layer_sgd(
        x, y, weights, offsets, steps=50, batch_size=4, momentum=momentum, multipliers=factors, **tables(2)
    )
    part = Trained(weights, None, torch.full((2,), -1))
    for start, steps in ((0, 1), (1, 20), (21, 0), (21, 29)):
        part = two_layer_sgd(
            x,
            y,
            part.weights,
            offsets,
            first_step=start,
            steps=steps,
            batch_size=4,
            momentum=momentum,
            buffers=part.buffers,
            diverged_step=part.diverged_step,
            multipliers=factors[start : start + steps],
            **tables(2),
        )
    for a, b in zip((*whole.weights, *(whole.buffers or ())), (*part.weights, *(part.buffers or ())), strict=True):
        assert torch.equal(a, b)


def test_samples_beyond_one_part_of_a_batch():
    x, y, weights, offsets = problem([5], n=9001)
    out = two_layer_sgd(x, y, weights, offsets, steps=3, **tables(1))
    expected = autograd_student(x, y, student(weights, offsets, 0), None, 3, 0.05)
    for got, want in zip(student(out.weights, offsets, 0), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_diverging_student_stops_and_harms_no_other(momentum: float):
    widths = [6, 6, 6]
    x, y, weights, offsets = problem(widths, dtype=torch.float32)
    settings = tables(3)
    settings["lr"][1] = 1e6
    options = {"steps": 40, "batch_size": 4, "momentum": momentum}
    out = two_layer_sgd(x, y, weights, offsets, **settings, **options)
    stopped = int(out.diverged_step[1])
    assert out.diverged_step[[0, 2]].tolist() == [-1, -1]
    assert 0 < stopped < 10
    assert all(bool(torch.isfinite(t).all()) for t in out.weights)
    before = two_layer_sgd(x, y, weights, offsets, **settings, **{**options, "steps": stopped})
    assert before.diverged_step[1] == -1
    for a, b in zip(student(out.weights, offsets, 1), student(before.weights, offsets, 1), strict=True):
        assert torch.equal(a, b)
    for k in (0, 2):
        mine, edges = alone(weights, offsets, k)
        one = two_layer_sgd(x, y, mine, edges, **{n: t[k : k + 1] for n, t in settings.items()}, **options)
        assert_same_student(one, out, offsets, k)


def test_infinite_weights_behind_a_closed_gate_are_noticed():
    # One sample, one node: the step sends its weight to -inf, after which its gate is closed and the loss finite.
    x, y = torch.tensor([[1.0]]), torch.tensor([[-1e15]])
    weights = Packed(torch.tensor([[1.0]]), torch.zeros(1), torch.tensor([[1.0]]), torch.zeros(1, 1))
    lr, seeds = torch.full((1,), 1e30, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    out = two_layer_sgd(x, y, weights, torch.tensor([0, 1]), lr=lr, seeds=seeds, steps=1, loss_limit=1e30)
    assert out.diverged_step.tolist() == [0]
    assert torch.equal(out.weights.w1, weights.w1)


def test_loss_limit_and_students_already_stopped():
    x, y, weights, offsets = problem([6, 6])
    loss = float((y.square().sum(1).mean()) / 2)
    out = two_layer_sgd(x, y, weights, offsets, steps=2, loss_limit=1e-3 * loss, **tables(2))
    assert out.diverged_step.tolist() == [0, 0]
    assert all(torch.equal(a, b) for a, b in zip(out.weights, weights, strict=True))
    out = two_layer_sgd(x, y, weights, offsets, steps=2, diverged_step=torch.tensor([3, -1]), **tables(2))
    assert out.diverged_step.tolist() == [3, -1]
    assert torch.equal(out.weights.w1[:6], weights.w1[:6])
    assert not torch.equal(out.weights.w1[6:], weights.w1[6:])


def test_no_steps_no_students_and_a_node_of_norm_zero():
    x, y, weights, offsets = problem([6, 2])
    out = two_layer_sgd(x, y, weights, offsets, steps=0, **tables(2))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(out.weights, weights, strict=True))
    none = Packed(weights.w1[:0], weights.b1[:0], weights.w2[:0], weights.b2[:0])
    out = two_layer_sgd(x, y, none, offsets[:1], steps=3, **tables(0))
    assert [t.shape for t in out.weights] == [t.shape for t in none]
    weights.w1[0], weights.w2[0], weights.b1[0] = 0.0, 0.0, 0.0
    out = two_layer_sgd(x, y, weights, offsets, steps=3, normalize=True, **tables(2))
    assert out.weights.w1[0].abs().max() == 0


def arguments(**options) -> tuple:
    x, y, weights, offsets = problem([3, 5], dtype=torch.float32)
    settings = tables(2)
    momentum = options.get("momentum", 0.0)
    return (
        *(x, y, *weights, offsets, settings["lr"], settings["seeds"], torch.full((2,), -1)),
        *([torch.zeros_like(t) for t in weights] if momentum else [None] * 4),
        *(options.get("indices"), None, *(options.get("teacher") or [None] * 4), options.get("fresh_std", 0.0)),
        *(options.get("batch_size", 4), 0, 3, momentum),
        *(0.0, 0.0, math.inf, True, False, False, False),
    )


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"batch_size": 0}, {"indices": torch.zeros(3, 2).long()}])
def test_dispatcher(options: dict):
    torch.library.opcheck(OP, arguments(**options))


def test_fake_tensors_on_cuda():
    with FakeTensorMode():
        x, y, *weights = (torch.empty(s, device="cuda") for s in ((9, 4), (9, 2), (8, 4), (8,), (8, 2), (2, 2)))
        lr, offsets = (
            torch.empty(2, dtype=torch.float64, device="cuda"),
            torch.empty(3, dtype=torch.int64, device="cuda"),
        )
        seeds = torch.empty(2, dtype=torch.int64, device="cuda")
        flags = (*(None,) * 6, 0.0, 4, 0, 3, 0.9, 0.0, 0.0, math.inf, True, False, False, False)
        out = OP(x, y, *weights, offsets, lr, seeds, seeds, *weights, *flags)
    assert [t.shape for t in out] == [t.shape for t in (*weights, *weights, seeds)]
    assert {t.device.type for t in out} == {"cuda"}


def test_compiles_without_graph_breaks():
    x, y, weights, offsets = problem([3, 5])

    def train(x: Tensor) -> Tensor:
        out = two_layer_sgd(2 * x, y, weights, offsets, steps=4, batch_size=4, momentum=0.5, **tables(2))
        return out.weights.w1 + 1

    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), train(x))


BAD = {
    "x one axis": ({"x": torch.zeros(7)}, ValueError, "x: got shape"),
    "x half": ({"x": torch.zeros(40, 7).half()}, TypeError, "x: got dtype torch.float16"),
    "x NaN": ({"x": torch.full((40, 7), math.nan).double()}, ValueError, "x: got 280 of 280"),
    "x empty": ({"x": torch.zeros(0, 7).double(), "y": torch.zeros(0, 3).double()}, ValueError, "x: got shape"),
    "x width": ({"x": torch.zeros(40, 6).double()}, ValueError, "weights.w1: got shape"),
    "y samples": ({"y": torch.zeros(39, 3).double()}, ValueError, "y: got shape"),
    "y dtype": ({"y": torch.zeros(40, 3)}, TypeError, "y: got dtype"),
    "y outputs": ({"y": torch.zeros(40, 4).double()}, ValueError, "weights.w2: got shape"),
    "offsets": ({"offsets": torch.tensor([0, 9, 8])}, ValueError, "offsets: got"),
    "offsets of no node": ({"offsets": torch.tensor([0, 8, 8])}, ValueError, "offsets: got"),
    "offsets dtype": ({"offsets": torch.tensor([0.0, 3, 8])}, TypeError, "offsets: got dtype"),
    "lr negative": ({"lr": torch.tensor([0.1, -0.1]).double()}, ValueError, "lr: got -0.1"),
    "lr one": ({"lr": torch.tensor([0.1]).double()}, ValueError, "lr: got shape"),
    "lr number": ({"lr": 0.1}, TypeError, "lr: got float"),
    "seeds": ({"seeds": torch.tensor([0.0, 1.0])}, TypeError, "seeds: got dtype"),
    "steps": ({"steps": -1}, ValueError, "steps: got -1"),
    "steps kind": ({"steps": 1.5}, ValueError, "steps: got 1.5"),
    "batch_size": ({"batch_size": -1}, ValueError, "batch_size: got -1"),
    "indices range": ({"indices": torch.full((4, 2), 40)}, ValueError, "indices: got values from 40 to 40"),
    "indices negative": ({"indices": torch.full((4, 2), -1)}, ValueError, "indices: got values from -1"),
    "indices shape": ({"indices": torch.zeros(5, 2).long()}, ValueError, "indices: got shape"),
    "indices empty": ({"indices": torch.zeros(4, 0).long()}, ValueError, "indices: got shape"),
    "indices dtype": ({"indices": torch.zeros(4, 2)}, TypeError, "indices: got dtype"),
    "multipliers": ({"multipliers": torch.ones(3).double()}, ValueError, "multipliers: got shape"),
    "momentum": ({"momentum": 1.5}, ValueError, "momentum: got 1.5"),
    "weight_decay": ({"weight_decay": -1.0}, ValueError, "weight_decay: got -1.0"),
    "negative_slope": ({"negative_slope": 2.0}, ValueError, "negative_slope: got 2.0"),
    "loss_limit": ({"loss_limit": 0.0}, ValueError, "loss_limit: got 0.0"),
    "buffers": ({"momentum": 0.5, "buffers": problem([3])[2]}, ValueError, "buffers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str):
    change, error, message = BAD[case]
    x, y, weights, offsets = problem([3, 5])
    given = {"x": x, "y": y, "weights": weights, "offsets": offsets, "steps": 4, **tables(2), **change}
    with pytest.raises(error) as caught:
        two_layer_sgd(**given)
    assert str(caught.value).startswith(message)
    assert "takes" in str(caught.value)


def test_weights_with_nan_are_refused():
    x, y, weights, offsets = problem([3, 5])
    weights.b1[2] = math.nan
    with pytest.raises(ValueError, match=r"weights\.b1: got 1 of 8"):
        two_layer_sgd(x, y, weights, offsets, steps=1, **tables(2))


def test_teachers_of_fresh_inputs_are_checked():
    _, _, weights, offsets = problem([3, 5])
    teacher = problem([4])[2]
    given = (None, None, weights, offsets)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        two_layer_sgd(*given, steps=1, fresh=Fresh(teacher, 1.0), **tables(2))
    teacher.w2[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"fresh.teacher.w2: got 1 of"):
        two_layer_sgd(*given, steps=1, batch_size=4, fresh=Fresh(teacher, 1.0), **tables(2))
