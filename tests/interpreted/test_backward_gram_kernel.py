"""The Triton kernel of backward_gram."""

from __future__ import annotations

import math

import pytest
import torch
from placed import KINDS, distant, placed
from problems import draw

from fastspec.ops.backward_gram import reference
from fastspec.ops.backward_gram import triton as kernel
from fastspec.ops.precision import PRECISIONS

BOTH = (True, True)


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    """Tiles, spans and rounds so small that 15 samples of 3 rows have several of each."""
    monkeypatch.setattr(kernel, "TILES", dict.fromkeys(PRECISIONS, (8, 4, 16, 4, 1)))
    monkeypatch.setattr(kernel, "SPAN", 16)
    monkeypatch.setattr(kernel, "WORKSPACE", 9000)


def problem(samples, rows, m, n, *population, **kind):
    gates = [draw(samples, m, **kind), draw(*population, samples, n, **kind)]
    return [draw(samples, rows, m, **kind), gates[0], draw(*population, samples, rows, n, **kind), gates[1]]


def assert_exact(args, ungated=True, within=True, precision="fp32"):
    got = kernel.backward_gram(*args, ungated, within, precision)
    want = reference.backward_gram(*args, ungated, within, precision)
    for i, (a, w) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == w.dtype and torch.equal(a, w), i


@pytest.mark.parametrize("population", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("samples, rows, m, n", [(15, 3, 5, 21), (30, 1, 8, 16), (1, 1, 1, 1), (2, 25, 6, 4)])
def test_exact(population, dtype, samples, rows, m, n):
    args = [placed(a, "rows") for a in problem(samples, rows, m, n, *population, dtype=dtype)]
    assert_exact(args, precision="fp64" if dtype == torch.float64 else "fp32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("population", [(), (2,)])
def test_any_strides(kind, population):
    assert_exact([placed(a, kind) for a in problem(13, 3, 5, 21, *population)])


@pytest.mark.parametrize("gated, ungated, within", [(True, True, False), (True, False, True), (False, True, True)])
def test_what_was_not_asked_for_is_empty(gated, ungated, within):
    args = problem(13, 3, 5, 21)
    assert_exact(args if gated else [args[0], None, args[2], None], ungated, within)


def test_exact_in_tiles_of_their_true_size(monkeypatch):
    monkeypatch.undo()
    assert_exact(problem(11, 13, 70, 66))


@pytest.mark.parametrize("precision", PRECISIONS[2:])
def test_every_precision(precision):
    assert_exact(problem(13, 3, 5, 21), precision=precision)


@pytest.mark.parametrize("where", range(4))
def test_nan_is_kept(where):
    args = problem(13, 3, 5, 21)
    args[where].view(-1)[7] = math.nan
    got, want = (way.backward_gram(*args, True, True, "fp32") for way in (kernel, reference))
    for a, w in zip(got, want, strict=True):
        torch.testing.assert_close(a, w, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (6, 0, 4, 5), (6, 3, 0, 5), (6, 3, 4, 0), (6, 3, 4, 5, 0)], ids=str)
def test_empty_problems(shape):
    assert_exact(problem(*shape))


def test_within_twice_the_error_of_torch():
    args = problem(40, 3, 5, 18, integer=False)
    exact = reference.backward_gram(*(a.double() for a in args), *BOTH, "fp64")
    got, peer = (way.backward_gram(*args, *BOTH, "fp32") for way in (kernel, reference))
    for a, p, w in zip(got, peer, exact, strict=True):
        error, of_torch = (float((x - w).abs().max() / w.abs().max()) for x in (a, p))
        assert error <= 2 * of_torch + torch.finfo(torch.float32).eps * 120**0.5


@pytest.mark.parametrize("stride", [2**31 - 64, 2**31 + 64])
@pytest.mark.parametrize(
    "argument, axis", [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 1), (3, 2)]
)
def test_far_addresses(tmp_path, argument, axis, stride):
    args = problem(5, 3, 4, 6, 3)
    args[argument] = distant(tmp_path, args[argument], axis, stride)
    assert_exact(args)
