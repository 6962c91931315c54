"""Errors against float64: within twice torch's at the same precision, and 1e-5 of rho in the hard regimes."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import (
    DEVICE,
    LOW,
    PLANS,
    errors,
    floor,
    layers,
    normal,
    on,
    on_hardware,
    roundoff,
    torch_activations,
    torch_moments,
)
from moments_oracle import correlation, two_pass

import fastspec as fs
from benchmarks.precision import dtype_of
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.layer_moments import layer_moments, plans, reference
from fastspec.ops.linear_relu import linear_relu
from fastspec.ops.precision import PRECISIONS

pytestmark = pytest.mark.gpu

# samples, inputs, teacher nodes, student nodes
SHAPES = [(100, 20, 50, 7), (5000, 784, 13, 33), (30_000, 20, 50, 500), (20_000, 300, 256, 1100)]


def assert_within_twice(got: dict[str, float], torchs: dict[str, float], least: float) -> None:
    for name, error in got.items():
        assert error <= 2 * torchs[name] + least, f"{name}: {error:.1e} against torch's {torchs[name]:.1e}"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_layer_moments_within_twice_the_error_of_torch(plan, shape, precision):
    args = layers(*shape, dtype=dtype_of(precision))
    x, w_t, b_t, _, w_s, b_s = args
    want = reference.layer_moments(*on(DEVICE, args, torch.float64), 0.0, "fp64", False, False)
    t, s = torch_activations(x, w_t, b_t, precision), torch_activations(x, w_s, b_s, precision)
    with plans.force(plan):
        got, _ = layer_moments(*args, precision=precision)
    torchs = errors(torch_moments(t, s, precision), want)
    assert_within_twice(errors(got, want), torchs, floor(precision, shape[0] + shape[1]))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(100, 50, 7), (100_000, 13, 33), (20_000, 256, 1100)], ids=str)
def test_cross_moments_within_twice_the_error_of_torch(shape, precision):
    n, m, k = shape
    t, s = normal(n, m, dtype=dtype_of(precision)).relu(), normal(n, k, dtype=dtype_of(precision)).relu()
    s[:, 0] = t[:, 0]  # identical nodes: roundings that do not cancel
    want = two_pass(t, s)
    torchs = errors(torch_moments(t, s, precision), want)
    assert_within_twice(errors(cross_moments(t, s, precision=precision), want), torchs, floor(precision, n))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(1000, 20, 500), (5000, 784, 33), (3000, 300, 1100)], ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_linear_relu_within_twice_the_error_of_torch(slope, shape, precision):
    samples, d, n = shape
    dtype = dtype_of(precision)
    x, weight, bias = normal(samples, d, dtype=dtype), normal(n, d, dtype=dtype) / d**0.5, normal(n, dtype=dtype)
    exact = torch_activations(x.double(), weight.double(), bias.double(), "fp64", slope)
    size = exact.abs().max()
    got = linear_relu(x, weight, bias, negative_slope=slope, precision=precision).activation
    error, torchs = (
        (a - exact).abs().max() / size for a in (got, torch_activations(x, weight, bias, precision, slope))
    )
    assert error <= 2 * torchs + floor(precision, d), f"{error:.1e} against torch's {torchs:.1e}"


@pytest.mark.parametrize("precision", LOW)
def test_identical_nodes_correlate_fully(precision):
    """Operands that are rounded towards 0 would shrink the cross product, but not the nodes' own scatters."""
    t = normal(50_000, 30).relu()
    rho = correlation(cross_moments(t, t, precision=precision)).diagonal()
    assert (rho - 1).abs().max() <= roundoff(precision) / 4


