"""What a two-layer run records, against plain computations on single students."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from fastspec import data, teachers
from fastspec.experiments import snapshots
from fastspec.experiments.arrays import logarithmic_steps
from fastspec.measure import measure
from fastspec.populations import Population

LEVELS = (0.0, 0.3, 0.5)


@pytest.fixture(scope="module")
def made():
    teacher = teachers.two_layer(6, 3, 4, strength_decay=1.0, seed=0, dtype=torch.float64)
    students = Population.two_layer(teacher, multi=[2, 1], seeds=[0, 1], std=0.5)
    students.w1[students.nodes(1).start], students.b1[students.nodes(1).start] = 0.0, -1.0  # a dead node
    x, held_out = (data.gaussian(n, 6, seed=seed, dtype=torch.float64) for n, seed in ((700, 0), (400, 1)))
    return teacher, students, x, held_out, snapshots.snapshot(teacher, students, x, held_out, LEVELS)


def test_steps_on_a_logarithmic_axis():
    steps = logarithmic_steps(30_000, 24)
    assert steps[:2] == [0, 100] and steps[-1] == 30_000 and len(steps) == 24
    ratios = [b / a for a, b in pairwise(steps[1:])]
    assert max(ratios) / min(ratios) < 1.02
    assert logarithmic_steps(3, 24) == [0, 1, 2, 3]


def activations(network, x):
    (w1, b1), (w2, b2) = network
    hidden = (x @ w1.T + b1).clamp(min=0)
    return hidden, hidden @ w2.T + b2


@pytest.mark.parametrize("k", range(4))
def test_a_snapshot_is_that_of_single_students(made, k):
    teacher, students, x, held_out, found = made
    m = 3
    for inputs, suffix in ((held_out, ""), (x, "_train")):
        (t, y), (s, output) = (activations(n, inputs) for n in (teacher.weights(), students.weights(k)))
        with np.errstate(invalid="ignore"):
            rho = np.corrcoef(t.detach().numpy().T, s.numpy().T)[:m, m:]  # NaN for the dead node
        best = np.nanargmax(rho, 1)
        np.testing.assert_allclose(found[f"best_correlation{suffix}"][k], rho[range(m), best], rtol=1e-6)
        np.testing.assert_allclose(found[f"loss{suffix}"][k], ((y - output) ** 2).sum(1).mean().item() / 2)
        if not suffix:
            assert found["best_student"][k].tolist() == best.tolist()
            np.testing.assert_allclose(found["correlation"][students.nodes(k)], rho.T, rtol=1e-5)
            assert found["constant_students"][k] == (k == 1)
            owner = np.argmax(np.nan_to_num(rho, nan=-2), 0)
            strength = np.nan_to_num(rho, nan=-2).max(0)
            expected = [[((owner == j) & (strength > level)).sum() for j in range(m)] for level in LEVELS]
            assert found["students"][k].tolist() == expected
            w, v = students.weights(k)[0][0][best].numpy(), teacher.weights()[0][0].detach().numpy()
            cosine = (w * v).sum(1) / np.linalg.norm(w, axis=1) / np.linalg.norm(v, axis=1)
            np.testing.assert_allclose(found["sine"][k], np.sqrt(1 - cosine**2), rtol=1e-6)


def test_small_angles_are_exact():
    teacher = teachers.two_layer(6, 2, 4, seed=0, dtype=torch.float64)
    (w1, b1), (w2, b2) = ((w.detach().clone(), b.detach()) for w, b in teacher.weights())
    across = torch.linspace(-1, 2, 6).double()
    across -= (across @ w1[0]) * w1[0]
    w1[0] += 1e-9 * across / across.norm()
    students = Population.from_weights([[(3 * w1, b1), (w2, b2)]])
    sine = snapshots.sines(teacher, students, torch.tensor([[0, -1]]))
    assert sine[0, 0].item() == pytest.approx(1e-9, rel=1e-5)
    assert sine[0, 1].isnan()


@pytest.mark.parametrize("k", range(4))
def test_per_sample_gradient_is_that_of_autograd(made, k):
    teacher, students, x, _, _ = made
    found = snapshots.per_sample_gradient(teacher, students, x)
    (w1, b1), (w2, b2) = students.weights(k)
    z = (x @ w1.T + b1).requires_grad_()
    residual = teacher(x).detach() - (z.clamp(min=0) @ w2.T + b2)
    (g,) = torch.autograd.grad(residual.square().sum() / 2, z)
    torch.testing.assert_close(found["gradient_max"][k], g.abs().max())
    torch.testing.assert_close(found["gradient_rms"][k], g.square().sum(1).mean().sqrt())


def test_ranks_are_those_of_the_moments(made):
    teacher, students, x, held_out, found = made
    early, late = measure(teacher, students, x), measure(teacher, students, held_out)
    correlation = torch.empty(len(students.w1), 3)
    for k in range(4):
        correlation[students.nodes(k)] = early.moments(k).correlation().mT.float()
    rank = snapshots.ranks(students, correlation, found["best_student"])
    expected = torch.stack([early.moments(k).rank_of_winners(late.moments(k)) for k in range(4)])
    torch.testing.assert_close(rank, expected.float())
    assert 0 < (rank > 0).sum() < rank.numel()
