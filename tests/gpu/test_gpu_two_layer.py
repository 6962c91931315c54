"""Populations of two-layer students on the GPU: what the CPU gives, and the same bits however they are launched."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE, on_hardware
from torch import Tensor

import fastspec as fs
from fastspec.ops.normal import fresh_inputs
from fastspec.ops.two_layer_sgd import Fresh, Packed, Trained, schedule, two_layer_sgd

pytestmark = pytest.mark.gpu

CASES = {
    "plain": {},
    "leaky": {"negative_slope": 0.2},
    "no_bias": {"bias": False},
    "decay": {"weight_decay": 0.03},
    "momentum_decay": {"momentum": 0.8, "weight_decay": 0.03},
    "normalize": {"normalize": True},
    "fixed_first": {"fixed_first": True},
    "fixed_top": {"fixed_top": True, "momentum": 0.5},
    "schedule": {"multipliers": torch.linspace(1, 0.1, 60, dtype=torch.float64)},
    "full_batch": {"batch_size": 0},
}
WIDTHS = [
    1,
    5,
    20,
    64,
    65,
    100,
    200,
    500,
    2048,
]  # blocks that share a multiprocessor, single ones, clusters of each size


def problem(widths: list[int], n: int = 300, d: int = 100, c: int = 50, dtype: torch.dtype = torch.float64):
    """x, y, weights and offsets on the CPU."""
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64).to(dtype)

    nodes, scale = sum(widths), d**-0.5
    weights = Packed(
        scale * normal(nodes, d), 0.1 * normal(nodes), 0.05 * normal(nodes, c), 0.1 * normal(len(widths), c)
    )
    return normal(n, d), normal(n, c), weights, torch.tensor([0, *widths]).cumsum(0)


def tables(students: int, lr: float = 0.01) -> dict[str, Tensor]:
    rates = lr * (1 + torch.arange(students, dtype=torch.float64) / students)
    return {"lr": rates, "seeds": 5 + 3 * torch.arange(students)}


def moved(value: object, device: str) -> object:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (Packed, Fresh)):
        return type(value)(*(moved(part, device) for part in value))
    return value


def train(*given: object, device: str = DEVICE, **settings: object) -> Trained:
    out = two_layer_sgd(*(moved(g, device) for g in given), **{k: moved(v, device) for k, v in settings.items()})
    buffers = None if out.buffers is None else Packed(*(t.cpu() for t in out.buffers))
    return Trained(Packed(*(t.cpu() for t in out.weights)), buffers, out.diverged_step.cpu())


def error(got: Trained, want: Trained) -> float:
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(got.weights, want.weights, strict=True))


def same(got: Trained, want: Trained) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got.weights, want.weights, strict=True))


@pytest.mark.parametrize("batch_size", [16, 5, 100])
@pytest.mark.parametrize("case", CASES)
def test_as_on_the_cpu(case, batch_size):
    given, settings = (
        problem([3, 15, 40, 100, 200]),
        {"steps": 60, "batch_size": batch_size, **tables(5, 0.003), **CASES[case]},
    )
    got, want = train(*given, **settings), train(*given, device="cpu", **settings)
    assert error(got, want) < 1e-11 and got.diverged_step.tolist() == want.diverged_step.tolist() == [-1] * 5


@pytest.mark.parametrize(("d", "c"), [(100, 50), (1, 1), (33, 200), (20_000, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_size(d, c, dtype):
    """The last one has inputs that no shared memory holds."""
    widths = WIDTHS if d < 1000 else WIDTHS[:4]
    given = problem(widths, d=d, c=c, dtype=dtype)
    settings = {"steps": 5, "batch_size": 16, **tables(len(widths), 0.1 / (d + 2048))}
    exact = [t.double() for t in given[:2]], Packed(*(t.double() for t in given[2]))
    want = train(*exact[0], exact[1], given[3], device="cpu", **settings)
    assert error(train(*given, **settings), want) < (1e-11 if dtype == torch.float64 else 1e-4)


def test_float32_is_as_exact_as_plain_torch():
    given, settings = problem([15, 40, 200], dtype=torch.float32), {"steps": 100, "batch_size": 16, **tables(3)}
    exact = [*(t.double() for t in given[:2]), Packed(*(t.double() for t in given[2])), given[3]]
    truth = train(*exact, device="cpu", **settings)
    with fs.backend("reference"):
        plain = train(*given, **settings)
    scale = max(float(t.abs().max()) for t in truth.weights)
    floor = 4 * torch.finfo(torch.float32).eps * 100**0.5 * scale
    assert error(train(*given, **settings), truth) <= 2 * error(plain, truth) + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_students_and_calls_are_independent(dtype):
    x, y, weights, offsets = problem(WIDTHS, dtype=dtype)
    settings, options = tables(len(WIDTHS), 1e-4), {"batch_size": 16, "momentum": 0.5}
    many = train(x, y, weights, offsets, steps=20, **settings, **options)
    assert same(many, train(x, y, weights, offsets, steps=20, **settings, **options))
    for k, nodes in enumerate(WIDTHS):
        rows = slice(int(offsets[k]), int(offsets[k + 1]))
        mine = Packed(weights.w1[rows], weights.b1[rows], weights.w2[rows], weights.b2[k : k + 1])
        rest = {name: table[k : k + 1] for name, table in settings.items()} | options
        half = train(x, y, mine, torch.tensor([0, nodes]), steps=7, **rest)
        one = train(x, y, half.weights, torch.tensor([0, nodes]), steps=13, first_step=7, buffers=half.buffers, **rest)
        assert torch.equal(one.weights.w1, many.weights.w1[rows]) and torch.equal(one.weights.b2[0], many.weights.b2[k])


@on_hardware
def test_the_number_of_blocks_changes_nothing(monkeypatch):
    given, settings = problem([200] * 4, dtype=torch.float32), {"steps": 50, "batch_size": 16, **tables(4)}
    spread = train(*given, **settings)
    monkeypatch.setattr(schedule, "CLUSTER_BARRIER", 10**9)  # so that no student is split that need not be
    schedule.arrange.cache_clear()
    assert same(train(*given, **settings), spread)
    schedule.arrange.cache_clear()


def test_students_diverge_at_the_same_step():
    given = problem([6] * 40, n=40, d=7, c=3)
    settings = {**tables(40), "lr": torch.logspace(-2, 8, 40, dtype=torch.float64), "steps": 150, "batch_size": 8}
    got, want = train(*given, **settings), train(*given, device="cpu", **settings)
    assert got.diverged_step.tolist() == want.diverged_step.tolist() and got.diverged_step.unique().numel() > 4
    assert all(bool(t.isfinite().all()) for t in got.weights)


@pytest.mark.parametrize("options", [{}, {"bias": False, "negative_slope": 0.2}, {"momentum": 0.9}])
def test_fresh_inputs(options):
    _, _, weights, offsets = problem([3, 40, 200], d=20, c=7)
    fresh = Fresh(Packed(*(t[:4] if i < 3 else t[:1] for i, t in enumerate(problem([4], d=20, c=7)[2]))), 1.5)
    settings = {"steps": 40, "batch_size": 16, "first_step": 11, "fresh": fresh, **tables(3, 0.001), **options}
    got, want = (train(None, None, weights, offsets, device=device, **settings) for device in (DEVICE, "cpu"))
    assert error(got, want) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fresh_inputs_are_the_same_bits(dtype):
    """A node whose gradient is 1, at rate 1, becomes its input."""
    students, d = 16, 1003
    zeros, ones = torch.zeros(students, d, dtype=dtype), torch.ones(students, dtype=dtype)
    weights = Packed(zeros, ones, ones[:, None], 0 * ones[:, None])
    teacher = Packed(zeros[:2], 0 * ones[:2], 0 * ones[:2, None], torch.full((1, 1), 2.0, dtype=dtype))
    seeds = 12345678901 * torch.arange(students) - 5
    settings = {"lr": torch.ones(students, dtype=torch.float64), "seeds": seeds, "steps": 1, "first_step": 2**33}
    out = train(None, None, weights, torch.arange(students + 1), batch_size=1, fresh=Fresh(teacher, 1.5), **settings)
    drawn = fresh_inputs(seeds, torch.tensor([2**33]), 1, d, 1.5, dtype)[:, 0, 0]
    assert torch.equal(out.weights.w1, drawn)


def test_training_on_the_gpu():
    teacher = fs.teachers.two_layer(d=20, m=5, c=4, seed=0)
    students = fs.Population.two_layer(teacher, multi=[1, 4], seeds=[0, 1], std=0.1)
    x = fs.data.gaussian(2000, 20, std=1.5, seed=1)
    here = fs.train_two_layer(teacher, students, x, steps=500, snapshots=[100], progress=False)
    there = fs.train_two_layer(
        teacher.to(DEVICE), students.to(DEVICE), x.to(DEVICE), steps=500, snapshots=[100], progress=False
    )
    assert there.population.w1.device.type == DEVICE and there.snapshots.keys() == {100}
    for got, want in zip(there.population.packed, here.population.packed, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-4)