REGIMES = {
    "scale 1e-2": lambda x: 1e-2 * x.relu(),
    "scale 1e-3": lambda x: 1e-3 * x.relu(),
    "scale 1e-5": lambda x: 1e-5 * x.relu(),
    "mean 100, sd 1": lambda x: 100 + x,
    "mean 1000, sd 0.1": lambda x: 1000 + 0.1 * x,
    "mean -1e4, sd 1": lambda x: x - 1e4,
    "a step in the middle": lambda x: x + 1000.0 * (torch.arange(len(x), device=DEVICE) > 2 * len(x) // 3)[:, None],
    "the first sample an outlier": lambda x: x + 1e4 * (torch.arange(len(x), device=DEVICE) == 0)[:, None],
    "sparse": lambda x: (x - 3).relu() * 100,
    "sorted": lambda x: x.sort(0).values * 10 + 5,
}


def hard(regime, samples=20_000):
    base = normal(samples, 12)
    mixed = 0.8 * base[:, :6].repeat(1, 3) + 0.6 * normal(samples, 18)
    return REGIMES[regime](base), REGIMES[regime](mixed)


@pytest.mark.parametrize("precision", ["fp32", "tf32x3"])
@pytest.mark.parametrize("regime", REGIMES)
def test_correlation_within_1e_5_in_every_regime(regime, precision):
    t, s = hard(regime)
    error = (correlation(cross_moments(t, s, precision=precision)) - correlation(two_pass(t, s))).abs().max()
    assert error <= 1e-5


@pytest.mark.parametrize("regime", ["scale 1e-5", "mean 1000, sd 0.1", "a step in the middle"])
def test_correlation_within_1e_5_in_batches_of_64(regime):
    t, s = hard(regime, 3200)
    batches = [fs.cross_moments(a, b) for a, b in zip(t.split(64), s.split(64), strict=True)]
    merged = batches[0]
    for batch in batches[1:]:
        merged = merged + batch
    assert (merged.correlation() - correlation(two_pass(t, s))).abs().max() <= 1e-5


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("scale, shift", [(1e-5, 0.0), (0.1, 1000.0)])
def test_layers_in_the_hard_regimes(scale, shift, plan):
    """A bias of 1000 and a deviation of .1: against the correlation of torch's own float32 activations."""
    x, w_t, _, _, w_s, _ = layers(20_000, 30, 20, 70, bias=False)
    biases = [torch.full((len(w),), shift, device=DEVICE) for w in (w_t, w_s)]
    with plans.force(plan):
        got, (t, s) = layer_moments(x, scale * w_t, biases[0], x, scale * w_s, biases[1], activations=True)
    assert (correlation(got) - correlation(two_pass(t, s))).abs().max() <= 1e-5


def networks():
    teacher = fs.teachers.separated([20, 30, 40, 50, 10], seed=0)
    student = fs.networks.student_like(teacher, multi=4, seed=1)
    return teacher, student, 10 * torch.randn(20_000, 20)


@on_hardware
def test_measure_on_the_gpu_agrees_with_the_cpu():
    teacher, student, x = networks()
    cpu = fs.measure(teacher, student, x, coactivation=True, grams=True)
    gpu = fs.measure(teacher.cuda(), student.cuda(), x.cuda(), coactivation=True, grams=True)
    torch.testing.assert_close(gpu.loss.cpu(), cpu.loss, rtol=1e-5, atol=0)
    for name, want in cpu.layers.items():
        got = gpu.layers[name]
        assert (got.correlation().cpu() - want.correlation()).abs().nan_to_num().max() <= 1e-4
        assert (got.student_active.cpu() - want.student_active).abs().max() <= 20
        assert (got.coactive.cpu() - want.coactive).abs().max() <= 20


@on_hardware
def test_a_population_measured_on_the_gpu_agrees_with_the_cpu():
    teacher = fs.teachers.two_layer(d=30, m=10, c=20, seed=0)
    students = fs.Population.two_layer(teacher, multi=[1, 2, 5], seeds=range(3), std=0.3)
    x = fs.data.gaussian(10_000, 30, std=1.5, seed=1)
    cpu, gpu = fs.measure(teacher, students, x), fs.measure(teacher.cuda(), students.to("cuda"), x.cuda())
    torch.testing.assert_close(gpu.loss.cpu(), cpu.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gpu.layer_score.cpu(), cpu.layer_score, rtol=0, atol=1e-5)
