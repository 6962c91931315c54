"""Populations measured in blocks of students: as the CPU measures them, whatever the plan and the company."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE, EVERY_PLAN, free_gib, layers, on_hardware

import fastspec as fs
from benchmarks.memory import measure as extra_memory
from fastspec.ops.layer_moments import layer_moments, plans

pytestmark = pytest.mark.gpu
MULTI, SEEDS = [1, 2, 5, 10], 6


def of_study(nodes, dtype, slope=0.0):
    """Teacher, students of the two-layer study's widths with weights like trained ones, and inputs."""
    teacher = fs.teachers.two_layer(d=100, m=nodes, c=50, seed=0, dtype=dtype)
    teacher.negative_slope = slope
    students = fs.Population.two_layer(teacher, multi=MULTI, seeds=range(SEEDS), std=0.1)
    draw = torch.Generator().manual_seed(0)
    for bias in (students.b1, students.b2):
        bias.copy_(0.3 * torch.randn(bias.shape, generator=draw, dtype=dtype))
    return teacher, students, fs.data.gaussian(3000, 100, std=1.5, seed=1, dtype=dtype)


def measured(teacher, students, x, plan="blocks", coactivation=False):
    with plans.force(plan):
        found = fs.measure(teacher.to(DEVICE), students.to(DEVICE), x.to(DEVICE), coactivation=coactivation)
    teacher.cpu()
    return found.to("cpu")


@pytest.mark.parametrize("plan", EVERY_PLAN)
@pytest.mark.parametrize("slope, coactivation", [(0.0, False), (0.2, True)])
@pytest.mark.parametrize("nodes, dtype", [(5, torch.float32), (20, torch.float32), (10, torch.float64)])
def test_the_study_is_measured_as_on_the_cpu(nodes, dtype, slope, coactivation, plan):
    teacher, students, x = of_study(nodes, dtype, slope)
    want = fs.measure(teacher, students, x, coactivation=coactivation)
    got = measured(teacher, students, x, plan, coactivation)
    rounding, near_0 = (1e-5, 1) if dtype == torch.float32 else (1e-11, 0)
    torch.testing.assert_close(got.loss, want.loss, rtol=rounding, atol=0)
    for k in range(len(students)):
        here, there = want.moments(k), got.moments(k)
        torch.testing.assert_close(there.correlation(), here.correlation(), rtol=0, atol=rounding)
        torch.testing.assert_close(there.student_scatter, here.student_scatter, rtol=rounding, atol=0)
        deviation = (here.student_scatter / len(x)).sqrt()
        assert ((there.student_mean - here.student_mean).abs() <= rounding * deviation).all()
        assert (there.student_active - here.student_active).abs().max() <= near_0
        if coactivation:
            assert (there.coactive - here.coactive).abs().max() <= 2 * near_0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_student_is_the_same_bit_for_bit_in_any_company(dtype):
    """Its loss too: 24 students of four widths, among them 17, with 60 others, and alone."""
    teacher, students, x = of_study(7, dtype)
    together = measured(teacher, students, x)
    more = fs.Population.two_layer(teacher, multi=[5], seeds=range(60), std=0.1)
    crowd = fs.Population.from_weights([*(more.weights(k) for k in range(60)), students.weights(17)])
    for company, place in ((students.select([17]), 0), (students.select([3, 17, 12, 20]), 1), (crowd, 60)):
        found = measured(teacher, company, x)
        assert torch.equal(found.loss[place], together.loss[17])
        for name, tensor in found.moments(place).tensors().items():
            assert torch.equal(tensor, together.moments(17).tensors()[name]), name


@pytest.mark.parametrize("samples", [1, 2, 255, 257])
def test_few_samples(samples):
    teacher, students, x = of_study(5, torch.float64)
    got, want = measured(teacher, students, x[:samples]), fs.measure(teacher, students, x[:samples])
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-11, atol=0)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.layers["hidden1"].student_mean, b.layers["hidden1"].student_mean)


def test_students_that_are_not_finite_are_refused():
    teacher, students, x = of_study(5, torch.float32)
    students.w1[-1, 3] = 1e38
    with pytest.raises(ValueError, match="hidden1: student: got NaN, infinite or too large"):
        measured(teacher, students, 100 * x)


@on_hardware
@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_extra_memory_of_blocks(precision, activations):
    """Beyond the activations that are handed out."""
    free_gib(8)
    args = layers(2**14 if activations else 2**17, 100, 20, 200, 256)
    with plans.force("blocks"):
        found = extra_memory(
            lambda: _tensors(layer_moments(*args, activations=activations, precision=precision)), DEVICE
        )
    assert found["extra"] <= 256e6


def _tensors(result):
    moments, kept = result
    return [*moments, *(kept or ())]
