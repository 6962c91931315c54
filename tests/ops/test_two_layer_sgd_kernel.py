"""The C++ kernel of `two_layer_sgd` against its specification, which shares no code with it."""

from __future__ import annotations

import math

import pytest
import torch
from test_two_layer_sgd import CASES, problem, tables
from torch import Tensor

from fastspec.ops.normal import fresh_inputs
from fastspec.ops.two_layer_sgd import Fresh, Packed, Trained, reference, two_layer_sgd

pytestmark = pytest.mark.native
FLAGS = ("bias", "normalize", "fixed_first", "fixed_top")


def specified(x: Tensor | None, y: Tensor | None, weights: Packed, offsets: Tensor, **o) -> Trained:
    """The specification, called as the op is."""
    momentum, fresh = o.get("momentum", 0.0), o.get("fresh")
    if fresh is not None:
        x, y = weights.w1.new_empty(0, weights.w1.shape[1]), weights.w2.new_empty(0, weights.w2.shape[1])
    students = len(weights.b2)
    out = reference.two_layer_sgd(
        *(x, y, *weights, offsets, o["lr"], o["seeds"], o.get("diverged_step", torch.full((students,), -1))),
        *([torch.zeros_like(t) for t in weights] if momentum else [None] * 4),
        *(
            o.get("indices"),
            o.get("multipliers"),
            *(fresh.teacher if fresh else [None] * 4),
            fresh.std if fresh else 0.0,
        ),
        *(o.get("batch_size", 0), o.get("first_step", 0), o["steps"], momentum, o.get("weight_decay", 0.0)),
        *(o.get("negative_slope", 0.0), o.get("loss_limit", math.inf), *(o.get(f, f == "bias") for f in FLAGS)),
    )
    return Trained(Packed(*out[:4]), Packed(*out[4:8]) if momentum else None, out[8])


def largest_error(got: Trained, truth: Trained) -> float:
    pairs = [*zip(got.weights, truth.weights, strict=True)]
    if truth.buffers is not None:
        assert got.buffers is not None
        pairs += zip(got.buffers, truth.buffers, strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def double(packed: Packed) -> Packed:
    return Packed(*(t.double() for t in packed))


@pytest.mark.parametrize("batch_size", [16, 5, 100])
@pytest.mark.parametrize("case", CASES)
def test_float64_after_200_steps(case: str, batch_size: int):
    options = {"batch_size": batch_size, **CASES[case]}
    if "multipliers" in options:
        options["multipliers"] = torch.linspace(1, 0.1, 200, dtype=torch.float64)
    x, y, weights, offsets = problem([3, 15, 16, 3, 40, 1])
    given = (x, y, weights, offsets)
    settings = {"steps": 200, **tables(6, 0.01), **options}
    assert largest_error(two_layer_sgd(*given, **settings), specified(*given, **settings)) < 1e-11


@pytest.mark.parametrize("shared", [True, False])
def test_float64_on_given_batches(shared: bool):
    x, y, weights, offsets = problem([4, 21])
    draw = torch.Generator().manual_seed(3)
    indices = torch.randint(len(x), (200, 24) if shared else (2, 200, 24), generator=draw)
    settings = {"steps": 200, "indices": indices, **tables(2, 0.02)}
    given = (x, y, weights, offsets)
    assert largest_error(two_layer_sgd(*given, **settings), specified(*given, **settings)) < 1e-11


@pytest.mark.parametrize("case", ["plain", "all", "full_batch"])
def test_float32_is_as_exact_as_plain_torch(case: str):
    """At most twice the error of the specification in float32, both against float64, and a rounding floor."""
    options = {"batch_size": 16, **CASES[case]}
    x, y, weights, offsets = problem([3, 15, 40, 100], n=200, d=30, c=10, dtype=torch.float32)
    settings = {"steps": 120, **tables(4, 0.01), **options}
    truth = specified(x.double(), y.double(), double(weights), offsets, **settings)
    ours = largest_error(two_layer_sgd(x, y, weights, offsets, **settings), truth)
    plain = largest_error(specified(x, y, weights, offsets, **settings), truth)
    scale = max(float(t.abs().max()) for t in truth.weights)
    assert ours <= 2 * plain + 4 * torch.finfo(torch.float32).eps * 120**0.5 * scale
    assert plain > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "c", "batch_size"), [(1, 1, 1), (100, 50, 16), (7, 33, 64), (65, 8, 65), (15, 16, 8)])
