"""Widths from 1 to 65,536, problems of more than 2^31 elements, and memory that does not grow with the samples."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE, PLANS, errors, free_gib, integers, layers, on, on_hardware
from moments_oracle import FIELDS, assert_bitwise

import fastspec as fs
from benchmarks.memory import measure
from benchmarks.precision import dtype_of
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.layer_moments import layer_moments, plans, reference
from fastspec.ops.linear_relu import linear_relu

pytestmark = pytest.mark.gpu
WIDTHS = [
    (1, 1),
    (1, 65_536),
    (65_536, 1),
    (2, 15),
    (16, 17),
    (33, 129),
    (257, 1000),
    (7, 4097),
    (4097, 7),
    (300, 65_536),
]
MORE = 2**31 + 1000  # elements


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("m, n", WIDTHS)
def test_widths(m, n, plan, precision):
    args = layers(500, 5, m, n, integer=True)
    with plans.force(plan):
        got, _ = layer_moments(*args, 0.0, True, precision=precision)
    assert_bitwise(got, reference.layer_moments(*on(DEVICE, args, torch.float64), 0.0, "fp64", True, False)[:8])


@pytest.mark.parametrize("m, n", WIDTHS[1:3])
def test_widths_of_given_activations(m, n):
    t, s = integers(500, m, high=6), integers(500, n, high=6)
    got = cross_moments(t, s, True)
    part = slice(-9, None)
    assert_bitwise(of_nodes(got, part), cross_moments(t[:, part], s[:, part], True))


def of_nodes(moments, part):
    """Moments of some nodes of both networks."""
    return [x[part, part] if x.dim() == 2 else x[part] for x in moments]


@on_hardware
def test_a_layer_of_two_to_the_31_inputs():
    """x [2^21 + 5, 1024] in float16: the whole agrees with its halves, the last samples included."""
    free_gib(12)
    samples, d = 2**21 + 5, 1024
    x = torch.randn(samples, d, device=DEVICE, dtype=torch.float16)
    (w_t, w_s) = (torch.randn(n, d, device=DEVICE, dtype=torch.float16) / d**0.5 for n in (9, 33))
    half = 2**20
    for plan in PLANS:
        with plans.force(plan):
            whole = fs.layer_moments(x, (w_t, None), (w_s, None))
            halves = [fs.layer_moments(part, (w_t, None), (w_s, None)) for part in (x[:half], x[half:])]
        whole, merged = ([getattr(found, name) for name in FIELDS[:7]] for found in (whole, halves[0] + halves[1]))
        assert max(errors(whole, merged).values()) <= 1e-6
        assert all((a - b).abs().max() <= 5 for a, b in zip(whole[5:], merged[5:], strict=True))  # gates near 0


@on_hardware
def test_more_than_two_to_the_31_samples():
    """Fabricated by a stride of 0, so constant: counts and means are exact, the scatter is 0."""
    for value in (2.0, 0.0):
        t = torch.full((1, 1), value, device=DEVICE).expand(MORE, 1)
        moments = cross_moments(t, t, True)
        count = MORE if value else 0
        assert int(moments.teacher_active) == int(moments.student_active) == int(moments.coactive) == count
        assert float(moments.teacher_mean) == value and not float(moments.cross_scatter)


@on_hardware
@pytest.mark.parametrize("stride", [(2**31, 1), (1, 2**31)])
def test_rows_and_columns_two_to_the_31_elements_apart(stride):
    free_gib(6)
    shape = (2, 7) if stride[1] == 1 else (7, 2)
    memory = torch.empty(2**31 + 64, device=DEVICE, dtype=torch.float16)
    far = memory.as_strided(shape, stride)
    far.copy_(integers(*shape, high=6))
    near = far.contiguous()
    assert_bitwise(cross_moments(far, far, True), cross_moments(near, near, True))
    weight = integers(5, shape[1], dtype=torch.float16)
    for plan in PLANS:
        with plans.force(plan):
            got, want = (layer_moments(x, weight, None, x, weight, None, 0.0, True)[0] for x in (far, near))
        assert_bitwise(got, want)
    for a, b in zip(linear_relu(far, weight, None), linear_relu(near, weight, None), strict=True):
        assert torch.equal(a, b)
    far_weight = memory.as_strided(shape, stride)
    x = integers(40, shape[1], dtype=torch.float16)
    for a, b in zip(linear_relu(x, far_weight, None), linear_relu(x, near, None), strict=True):
        assert torch.equal(a, b)


@on_hardware
def test_more_than_two_to_the_31_activations_are_written():
    free_gib(12)
    samples, n = 2**20 + 3, 2056
    x, weight = torch.randn(samples, 8, device=DEVICE).half(), torch.randn(n, 8, device=DEVICE).half()
    out, last = linear_relu(x, weight, None), linear_relu(x[-300:], weight, None)
    assert out.activation.numel() > 2**31
    assert torch.equal(out.activation[-300:], last.activation) and torch.equal(out.gates[-300:], last.gates)
    nodes = ((out.gates.unsqueeze(-1) >> torch.arange(8, device=DEVICE)) & 1).flatten(1)  # before float16 rounds to 0
    assert torch.equal(out.active, nodes.sum(0)[:n])


MEMORY = [
    ("d20", (2**20, 20, 50, 500)),
    ("many samples", (2**23, 20, 50, 500)),
    ("d784", (2**18, 784, 256, 2560)),
    ("d1024", (2**17, 1024, 1024, 8192)),
    ("d4096", (2**14, 4096, 4096, 32_768)),
]


@on_hardware
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "tf32x3"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("shape", [shape for _, shape in MEMORY], ids=[name for name, _ in MEMORY])
def test_extra_memory_is_at_most_256_mb(shape, plan, precision):
    if plan == "recompute" and shape[1] >= 1024:
        pytest.skip("nobody would take this plan, for minutes")
    free_gib(8)
    args = layers(*shape)
    with plans.force(plan):
        found = measure(lambda: layer_moments(*args, precision=precision)[0], DEVICE)
    assert found["extra"] <= 256e6


@on_hardware
@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32"])
def test_extra_memory_of_given_activations(precision):
    t, s = (torch.randn(2**20, n, device=DEVICE, dtype=dtype_of(precision)) for n in (100, 1000))
    assert measure(lambda: cross_moments(t, s, True, precision), DEVICE)["extra"] <= 256e6


@on_hardware
def test_extra_memory_of_a_population():
    args = layers(2**17, 100, 20, 200, 256)
    assert measure(lambda: layer_moments(*args)[0], DEVICE)["extra"] <= 256e6


@on_hardware
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_million_samples_are_as_right_as_a_thousand(precision):
    args = layers(2**20, 20, 50, 500)
    want = reference.layer_moments(*on(DEVICE, args, torch.float64), 0.0, "fp64", False, False)
    got, _ = layer_moments(*args, precision=precision)
    assert max(errors(got, want).values()) <= {"fp32": 1e-6, "tf32": 2e-3}[precision]
