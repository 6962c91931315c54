"""The Triton kernels of mlp_sgd_step."""

from __future__ import annotations

import math

import pytest
import torch
from placed import KINDS, placed
from stepped import EVERYTHING, RULE, assert_close, same
from torch import Tensor

from fastspec.ops.mlp_sgd_step import (
    Stepped,
    layers_of,
    mlp_sgd_step,
    parameter_count,
    reference,
    room,
    shapes,
    students,
)
from fastspec.ops.mlp_sgd_step import triton as kernels

DEEP = [7, 12, 21, 10, 3]


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    """Tiles so small that batches of 11 and these widths have several, sums have parts; rooms of two steps."""
    monkeypatch.setattr(shapes, "SHORTEST", 8)
    monkeypatch.setattr(shapes, "PROGRAMS", 30)
    monkeypatch.setattr(shapes, "layer_tiles", lambda *_: shapes.Tiles(8, 16, 8, 4, 1))
    monkeypatch.setattr(shapes, "update_tiles", lambda *_: shapes.Tiles(8, 16, 16, 4, 1))
    monkeypatch.setattr(students, "STEPS", 2)
    monkeypatch.setattr(students, "SQUARES", 2)
    monkeypatch.setattr(room, "LOSSES", 16)
    for module in (room, students):
        monkeypatch.setattr(module, "NORMALIZED", (4, 8))
    room.tables.cache_clear()
    yield
    room.tables.cache_clear()


def problem(
    widths=DEEP, students=None, *, steps=3, batch=11, own=False, labels=False, dtype=torch.float64, bias=None, scale=0.4
):
    """The tensors of a call: x, y, parameters, None, indices, rates, diverged_step; and widths and bias."""
    population = () if students is None else (students,)
    bias = [True] * (len(widths) - 1) if bias is None else bias
    x, y = torch.randn(30, widths[0], dtype=torch.float64), torch.randn(30, widths[-1], dtype=torch.float64)
    flat = scale * torch.randn(*population, parameter_count(widths, bias), dtype=torch.float64)
    rows = torch.randint(30, (*(population if own else ()), steps, batch))
    rates = torch.linspace(0.02, 0.01, steps, dtype=torch.float64)
    y = y.argmax(1) if labels else y.to(dtype)
    return x.to(dtype), y, flat.to(dtype), None, rows, rates, torch.full(population, -1), widths, bias


def double(given):
    return tuple(t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in given)


def run(way, given, **rule) -> Stepped:
    precision = "fp64" if given[0].dtype == torch.float64 else "fp32"
    rule = {**RULE, "normalize": False, "gradient_norms": False, "precision": precision, **rule}
    return Stepped(*way.mlp_sgd_step(*given, *rule.values()))


CASES = {
    "plain": {},
    "leaky": {"negative_slope": 0.2},
    "decay": {"weight_decay": 0.03},
    "momentum": {"momentum": 0.9},
    "normalize": {"normalize": True},
    "norms": {"gradient_norms": True},
    "all": EVERYTHING,
}


@pytest.mark.parametrize("case, labels", [*((case, False) for case in CASES), ("plain", True), ("all", True)])
def test_as_specified(case, labels):
    given = problem(labels=labels)
    assert_close(run(kernels, given, **CASES[case]), run(reference, given, **CASES[case]))


@pytest.mark.parametrize("own, labels", [(False, True), (True, False), (True, True)])
def test_a_population(own, labels):
    given = problem(students=2, steps=2, own=own, labels=labels, bias=[True, False, True, False])
    got = run(kernels, given, **EVERYTHING)
    assert_close(got, run(reference, given, **EVERYTHING))
    for k in range(2) if own else (1,):
        x, y, flat, _, rows, rates, diverged, *shape = given
        alone = run(kernels, (x, y, flat[k], None, rows[k] if own else rows, rates, diverged[k], *shape), **EVERYTHING)
        assert same(alone, [t[k] for t in got])


@pytest.mark.parametrize("widths", [[5, 3], [1, 1, 1], [9, 33, 1, 18, 4], [8, 16, 16, 17]], ids=str)
@pytest.mark.parametrize("batch", [1, 17])
def test_shapes(widths, batch):
    given = problem(widths, batch=batch, steps=1, bias=[False] + [True] * (len(widths) - 2))
    assert_close(run(kernels, given, **EVERYTHING), run(reference, given, **EVERYTHING))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_integers_are_exact(dtype):
    """At a rate that is a power of two every sum is exact."""
    x, y, flat, _, rows, rates, *rest = problem([7, 21, 10], students=2, batch=8, steps=1)
    x, y, flat = (torch.randint(-2, 3, t.shape).to(dtype) for t in (x, y, flat))
    given = x, y, flat, None, rows, torch.full_like(rates, 2.0**-4), *rest
    got, want = run(kernels, given, negative_slope=0.25), run(reference, double(given), negative_slope=0.25)
    assert torch.equal(got.parameters.double(), want.parameters) and torch.equal(got.loss, want.loss)


@pytest.mark.parametrize("kind", KINDS)
def test_any_strides(kind):
    x, y, flat, _, rows, *rest = problem([7, 12, 3], students=2, steps=1)
    place = [placed(t, kind) for t in (x, y, flat, torch.randn_like(flat))]
    assert_close(run(kernels, (*place, rows, *rest), momentum=0.5), run(reference, (*place, rows, *rest), momentum=0.5))
    turned = torch.stack([rows, rows], -1)[..., 0]
    assert same(run(kernels, (*place, turned, *rest)), run(kernels, (*place, rows, *rest)))


