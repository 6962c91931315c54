"""backward_gram, chain_gram and the theory on a GPU: exact on integers, and as on the CPU."""

from __future__ import annotations

import pytest
import torch
from gpu_problems import DEVICE, integers, on

import fastspec as fs
from benchmarks.precision import dtype_of
from fastspec.ops.backward_gram import backward_gram
from fastspec.ops.backward_gram import reference as gram_reference
from fastspec.ops.chain_gram import chain_gram
from fastspec.ops.chain_gram import reference as chain_reference
from fastspec.ops.precision import PRECISIONS

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]


def gates(*shape, dtype=torch.float32):
    return torch.where(torch.rand(shape, device=DEVICE) < 0.5, 1.0, 0.5).to(dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("population", [(), (3,)])
@pytest.mark.parametrize("samples, rows, m, n", [(700, 13, 70, 130), (9000, 1, 5, 33), (3, 5000, 40, 7)])
def test_grams_of_integers_agree_bitwise_with_the_cpu_reference(samples, rows, m, n, population, precision):
    dtype = dtype_of(precision)
    args = [integers(samples, rows, m, dtype=dtype), gates(samples, m, dtype=dtype)]
    args += [integers(*population, samples, rows, n, dtype=dtype), gates(*population, samples, n, dtype=dtype)]
    got = backward_gram(*args, precision=precision)
    want = gram_reference.backward_gram(*on("cpu", args, torch.float64), True, True, "fp64")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_chains_of_integers(dtype):
    teacher = [integers(4, 3, dtype=dtype, low=-1, high=2), integers(5, 4, dtype=dtype, low=-1, high=2)]
    student = [integers(2, 9, 7, dtype=dtype, low=-1, high=2), integers(2, 5, 9, dtype=dtype, low=-1, high=2)]
    sides = (
        teacher,
        [gates(50, n, dtype=dtype) for n in (3, 4)],
        student,
        [gates(2, 50, n, dtype=dtype) for n in (7, 9)],
    )
    got = [matrix for gram in chain_gram(*sides) for matrix in gram]
    want = chain_reference.chain_gram(*(on("cpu", side, torch.float64) for side in sides), True)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


def pair(kind):
    """A teacher and a student in float64, and samples, on the CPU."""
    draw = torch.Generator().manual_seed(0)
    if kind == "fully connected":
        teacher = fs.MLP([5, 6, 4, 3], negative_slope=0.1, dtype=torch.float64, seed=1)
        x = torch.randn(40, 5, generator=draw, dtype=torch.float64)
    else:
        teacher = fs.ConvNet((2, 6, 6), [3, 2], 4, batch_norm="before", dtype=torch.float64, seed=1).eval()
        x = torch.randn(6, 2, 6, 6, generator=draw, dtype=torch.float64)
    return teacher, fs.networks.student_like(teacher, multi=2, seed=2).eval(), x


@pytest.mark.parametrize("kind", ["fully connected", "convolutional"])
def test_the_theory_agrees_with_the_cpu(kind):
    teacher, student, x = pair(kind)
    want = fs.theory.backward_gram(teacher, student, x)
    terms = fs.theory.gradient_terms(teacher, student, x)
    teacher, student, x = (part.to(DEVICE) for part in (teacher, student, x))
    got = fs.theory.backward_gram(teacher, student, x)
    for name, gram in got.items():
        for field in ("beta_student_teacher", "h_student_teacher", "beta_student_student", "h_teacher_teacher"):
            torch.testing.assert_close(getattr(gram.to("cpu"), field), getattr(want[name], field), rtol=0, atol=1e-11)
    for name, found in fs.theory.gradient_terms(teacher, student, x).items():
        assert found.error() <= 1e-10
        torch.testing.assert_close(found.gradient.cpu(), terms[name].gradient, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", ["exact", "mean_field", "coactivation"])
def test_updates_agree_with_the_cpu(method):
    teacher, student, x = pair("fully connected")
    want = fs.theory.updates(teacher, student, x, method=method)
    got = fs.theory.updates(*(part.to(DEVICE) for part in (teacher, student, x)), method=method)
    for (w, b), (v, c) in zip(got, want, strict=True):
        torch.testing.assert_close((w.cpu(), b.cpu()), (v, c), rtol=0, atol=1e-11)
