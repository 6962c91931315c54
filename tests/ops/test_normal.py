"""Normal numbers from words: exact quantiles to the stated error, and the law they follow."""

from __future__ import annotations

import torch
from scipy.special import ndtri
from scipy.stats import kstest

from fastspec.ops.normal import fresh_inputs, standard_normals


def test_quantiles():
    edges = torch.tensor([0, 1, 2, 3, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1])
    words = torch.cat([edges, torch.randint(2**32, (200_000,)), 2 ** torch.arange(32)])
    quantile = -torch.from_numpy(ndtri(((words & 0x7FFFFFFF).double() + 0.5).numpy() / 2**32))
    exact = torch.where(words >= 2**31, -quantile, quantile)
    got = standard_normals(words)
    assert got.dtype == torch.float32
    assert (got.double() - exact).abs().max() < 2e-6


def test_law():
    x = fresh_inputs(torch.arange(5), torch.arange(40), 50, 20, 3.0, torch.float64)
    assert x.shape == (5, 40, 50, 20)
    assert kstest(x.flatten().numpy() / 3.0, "norm").pvalue > 1e-3
    flat = x.flatten(0, 2)
    correlation = torch.corrcoef(flat.T) - torch.eye(20)
    assert correlation.abs().max() < 5 / len(flat) ** 0.5  # 5 standard deviations
    assert x.unique().numel() > 0.99 * x.numel()


def test_a_batch_does_not_depend_on_the_others():
    seeds, steps = torch.tensor([3, -7]), torch.tensor([0, 9, 2**40])
    many = fresh_inputs(seeds, steps, 6, 5, 1.0, torch.float32)
    for s in range(2):
        for t in range(3):
            assert torch.equal(
                fresh_inputs(seeds[s : s + 1], steps[t : t + 1], 6, 5, 1.0, torch.float32)[0, 0], many[s, t]
            )
    assert torch.equal(fresh_inputs(seeds, steps, 4, 5, 1.0, torch.float32), many[:, :, :4])
