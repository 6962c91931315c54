"""Angles, bias gaps and observers."""

from __future__ import annotations

import math

import pytest
import torch
from theory_problems import F64, normal

import fastspec as fs
from fastspec.theory import alignment, observers


def test_angles_of_known_vectors():
    teacher = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=F64), torch.tensor([2.0, -3.0], dtype=F64)
    student = torch.tensor([[5.0, 0.0], [1.0, 1.0], [0.0, -2.0]], dtype=F64), torch.tensor([0.0, 1.0, 4.0], dtype=F64)
    found = alignment(teacher, student)
    quarter = math.pi / 4
    torch.testing.assert_close(
        found.angle, torch.tensor([[0, quarter, 2 * quarter], [2 * quarter, quarter, 4 * quarter]], dtype=F64)
    )
    torch.testing.assert_close(found.sin, found.angle.sin())
    gaps = [0, 1 / 2**0.5, 2]
    want = torch.tensor([[abs(g - offset) for g in gaps] for offset in (2, -1)], dtype=F64)
    torch.testing.assert_close(found.bias_gap, want)


@pytest.mark.parametrize("angle", [1e-3, 1e-9, 1e-14])
def test_small_angles_are_accurate(angle):
    u = torch.nn.functional.normalize(normal(2, 30), dim=1)
    v = u[1] - (u[1] @ u[0]) * u[0]
    turned = math.cos(angle) * u[0] + math.sin(angle) * v / v.norm()
    many = (7 * turned).expand(30, -1)  # for so many torch.cdist would subtract squares
    found = alignment((u[:1], None), (many, None)).angle
    assert found.flatten().tolist() == pytest.approx([angle] * 30, abs=3e-16)


def test_a_node_without_a_direction_is_nan():
    found = alignment((torch.ones(1, 3), None), (torch.zeros(2, 3), torch.zeros(2)))
    assert found.angle.isnan().all() and found.bias_gap.isnan().all()


def test_specialised_students_are_found():
    """Small angle and small bias gap where activations correlate above .999, and nowhere else."""
    teacher = fs.teachers.two_layer(20, 5, 8, seed=0, dtype=F64)
    student = fs.networks.student_like(teacher, multi=2, seed=1)
    (w, b), (v, a) = teacher.weights()[0], student.weights()[0]
    w_s, b_s = torch.cat([3 * w[:3], v[3:]]), torch.cat([3 * b[:3], a[3:]])
    found = alignment((w, b), (w_s, b_s))
    specialised = (found.sin < 1e-7) & (found.angle < 1) & (found.bias_gap < 1e-7)
    moments = fs.layer_moments(normal(4000, 20), (w, b), (w_s, b_s))
    assert torch.equal(specialised, moments.correlation() > 0.999)
    assert specialised.nonzero().tolist() == [[0, 0], [1, 1], [2, 2]]


def test_observers_see_both_sides():
    t = torch.tensor([[0.0, 1, 1], [2, 0, 3], [0, 0, 1], [1, 0, 2]])
    s = torch.tensor([[1.0, 0], [2, 1], [0, 0], [0, 3]])
    moments = fs.cross_moments(t, s, coactivation=True)
    # student 0 is active on samples 0 and 1, student 1 on 1 and 3
    assert observers(moments).tolist() == [[True, False], [True, False], [False, False]]
    assert not observers(moments, at_least=2).any()


BAD = {
    "inputs": (
        lambda: alignment((torch.ones(2, 3), None), (torch.ones(2, 4), None)),
        ValueError,
        "student weight: got shape",
    ),
    "layer": (
        lambda: alignment(torch.ones(2, 3), (torch.ones(2, 3), None)),
        TypeError,
        "teacher: got Tensor; takes a pair",
    ),
    "bias": (
        lambda: alignment((torch.ones(2, 3), torch.ones(3)), (torch.ones(2, 3), None)),
        ValueError,
        "teacher bias: got",
    ),
    "NaN": (
        lambda: alignment((torch.ones(2, 3), None), (torch.full((1, 3), math.nan), None)),
        ValueError,
        "student weight: got 3",
    ),
    "dtype": (
        lambda: alignment((torch.ones(2, 3), None), (torch.ones(2, 3).double(), None)),
        TypeError,
        "student weight: got dtype",
    ),
    "no coactivation": (
        lambda: observers(fs.cross_moments(torch.rand(9, 2), torch.rand(9, 2))),
        ValueError,
        "coactivation",
    ),
    "threshold": (
        lambda: observers(fs.cross_moments(torch.rand(9, 2), torch.rand(9, 2)), 0),
        ValueError,
        "at_least: got 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