def test_calls_change_no_bit():
    x, y, flat, _, rows, rates, diverged, *shape = problem([7, 12, 9, 3], students=2, steps=5, dtype=torch.float32)
    whole = run(kernels, (x, y, flat, None, rows, rates, diverged, *shape), **EVERYTHING)
    part = Stepped(flat, None, whole.loss, None, diverged)
    for start, end in ((0, 1), (1, 4), (4, 4), (4, 5)):
        given = x, y, part.parameters, part.buffers, rows[start:end], rates[start:end], part.diverged_step, *shape
        part = run(kernels, given, **{**EVERYTHING, "first_step": start})
    assert torch.equal(part.parameters, whole.parameters) and torch.equal(part.buffers, whole.buffers)
    assert torch.equal(part.loss, whole.loss[:, 4:])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("limit", [math.inf, 1e30])
def test_a_diverging_student_stops_and_harms_no_other(momentum, limit):
    given = problem([7, 12, 9, 3], students=4, steps=7, batch=4)
    given[2][1] *= 60
    given[2][3] = 0.1
    given[6][3] = 2  # stopped before
    rule = {"momentum": momentum, "loss_limit": limit, "first_step": 5, "gradient_norms": True}
    got, want = run(kernels, given, **rule), run(reference, given, **rule)
    assert want.diverged_step[1] > 5 and want.diverged_step[[0, 2, 3]].tolist() == [-1, -1, 2]
    assert torch.equal(got.diverged_step, want.diverged_step)
    for k in (0, 2, 3):
        torch.testing.assert_close(got.parameters[k], want.parameters[k], rtol=0, atol=1e-11)
    torch.testing.assert_close(got.parameters[1], want.parameters[1], rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(got.loss.isnan(), want.loss.isnan())
    assert torch.equal(got.gradient_norm.isnan(), want.gradient_norm.isnan())
    if momentum:
        assert (got.buffers[[1, 3]] == 0).all() and (got.buffers[[0, 2]] != 0).any()


def test_gates_are_off_at_zero_and_a_node_of_norm_zero_stays():
    x, y, flat, *rest = problem([4, 5, 5, 2], steps=2)
    (weight, bias), (above, _), _ = layers_of(flat, *rest[-2:])
    weight[0], bias[0], above[:, 0] = 0, 0, 0
    got = run(kernels, (x, y, flat, *rest), normalize=True)
    assert_close(got, run(reference, (x, y, flat, *rest), normalize=True))
    assert (layers_of(got.parameters, *rest[-2:])[0][0][0] == 0).all()


def test_what_overflows_does_not_come_back_through_the_padding():
    """An infinite activation times the zeros beyond the true widths would be NaN."""
    _, y, flat, _, rows, *rest = problem([1, 1, 1], steps=1, dtype=torch.float32)
    given = torch.full((30, 1), 3e38), y, torch.full_like(flat, 2.0), None, rows, *rest
    got, want = run(kernels, given), run(reference, given)
    assert got.loss.isposinf().all() and want.loss.isposinf().all() and got.diverged_step == 0


def test_a_student_whose_loss_is_nan_stops():
    """Infinity minus infinity."""
    _, y, flat, _, rows, *rest = problem([1, 2, 1], steps=1, dtype=torch.float32)
    flat = torch.tensor([2.0, 2.0, 0.0, 0.0, 1.0, -1.0, 0.0])
    got = run(kernels, (torch.full((30, 1), 3e38), y, flat, None, rows, *rest))
    assert got.loss.isnan().all() and got.diverged_step == 0 and torch.equal(got.parameters, flat)


def test_sums_have_parts_here():
    layout = shapes.Layout(tuple(DEEP), (True,) * 4, 11, True)
    tiles = shapes.layer_tiles(11, True)
    assert [shapes.chunk_of(tiles, 11, layout.padded[i], layout.padded[i + 1]) for i in range(4)] == [8] * 4


def test_no_steps_and_no_students():
    for given in (problem(students=2, steps=0), problem(students=0)):
        assert same(run(kernels, given, momentum=0.5), run(reference, given, momentum=0.5))


def test_float32_in_tiles_of_their_true_size(monkeypatch):
    monkeypatch.undo()
    room.tables.cache_clear()
    given = problem([20, 150, 40, 10], dtype=torch.float32, batch=40, steps=4, scale=0.1)
    truth = run(reference, double(given), momentum=0.5).parameters
    got, torchs = (run(way, given, momentum=0.5).parameters for way in (kernels, reference))
    floor = torch.finfo(torch.float32).eps * 150**0.5 * truth.abs().max()
    assert 0 < (got - truth).abs().max() <= 2 * (torchs - truth).abs().max() + floor


def test_the_op_reaches_the_kernels(monkeypatch):
    import fastspec as fs

    x, y, flat, _, rows, rates, *_ = problem(steps=2)
    made = []
    original = room.Room.launch
    monkeypatch.setattr(room.Room, "launch", lambda self, steps: made.append(steps) or original(self, steps))
    with fs.backend("triton"):
        got = mlp_sgd_step(x, y, flat, DEEP, indices=rows, lr=rates)
    assert sum(made) == 2
    want = run(reference, (x, y, flat, None, rows, rates, torch.tensor(-1), DEEP, [True] * 4))
    torch.testing.assert_close(got.parameters, want.parameters)
