"""What the papers say of trained students: the L-shape, strong teachers first, more nodes cover more of them."""

from __future__ import annotations

import pytest
import torch

import fastspec as fs
from fastspec.theory import alignment

MULTI, SEEDS, EARLY, LATE = (1, 2, 5, 10), range(6), 1000, 30_000


@pytest.fixture(scope="module")
def trained():
    """A teacher of falling strength, and its students early and late with their measurements."""
    teacher = fs.teachers.two_layer(30, 10, 20, strength_decay=1.0, seed=0)
    students = fs.Population.two_layer(teacher, multi=MULTI, seeds=SEEDS)
    x = fs.data.gaussian(10_000, 30, std=1.5, seed=1)
    held_out = fs.data.gaussian(4000, 30, std=1.5, seed=2)
    history = fs.train_two_layer(teacher, students, x, steps=LATE, lr=0.02, snapshots=[EARLY, LATE], progress=False)
    return teacher, {step: (s, fs.measure(teacher, s, held_out)) for step, s in history.snapshots.items()}


def of(multi: int) -> list[int]:
    """Students of a multiple, in the population's order."""
    start = MULTI.index(multi) * len(SEEDS)
    return list(range(start, start + len(SEEDS)))


def test_the_l_shape(trained):
    """Of wide students a node that is like no teacher node has little fan-out; nodes of large fan-out are like one."""
    _, found = trained
    students, measured = found[LATE]
    rho = torch.cat([measured.max_teacher_correlation(k) for k in of(10)])
    fan_out = torch.cat([students.fan_out()[k] for k in of(10)]).double()
    matched, unlike = fan_out[rho > 0.95], fan_out[rho < 0.9]
    assert len(matched) > 300 and len(unlike) >= 10
    assert unlike.median() < 0.5 * matched.median() and unlike.max() < 0.25 * matched.max()
    assert (rho[fan_out > 0.3 * fan_out.max()] > 0.95).all()


def test_strong_teacher_nodes_are_covered_first(trained):
    _, found = trained
    covered = found[EARLY][1].success()[of(5) + of(10)].double().mean(0)  # [teacher], share of students
    assert covered[:4].min() == 1 and covered[-2:].max() == 0
    assert covered[:3].mean() > covered[3:6].mean() > covered[6:].mean()


def test_more_nodes_cover_more_in_fewer_steps(trained):
    _, found = trained
    early, late = (
        [float(found[step][1].coverage(0.95)[of(multi)].mean()) for multi in MULTI] for step in (EARLY, LATE)
    )
    assert early[0] < early[1] < early[2] < early[3]
    assert late[0] < late[1] < late[2] == late[3] == 1
    assert all(b > a for a, b in zip(early, late, strict=True))


def test_matched_nodes_are_aligned(trained):
    """Correlation on held-out data and the angle of weight vectors tell the same."""
    teacher, found = trained
    students, measured = found[LATE]
    for k in of(5):
        aligned = alignment(teacher.weights()[0], students.weights(k)[0])
        rho = measured.moments(k).correlation()
        assert aligned.sin[rho > 0.995].max() < 0.15 and aligned.bias_gap[rho > 0.995].max() < 0.15
        assert aligned.angle[rho < 0.5].min() > 0.8