def test_every_width(d: int, c: int, batch_size: int, dtype: torch.dtype, poisoned):
    widths = [*range(1, 42), 63, 64, 65, 127, 200, 2048]
    x, y, weights, offsets = problem(widths, n=90, d=d, c=c, dtype=dtype)
    students = len(widths)
    weights = Packed(*(t / 8 for t in weights))
    settings = {"steps": 3, "batch_size": batch_size, **tables(students, 1e-3)}
    truth = specified(x.double(), y.double(), double(weights), offsets, **settings)
    got = two_layer_sgd(x, y, weights, offsets, **settings)
    assert (got.diverged_step == -1).all()
    assert largest_error(got, truth) < (1e-13 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integers_are_exact(dtype: torch.dtype):
    """Small integers at a rate that is a power of two: every sum is exact, so every backend gives the same bits."""
    draw = torch.Generator().manual_seed(0)

    def integers(*size: int) -> Tensor:
        return torch.randint(-2, 3, size, generator=draw).to(dtype)

    widths = [1, 6, 17, 40]
    nodes = sum(widths)
    weights = Packed(integers(nodes, 9), integers(nodes), integers(nodes, 5), integers(4, 5))
    given = (integers(64, 9), integers(64, 5), weights, torch.tensor([0, *widths]).cumsum(0))
    rates = {"lr": torch.full((4,), 2.0**-4, dtype=torch.float64), "seeds": torch.arange(4)}
    for options in ({"steps": 1, "batch_size": 16}, {"steps": 1}, {"steps": 1, "batch_size": 8, "momentum": 0.5}):
        got, want = two_layer_sgd(*given, **rates, **options), specified(*given, **rates, **options)
        assert all(torch.equal(a, b) for a, b in zip(got.weights, want.weights, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_students_diverge_at_the_same_step(momentum: float, batch_size: int):
    """Also where only the weights say so, at any place between the copies that the kernel goes back to."""
    widths = [6] * 40
    x, y, weights, offsets = problem(widths, dtype=torch.float32)
    settings = tables(40) | {"lr": torch.logspace(-2, 8, 40, dtype=torch.float64)}
    options = {"steps": 150, "batch_size": batch_size, "momentum": momentum}
    got = two_layer_sgd(x, y, weights, offsets, **settings, **options)
    want = specified(x, y, weights, offsets, **settings, **options)
    assert got.diverged_step.tolist() == want.diverged_step.tolist()
    assert -1 in got.diverged_step and got.diverged_step.unique().numel() > 4
    assert all(bool(t.isfinite().all()) for t in got.weights)
    for k, stopped in enumerate(got.diverged_step.tolist()):
        if stopped < 0:
            continue
        before = two_layer_sgd(x, y, weights, offsets, **settings, **{**options, "steps": stopped})
        rows = slice(6 * k, 6 * k + 6)
        assert before.diverged_step[k] == -1
        assert torch.equal(before.weights.w1[rows], got.weights.w1[rows])
        if got.buffers is not None:
            assert not got.buffers.w1[rows].any() and not want.buffers.w1[rows].any()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("layer, steps", [("w1", 7), ("w1", 2), ("w2", 2)])  # 2: no loss tells of it
def test_weights_that_overflow_late_are_noticed_at_their_step(layer: str, steps: int, momentum: float):
    # Weight decay at this rate multiplies the weight by -1e22: finite after step 0, beyond float32 after step 1.
    weights = Packed(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1), torch.zeros(1, 1))
    getattr(weights, layer).fill_(2.0)
    lr, x = torch.full((1,), 1e30, dtype=torch.float64), torch.ones(1, 1)
    settings = {"lr": lr, "seeds": torch.zeros(1, dtype=torch.int64), "steps": steps, "weight_decay": 1e-8}
    settings["momentum"] = momentum
    given = (x, torch.zeros(1, 1), weights, torch.tensor([0, 1]))
    got, want = two_layer_sgd(*given, **settings), specified(*given, **settings)
    assert got.diverged_step.tolist() == want.diverged_step.tolist() == [1]
    assert torch.equal(getattr(got.weights, layer), getattr(want.weights, layer))


@pytest.mark.parametrize("batch_size", [4, 130])
def test_a_loss_at_the_limit_is_within_it(batch_size: int):
    x, _, weights, offsets = problem([3, 4], dtype=torch.float32)
    silent, y = Packed(*(0 * t for t in weights)), torch.full((len(x), weights.w2.shape[1]), 2.0)
    loss = 2.0 * y.shape[1]  # exactly
    for limit, stopped in ((loss, -1), (0.999 * loss, 0)):
        settings = tables(2) | {"steps": 1, "batch_size": batch_size, "loss_limit": limit}
        for train in (two_layer_sgd, specified):
            assert train(x, y, silent, offsets, **settings).diverged_step.tolist() == [stopped] * 2


def test_students_already_stopped_are_left_alone():
    x, y, weights, offsets = problem([4, 4])
    settings = tables(2) | {"steps": 3, "batch_size": 4, "diverged_step": torch.tensor([-1, 7])}
    for train in (two_layer_sgd, specified):
        out = train(x, y, weights, offsets, **settings)
        assert out.diverged_step.tolist() == [-1, 7] and torch.equal(out.weights.w1[4:], weights.w1[4:])
        assert not torch.equal(out.weights.w1[:4], weights.w1[:4])


def test_an_infinite_loss_is_beyond_every_limit():
    x, y, weights, offsets = problem([3, 4], dtype=torch.float32)
    settings = tables(2) | {"steps": 1, "batch_size": 4, "lr": torch.full((2,), 1e-40, dtype=torch.float64)}
    for train in (two_layer_sgd, specified):
        out = train(x, torch.full_like(y, 3e38), weights, offsets, **settings)
        assert out.diverged_step.tolist() == [0, 0] and torch.equal(out.weights.w1, weights.w1)


def teacher_of(d: int, c: int, dtype: torch.dtype) -> Packed:
    return problem([4], d=d, c=c, dtype=dtype, seed=9)[2]


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"negative_slope": 0.2}, {"momentum": 0.9}])
@pytest.mark.parametrize("batch_size", [1, 16, 130])
def test_fresh_inputs(options: dict, batch_size: int):
    _, _, weights, offsets = problem([3, 15, 16, 40])
    fresh = Fresh(teacher_of(7, 3, torch.float64), 1.5)
    settings = {"steps": 60, "batch_size": batch_size, "first_step": 11, "fresh": fresh, **tables(4, 0.001), **options}
    got, want = (f(None, None, weights, offsets, **settings) for f in (two_layer_sgd, specified))
    assert largest_error(got, want) < 1e-11
    halves: Trained = two_layer_sgd(None, None, weights, offsets, **{**settings, "steps": 20})
    halves = two_layer_sgd(
        *(None, None, halves.weights, offsets),
        **{**settings, "steps": 40, "first_step": 31, "buffers": halves.buffers},
    )
    assert all(torch.equal(a, b) for a, b in zip(halves.weights, got.weights, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fresh_inputs_are_the_same_bits(dtype: torch.dtype):
    """A node whose gradient is 1, at rate 1, becomes its input."""
    students, d = 16, 1003
    weights = Packed(
        torch.zeros(students, d, dtype=dtype),
        torch.ones(students, dtype=dtype),
        torch.ones(students, 1, dtype=dtype),
        torch.zeros(students, 1, dtype=dtype),
    )
    two = torch.full((1, 1), 2.0, dtype=dtype)
    teacher = Packed(torch.zeros(2, d, dtype=dtype), torch.zeros(2, dtype=dtype), torch.zeros(2, 1, dtype=dtype), two)
    seeds = 12345678901 * torch.arange(students) - 5
    out = two_layer_sgd(
        *(None, None, weights, torch.arange(students + 1)),
        lr=torch.ones(students, dtype=torch.float64),
        seeds=seeds,
        steps=1,
        first_step=2**33,
        batch_size=1,
        fresh=Fresh(teacher, 1.5),
    )
    drawn = fresh_inputs(seeds, torch.tensor([2**33]), 1, d, 1.5, dtype)[:, 0, 0]
    assert torch.equal(out.weights.w1, drawn)
